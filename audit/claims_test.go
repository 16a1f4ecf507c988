package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// members is the membership as package federated sees it; all three seats are eligible.
type members struct{ m *mesh }

func (v members) Epoch() identity.Epoch { return v.m.State.Epoch() }

func (v members) Node(peer identity.PeerID) (federated.Member, bool) {
	n, ok := v.m.State.Node(peer)
	return federated.Member{Ref: n.Ref, Peer: n.Peer, Roles: n.Roles, Measurement: n.Measurement, Kind: n.Kind, Affirming: []uint64{2, 3}}, ok
}

func (v members) Eligible() []federated.Member {
	var out []federated.Member
	for _, node := range seats {
		m, _ := v.Node(audittest.PeerOf(node))
		out = append(out, m)
	}
	return out
}

func (v members) GovernKeys() []envelope.Key {
	var out []envelope.Key
	for _, o := range v.m.Genesis.Organisations {
		out = append(out, v.m.Genesis.OrgKeys(o.ID, consensus.KeyGovern)...)
	}
	return out
}

// work is a job that a mesh does, and the directory it ends in.
type work struct {
	*mesh
	ledger *federated.Ledger
	job    federated.Job
	parts  []*data.Dataset
	models [][]byte
	certs  []*federated.Certificate
	files  map[string][]byte
	leaf   []uint64 // index of each round's leaf
}

func (w *work) apply(kind string, body []byte, err error) {
	w.t.Helper()
	w.check(err)
	out := w.ledger.Apply(kind, body, members{w.mesh})
	if out.Reason != nil {
		w.t.Fatalf("%s refused: %v", kind, out.Reason)
	}
	for _, leaf := range out.Leaves {
		w.leaf = append(w.leaf, uint64(len(w.Leaves)))
		w.Force(leaf)
	}
}

// certified returns a mesh whose job of two rounds after the statistics is done, with a
// leaf of governance between the rounds. Its certificates have no proofs yet.
func certified(t testing.TB) *work {
	w := &work{mesh: started(t), files: map[string][]byte{}}
	w.ledger = federated.NewLedger(w.Genesis.MeshID())
	table := &data.Dataset{Source: "table", Features: 3}
	for i := range 60 {
		x := float64(i % 7)
		table.X, table.Labels = append(table.X, x, 7-x, float64(i%5)), append(table.Labels, []string{"low", "high"}[i%7/4])
	}
	var err error
	w.parts, err = table.Dirichlet(len(seats), 0.5, 8, 1)
	w.check(err)
	spec := federated.DefaultSpec()
	spec.Name, spec.Features, spec.Labels, spec.Rounds = "certified", table.Features, table.Classes(), 2
	spec.MinParticipants, spec.Disclosure, spec.Train.Epochs, spec.Model.Hidden = 3, federated.DiscloseFull, 1, 4
	env, err := federated.NewJob(w.Genesis.MeshID(), spec)
	w.check(err)
	for _, o := range w.Genesis.Organisations {
		w.check(env.Sign(audittest.Signer(string(o.ID) + " govern")))
	}
	body, err := federated.JobCommand(env.Marshal())
	w.apply(federated.KindJob, body, err)
	w.job = w.ledger.Jobs()[0].Job
	for round := range uint32(3) {
		w.round(round)
		w.Command(consensus.KindProposal, w.Proposal(w.Add(fmt.Sprint("release ", round)), "alpha", "gamma"))
	}
	return w
}

func (w *work) status() federated.JobStatus { return w.ledger.Jobs()[0] }

func (w *work) round(round uint32) {
	w.t.Helper()
	next, _ := w.status().Next()
	body, err := federated.OpenCommand(next)
	w.apply(federated.KindRoundOpen, body, err)
	var base []byte
	if round > 0 {
		base = w.models[round-1]
	}
	o := w.status().Open
	var in []federated.Contribution
	var accepted []federated.Accepted
	var statements [][]byte
	openings := map[identity.NodeRef]federated.Opening{}
	for i, p := range o.Participants {
		done, err := w.job.Spec.Participate(w.job.ID, round, p.Ref, base, w.parts[i])
		w.check(err)
		salt := federated.Digest{byte(round), byte(i)}
		st, err := federated.SignUpdate(audittest.Signer(p.Ref.String()+" peer"), o.UpdateStatement(p, done, salt))
		w.check(err)
		openings[p.Ref] = federated.Opening{Examples: done.Examples, Salt: salt}
		a, why := o.Admit(w.job.Spec, p.Peer, base, federated.Delivery{Statement: st.Marshal(), Opening: openings[p.Ref], Update: done.Update})
		if why != nil {
			w.t.Fatal(why)
		}
		accepted, statements = append(accepted, a), append(statements, st.Marshal())
		in = append(in, federated.Contribution{Node: p.Ref, Examples: done.Examples, Update: done.Update})
		w.files[federated.UpdateFile(round, p.Ref)] = done.Update
	}
	aggregator := audittest.Signer(o.Aggregator.Ref.String() + " peer")
	closing, err := federated.SignClose(aggregator, o.CloseStatement(accepted, nil))
	w.check(err)
	body, err = federated.CloseCommand(closing.Marshal(), statements)
	w.apply(federated.KindRoundClose, body, err)
	model, err := w.job.Spec.Combine(round, base, in)
	w.check(err)
	root, err := chunk.RootOf(model)
	w.check(err)
	statement, err := w.status().RoundStatement(root)
	w.check(err)
	leaf, err := federated.SignRound(aggregator, statement)
	w.check(err)
	body, err = federated.CommitCommand(leaf.Marshal())
	w.apply(federated.KindRoundCommit, body, err)
	w.models = append(w.models, model)
	w.files[federated.RoundModelFile(round)], w.files[federated.ModelFile] = model, model
	cert, err := federated.NewCertificate(w.job, w.status().Committed[round], openings, nil)
	w.check(err)
	w.certs = append(w.certs, cert)
}

// prove returns the proof of a round's leaf in the log of the first size leaves, as a
// node makes it, with the cosignatures of nodes.
func (w *work) prove(round int, size int, cosigners ...string) *federated.LogProof {
	w.t.Helper()
	tree, err := transparency.NewTree(nil)
	w.check(err)
	_, err = tree.AppendAll(w.Leaves[:size])
	w.check(err)
	path, err := tree.InclusionProof(w.leaf[round], uint64(size))
	w.check(err)
	out := &federated.LogProof{Origin: w.Genesis.Origin(0), Index: w.leaf[round], Checkpoint: string(w.Checkpoint(tree, cosigners...)), Proof: []string{},
		Level: "strong", Cosigners: []identity.OrgID{"alpha", "beta", "gamma"}}
	for _, h := range path {
		out.Proof = append(out.Proof, base64.StdEncoding.EncodeToString(h[:]))
	}
	return out
}

// proven gives every certificate its proof, each at another size of the log.
func (w *work) proven() []Claim {
	var claims []Claim
	for i, c := range w.certs {
		c.Log = w.prove(i, int(w.leaf[i])+1+i, seats...)
		claims = append(claims, Claim{c.Leaf, c.Log})
	}
	return claims
}

func judge(t *testing.T, m *mesh, location string, claims ...Claim) []Claimed {
	t.Helper()
	r := m.audit(location, func(o *Options) { o.Claims = claims })
	if len(r.Claims) != len(claims) {
		t.Fatalf("%d verdicts for %d claims", len(r.Claims), len(claims))
	}
	return r.Claims
}

func TestClaims(t *testing.T) {
	w := certified(t)
	claims := w.proven()
	last := len(w.Leaves)
	whole := w.publish(seats...)
	for i, v := range judge(t, w.mesh, whole, claims...) {
		if v.Err != nil || v.Level != transparency.Strong {
			t.Errorf("round %d: %v, %v", i, v.Level, v.Err)
		}
	}
	another := certified(t)
	another.Force(w.Leaves[len(w.Leaves)-1]) // does not hold
	for _, c := range []struct {
		name   string
		log    string
		change func(c *Claim)
		code   attest.Code
		says   string
	}{
		{"no proof", whole, func(c *Claim) { c.Log = nil }, attest.CodeMalformed, "no proof of inclusion"},
		{"the next index", whole, func(c *Claim) { c.Log.Index++ }, attest.CodeReplayMismatch, "is another one"},
		{"index beyond its checkpoint", whole, func(c *Claim) { c.Log.Index = 1 << 40 }, attest.CodeMalformed, "with a checkpoint of"},
		{"another leaf", whole, func(c *Claim) { c.Leaf = w.certs[2].Leaf }, attest.CodeReplayMismatch, "is another one"},
		{"the path of another leaf", whole, func(c *Claim) { c.Log.Proof = w.prove(0, int(w.leaf[1])+2).Proof }, attest.CodeBadSignature, "proof"},
		{"a path that is no base64", whole, func(c *Claim) { c.Log.Proof[0] = "?" }, attest.CodeMalformed, "hash 0"},
		{"a path without end", whole, func(c *Claim) { c.Log.Proof = make([]string, 65) }, attest.CodeMalformed, "the limit is 64"},
		{"no checkpoint", whole, func(c *Claim) { c.Log.Checkpoint = "" }, attest.CodeMalformed, ""},
		{"another origin in words", whole, func(c *Claim) { c.Log.Origin = "elsewhere" }, attest.CodeMalformed, "elsewhere"},
		{"cosigned by one organisation", whole, func(c *Claim) { *c.Log = *w.prove(1, int(w.leaf[1])+2, "beta/n1") }, attest.CodeBadSignature, "unpublished"},
		{"a higher level than it has", whole, func(c *Claim) { *c.Log = *w.prove(1, int(w.leaf[1])+2, "alpha/n1", "beta/n1") }, attest.CodeBadSignature, `called "strong" and is published`},
		{"a level that is none", whole, func(c *Claim) { c.Log.Level = "gold" }, attest.CodeBadSignature, `"gold"`},
		{"another history of that size, signed by all", whole, func(c *Claim) {
			fork := *w
			fork.mesh = &mesh{audittest.Mesh{Genesis: w.Genesis, State: w.State, Cosigned: w.Cosigned, Leaves: slices.Clone(w.Leaves)}, t}
			fork.Leaves[w.leaf[0]] = []byte("another")
			*c.Log = *fork.prove(1, int(w.leaf[1])+2, seats...)
		}, attest.CodeReplayMismatch, "two histories"},
		{"a log that ends before", w.publishFirst(int(w.leaf[1]), seats...), nil, attest.CodeReplayMismatch, "an older copy"},
		{"a log that does not hold", another.publish(seats...), nil, attest.CodeReplayMismatch, "the log itself does not hold"},
		{"the log of another mesh", "testdata/published/log", nil, attest.CodeReplayMismatch, "genesis_mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			claim := Claim{w.certs[1].Leaf, w.prove(1, int(w.leaf[1])+2, seats...)}
			if c.change != nil {
				c.change(&claim)
			}
			v := judge(t, w.mesh, c.log, claims[0], claim)[1]
			var coded *attest.Error
			if !errors.As(v.Err, &coded) || coded.Reason.Code != c.code || !strings.Contains(v.Err.Error(), c.says) || v.Level != transparency.Unpublished {
				t.Errorf("got %v, %v; want %s: %s", v.Level, v.Err, c.code, c.says)
			}
		})
	}
	// An older copy of the log that has the leaf: the newer checkpoint is its cosigners' word.
	short := w.publishFirst(int(w.leaf[2])+1, seats...)
	if v := judge(t, w.mesh, short, Claim{w.certs[2].Leaf, w.prove(2, last, seats...)})[0]; v.Err != nil || v.Level != transparency.Strong {
		t.Errorf("a newer checkpoint: %v, %v", v.Level, v.Err)
	}
	v := judge(t, w.mesh, short, Claim{w.certs[2].Leaf, w.prove(2, last, "alpha/n1")})[0]
	var coded *attest.Error
	if !errors.As(v.Err, &coded) || coded.Reason.Code != attest.CodeUnavailable {
		t.Errorf("a newer checkpoint of strangers: %v", v.Err)
	}
}

// publishFirst publishes the first n leaves.
func (m *mesh) publishFirst(n int, cosigners ...string) string {
	m.t.Helper()
	short := *m
	short.Leaves = m.Leaves[:n]
	return short.publish(cosigners...)
}

// testdata/certified is a job with its log and genesis, as a node exports them. It must
// verify for ever; the command line's tests read it too.
func TestGoldenCertified(t *testing.T) {
	const golden = "testdata/certified"
	if *update {
		synctest.Test(t, func(t *testing.T) {
			<-time.After(time.Hour) // another mesh than testdata/published
			w := certified(t)
			w.proven()
			writeCertified(t, w, golden)
		})
	}
	raw, err := os.ReadFile(filepath.Join(golden, "genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := federated.ReadCertificates(os.DirFS(filepath.Join(golden, "job")))
	if err != nil || len(certs) != 3 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	var claims []Claim
	for _, c := range certs {
		claims = append(claims, Claim{c.Leaf, c.Log})
	}
	for i, v := range judge(t, &mesh{audittest.Mesh{Genesis: g}, t}, filepath.Join(golden, "log"), claims...) {
		if v.Err != nil || v.Level.String() != certs[i].Log.Level {
			t.Errorf("round %d: %v, %v", i, v.Level, v.Err)
		}
	}
}

func writeCertified(t *testing.T, w *work, golden string) {
	t.Helper()
	w.check(os.RemoveAll(golden))
	w.check(os.CopyFS(filepath.Join(golden, "log"), os.DirFS(w.publish(seats...))))
	w.check(os.WriteFile(filepath.Join(golden, "genesis.json"), w.Genesis.Raw(), 0o644))
	for i, c := range w.certs {
		raw, err := c.Marshal()
		w.check(err)
		w.files[federated.CertificateFile(uint32(i))] = raw
	}
	dir, err := durable.Open(filepath.Join(golden, "job"))
	w.check(err)
	for name, content := range w.files {
		w.check(dir.WriteFile(name, content, 0o644))
	}
}
