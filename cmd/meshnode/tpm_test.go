package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/transparency"
)

// bootedBox is a measured-boot machine: a software TPM whose registers firmware and kernel, which
// the test plays, have extended, with both their logs.
type bootedBox struct {
	*vtpmtest.TPM
	log string
	ima *vtpmtest.IMA
}

// bootBox boots a machine with Secure Boot and starts meshnode on it.
func bootBox(t *testing.T) *bootedBox {
	t.Helper()
	raw, err := os.ReadFile("../../attest/vtpm/testdata/secureboot-on-ecc.pb")
	if err != nil {
		t.Fatal(err)
	}
	sample, err := vtpm.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := &bootedBox{TPM: vtpmtest.Start(t)}
	m.log = m.Boot(t, sample.GetEventLog())
	m.ima = m.StartIMA(t)
	m.ima.MeasureFile(t, meshnodePath(t))
	return m
}

func meshnodePath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("meshnode")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// claims are what the machine's evidence says about it.
func (m *bootedBox) claims(t *testing.T) attest.Claims {
	t.Helper()
	a := vtpm.NewAttester(vtpm.Options{Device: m.Socket, EventLog: m.log, IMALog: m.ima.Path})
	defer a.Close()
	data := attest.ReportData{1}
	ev, err := a.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := vtpm.New(nil).Verify(t.Context(), ev, &data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// TestTPM takes a node on a measured-boot machine into a running mesh, and out again.
func TestTPM(t *testing.T) {
	box, other := bootBox(t), bootBox(t)
	measurement := box.claims(t).Measurement
	var nodes strings.Builder
	for _, name := range []string{"box", "stranger", "provisioned", "twin"} {
		fmt.Fprintf(&nodes, "  - {name: %s, roles: []}\n", name)
	}
	m := startTrialOf(t, admitted{
		kinds: ", vtpm", roots: ", vtpm: [" + strconv.Quote(string(box.IssuerPEM())) + "]",
		entries:  fmt.Sprintf("  - {kind: vtpm, measurement: %s, roles: [member], ima: [%q]}\n", measurement, fileDigest(t, meshnodePath(t))),
		releases: fmt.Sprintf("  - {kind: vtpm, measurement: %s, roles: []}\n", measurement),
		nodes:    nodes.String(),
	})
	m.machineConfig("box", box, "")
	var ready node.Ready
	m.start(&ready, "run", "--config", m.path("box.yaml"), "--json")

	m.expect("the node on the TPM is a member", func() error {
		s, ok := m.status("box")
		if !ok || s.Phase != node.PhaseMember {
			return fmt.Errorf("box: %s, %+v", s.Phase, s.Peers)
		}
		for _, org := range trialOrgs {
			if p := m.peer(org, "beta/box"); p.State != node.PeerConnected || p.Kind != attest.KindVTPM || p.Measurement != measurement || p.Verdict != attest.VerdictAffirming {
				return fmt.Errorf("%s says %+v", org, p)
			}
		}
		return nil
	})

	t.Run("endorsement key of another manufacturer", func(t *testing.T) {
		m.machineConfig("stranger", other, "")
		m.refusedEnrolment("stranger", attest.CodeNoEndorsement)
	})
	t.Run("attestation key not activated", func(t *testing.T) {
		other.ProvisionAK(t) // certified, but not by anybody whom genesis names
		m.machineConfig("provisioned", other, fmt.Sprintf(", ak: {handle: %d, certificate_index: %d}", vtpmtest.ProvisionedAK, vtpmtest.ProvisionedAKIndex))
		m.refusedEnrolment("provisioned", attest.CodeNotActivated)
	})
	t.Run("another's attestation key", func(t *testing.T) { m.foreignKey(t, box) })

	box.ima.Measure(t, "/usr/local/bin/intruder", sha256.Sum256([]byte("intruder")))
	began := time.Now()
	m.expect("the node with an unlisted file is out", func() error {
		for _, org := range trialOrgs {
			p := m.peer(org, "beta/box")
			if p.State != node.PeerRefused || p.Code != attest.CodeIMAUnlisted || !strings.Contains(p.Reason.Got, "/usr/local/bin/intruder") {
				return fmt.Errorf("%s says %+v %v", org, p, p.Reason)
			}
		}
		s, ok := m.status("box")
		if !ok || s.Phase != node.PhaseRefused {
			return fmt.Errorf("box: %s, %+v", s.Phase, s.Peers)
		}
		if s.PhaseReason == nil || s.PhaseReason.Code != attest.CodeIMAUnlisted {
			return fmt.Errorf("box does not know why: %v", s.PhaseReason)
		}
		return nil
	})
	t.Logf("out after %s", time.Since(began).Round(100*time.Millisecond))
	m.expect("the log says why", func() error {
		why := m.findings(t, "beta/box")
		if len(why) < len(trialOrgs) || why[len(why)-1] != attest.CodeIMAUnlisted {
			return fmt.Errorf("the log has %q about it", why)
		}
		return nil
	})
}

// findings returns the first code of each published finding about a node that was refused.
func (m *trial) findings(t *testing.T, name string) (codes []attest.Code) {
	reader, head, _, err := openHead(t.Context(), "http://"+m.public["alpha"])
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	_, err = reader.Walk(t.Context(), head, transparency.WalkOptions{Leaf: func(_ uint64, leaf []byte) error {
		if r, err := consensus.ParseResult(leaf); err == nil && r.Subject.Node.String() == name && r.Verdict == attest.VerdictContraindicated {
			codes = append(codes, r.Codes[0])
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return codes
}

// machineConfig writes the configuration of a node of beta's on a machine.
func (m *trial) machineConfig(name string, box *bootedBox, more string) {
	m.t.Helper()
	var peers []string
	for _, org := range trialOrgs {
		peers = append(peers, "http://"+m.public[org])
	}
	port := loopback.Port(m.t)
	m.write(name+".yaml", fmt.Sprintf("genesis: genesis.json\norganisation: beta\nnode: %s\ndata: %s\nlisten: [/ip4/127.0.0.1/tcp/%s]\npublic: %s\n"+
		"peers: [%s]\nenroller: {url: %s, spki: %s}\nattester:\n  tpm: {device: %s, event_log: %s, ima_log: %s%s}\n", name, name, port, loopback.Address(m.t),
		strings.Join(peers, ", "), m.enrollers["beta"].URL, m.enrollers["beta"].SPKI, box.Socket, box.log, box.ima.Path, more))
}

// peer is what the node of an organisation says about another.
func (m *trial) peer(org, name string) node.PeerStatus {
	s, _ := m.status(org)
	for _, p := range s.Peers {
		if p.Node == name {
			return p
		}
	}
	return node.PeerStatus{}
}

// refusedEnrolment starts a node that its enroller must refuse, for one reason.
func (m *trial) refusedEnrolment(name string, code attest.Code) {
	m.t.Helper()
	cmd := m.command("run", "--config", m.path(name+".yaml"))
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = cmd.Cancel(); _ = cmd.Wait() }()
	m.expect(name+" is not enrolled", func() error {
		s, ok := m.status(name)
		if !ok || s.Phase != node.PhaseEnrolling || s.PhaseReason == nil || s.PhaseReason.Code != code {
			return fmt.Errorf("%s: %s %v", name, s.Phase, s.PhaseReason)
		}
		return nil
	})
}

// foreignKey runs a node whose Credential names one key of the machine's TPM, and whose
// evidence is by another: as if it had copied Credential and peer key of another machine.
func (m *trial) foreignKey(t *testing.T, box *bootedBox) {
	m.machineConfig("twin", box, "")
	cfg, err := node.LoadConfig(m.path("twin.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	deps, err := node.SystemDeps(cfg)
	if err != nil {
		t.Fatal(err)
	}
	activated, enroller := deps.Attester, deps.Enroller
	evidence := vtpm.NewAttester(vtpm.Options{Device: box.Socket, EventLog: box.log, IMALog: box.ima.Path})
	deps.Attester = evidence
	defer evidence.Close()
	defer activated.(io.Closer).Close()
	deps.Enroller = func(keys node.Keys) node.Enroller {
		return &otherQuoter{Enroller: enroller(keys), attester: activated, mesh: deps.Genesis.MeshID(), keys: keys}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx, cfg, deps) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	m.expect("evidence by another key is refused", func() error {
		for _, org := range trialOrgs {
			if p := m.peer(org, "beta/twin"); p.State != node.PeerRefused || p.Code != attest.CodeWrongAttestationKey {
				return fmt.Errorf("%s says %+v", org, p)
			}
		}
		return nil
	})
}

// otherQuoter enrols with evidence by an attester that is not the node's.
type otherQuoter struct {
	node.Enroller
	attester attest.Attester
	mesh     identity.MeshID
	keys     node.Keys
}

// Credential implements node.Enroller.
func (e *otherQuoter) Credential(ctx context.Context, _ *attest.Quoter) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	self := identity.PeerIDFromKey(e.keys.Peer.Public().(ed25519.PublicKey))
	q := attest.NewQuoter(e.attester, e.mesh, string(self), func() [32]byte { return [32]byte{} })
	var running sync.WaitGroup
	running.Go(func() { q.Run(ctx) })
	defer running.Wait()
	defer cancel()
	return e.Enroller.Credential(ctx, q)
}

// expect waits until done returns nil.
func (m *trial) expect(what string, done func() error) {
	m.t.Helper()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: %v", what, err)
		}
	}
}
