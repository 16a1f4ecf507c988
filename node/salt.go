package node

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/regular"
)

// withSalt returns a as it is, or so that its evidence shows the salt in a file.
func withSalt(a attest.Attester, path string) (attest.Attester, error) {
	if path == "" {
		return a, nil
	}
	salt, err := ReadSalt(path)
	if err != nil {
		return nil, &ConfigError{Field: "attester.hardware_salt", Err: err, Remedy: "make one with meshnode policy hardware, which lists the chip too"}
	}
	return attest.Salted(a, salt), nil
}

// ReadSalt reads the salt of a chip: 64 characters of hex and at most a line feed.
func ReadSalt(path string) (salt [attest.SaltSize]byte, err error) {
	f, err := regular.Open(path)
	if err != nil {
		return salt, err
	}
	defer f.Close()
	const size = 2 * attest.SaltSize
	text, err := io.ReadAll(io.LimitReader(f, size+2))
	if err != nil {
		return salt, err
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	if n, err := hex.Decode(salt[:], text[:min(len(text), size)]); err != nil || n != attest.SaltSize || len(text) != size {
		return salt, fmt.Errorf("%s: %d bytes, want %d characters of hex", path, len(text), size)
	}
	return salt, nil
}
