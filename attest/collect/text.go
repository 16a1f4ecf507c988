package collect

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
)

// leastText is the least size of a text that is taken for encoded bytes. Nothing we know is
// smaller, and words are.
const leastText = 256

// fromText returns the bytes of a file that is all hex, with or without 0x, or all base64,
// broken into lines or not; nil of any other.
func fromText(raw []byte) []byte {
	if len(raw) < leastText {
		return nil
	}
	text := bytes.Join(bytes.Fields(raw), nil)
	if decoded, err := hex.DecodeString(string(bytes.TrimPrefix(text, []byte("0x")))); err == nil {
		return decoded
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		if decoded, err := enc.DecodeString(string(text)); err == nil {
			return decoded
		}
	}
	return nil
}
