package main

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/audit/audittest"
)

// sig is a DSSE signature, in base64.
type sig struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// leaf is a DSSE envelope in its parts.
type leaf struct {
	PayloadType string `json:"payloadType"`
	Payload     string `json:"payload"` // in base64
	Signatures  []sig  `json:"signatures"`
}

func parse(raw []byte) leaf {
	var l leaf
	check(json.Unmarshal(raw, &l))
	return l
}

func (l leaf) bytes() []byte {
	var sigs []string
	for _, s := range l.Signatures {
		sigs = append(sigs, fmt.Sprintf(`{"keyid":"%s","sig":"%s"}`, s.KeyID, s.Sig))
	}
	return fmt.Appendf(nil, `{"payloadType":"%s","payload":"%s","signatures":[%s]}`, l.PayloadType, l.Payload, strings.Join(sigs, ","))
}

// json is the statement that is signed.
func (l leaf) json() string { return string(must(base64.StdEncoding.DecodeString(l.Payload))) }

// set replaces what the statement says, once.
func (l leaf) set(old, new string) leaf {
	was := l.json()
	if strings.Count(was, old) == 0 || old == new {
		panic(fmt.Sprintf("%q is not in %s", old, was))
	}
	l.Payload = base64.StdEncoding.EncodeToString([]byte(strings.Replace(was, old, new, 1)))
	return l
}

// field returns the string that a field of the statement has, at its first occurrence.
func (l leaf) field(name string) string {
	_, rest, ok := strings.Cut(l.json(), `"`+name+`":"`)
	if !ok {
		panic(name + " is not in " + l.json())
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// sign replaces the signatures with those of the keys of labels, as envelopes order them.
func (l leaf) sign(labels ...string) leaf {
	l.Signatures = nil
	for _, label := range labels {
		l.Signatures = append(l.Signatures, l.by(audittest.Key(label)))
	}
	slices.SortFunc(l.Signatures, func(a, b sig) int { return cmp.Compare(a.KeyID, b.KeyID) })
	return l
}

// by is the signature of a key.
func (l leaf) by(key ed25519.PrivateKey) sig {
	payload := l.json()
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(l.PayloadType), l.PayloadType, len(payload), payload)
	id := sha256.Sum256(must(x509.MarshalPKIXPublicKey(key.Public())))
	return sig{hex.EncodeToString(id[:]), base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(pae)))}
}

// kind returns the last word of a leaf's predicate type.
func (l leaf) kind() string {
	var st struct{ PredicateType string }
	check(json.Unmarshal([]byte(l.json()), &st))
	parts := strings.Split(st.PredicateType, "/")
	return parts[len(parts)-2]
}

// first returns the index of the first leaf from an index on that is of a kind and says something.
func (s *spoiled) first(from int, kind string, says ...string) int {
	for i := from; i < len(s.Leaves); i++ {
		l := parse(s.Leaves[i])
		if l.kind() == kind && !slices.ContainsFunc(says, func(w string) bool { return !strings.Contains(l.json(), w) }) {
			return i
		}
	}
	panic(fmt.Sprintf("no %s that says %q", kind, says))
}

// change replaces a leaf.
func (s *spoiled) change(at int, f func(leaf) leaf) { s.Leaves[at] = f(parse(s.Leaves[at])).bytes() }
