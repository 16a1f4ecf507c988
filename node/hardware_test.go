package node

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// verified are the claims of what an attester makes.
func verified(t *testing.T, s attest.Scheme, a attest.Attester) attest.Claims {
	t.Helper()
	data := attest.ReportData{1}
	ev, err := a.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Verify(t.Context(), ev, &data, time.Now())
	if err != nil || !c.Genuine {
		t.Fatalf("%+v, %v", c, err)
	}
	return c
}

func sessionOf(org identity.OrgID, name string, c attest.Claims) *mesh.Session {
	return &mesh.Session{Subject: mesh.Subject{Peer: identity.PeerID(org) + "/" + identity.PeerID(name), Node: identity.NodeRef{Org: org, Name: identity.NodeName(name)}}, Claims: c}
}

// TestSharedHardware (A11): two organisations' nodes on one chip are found, whatever else
// their evidence says; those of one organisation, on other chips, or on masked ones are not.
func TestSharedHardware(t *testing.T) {
	forger, intel := attesttest.NewSEVSNP(sevsnp.Genoa, 3), attesttest.NewTDX("shared")
	first, second := forger.Attester(attesttest.Measurement("a")), forger.Attester(attesttest.Measurement("a"))
	chip, again, other := verified(t, forger.Scheme(), first), verified(t, forger.Scheme(), first), verified(t, forger.Scheme(), second)
	again.Measurement = "another program"
	if chip.HardwareID == "" || chip.HardwareID == other.HardwareID {
		t.Fatalf("chips %q and %q", chip.HardwareID, other.HardwareID)
	}
	composite := again
	composite.Kind, composite.VTPM = "sevsnp,vtpm", &attest.VTPMClaims{AKDigest: "ab"}
	masked := forger.Attester(attesttest.Measurement("a"))
	masked.Forge(attesttest.MaskedChip)
	hidden := verified(t, forger.Scheme(), masked)
	platform := intel.Attester(attesttest.Measurement("a"))
	td, sameTD := verified(t, intel.Scheme(), platform), verified(t, intel.Scheme(), platform)
	tpm := func(digest string) attest.Claims {
		return attest.Claims{Kind: attest.KindVTPM, Genuine: true, VTPM: &attest.VTPMClaims{AKDigest: digest}}
	}
	zero := attest.Claims{Kind: attest.KindTDX, HardwareID: strings.Repeat("0", 32)}
	for name, tc := range map[string]struct {
		x, y *mesh.Session
		want int
	}{
		"one chip":                  {sessionOf("alpha", "n1", chip), sessionOf("beta", "n1", again), 1},
		"one chip, with a TPM":      {sessionOf("alpha", "n1", chip), sessionOf("beta", "n1", composite), 1},
		"one chip and one TPM":      {sessionOf("alpha", "n1", composite), sessionOf("beta", "n1", composite), 2},
		"one TDX platform":          {sessionOf("alpha", "n1", td), sessionOf("beta", "n1", sameTD), 1},
		"one attestation key":       {sessionOf("alpha", "n1", tpm("0b")), sessionOf("beta", "n1", tpm("0b")), 1},
		"other attestation keys":    {sessionOf("alpha", "n1", tpm("0b")), sessionOf("beta", "n1", tpm("0c")), 0},
		"one organisation":          {sessionOf("alpha", "n1", chip), sessionOf("alpha", "n2", again), 0},
		"other chips":               {sessionOf("alpha", "n1", chip), sessionOf("beta", "n1", other), 0},
		"masked chips":              {sessionOf("alpha", "n1", hidden), sessionOf("beta", "n1", hidden), 0},
		"ids of zeros":              {sessionOf("alpha", "n1", zero), sessionOf("beta", "n1", zero), 0},
		"simulated, of no hardware": {sessionOf("alpha", "n1", attest.Claims{Kind: attest.KindSim}), sessionOf("beta", "n1", attest.Claims{Kind: attest.KindSim}), 0},
	} {
		got := sharedHardware(identity.MeshID{1}, []*mesh.Session{tc.x, tc.y, sessionOf("gamma", "n1", attest.Claims{})})
		if len(got) != tc.want {
			t.Errorf("%s: %v, want %d", name, got, tc.want)
		}
		for _, nodes := range got {
			if !reflect.DeepEqual(nodes, []string{"alpha/n1", "beta/n1"}) {
				t.Errorf("%s: %v", name, nodes)
			}
		}
	}
	one, two := hardwareOf(identity.MeshID{1}, chip), hardwareOf(identity.MeshID{2}, chip)
	if len(one) != 1 || len(one[0]) != 16 || strings.Contains(chip.HardwareID, one[0]) || one[0] == two[0] {
		t.Errorf("a chip's names %q and %q in two meshes", one, two)
	}
}

// attested is a link with a verdict; crew is a mesh of some.
type attested struct {
	mesh.Link
	session *mesh.Session
}

func (a attested) Session() *mesh.Session { return a.session }

type crew struct {
	mesh.Mesh
	all []mesh.Link
}

func (c crew) Links() []mesh.Link { return c.all }

// TestSharedHardwareIsReported: in status, at both peers, and in the log; by a name alone.
func TestSharedHardwareIsReported(t *testing.T) {
	var log bytes.Buffer
	n := &Node{genesis: &consensus.Genesis{}, log: slog.New(slog.NewTextHandler(&log, nil))}
	c := attest.Claims{Kind: attest.KindSEVSNP, HardwareID: strings.Repeat("5a", 64)}
	alpha, beta, gamma := sessionOf("alpha", "n1", c), sessionOf("beta", "n1", c), sessionOf("gamma", "n1", attest.Claims{})
	links := crew{all: []mesh.Link{attested{session: alpha}, attested{session: gamma}}}
	n.mesh = links
	n.meshUp.Store(true)
	status := func() Status {
		s := Status{Peers: []PeerStatus{{Node: "alpha/n1", State: PeerConnected}, {Node: "beta/n1", State: PeerConnected}, {Node: "gamma/n1", State: PeerConnected}}}
		n.explainHardware(&s)
		return s
	}
	n.reportHardware(alpha)
	if s := status(); len(s.Warnings) != 0 || log.Len() != 0 {
		t.Fatalf("alone on its chip: %q, %s", s.Warnings, log.String())
	}
	n.mesh = crew{all: append(links.all, attested{session: beta})}
	n.reportHardware(gamma)
	if log.Len() != 0 {
		t.Errorf("a peer on other hardware: %s", log.String())
	}
	n.reportHardware(beta)
	name := hardwareOf(n.genesis.MeshID(), c)[0]
	s := status()
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "alpha/n1 and beta/n1 show the same hardware ("+name+")") ||
		s.Peers[0].SharedHardware != name || s.Peers[1].SharedHardware != name || s.Peers[2].SharedHardware != "" {
		t.Errorf("got %q, %+v", s.Warnings, s.Peers)
	}
	for _, want := range []string{"level=WARN", "hardware=" + name, `nodes="alpha/n1 beta/n1"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in %s", want, log.String())
		}
	}
	if strings.Contains(log.String()+s.Warnings[0], "5a5a") {
		t.Error("the chip's id is told")
	}
}
