package sim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Scheme verifies reports of the platforms whose roots it was given; its zero value
// believes none. It is immutable.
type Scheme struct {
	roots map[[PlatformIDSize]byte]ed25519.PublicKey
}

// NewScheme returns a scheme for the roots that genesis names. Roots must be Ed25519
// keys, each listed once.
func NewScheme(roots ...crypto.PublicKey) (*Scheme, error) {
	s := &Scheme{roots: make(map[[PlatformIDSize]byte]ed25519.PublicKey, len(roots))}
	for i, root := range roots {
		pub, ok := root.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("sim root %d: %T, want an Ed25519 public key", i, root)
		}
		id, err := PlatformID(pub)
		if err != nil {
			return nil, fmt.Errorf("sim root %d: %w", i, err)
		}
		if _, ok := s.roots[id]; ok {
			return nil, fmt.Errorf("sim root %d: %s is listed twice", i, hexID(id))
		}
		s.roots[id] = pub
	}
	return s, nil
}

// Kind implements attest.Scheme.
func (*Scheme) Kind() string { return attest.KindSim }

// Verify implements attest.Scheme: exactly one report, by a known platform, correctly
// signed, carrying data.
func (s *Scheme) Verify(_ context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	if ev.Kind != attest.KindSim {
		return refuse(attest.CodeMalformed, "kind", ev.Kind, attest.KindSim, nil)
	}
	if len(ev.Items) != 1 || ev.Items[0].Type != attest.TypeSimReport {
		return refuse(attest.CodeMalformed, "items", fmt.Sprintf("%d items", len(ev.Items)), "one "+attest.TypeSimReport, nil)
	}
	r, err := ParseReport(ev.Items[0].Data)
	if err != nil {
		return refuse(attest.CodeMalformed, "report", "undecodable bytes", "a sim report", err)
	}
	root, ok := s.roots[r.Platform]
	if !ok {
		return refuse(attest.CodeNotGenuine, "platform", hexID(r.Platform), fmt.Sprintf("one of the %d roots in genesis", len(s.roots)), nil)
	}
	if !ed25519.Verify(root, r.signed(), r.Signature[:]) {
		return refuse(attest.CodeNotGenuine, "signature", "an invalid signature", "the signature of platform "+hexID(r.Platform), nil)
	}
	if data != nil && subtle.ConstantTimeCompare(r.ReportData[:], data[:]) != 1 {
		return refuse(attest.CodeNotBound, "report_data", hex.EncodeToString(r.ReportData[:]), hex.EncodeToString(data[:]), nil)
	}
	return attest.Claims{
		Kind:        attest.KindSim,
		Genuine:     true,
		Bound:       data != nil,
		Measurement: hex.EncodeToString(r.Measurement[:]),
		ReportData:  hex.EncodeToString(r.ReportData[:]),
		At:          at,
		Sim:         &attest.SimClaims{Platform: hexID(r.Platform)},
	}, nil
}

func refuse(code attest.Code, claim, got, want string, err error) (attest.Claims, error) {
	return attest.Claims{}, &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}
