package ima

import (
	"bytes"
	"crypto"
	"strings"
)

// The legacy template: a 20-byte digest and a name padded to 256 bytes.
const (
	legacyName = "ima"
	legacySize = 20 + 256
)

// templates of the kernel (security/integrity/ima/ima_template.c, builtin_templates).
var builtin = map[string]string{
	legacyName:   "d|n",
	"ima-ng":     "d-ng|n-ng",
	"ima-sig":    "d-ng|n-ng|sig",
	"ima-ngv2":   "d-ngv2|n-ng",
	"ima-sigv2":  "d-ngv2|n-ng|sig",
	"ima-buf":    "d-ng|n-ng|buf",
	"ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
	"evm-sig":    "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}

// How the kernel shows a field (supported_fields of the same file).
type fieldKind int

const (
	kindUnknown fieldKind = iota
	kindDigest
	kindString // with a final NUL
	kindName   // the legacy name, without
	kindBytes
	kindNumber
)

func kind(id string) fieldKind {
	switch id {
	case "d", "d-ng", "d-ngv2", "d-modsig":
		return kindDigest
	case "n-ng", "xattrnames":
		return kindString
	case "n":
		return kindName
	case "sig", "buf", "modsig", "evmsig", "xattrlengths", "xattrvalues":
		return kindBytes
	case "iuid", "igid", "imode":
		return kindNumber
	}
	return kindUnknown
}

// template returns the fields of a template by its name or written-out format, nil if it
// is not known. The first two are a digest and a name.
func template(name string) []string {
	format, ok := builtin[name]
	if !ok {
		format = name
	}
	fields := strings.Split(format, "|")
	if len(fields) < 2 || len(fields) > maxFields || kind(fields[0]) != kindDigest || fields[1] != "n-ng" && fields[1] != "n" {
		return nil
	}
	for _, id := range fields {
		if kind(id) == kindUnknown {
			return nil
		}
	}
	return fields
}

// take keeps what is asked of a field's bytes. A digest that has not the size of its
// algorithm is kept nowhere.
func (e *Entry) take(i int, id string, v []byte) {
	switch {
	case i == 0:
		e.digest(v, id == "d")
	case i == 1:
		e.path = bytes.TrimSuffix(v, []byte{0})
	case id == "sig" || id == "evmsig":
		e.Signature = v
	}
}

// algorithms a kernel may use (crypto/hash_info.c), with the sizes of their digests.
var algorithms = func() map[string]algorithm {
	out := map[string]algorithm{}
	for name, size := range map[string]int{"md4": 16, "md5": 16, "sha1": 20, "rmd160": 20, "sha224": 28, "sha256": 32, "sha384": 48,
		"sha512": 64, "rmd128": 16, "rmd256": 32, "rmd320": 40, "wp256": 32, "wp384": 48, "wp512": 64, "tgr128": 16, "tgr160": 20,
		"tgr192": 24, "sm3": 32, "sm3-256": 32, "streebog256": 32, "streebog512": 64, "sha3-256": 32, "sha3-384": 48, "sha3-512": 64} {
		out[name] = algorithm{name, size}
	}
	return out
}()

type algorithm struct {
	name string
	size int
}

func (e *Entry) digest(v []byte, bare bool) {
	if bare {
		e.Algorithm, e.File = "sha1", v
		if len(v) == 16 {
			e.Algorithm = "md5"
		}
		return
	}
	i := bytes.IndexByte(v, 0)
	if i < 1 || v[i-1] != ':' {
		return
	}
	name := v[:i-1]
	if j := bytes.IndexByte(name, ':'); j >= 0 { // "ima" or "verity", then the algorithm
		name = name[j+1:]
	}
	if alg, ok := algorithms[string(name)]; ok && alg.size == len(v)-i-1 {
		e.Algorithm, e.File = alg.name, v[i+1:]
		// What fs-verity hashes is not the file's content: it is another digest.
		if bytes.HasPrefix(v, []byte("verity:")) {
			e.Algorithm = "verity:" + alg.name
		}
	}
}

// hash returns what a kernel that knows the bank's hash extends, in memory that the next
// call uses again.
func (e *Entry) hash(bank crypto.Hash) []byte {
	e.sum = appendSum(e.sum[:0], bank, e.Data)
	return e.sum
}
