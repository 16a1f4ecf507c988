package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/canary"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// leaks is a crowd of SEV-SNP guests whose evidence, and all that is private about it, is looked for in
// everything that it publishes.
type leaks struct {
	*hardwareCrowd
	set   canary.Set
	known map[string]bool // public by intent, though it is in evidence too, and words of the page
	now   time.Time       // of the newest result
}

// private adds all that authentic claims say, and parts of the bytes that say it.
func (l *leaks) private(who string, ev attest.Evidence, claims attest.Claims) {
	for i, item := range ev.Items {
		if d := item.Data; len(d) >= 64 {
			l.set.Add(fmt.Sprintf("%s: item %d", who, i), d[len(d)/2:len(d)/2+24])
		}
	}
	l.known[claims.Kind], l.known[claims.Measurement] = true, true
	raw, err := json.Marshal(claims)
	var tree any
	if err == nil {
		err = json.Unmarshal(raw, &tree)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.values(who, tree)
}

func (l *leaks) values(path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			l.values(path+"."+k, x)
		}
	case []any:
		for _, x := range v {
			l.values(path, x)
		}
	case string:
		l.text(path, v)
	}
}

// text adds a private text. Zeros and short words are in everything, times are of the test itself.
func (l *leaks) text(name, v string) {
	_, err := time.Parse(time.RFC3339, v)
	if len(v) < 8 || err == nil || strings.Trim(v, "0") == "" || l.known[v] {
		return
	}
	l.set.AddText(name, v)
}

// order orders what nodes found, under their own signatures.
func (l *leaks) edges(verifier *Node, found ...edge) {
	l.t.Helper()
	for batch := range slices.Chunk(found, 16) {
		var envelopes [][]byte
		for _, ed := range batch {
			l.now = l.now.Add(time.Millisecond)
			ed.result.At = l.now
			raw, err := verifier.signEdge(ed)
			if err != nil {
				l.t.Fatal(err)
			}
			envelopes = append(envelopes, raw)
		}
		l.order(consensus.KindResults, envelopes...)
		l.order(consensus.KindTick) // quotas are of a tick
	}
}

// TestNothingPrivateIsPublished runs a mesh through admission, refusal for every reason there is,
// re-attestation, changes of policy and hardware lists, suspension and a recovery's policy, and then looks for
// every private value in every file and page that strangers can get.
func TestNothingPrivateIsPublished(t *testing.T) {
	l := &leaks{hardwareCrowd: newHardwareCrowd(t, len(crowdOrgs)+2, nil, []int{8}), known: map[string]bool{attest.AKTrustCertificate: true}}
	t.Cleanup(l.close)
	for _, release := range []string{"new", "old", "next"} {
		l.known[attesttest.Measurement(release)] = true
	}
	seat, subject := l.nodes[0], l.nodes[len(crowdOrgs)]
	l.found()
	for _, n := range l.nodes[len(crowdOrgs):] {
		l.order(consensus.KindCredential, n.credential())
	}
	for i, a := range l.attesters {
		ev, err := a.Attest(t.Context(), attest.ReportData{byte(i), 0xca})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := l.schemes[0].Verify(t.Context(), ev, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		l.private(l.nodes[i].ref.String(), ev, claims)
		l.set.Add(l.nodes[i].ref.String()+": salt of the chip", hardwareSalt(i))
	}

	// Admission, with the evidence of real exchanges; and again, with a note.
	l.link(1)
	l.now = time.Now()
	for _, notes := range [][]attest.Reason{nil, {attest.NewReason(attest.CodeFloorAhead, "tcb", "CANARY level", "CANARY floor")}} {
		for _, n := range l.nodes {
			var found []edge
			n.edges.mu.Lock()
			for _, ed := range n.edges.last {
				l.set.Add(ed.subject.Node.String()+": evidence that was shown", ed.evidence[len(ed.evidence)/3:len(ed.evidence)/3+40])
				if ed.result.Reasons = notes; ed.result.Affirming() {
					found = append(found, ed)
				}
			}
			n.edges.mu.Unlock()
			l.edges(n, found...)
		}
	}
	l.set.AddText("note", "CANARY level")
	l.set.AddText("note", "CANARY floor")
	l.refusals(seat, subject)
	l.foreign(seat, subject)

	// Policy, hardware, suspension.
	l.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: l.entry("next")}})
	l.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement("old")}})
	floor := attesttest.NewSEVSNP(sevsnp.Milan, 3).Policy().SEVSNP.MinimumTCB[sevsnp.Milan]
	l.propose(consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &floor}}})
	chips := slices.Sorted(slices.Values(l.commitments))
	l.propose(consensus.Action{LimitHardware: &consensus.LimitHardware{HardwareScope: consensus.HardwareScope{Organisation: "alpha"}, Chips: chips}})
	l.lift("alpha", l.suspend("alpha", subject.ref))

	published := l.published(seat)
	for _, step := range l.rise(5) {
		published["a recovery's policy"] = append(published["a recovery's policy"], step...)
	}
	for what, raw := range l.refusedStranger(seat) {
		published[what] = raw
	}
	if size := seat.machine.tree.Size(); size < 100 || l.set.Len() < 5000 {
		t.Fatalf("%d leaves, %d forms of private values: the test has lost its subject", size, l.set.Len())
	}
	for name, data := range published {
		if got := l.set.Find(data); len(got) > 0 {
			t.Errorf("%s shows %v", name, got)
		}
	}
	// The control: a leaf that shows a chip is found, however it is written.
	chip := l.set.Len()
	planted := append([]byte("chip "), hardwareSalt(3)...)
	for _, leaf := range [][]byte{planted, fmt.Appendf(nil, `{"got":"%x"}`, planted), []byte(base64JSON(fmt.Appendf(nil, `{"got":"%x"}`, planted)))} {
		if _, err := seat.machine.tree.Append(leaf); err != nil {
			t.Fatal(err)
		}
		if got := l.set.Find(leaf); len(got) != 1 || chip == 0 {
			t.Errorf("a planted salt was not found in %.60q", leaf)
		}
	}
	found := 0
	for _, data := range l.published(seat) {
		found += len(l.set.Find(data))
	}
	if found == 0 {
		t.Error("planted salts were not found in the published files")
	}
}

func base64JSON(raw []byte) string {
	text, err := json.Marshal(map[string][]byte{"payload": raw})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// hardwareSalt is the salt of a machine of hardwareCrowd.
func hardwareSalt(i int) []byte { s := sha256.Sum256([]byte{byte(i)}); return s[:] }

// refusals orders a result for every code that there is, with values that nobody may see.
func (l *leaks) refusals(seat, subject *Node) {
	l.t.Helper()
	var found []edge
	for reasons := range slices.Chunk(attest.Codes(), consensus.MaxCodes) {
		r := attest.Result{Verdict: attest.VerdictContraindicated, Kind: attest.KindSEVSNP, Measurement: attesttest.Measurement("new")}
		for _, code := range reasons {
			why := attest.NewReason(code, "CANARY claim "+string(code), "CANARY got "+string(code), "CANARY want "+string(code))
			why.Remedy = "CANARY remedy " + string(code)
			for _, text := range []string{why.Claim, why.Got, why.Want, why.Remedy} {
				l.set.AddText("refusal for "+string(code), text)
			}
			r.Reasons = append(r.Reasons, why)
		}
		found = append(found, edge{subject: mesh.Subject{Peer: subject.self, Node: subject.ref}, evidence: []byte("CANARY evidence"), result: r})
	}
	l.edges(seat, found...)
}

// foreign has a seat verify, refuse and log evidence of every other kind, genuine and wrong in every way.
func (l *leaks) foreign(seat, subject *Node) {
	l.t.Helper()
	snp, tdx, tpm := attesttest.NewSEVSNP(sevsnp.Milan, 3), attesttest.NewTDX("leaks"), attesttest.NewVTPM("leaks", false)
	s := mesh.Subject{Peer: subject.self, Node: subject.ref, Roles: []string{consensus.RoleMember}, Credential: subject.credential()}
	var found []edge
	for _, maker := range []struct {
		scheme   attest.Scheme
		attester *attesttest.Attester
	}{{tdx.Scheme(), tdx.Attester(attesttest.Measurement("new"))}, {tpm.Scheme(), tpm.Attester(attesttest.Measurement("new"))},
		{attesttest.NewHCL(snp, false).Scheme(), attesttest.NewHCL(snp, false).Attester(attesttest.Measurement("new"))}, {nil, l.attesters[8]}} {
		if maker.scheme != nil {
			seat.schemes[maker.scheme.Kind()] = maker.scheme
		}
		for i, forgery := range append([]attesttest.Forgery{attesttest.Genuine}, maker.attester.Forgeries()...) {
			maker.attester.Forge(forgery)
			ev, err := maker.attester.Attest(l.t.Context(), attest.ReportData{byte(i), 1})
			if err != nil {
				l.t.Fatal(err)
			}
			raw, err := ev.Encode()
			if err != nil {
				continue // of another kind than it has, or too large
			}
			claims, result := seat.appraise(l.t.Context(), s, ev, attest.ReportData{byte(i), 1})
			l.private(fmt.Sprintf("%s, %s", maker.attester.Kind(), forgery), ev, claims)
			for _, why := range result.Reasons {
				for _, text := range []string{why.Got, why.Want} {
					l.text("refusal for "+string(why.Code), text)
				}
			}
			if !result.Affirming() {
				found = append(found, edge{subject: s, evidence: raw, result: result})
			}
		}
	}
	if len(found) < 40 {
		l.t.Fatalf("%d refusals", len(found))
	}
	l.edges(seat, found...)
}

// published returns every file and page that strangers get of a node.
func (l *leaks) published(n *Node) map[string][]byte {
	l.t.Helper()
	size := n.machine.tree.Size()
	if err := n.machine.tree.Publish(l.checkpointAt(size, len(crowdOrgs))); err != nil {
		l.t.Fatal(err)
	}
	mux := http.NewServeMux()
	n.publicRoutes(mux)
	mux.HandleFunc("GET /{$}", (&endpoint{n: n}).page)
	s := httptest.NewServer(mux)
	defer s.Close()
	out := map[string][]byte{}
	for _, path := range []string{"/", pathNode, pathPolicy, pathPolicy + "?from=0", pathHead + "?nonce=" + strings.Repeat("ab", nonceSize), "/log/checkpoint", "/nothing"} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			l.t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			l.t.Fatal(err)
		}
		var header bytes.Buffer
		if err := resp.Header.Write(&header); err != nil {
			l.t.Fatal(err)
		}
		out[path] = append(header.Bytes(), body...)
	}
	r, err := transparency.OpenReader(s.URL + "/log")
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	dir, err := durable.Open(filepath.Join(l.t.TempDir(), "log"))
	if err == nil {
		_, err = r.Export(l.t.Context(), l.checkpointAt(size, len(crowdOrgs)), dir, nil)
	}
	if err == nil {
		err = fs.WalkDir(os.DirFS(dir.Path()), ".", func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				out["log/"+path], err = os.ReadFile(dir.Path(path))
			}
			return err
		})
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// refusedStranger returns what a peer whose Credential nobody gave reads of a seat.
func (l *leaks) refusedStranger(seat *Node) map[string][]byte {
	l.t.Helper()
	stranger := l.nodes[len(l.nodes)-1]
	for _, link := range stranger.mesh.Links() {
		_ = link.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
	}
	c, err := consensus.ParseCredential(stranger.credential())
	if err != nil {
		l.t.Fatal(err)
	}
	raw, err := consensus.SignCredential(crowdSigner(l.t, "nobody", consensus.KeyEnroll), *c)
	if err != nil {
		l.t.Fatal(err)
	}
	stranger.mu.Lock()
	stranger.cred = raw
	stranger.mu.Unlock()
	_, err = stranger.mesh.Dial(l.t.Context(), seat.self, seat.mesh.Addrs())
	var refused *mesh.Refusal
	if !errors.As(err, &refused) {
		l.t.Fatalf("a stranger was let in, or not told why: %v", err)
	}
	said, err := json.Marshal(refused)
	if err != nil {
		l.t.Fatal(err)
	}
	return map[string][]byte{"a refusal": append(said, refused.Error()...)}
}
