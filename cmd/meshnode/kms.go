package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// A key that is in no file is behind a plug-in of sigstore's (sigstore/sigstore,
// pkg/signature/kms/cliplugin, protocol v1): NAME://REST is the key REST of the program
// sigstore-kms-NAME in PATH. It is started once for each call; no vendor's SDK is part of this
// program, nor of the measured one.

// kmsWithin bounds one call of a plug-in: a person may have to touch a token.
const kmsWithin = time.Minute

// kmsGrace is what a plug-in gets to end after its time is up.
const kmsGrace = time.Second

var kmsURI = regexp.MustCompile(`^([a-z0-9][a-z0-9-]{0,31})://.`)

// isKMS reports whether --key names a plug-in and not a file.
func isKMS(ref string) bool { return strings.Contains(ref, "://") }

// keyFlagHelp is the help of a flag that takes a key.
func keyFlagHelp(what string) string {
	return "file of " + what + "; or NAME://KEY of the plug-in sigstore-kms-NAME in PATH"
}

// kmsSigner signs through a plug-in. Every signature is verified before it is used.
type kmsSigner struct {
	ctx    context.Context // of the command: sigstore's interface passes none
	uri    string
	within time.Duration
	client signature.Signer
	public crypto.PublicKey
}

// openKMS asks the plug-in of uri for the public key; each call gets within.
func openKMS(ctx context.Context, uri string, within time.Duration) (*kmsSigner, error) {
	m := kmsURI.FindStringSubmatch(uri)
	if m == nil {
		return nil, usageError("write it as NAME://KEY, for the program sigstore-kms-NAME in PATH", "key %s: is no key of a plug-in", uri)
	}
	program := cliplugin.PluginBinaryPrefix + m[1]
	client, err := cliplugin.LoadSignerVerifier(ctx, uri, crypto.SHA256)
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, exec.ErrDot):
		return nil, usageError("install that plug-in into a directory of PATH, or name a key file", "key %s: no program %s in PATH: %v", uri, program, err)
	case err != nil:
		return nil, unavailableError("kms_failed", "try the plug-in by itself", "key %s: %v", uri, err)
	}
	k := &kmsSigner{ctx: ctx, uri: uri, within: within, client: client}
	k.public, err = call(k, func(ctx context.Context) (crypto.PublicKey, error) { return client.PublicKey(options.WithContext(ctx)) })
	if err != nil {
		return nil, err
	}
	if _, err := envelope.KeyID(k.public); err != nil {
		return nil, usageError("make an Ed25519 or P-256 key in the key service", "key %s: %v", uri, err)
	}
	return k, nil
}

// PublicKey implements signature.Signer.
func (k *kmsSigner) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return k.public, nil
}

// SignMessage implements signature.Signer.
func (k *kmsSigner) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	raw, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	sig, err := call(k, func(ctx context.Context) ([]byte, error) {
		return k.client.SignMessage(strings.NewReader(string(raw)), options.WithContext(ctx))
	})
	if err != nil {
		return nil, err
	}
	v, err := signature.LoadVerifier(k.public, crypto.SHA256)
	if err == nil {
		err = v.VerifySignature(strings.NewReader(string(sig)), strings.NewReader(string(raw)))
	}
	if err != nil {
		return nil, refusedError("bad_signature", "look which key the key service signed with; a P-256 key signs SHA-256 of the message, an Ed25519 key the message",
			"key %s: the plug-in's signature does not hold: %v", k.uri, err)
	}
	return sig, nil
}

// call runs one call of the plug-in and waits for it no longer than it may take. A plug-in that
// leaves processes behind which hold its output is left to the system: this program ends.
func call[T any](k *kmsSigner, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(k.ctx, k.within)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			// The client takes an answer without the part that was asked for as if it were there.
			if p := recover(); p != nil {
				a.err = fmt.Errorf("its answer lacks what was asked for: %v", p)
			}
			done <- a
		}()
		a.value, a.err = f(ctx)
	}()
	var none T
	select {
	case a := <-done:
		if a.err == nil {
			return a.value, nil
		}
		return none, k.failed(ctx, a.err)
	case <-ctx.Done():
	}
	select { // it was killed: what it says of that comes at once
	case a := <-done:
		if a.err == nil {
			return a.value, nil
		}
	case <-time.After(kmsGrace):
	}
	return none, k.failed(ctx, ctx.Err())
}

// failed says why a call came to nothing.
func (k *kmsSigner) failed(ctx context.Context, err error) error {
	switch {
	case k.ctx.Err() != nil:
		return k.ctx.Err()
	case ctx.Err() != nil:
		return unavailableError("kms_timeout", "look whether the key service waits for a person, or cannot be reached; nothing was signed", "key %s: the plug-in has not answered within %s", k.uri, k.within)
	case errors.Is(err, cliplugin.ErrorPluginReturnError):
		return unavailableError("kms_failed", "the message is the plug-in's; nothing was signed", "key %s: %v", k.uri, err)
	}
	return unavailableError("kms_failed", "the plug-in does not speak sigstore's protocol v1, or broke off; nothing was signed", "key %s: %v", k.uri, err)
}
