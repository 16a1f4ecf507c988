package replica

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/internal/throttle"
	"github.com/sigstore/sigstore/pkg/signature"
)

// governed is a replica's machine that is the governance state; commands of a kv go to one.
type governed struct {
	kv
	guard sync.RWMutex
	state *consensus.State // guarded by guard
}

func (m *governed) Apply(index, term uint64, raw []byte) any {
	if bytes.HasPrefix(raw, []byte("k=")) {
		return m.kv.Apply(index, term, raw)
	}
	c, err := consensus.DecodeCommand(raw)
	if err != nil {
		return err
	}
	m.guard.Lock()
	defer m.guard.Unlock()
	return m.state.Apply(c).Reason
}

func (m *governed) Check(raw []byte) error {
	if bytes.HasPrefix(raw, []byte("k=")) {
		return nil
	}
	c, err := consensus.DecodeCommand(raw)
	if err != nil {
		return err
	}
	return consensus.CheckResults(c)
}

// over is what a node asks before it checks or orders anything.
func (m *governed) over(c consensus.Command) bool {
	m.guard.RLock()
	defer m.guard.RUnlock()
	return m.state.OverQuota(c) != nil
}

func floodKey(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("flood " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// floodMesh is a mesh of three organisations with a seat and a member each.
type floodMesh struct {
	genesis *consensus.Genesis
	entry   consensus.Entry
	at      time.Time
	seq     int
}

func newFloodMesh() *floodMesh {
	m := &floodMesh{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	sim := []string{attest.KindSim}
	public := func(label string) envelope.PublicKey { return envelope.PublicKey{PublicKey: floodKey(label).Public()} }
	m.entry = must(consensus.NewEntry(consensus.Entry{Kind: attest.KindSim, Measurement: strings.Repeat("ab", 48), Roles: []string{consensus.RoleSeat}}))
	g := &consensus.Genesis{Name: "flood", Nonce: strings.Repeat("ab", 32), CreatedAt: m.at, LogOrigin: "sim.example.org/flood", FSMVersion: consensus.FSMVersion,
		StoreKind: consensus.StoreMemory, AllowSim: true, Kinds: consensus.Kinds{Member: sim, Seat: sim, Aggregator: sim},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{public("root")}, VTPM: []consensus.RootKey{}},
		Policy:    consensus.FirstPolicy{Entries: []consensus.Entry{m.entry}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: consensus.DefaultNodes}}
	var signers []signature.Signer
	for _, org := range floodOrgs {
		g.Organisations = append(g.Organisations, consensus.Organisation{ID: org, Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
			{Role: consensus.KeyGovern, Public: public(string(org) + " govern")}, {Role: consensus.KeyEnroll, Public: public(string(org) + " enroll")}}})
		signers = append(signers, must(envelope.NewSigner(floodKey(string(org)+" govern"))))
	}
	m.genesis = must(consensus.SignGenesis(g, signers...))
	return m
}

var floodOrgs = []identity.OrgID{"alpha", "beta", "gamma"}

func floodPeer(org identity.OrgID) identity.PeerID {
	return identity.PeerIDFromKey(floodKey(string(org) + " peer").Public().(ed25519.PublicKey))
}

// bootstrap is the first command.
func (m *floodMesh) bootstrap() consensus.Command {
	var credentials, parts [][]byte
	for _, org := range floodOrgs {
		enroll := must(envelope.NewSigner(floodKey(string(org) + " enroll")))
		credentials = append(credentials, must(consensus.SignCredential(enroll, consensus.Credential{MeshID: m.genesis.MeshID(), Organisation: org, Node: "n1",
			Peer: floodPeer(org), Cosigner: envelope.PublicKey{PublicKey: floodKey(string(org) + " cosigner").Public()}, Roles: []string{consensus.RoleSeat}, BootSeq: 1,
			Issued: m.at, Expires: m.at.Add(consensus.MaxCredentialLifetime)})))
	}
	payload := must(must(consensus.ReplayPolicy(m.genesis, nil)).NewBootstrap(1, credentials, floodKey("log").Public().(ed25519.PublicKey), m.at))
	for _, org := range floodOrgs {
		parts = append(parts, must(consensus.Sign(payload, must(envelope.NewSigner(floodKey(string(org)+" enroll"))))))
	}
	return must(consensus.NewCommand(consensus.KindBootstrap, m.genesis.Raw(), must(consensus.Merge(parts...))))
}

// tick is the next tick, which all seats have signed.
func (m *floodMesh) tick(seq uint64) consensus.Command {
	var samples [][]byte
	for _, org := range floodOrgs {
		samples = append(samples, must(consensus.SignTimeSample(floodKey(string(org)+" peer"), consensus.TimeSample{MeshID: m.genesis.MeshID(), Peer: floodPeer(org), Seq: seq,
			Time: m.at.Add(time.Duration(seq) * consensus.TickInterval)})))
	}
	return must(consensus.NewCommand(consensus.KindTick, samples...))
}

// results are n new findings of one seat on another.
func (m *floodMesh) results(verifier, subject identity.OrgID, n int) consensus.Command {
	var out [][]byte
	for range n {
		m.seq++
		out = append(out, must(consensus.SignResult(floodKey(string(verifier)+" peer"), consensus.AttestationResult{
			Verifier: consensus.Party{Node: identity.NodeRef{Org: verifier, Name: "n1"}, Peer: floodPeer(verifier)},
			Subject:  consensus.Party{Node: identity.NodeRef{Org: subject, Name: "n1"}, Peer: floodPeer(subject)},
			MeshID:   m.genesis.MeshID(), Kind: attest.KindSim, Measurement: m.entry.Measurement, Reference: m.entry.ID, Verdict: attest.VerdictAffirming,
			Vector: attest.Vector{Executables: int8(m.seq % 90)}, Codes: []attest.Code{}, Evidence: strings.Repeat("cd", 32),
			At: m.at.Add(time.Duration(m.seq) * time.Millisecond), Expires: m.at.Add(time.Hour)})))
	}
	return must(consensus.NewCommand(consensus.KindResults, out...))
}

func mean(took []time.Duration) float64 {
	var sum time.Duration
	for _, t := range took {
		sum += t
	}
	return float64(sum) / float64(len(took))
}

// BenchmarkRatioFlood is the median (and the mean) latency of one organisation's findings, one
// every 10 ms through a tick's interval, among three replicas on memory stores over loopback TCP,
// while another organisation submits full batches without pause, against the same without. What
// is over a quota is refused before it is ordered, and how much may be refused is bounded, as a
// node does.
func BenchmarkRatioFlood(b *testing.B) {
	const spacing = 10 * time.Millisecond
	const samples = int(consensus.TickInterval / spacing)
	m := newFloodMesh()
	var machines []*governed
	leader, _, stop := startLoopback(b, 3, func(int) Store { return newMemoryStore() }, func(int) Machine {
		g := &governed{kv: kv{values: map[string]string{}}, state: consensus.NewState(m.genesis)}
		machines = append(machines, g)
		return g
	})
	defer stop()
	order := func(c consensus.Command) (refused bool) {
		if machines[0].over(c) {
			return true
		}
		res, err := leader.Apply(context.Background(), must(consensus.EncodeCommand(c)))
		if err != nil {
			b.Error(err)
		}
		reason, _ := res.(*attest.Reason)
		return reason != nil
	}
	if order(m.bootstrap()) {
		b.Fatal("no mesh")
	}
	refused := &throttle.Refusals{Rate: 128, Burst: 128} // node's, once its burst is over
	ticks := uint64(0)
	interval := func(flood bool) []time.Duration {
		ticks++
		if order(m.tick(ticks)) {
			b.Fatal("no tick")
		}
		var own, others []consensus.Command
		for range samples {
			own = append(own, m.results("gamma", "beta", 1))
		}
		for range 2*consensus.DefaultResults/consensus.MaxResults + 1 {
			others = append(others, m.results("alpha", "beta", consensus.MaxResults))
		}
		ctx, cancel := context.WithTimeout(context.Background(), consensus.TickInterval)
		defer cancel()
		var wg sync.WaitGroup
		if flood {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if refused.Wait("alpha", time.Now()) == 0 && order(others[i%len(others)]) {
						refused.Note("alpha", float64(len(others[i%len(others)].Body)>>10), time.Now())
					} else {
						time.Sleep(time.Millisecond) // a round trip over the network, at least
					}
				}
			})
		}
		var took []time.Duration
		next := time.NewTicker(spacing)
		defer next.Stop()
		for _, c := range own {
			due := <-next.C
			if order(c) {
				b.Fatal("the quiet organisation is refused")
			}
			took = append(took, time.Since(due))
		}
		wg.Wait()
		return took
	}
	for b.Loop() {
		var flooded, quiet []time.Duration
		side := func(flood bool, all *[]time.Duration) func() time.Duration {
			return func() time.Duration {
				took := interval(flood)
				*all = append(*all, took...)
				return ratio.Median(took)
			}
		}
		ratio.Print("raft.flood_vs_quiet", ratio.Of(7, side(true, &flooded), side(false, &quiet)))
		ratio.Print("raft.flood_vs_quiet_mean", mean(flooded)/mean(quiet))
	}
}
