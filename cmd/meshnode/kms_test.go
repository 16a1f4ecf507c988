package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
)

// trialKMS is the plug-in sigstore-kms-trial: a program of its own that answers sigstore's
// protocol v1. Its keys are made from their names: ed25519/NAME, p256/NAME. Other names
// misbehave.
func trialKMS() int {
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	id := args.InitOptions.KeyResourceID
	mode, name, _ := strings.Cut(id, "/")
	signing := args.MethodName == common.SignMessageMethodName
	switch {
	case mode == "denied" && signing || mode == "unknown":
		_ = handler.WriteErrorResponse(os.Stdout, fmt.Errorf("access to %q is denied", id))
		return 1
	case mode == "slow":
		time.Sleep(200 * time.Millisecond) // what is slow is the program: nothing to wait for
	case mode == "stuck" && signing:
		time.Sleep(time.Hour)
	case mode == "babble":
		fmt.Println("hello")
		return 0
	case mode == "empty":
		fmt.Println("{}")
		return 0
	case mode == "dies":
		return 3
	}
	key := trialKey(mode, name)
	if mode == "other" && signing {
		key = trialKey("ed25519", "another")
	}
	if _, err := handler.Dispatch(os.Stdout, os.Stdin, args, trialSigner{key}); err != nil {
		return 1
	}
	return 0
}

func trialKey(mode, name string) crypto.Signer {
	seed := sha256.Sum256([]byte("trial kms " + name))
	switch mode {
	case "p256":
		seed[0] = 1 // below the order of the group
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
		if err != nil {
			panic(err)
		}
		return key
	case "rsa":
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	}
	return ed25519.NewKeyFromSeed(seed[:])
}

// trialSigner is what the plug-in's handler calls.
type trialSigner struct{ key crypto.Signer }

func (s trialSigner) DefaultAlgorithm() string      { return "ed25519" }
func (s trialSigner) SupportedAlgorithms() []string { return []string{"ed25519", "ecdsa-p256"} }
func (s trialSigner) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("keys are made elsewhere")
}
func (s trialSigner) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return s.key, crypto.SHA256, nil
}
func (s trialSigner) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.key.Public(), nil
}
func (s trialSigner) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	signer, err := signature.LoadSigner(s.key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return signer.SignMessage(message, opts...)
}
func (s trialSigner) VerifySignature(sig, message io.Reader, opts ...signature.VerifyOption) error {
	v, err := signature.LoadVerifier(s.key.Public(), crypto.SHA256)
	if err != nil {
		return err
	}
	return v.VerifySignature(sig, message, opts...)
}

// A plug-in that misbehaves signs nothing, says why in words, and never keeps a person waiting
// for longer than it may.
func TestKMSMisbehaves(t *testing.T) {
	if underRace {
		t.Skip("waits for a plug-in that is slow by itself")
	}
	sign := func(uri string, within time.Duration) error {
		k, err := openKMS(t.Context(), uri, within)
		if err != nil {
			return err
		}
		_, err = k.SignMessage(strings.NewReader("message"))
		return err
	}
	for uri, want := range map[string]struct {
		exit    int
		code    string
		message string
	}{
		"trial://ed25519/a": {}, "trial://p256/a": {}, "trial://slow/a": {},
		"trial://denied/a": {exitUnavailable, "kms_failed", `access to "denied/a" is denied`},
		"trial://unknown":  {exitUnavailable, "kms_failed", `access to "unknown" is denied`},
		"trial://babble":   {exitUnavailable, "kms_failed", "parsing plugin response"},
		"trial://empty":    {exitUnavailable, "kms_failed", "lacks what was asked for"},
		"trial://dies":     {exitUnavailable, "kms_failed", "parsing plugin response"},
		"trial://other/a":  {exitRefused, "bad_signature", "signature does not hold"},
		"trial://rsa":      {exitUsage, "usage", "neither Ed25519 nor ECDSA P-256"},
		"absent://a":       {exitUsage, "usage", "no program sigstore-kms-absent in PATH"},
		"../trial://a":     {exitUsage, "usage", "is no key of a plug-in"},
		"trial://":         {exitUsage, "usage", "is no key of a plug-in"},
	} {
		err := sign(uri, time.Minute)
		var f *failure
		if want.code == "" {
			if err != nil {
				t.Errorf("%s: %v", uri, err)
			}
			continue
		}
		if !errors.As(err, &f) || f.exit != want.exit || f.code != want.code || !strings.Contains(f.message, want.message) || f.remedy == "" {
			t.Errorf("%s: got %+v, want %+v", uri, err, want)
		}
	}
	// One that never answers is given up, and one whose command is interrupted too.
	var f *failure
	if err := sign("trial://stuck/a", 3*time.Second); !errors.As(err, &f) || f.exit != exitUnavailable || f.code != "kms_timeout" || !strings.Contains(f.message, "has not answered within 3s") {
		t.Errorf("stuck: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k, err := openKMS(ctx, "trial://stuck/a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := k.SignMessage(strings.NewReader("message")); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
