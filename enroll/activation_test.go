package enroll

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// tpm is a machine with a TPM, by the rules of the trial: evidence is its key's name and the
// report data, an endorsement the names of both keys, the answer to a challenge its digest.
type tpm struct {
	ek, ak string
	trust  string // why the scheme believes ak
	lie    func(challenge, answer []byte) []byte
	broken error
}

func nameOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// Kind implements attest.Attester and attest.Scheme.
func (*tpm) Kind() string { return attest.KindVTPM }

// Attest implements attest.Attester.
func (m *tpm) Attest(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{Kind: attest.KindVTPM, Items: []attest.Item{{Type: attest.TypeTPMQuote, Data: append(data[:], m.trust+"/"+m.ak...)}}}, nil
}

// Verify implements attest.Scheme.
func (*tpm) Verify(_ context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	raw := ev.Items[0].Data
	if !bytes.HasPrefix(raw, data[:]) {
		return attest.Claims{}, &attest.Error{Reason: attest.NewReason(attest.CodeNotBound, "nonce", "", "")}
	}
	trust, ak, _ := strings.Cut(string(raw[attest.ReportDataSize:]), "/")
	return attest.Claims{Kind: attest.KindVTPM, Genuine: true, Bound: true, Measurement: booted, At: at,
		VTPM: &attest.VTPMClaims{AKDigest: nameOf(ak), AKTrust: trust}}, nil
}

// Endorse implements Activator.
func (m *tpm) Endorse(context.Context) ([]byte, error) { return []byte(m.ek + "/" + m.ak), m.broken }

// Activate implements Activator.
func (m *tpm) Activate(_ context.Context, challenge []byte) ([]byte, error) {
	answer := []byte(nameOf(string(challenge)))
	if m.lie != nil {
		answer = m.lie(challenge, answer)
	}
	return answer, nil
}

// authority is an attestation CA that believes one endorsement key, and no challenge twice.
func authority() Activate {
	count := 0
	return func(endorsement []byte, _ time.Time) (*Activation, error) {
		ek, ak, _ := strings.Cut(string(endorsement), "/")
		if ek != "genuine" {
			return nil, &attest.Error{Reason: attest.NewReason(attest.CodeNoEndorsement, "endorsement key", ek, "a certificate")}
		}
		count++
		challenge := []byte(strings.Repeat("c", count))
		live := true
		return &Activation{Challenge: challenge, AK: nameOf(ak), EK: nameOf(ek), Confirm: func(answer []byte) bool {
			was := live
			live = false
			return was && string(answer) == nameOf(string(challenge))
		}}, nil
	}
}

var booted = nameOf("boot")

// newTPMWorld is an enroller that knows a measured boot.
func newTPMWorld(t *testing.T) *world {
	w := &world{t: t, genesis: testGenesis(t), clock: &clock{now: testTime()}, dir: t.TempDir()}
	w.change = func(cfg *Config) {
		cfg.Releases.Releases = append(cfg.Releases.Releases, Release{Measurement: booted, Kind: attest.KindVTPM, Roles: []string{"trainer"}})
		cfg.Schemes, cfg.Activate = append(cfg.Schemes, new(tpm)), authority()
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) bootTPM(life string, m *tpm) *node {
	n := w.boot("n1", life)
	n.prove(w.t, m)
	n.Activator = m
	return n
}

func TestActivation(t *testing.T) {
	w := newTPMWorld(t)
	n := w.bootTPM("first", &tpm{ek: "genuine", ak: "ak"})
	for range 2 { // a renewal activates anew
		if c := w.mustEnrol(n); c.AK != nameOf("ak") {
			t.Errorf("the Credential names %q", c.AK)
		}
	}
	certified := w.bootTPM("second", &tpm{ak: "ak", trust: attest.AKTrustCertificate})
	certified.Activator = nil
	if c := w.mustEnrol(certified); c.AK != "" {
		t.Errorf("the enroller vouches for a key that it did not activate: %q", c.AK)
	}
	both := w.bootTPM("third", &tpm{ek: "genuine", ak: "ak", trust: attest.AKTrustCertificate})
	if c := w.mustEnrol(both); c.AK != "" {
		t.Errorf("a certified key needs nobody's word, got %q", c.AK)
	}
}

func TestActivationRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		machine tpm
		change  func(*node)
		code    attest.Code
	}{
		"an endorsement key nobody certified": {tpm{ek: "self-made", ak: "ak"}, nil, attest.CodeNoEndorsement},
		"not activated at all":                {tpm{ek: "genuine", ak: "ak"}, func(n *node) { n.Activator = nil }, attest.CodeNotActivated},
		"a wrong answer":                      {tpm{ek: "genuine", ak: "ak", lie: func(_, _ []byte) []byte { return []byte("guess") }}, nil, attest.CodeNotActivated},
		"the challenge itself":                {tpm{ek: "genuine", ak: "ak", lie: func(c, _ []byte) []byte { return c }}, nil, attest.CodeNotActivated},
		"no answer":                           {tpm{ek: "genuine", ak: "ak", lie: func(_, _ []byte) []byte { return nil }}, nil, attest.CodeNotActivated},
		"another machine's key": {tpm{ek: "genuine", ak: "ak"}, func(n *node) {
			n.Activator = &tpm{ek: "genuine", ak: "other"}
		}, attest.CodeWrongAttestationKey},
		"a TPM beside simulated evidence": {tpm{ek: "genuine", ak: "ak"}, func(n *node) { n.prover = nil }, attest.CodeWrongAttestationKey},
		"a broken TPM":                    {tpm{broken: errors.New("no answer")}, nil, attest.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTPMWorld(t)
			n := w.bootTPM("first", &tc.machine)
			if tc.change != nil {
				tc.change(n)
			}
			if n.prover == nil {
				n.prove(t, n.attester)
			}
			_, err := n.enrol()
			wantCode(t, name, err, tc.code)
			if w.server.store.nodes["n1"] != nil {
				t.Error("the refusal changed the state")
			}
		})
	}
}

// A challenge belongs to one connection and is answered once, whatever else comes of it.
func TestActivationIsOfOneConnection(t *testing.T) {
	w := newTPMWorld(t)
	machine := &tpm{ek: "genuine", ak: "ak"}
	n := w.bootTPM("first", machine)
	good := handmade(t, w, n)
	defer func() { good.close() }()
	answer, err := good.conn.activate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := good.another(n)
	other.req.Activation = answer
	wantCode(t, "on another connection", other.send(), attest.CodeNotActivated)
	good.req.Activation = answer
	if err := good.send(); err != nil {
		t.Fatal(err)
	}
	if err := good.conn.hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	good.prove(n, good.conn)
	good.sign(n.PeerKey, n.CosignerKey)
	good.req.Activation = answer
	wantCode(t, "a second time", good.send(), attest.CodeNotActivated)
}

// Where genesis has no roots for TPMs there is no attestation CA, and where it is too old
// there must be none.
func TestEnrollerWithoutActivation(t *testing.T) {
	w := newTPMWorld(t)
	w.stop()
	add := w.change
	w.change = func(cfg *Config) { add(cfg); cfg.Activate = nil }
	w.start()
	n := w.bootTPM("first", &tpm{ek: "genuine", ak: "ak"})
	_, err := n.enrol()
	wantCode(t, "no attestation CA", err, attest.CodeKindNotAllowed)

	cfg := w.config()
	old := *w.genesis
	old.FSMVersion = 2
	cfg.Genesis, cfg.Activate = &old, authority()
	if _, err := NewServer(cfg); err == nil || !strings.Contains(err.Error(), "fsm_version 2") {
		t.Errorf("an old mesh: %v", err)
	}
}
