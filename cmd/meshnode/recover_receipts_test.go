package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"filippo.io/torchwood"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/sigstore/sigstore/pkg/signature"
)

// keptMesh is a mesh of three organisations as their offline machines know it: chains of
// policy steps, and keys.
type keptMesh struct {
	t       *testing.T
	dir     string
	genesis *consensus.Genesis
	witness *torchwood.CosignatureSigner
	chain   [][]byte
}

func seeded(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func (m *keptMesh) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *keptMesh) signer(label string) signature.Signer {
	m.t.Helper()
	s, err := envelope.NewSigner(seeded(label))
	m.check(err)
	return s
}

func (m *keptMesh) sign(payload []byte, labels ...string) []byte {
	m.t.Helper()
	e := &envelope.Envelope{Payload: payload}
	for _, l := range labels {
		m.check(e.Sign(m.signer(l)))
	}
	raw, err := consensus.Merge(e.Marshal())
	m.check(err)
	return raw
}

func newKeptMesh(t *testing.T, witnessed bool) *keptMesh {
	t.Helper()
	m := &keptMesh{t: t, dir: t.TempDir()}
	var err error
	m.witness, err = torchwood.NewCosignatureSigner("witness.example.org/w1", seeded("witness"))
	m.check(err)
	g := &consensus.Genesis{Name: "kept", Nonce: strings.Repeat("ab", 32), CreatedAt: time.Now().UTC().Truncate(time.Second), LogOrigin: "sim.example.org/kept",
		FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory, AllowSim: true,
		Kinds:  consensus.Kinds{Member: []string{"sim"}, Seat: []string{"sim"}, Aggregator: []string{"sim"}},
		Roots:  consensus.Roots{Sim: []envelope.PublicKey{{PublicKey: seeded("root").Public()}}, VTPM: []consensus.RootKey{}},
		Policy: consensus.FirstPolicy{Entries: []consensus.Entry{}}, Witnesses: []string{}, Limits: consensus.Limits{Nodes: 3}}
	if witnessed {
		g.Witnesses = append(g.Witnesses, m.witness.Verifier().String())
	}
	var signers []signature.Signer
	for _, org := range []string{"alpha", "beta", "gamma"} {
		g.Organisations = append(g.Organisations, consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
			{Role: consensus.KeyGovern, Public: envelope.PublicKey{PublicKey: seeded(org + " govern").Public()}},
			{Role: consensus.KeyEnroll, Public: envelope.PublicKey{PublicKey: seeded(org + " enroll").Public()}}}})
		signers = append(signers, m.signer(org+" govern"))
		der, err := x509.MarshalPKCS8PrivateKey(seeded(org + " govern"))
		m.check(err)
		m.check(os.Mkdir(filepath.Join(m.dir, org), 0o700))
		m.check(os.WriteFile(m.key(org), pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), 0o600))
	}
	m.genesis, err = consensus.SignGenesis(g, signers...)
	m.check(err)
	m.check(os.WriteFile(filepath.Join(m.dir, "genesis.json"), m.genesis.Raw(), 0o600))
	var creds [][]byte
	for _, org := range []string{"alpha", "beta", "gamma"} {
		raw, err := consensus.SignCredential(m.signer(org+" enroll"), consensus.Credential{MeshID: m.genesis.MeshID(), Organisation: identity.OrgID(org), Node: "n1",
			Peer: identity.PeerIDFromKey(seeded(org + " peer").Public().(ed25519.PublicKey)), Cosigner: envelope.PublicKey{PublicKey: seeded(org + " cosigner").Public()},
			Roles: []string{"member", "seat"}, BootSeq: 1, Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
		m.check(err)
		creds = append(creds, raw)
	}
	payload, err := consensus.NewBootstrap(m.genesis, 1, creds, seeded("log").Public().(ed25519.PublicKey), time.Now())
	m.check(err)
	m.chain = [][]byte{m.genesis.Raw(), m.sign(payload, "alpha enroll", "beta enroll", "gamma enroll")}
	return m
}

func (m *keptMesh) key(org string) string { return filepath.Join(m.dir, org, "govern.pem") }

// proposal returns a proposal on a base, signed by alpha and beta.
func (m *keptMesh) proposal(base uint64) (*consensus.Proposal, []byte) {
	m.t.Helper()
	e, err := consensus.NewEntry(consensus.Entry{Kind: attest.KindSim, Measurement: fmt.Sprintf("%096x", base+1), Roles: []string{"member"}})
	m.check(err)
	now := time.Now().UTC().Truncate(time.Second)
	p := &consensus.Proposal{MeshID: m.genesis.MeshID(), Base: base, Nonce: strings.Repeat("cd", 16), Created: now, Expires: now.Add(time.Hour),
		Actions: []consensus.Action{{AddEntry: &consensus.AddEntry{Entry: e}}}}
	payload, err := p.Payload()
	m.check(err)
	raw := m.sign(payload, "alpha govern", "beta govern")
	parsed, _, err := consensus.ParseProposal(raw)
	m.check(err)
	return parsed, raw
}

// draft writes a recovery file that goes on from the first steps of the chain.
func (m *keptMesh) draft(name string, steps int, size uint64, change ...func(*consensus.Recovery)) string {
	m.t.Helper()
	s, err := consensus.ReplayPolicy(m.genesis, m.chain[:steps])
	m.check(err)
	r := consensus.Recovery{Incarnation: 1, Organisations: s.OrganisationIDs(), Nonce: strings.Repeat("ef", 16), Created: time.Now(), Expires: time.Now().Add(time.Hour)}
	for _, f := range change {
		f(&r)
	}
	file, err := s.DraftRecovery(r, consensus.CheckpointSeen{Size: size, Root: fmt.Sprintf("%064x", size)})
	m.check(err)
	raw, err := file.Encode()
	m.check(err)
	path := filepath.Join(m.dir, name)
	m.check(os.WriteFile(path, raw, 0o600))
	return path
}

// signAs runs recover sign and returns its error and output.
func (m *keptMesh) signAs(org, file string, more ...string) (string, error) {
	m.t.Helper()
	cmd := newRoot()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{"recover", "sign", file, "--genesis", filepath.Join(m.dir, "genesis.json"), "--key", m.key(org), "-o", filepath.Join(m.dir, org, filepath.Base(file))}, more...))
	err := cmd.ExecuteContext(m.t.Context())
	return out.String(), err
}

func (m *keptMesh) refused(why string, err error, says string) {
	m.t.Helper()
	var c *failure
	if err == nil || !errors.As(err, &c) || !strings.Contains(err.Error()+" "+c.remedy, says) {
		m.t.Errorf("%s: got %v, want a refusal that says %q", why, err, says)
	}
}

// D10: all disks of all nodes were rolled back, and the log that is left is genuine. Every
// organisation that approved, signed or saw anything newer refuses; and more than half have.
func TestReceiptsRefuseRolledBackDisks(t *testing.T) {
	m := newKeptMesh(t, false)
	p, raw := m.proposal(0)
	m.chain = append(m.chain, raw)
	old := m.draft("old.json", 2, 10)
	newest := m.draft("newest.json", 3, 20)
	for _, org := range []string{"alpha", "beta"} { // as policy approve does
		m.check(noteApproval(receiptsBeside(m.key(org)), p))
		_, err := m.signAs(org, old)
		m.refused(org+", who approved what the old log has not", err, p.ID().String())
	}
	if _, err := m.signAs("gamma", old); err != nil {
		t.Errorf("gamma, who saw nothing: %v", err) // one is not enough
	}
	_, err := m.signAs("gamma", newest)
	m.refused("gamma, who signed another for this incarnation", err, "an incarnation begins once")
	for _, org := range []string{"alpha", "beta"} {
		if out, err := m.signAs(org, newest); err != nil || !strings.Contains(out, "starts incarnation 1") {
			t.Errorf("%s: %v\n%s", org, err, out)
		}
		if _, err := m.signAs(org, newest); err != nil {
			t.Errorf("%s signs the same again: %v", org, err)
		}
		_, err := m.signAs(org, old)
		m.refused(org+", who has seen epoch 1", err, "this organisation has seen size 20")
		_, err = m.signAs(org, m.draft("shorter.json", 3, 19, func(r *consensus.Recovery) { r.Incarnation = 2 }))
		m.refused(org+", a shorter log", err, "has seen size 20")
		_, err = m.signAs(org, m.draft("nonce.json", 3, 20, func(r *consensus.Recovery) { r.Nonce = strings.Repeat("00", 16) }))
		m.refused(org+", another for the same incarnation", err, "draft one to incarnation 2")
		if _, err := m.signAs(org, m.draft("higher.json", 3, 20, func(r *consensus.Recovery) { r.Incarnation = 2 })); err != nil {
			t.Errorf("%s, the cure of one that got stuck: %v", org, err)
		}
	}
	// An approval that led nowhere does not stop anybody who says so.
	lost, _ := m.proposal(1)
	m.check(noteApproval(receiptsBeside(m.key("alpha")), lost))
	again := m.draft("again.json", 3, 20, func(r *consensus.Recovery) { r.Incarnation = 3 })
	_, err = m.signAs("alpha", again)
	m.refused("an approval that was never ordered", err, "--never-ordered "+lost.ID().String())
	if _, err := m.signAs("alpha", again, "--never-ordered", lost.ID().String()); err != nil {
		t.Error(err)
	}
}

func TestReceiptsAreKept(t *testing.T) {
	m := newKeptMesh(t, false)
	path := receiptsBeside(m.key("alpha"))
	p, _ := m.proposal(0)
	m.check(noteApproval(path, p))
	m.check(noteApproval(path, p)) // once
	r, err := readReceipts(path)
	m.check(err)
	if got := r.of(m.genesis.MeshID().String()); len(got.Approved) != 1 || got.Base != 0 {
		t.Errorf("receipts %+v", got)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	file := m.draft("r.json", 2, 10)
	for name, bad := range map[string]string{"torn": `{"version":1,"mes`, "unknown field": `{"version":1,"meshes":{},"x":1}`, "other version": `{"version":2,"meshes":{}}`, "empty": ``} {
		m.check(os.WriteFile(path, []byte(bad), 0o600))
		if _, err := m.signAs("alpha", file, "--never-ordered", p.ID().String()); err == nil {
			t.Errorf("%s: signed without receipts", name)
		}
	}
	m.check(os.Remove(path))
	if _, err := m.signAs("alpha", file, "--receipts", filepath.Join(m.dir, "absent", "r.json")); err == nil {
		t.Error("signed although no receipt could be written")
	}
	if _, err := os.Stat(filepath.Join(m.dir, "alpha", "r.json")); err == nil {
		t.Error("a signature was written without a receipt")
	}
	expired := m.draft("expired.json", 2, 10, func(r *consensus.Recovery) {
		r.Created, r.Expires = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	_, err = m.signAs("alpha", expired)
	m.refused("expired", err, "expired at")
	other := newKeptMesh(t, false)
	m.check(os.WriteFile(m.key("beta"), must(os.ReadFile(other.key("beta"))), 0o600))
	stranger, err := x509.MarshalPKCS8PrivateKey(seeded("stranger"))
	m.check(err)
	m.check(os.WriteFile(m.key("gamma"), pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: stranger}), 0o600))
	_, err = m.signAs("gamma", file)
	m.refused("a stranger's key", err, "no govern key")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A witness that genesis names has cosigned a longer log than what is to be gone on from.
func TestRecoverAsksTheWitness(t *testing.T) {
	m := newKeptMesh(t, true)
	file := m.draft("r.json", 2, 10)
	note := func(name string, origin string, size uint64, by *torchwood.CosignatureSigner) string {
		t.Helper()
		var root transparency.Hash
		m.check(root.UnmarshalText([]byte(fmt.Sprintf("%064x", size))))
		signed, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, seeded("log"))
		m.check(err)
		text, _, _ := bytes.Cut(signed, []byte("\n\n"))
		sig, err := by.Sign(append(bytes.Clone(text), '\n'))
		m.check(err)
		hash := by.KeyHash()
		line := fmt.Sprintf("— %s %s\n", by.Name(), base64.StdEncoding.EncodeToString(append([]byte{byte(hash >> 24), byte(hash >> 16), byte(hash >> 8), byte(hash)}, sig...)))
		path := filepath.Join(m.dir, name)
		m.check(os.WriteFile(path, append(signed, line...), 0o600))
		return path
	}
	stranger, err := torchwood.NewCosignatureSigner("witness.example.org/w2", seeded("other witness"))
	m.check(err)
	origin := m.genesis.Origin(0)
	_, err = m.signAs("alpha", file)
	m.refused("no witness asked", err, "--without-witness")
	_, err = m.signAs("alpha", file, "--witness", note("longer", origin, 11, m.witness))
	m.refused("a longer log", err, "has cosigned size 11")
	_, err = m.signAs("alpha", file, "--witness", note("other", m.genesis.Origin(1), 9, m.witness))
	m.refused("another log", err, "has cosigned size 9")
	_, err = m.signAs("alpha", file, "--witness", note("stranger", origin, 9, stranger))
	m.refused("no witness of this mesh", err, "no cosignature by any of 1 witnesses")
	if _, err := os.Stat(receiptsBeside(m.key("alpha"))); err == nil {
		t.Error("a refusal left a receipt")
	}
	if out, err := m.signAs("alpha", file, "--witness", note("same", origin, 10, m.witness)); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := m.signAs("beta", file, "--without-witness"); err != nil {
		t.Error(err)
	}
}
