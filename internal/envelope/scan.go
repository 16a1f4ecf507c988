package envelope

import (
	"bytes"
	"encoding/base64"
)

// scan is Parse of the spelling that nearly all envelopes have: the one that Marshal gives, with
// key ids of plain characters. It returns nil for everything else, and accepts nothing that parse
// does not.
func scan(raw []byte) *Envelope {
	rest, ok := bytes.CutPrefix(raw, []byte(`{"payloadType":"`+PayloadType+`","payload":"`))
	if !ok {
		return nil
	}
	text, rest, ok := bytes.Cut(rest, []byte(`","signatures":[`))
	if !ok {
		return nil
	}
	e := &Envelope{}
	if e.Payload, ok = decode64(text); !ok {
		return nil
	}
	for first := true; ; first = false {
		if string(rest) == "]}" {
			return e
		}
		if !first {
			if rest, ok = bytes.CutPrefix(rest, []byte(",")); !ok {
				return nil
			}
		}
		if rest, ok = bytes.CutPrefix(rest, []byte(`{"keyid":"`)); !ok || len(e.Signatures) == MaxSignatures {
			return nil
		}
		var id, sig []byte
		if id, rest, ok = bytes.Cut(rest, []byte(`","sig":"`)); !ok || !plain(id) {
			return nil
		}
		if sig, rest, ok = bytes.Cut(rest, []byte(`"}`)); !ok {
			return nil
		}
		s := Signature{KeyID: string(id)}
		if s.Sig, ok = decode64(sig); !ok {
			return nil
		}
		e.Signatures = append(e.Signatures, s)
	}
}

// plain reports whether a JSON string holds exactly these characters without any escape.
func plain(s []byte) bool {
	for _, c := range s {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// decode64 decodes the one base64 spelling of something. The library skips line ends.
func decode64(text []byte) ([]byte, bool) {
	out := make([]byte, b64.DecodedLen(len(text)))
	n, err := b64.Decode(out, text)
	return out[:n], err == nil && base64.StdEncoding.EncodedLen(n) == len(text)
}
