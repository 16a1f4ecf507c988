// Package ima reads the list of files that a Linux kernel measured (Integrity Measurement
// Architecture, security/integrity/ima) and finds out how much of it a quoted register
// covers. A list proves nothing by itself.
//
// # Formats
//
// ASCII (ascii_runtime_measurements): lines "PCR TEMPLATE-DIGEST TEMPLATE FIELD…" with one
// space between. Binary (binary_runtime_measurements), little endian:
//
//	u32 PCR, template digest, u32 length, template name, u32 length, template data
//
// Template digests are SHA-1, or in the lists that newer kernels keep for each bank
// (…_sha256) that bank's. Template data are the fields in a row, each a u32 length and its
// bytes:
//
//	d-ng        algorithm ":" NUL digest
//	d-ngv2      type ":" algorithm ":" NUL digest
//	n-ng        name NUL
//	sig, buf …  bytes
//
// Templates: ima-ng, ima-sig, ima-buf, ima-ngv2, ima-sigv2, ima-modsig, evm-sig, formats
// written out ("d-ng|n-ng|sig") whose first two fields are a digest and a name, and the
// legacy "ima" (20-byte digest, name; hashed as digest and name padded to 256 bytes).
//
// # What is extended
//
// The register of each bank is extended with the hash, in that bank, of the template data.
// Kernels before 5.8, and newer ones for a bank whose hash they lack, extend the SHA-1
// digest followed by zeros instead. A violation (the file was open for writing, so that its
// digest means nothing) is listed as zeros and extends 0xff bytes.
//
// # What a quote covers
//
// The list is read after the quote, or before: the shortest prefix that replays to the
// quoted register 10 is covered, the rest is not judged. If no prefix does, list and quote
// do not belong together. The name of a template is covered by no digest; what an entry
// says depends on it only where the data fit: a file digest has the size of its algorithm,
// and comes first. Signatures are not checked here.
package ima

import (
	"bytes"
	"crypto"
	"fmt"
	"iter"
)

// Register is the PCR that the kernel extends (CONFIG_IMA_MEASURE_PCR_IDX).
const Register = 10

// Limits, checked before anything is read.
const (
	MaxList    = 8 << 20 // bytes of one list
	MaxEntries = 1 << 16 // entries of one list
	maxName    = 128     // bytes of a template's name
	maxFields  = 16      // of one template
)

// banks are the hashes of registers, by the names that claims use.
var banks = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

// Entry is one measurement. Its slices are valid until the next one is read.
type Entry struct {
	PCR      int
	Template string
	Digest   []byte // of the template, as listed: 20, 32, 48 or 64 bytes
	// Violation is an entry listed as zeros.
	Violation bool
	// Data is the template data, nil where the list does not allow to make it again.
	Data []byte
	// Verified says that Data hashes to Digest. Violations have no such digest.
	Verified  bool
	Algorithm string // of the file's digest: "sha256"
	File      []byte // digest of the file or buffer
	Signature []byte // security.ima
	path      []byte
	sum       []byte
	legacy    bool
}

// Path is what the kernel called the file.
func (e *Entry) Path() string { return string(e.path) }

// Entries reads a list one by one. An error ends it.
func Entries(raw []byte) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		if len(raw) == 0 || len(raw) > MaxList {
			yield(nil, fmt.Errorf("ima: %d bytes, want 1 to %d", len(raw), MaxList))
			return
		}
		read := ascii
		if raw[0] < '0' || raw[0] > '9' || !bytes.ContainsRune(raw[:min(len(raw), 4)], ' ') {
			read = binaryWithSize(raw)
		}
		n, stopped := 0, false
		err := read(raw, func(e *Entry) bool {
			n++
			stopped = !yield(e, nil)
			return !stopped && n <= MaxEntries
		})
		switch {
		case stopped:
		case err != nil:
			yield(nil, err)
		case n > MaxEntries:
			yield(nil, fmt.Errorf("ima: more than %d entries", MaxEntries))
		case n == 0:
			yield(nil, fmt.Errorf("ima: no entries"))
		}
	}
}

// check fills in what follows from Data.
func (e *Entry) check() {
	e.Violation = allZero(e.Digest)
	if e.Data == nil {
		return
	}
	e.Verified = !e.Violation && bytes.Equal(e.hash(bankOf(len(e.Digest))), e.Digest)
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// bankOf returns the hash with digests of a size, 0 if there is none.
func bankOf(size int) crypto.Hash {
	switch size {
	case 20:
		return crypto.SHA1
	case 32:
		return crypto.SHA256
	case 48:
		return crypto.SHA384
	case 64:
		return crypto.SHA512
	}
	return 0
}
