package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/regular"
	"github.com/sigstore/sigstore/pkg/signature"
)

const (
	keyBlock    = "PRIVATE KEY" // PKCS#8
	maxKeyFile  = 16 << 10
	maxSignFile = envelope.MaxSize + 1 // an editor may have added a newline
)

// loadKey reads an Ed25519 or P-256 private key from a PKCS#8 PEM file that nobody but
// its owner can read.
func loadKey(path string) (crypto.Signer, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, usageError("give the path of a key that meshnode keygen made", "key: %v", err)
	}
	if !st.Mode().IsRegular() {
		return nil, usageError("give the path of a key that meshnode keygen made", "key %s: is not a file", path)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, usageError("chmod 600 "+path, "key %s: mode %04o lets others read it", path, mode)
	}
	data, err := readLimited(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != keyBlock || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, usageError("give a key that meshnode keygen made", "key %s: is not one PEM block %q", path, keyBlock)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, usageError("give a key that meshnode keygen made", "key %s: %v", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, usageError("give an Ed25519 or P-256 key", "key %s: %T cannot sign", path, key)
	}
	if _, err := envelope.KeyID(signer.Public()); err != nil {
		return nil, usageError("give an Ed25519 or P-256 key", "key %s: %v", path, err)
	}
	return signer, nil
}

// openKey opens a key that signs envelopes: in a file, or behind a plug-in (NAME://KEY).
func openKey(ctx context.Context, ref string) (signature.Signer, crypto.PublicKey, error) {
	if isKMS(ref) {
		k, err := openKMS(ctx, ref, kmsWithin)
		if err != nil {
			return nil, nil, err
		}
		return k, k.public, nil
	}
	key, err := loadKey(ref)
	if err != nil {
		return nil, nil, err
	}
	s, err := signerOf(key)
	return s, key.Public(), err
}

func signerOf(key crypto.Signer) (signature.Signer, error) {
	switch k := key.(type) {
	case ed25519.PrivateKey:
		return envelope.NewSigner(k)
	case *ecdsa.PrivateKey:
		return envelope.NewSigner(k)
	}
	return nil, fmt.Errorf("%T is neither Ed25519 nor ECDSA P-256", key)
}

// writeKey writes a private key to a new file that only its owner can read.
func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeNew(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), 0o600)
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, data []byte, perm fs.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return usageError("choose another name or move the old file away", "%s: exists already", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usageError("check the path", "%v", err)
	}
	return writeOver(path, data, perm)
}

// writeOver writes a file, whole or not at all.
func writeOver(path string, data []byte, perm fs.FileMode) error {
	st, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return usageError("make the directory first", "%v", err)
	}
	if !st.IsDir() {
		return usageError("check the path", "%s: is not a directory", filepath.Dir(path))
	}
	dir, err := durable.Open(filepath.Dir(path))
	if err != nil {
		return usageError("check the path", "%v", err)
	}
	if err := dir.WriteFile(filepath.Base(path), data, perm); err != nil {
		return unavailableError("unavailable", "check the disk and the directory's permissions", "%v", err)
	}
	return nil
}

// readLimited reads a small file.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, usageError("check the path", "%v", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, usageError("check the path", "%v", err)
	}
	if int64(len(data)) > limit {
		return nil, usageError("give a file that meshnode made", "%s: over the limit of %d bytes", path, limit)
	}
	return data, nil
}

// readSigned reads a file that holds one envelope.
func readSigned(path string) (*envelope.Envelope, error) {
	data, err := readLimited(path, maxSignFile)
	if err != nil {
		return nil, err
	}
	env, err := envelope.Parse(bytes.TrimSuffix(data, []byte("\n")))
	if err != nil {
		return nil, usageError("give a file that meshnode made", "%s: %v", path, err)
	}
	return env, nil
}
