package simulations

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/transparency"
)

// A sample is what one node did with the others at an instant, and how long its log was then.
type sample struct {
	at   time.Time
	node string
	size uint64
	sees map[string]node.PeerStatus
}

// quiet is how long a log must not have grown before a sample: what was ordered has been heard by
// then. A heartbeat comes half an hour after the last.
const quiet = 2 * time.Second

// samples asks every member at an instant that is drawn.
func (a *actor) samples(rng *rand.Rand) []sample {
	a.Helper()
	time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Second))))
	still, size := time.Now(), uint64(0)
	for end := time.Now().Add(time.Minute); time.Since(still) < quiet; time.Sleep(100 * time.Millisecond) {
		if now := a.status("alpha/n1").Log.Size; now != size {
			still, size = time.Now(), now
		}
		if time.Now().After(end) {
			a.Fatal("the log has not stopped growing for a minute")
		}
	}
	var out []sample
	for _, h := range a.p.world.running() {
		s := a.status(h.name)
		if s.Phase != node.PhaseMember && s.Phase != node.PhaseSuspended {
			continue
		}
		if s.Log.Size != size {
			a.Fatalf("%s has %d leaves, alpha/n1 %d", h.name, s.Log.Size, size)
		}
		x := sample{time.Now(), h.name, size, map[string]node.PeerStatus{}}
		for _, p := range s.Peers {
			x.sees[p.Node] = p
		}
		out = append(out, x)
	}
	return out
}

// published copies what a node publishes of its log.
func (a *actor) published(name string) string {
	a.Helper()
	h := a.host(name)
	client := a.p.world.client(h.machine)
	dir := a.TempDir()
	get := func(file string) []byte {
		resp, err := client.Get("http://" + h.ip + ":80/log/" + file)
		if err != nil {
			a.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			a.Fatal(file, resp.Status, err)
		}
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			a.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			a.Fatal(err)
		}
		return data
	}
	head, err := transparency.ParseCheckpoint(get("checkpoint"))
	if err != nil {
		a.Fatal(err)
	}
	if head.Size == 0 || head.Size >= 256 {
		a.Fatalf("the log has %d leaves, want less than one bundle", head.Size)
	}
	for _, tile := range []string{"entries", "0"} {
		get(fmt.Sprintf("tile/%s/000.p/%d", tile, head.Size))
	}
	return dir
}

// Who was admitted at an instant follows from the log alone, years later: through additions,
// removals and a suspension it is whom the nodes were connected to, each by its own verdict.
func TestLogTellsWhoWasAdmitted(t *testing.T) {
	stage(t, three, nil, func(a *actor) {
		seed := rand.Uint64()
		a.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		var all []sample
		const settled = "expect phase member of rest\nexpect linked rest\n"
		for _, lines := range []string{
			"",
			"start alpha/n2 new\n" + settled + "expect proof proven of alpha/n2 at rest -alpha/n2\n",
			"start beta/n2 newer\nexpect phase refused code measurement_not_allowed of beta/n2\n",
			"propose add newer signed alpha beta gamma at beta/n1\n" + settled + "expect proof proven of beta/n2 at rest -beta/n2\n",
			"suspend alpha/n2 for 1h by beta at gamma/n1\nexpect phase suspended of alpha/n2\n",
			"lift signed alpha beta at gamma/n1\n" + settled,
			"propose remove newer signed alpha gamma at gamma/n1\nexpect phase refused code revoked of beta/n2\n",
			"suspend alpha/n2 for 1h by gamma at alpha/n1\nexpect phase suspended of alpha/n2\n",
		} {
			a.do(lines)
			for range 2 {
				all = append(all, a.samples(rng)...)
			}
		}
		a.do("expect published rest -beta/n2\n")
		reader, err := transparency.OpenReader(a.published("gamma/n1"))
		if err != nil {
			a.Fatal(err)
		}
		defer reader.Close()
		matrices := map[uint64]*audit.Matrix{}
		for _, x := range all {
			m, ok := matrices[x.size]
			if !ok {
				last := x.size - 1
				report, made, err := audit.MatrixOf(a.Context(), reader, audit.Place{Index: &last}, audit.Options{Genesis: a.p.world.genesis, At: time.Now()})
				if err != nil || !report.OK {
					a.Fatalf("size %d: %v, %v", x.size, report.Findings, err)
				}
				m, matrices[x.size] = made, made
			}
			if err := x.agrees(m); err != nil {
				a.Errorf("%s, %d leaves, %s: %v", x.at.Format(time.TimeOnly), x.size, x.node, err)
			}
		}
		// What there was to disagree about.
		if len(matrices) < 7 || len(all) < 2*(3+4+4+5+5+5+4+4) {
			a.Errorf("%d samples at %d places of the log", len(all), len(matrices))
		}
	})
}

// agrees holds what a node did against what the log says.
func (x *sample) agrees(m *audit.Matrix) error {
	affirmed := map[string]bool{}
	for _, e := range m.Edges {
		if e.Verifier.String() == x.node {
			affirmed[e.Subject.String()] = e.Verdict == attest.VerdictAffirming
		}
	}
	rows := map[string]audit.MatrixNode{}
	for _, row := range m.Nodes {
		rows[row.Node.String()] = row
	}
	for name := range x.sees {
		if _, ok := rows[name]; !ok {
			rows[name] = audit.MatrixNode{Code: attest.CodeNoCredential}
		}
	}
	var flows attest.Code // why no data flows with anybody
	if !rows[x.node].Suspended.IsZero() {
		flows = attest.CodeSuspended
	}
	for name, row := range rows {
		if name == x.node {
			continue
		}
		p := x.sees[name]
		linked := p.State == node.PeerConnected
		var want string
		switch {
		case row.Eligible && row.Suspended.IsZero() && affirmed[name]:
			if !linked || p.Code != flows || p.Proof != node.ProofProven || p.Peer != row.Peer.String() || p.Measurement != row.Measurement {
				want = "admitted, running " + row.Measurement
			}
		case !row.Suspended.IsZero() && row.Code == attest.CodeSuspended && affirmed[name]:
			if !linked || p.Code != attest.CodeSuspended {
				want = "suspended"
			}
		case linked:
			want = fmt.Sprintf("not admitted (%s)", row.Code)
		}
		if want != "" {
			return fmt.Errorf("%s is %s to it (code %q, proof %q), by the log %s under the policy of leaf %d", name, p.State, p.Code, p.Proof, want, m.PolicyLeaf)
		}
	}
	return nil
}
