package mesh

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// vendor is a fake vendor whose evidence the real Scheme of its kind judges.
type vendor interface {
	Scheme() attest.Scheme
	Policy(measurements ...string) attest.Policy
	Attester(measurement string) *attesttest.Attester
}

// teeJudge judges evidence as a node does: by a scheme, then by a policy.
type teeJudge struct {
	*meshtest.Judge
	scheme attest.Scheme
	policy attest.Policy
}

func (j *teeJudge) Appraise(ctx context.Context, _ exchange.Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	now := time.Now()
	claims, err := j.scheme.Verify(ctx, ev, &data, now)
	var refusal *attest.Error
	if errors.As(err, &refusal) {
		return attest.Claims{}, attest.Refuse(now, refusal.Reason)
	}
	if err != nil {
		return attest.Claims{}, attest.Refuse(now, attest.NewReason(attest.CodeUnavailable, "scheme", err.Error(), "a verdict"))
	}
	return claims, attest.Appraise(claims, j.policy, now)
}

func (j *teeJudge) Rejudge(_ exchange.Subject, c attest.Claims) attest.Result {
	return attest.Appraise(c, j.policy, time.Now())
}

// onTEE puts a node onto a machine of v's. The returned attester is the machine's.
func onTEE(t testing.TB, v vendor, n *meshtest.Node, cfg *Config) (*teeJudge, *attesttest.Attester) {
	release := attesttest.Measurement("release 1")
	attester := v.Attester(release)
	quoter := attest.NewQuoter(attester, n.MeshID, string(n.Peer), func() [32]byte { return [32]byte{} })
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { quoter.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	judge := &teeJudge{n.Judge, v.Scheme(), v.Policy(release)}
	cfg.Quoter, cfg.Judge = quoter, judge
	return judge, attester
}

// BenchmarkRatioDialTEE is a full dial with evidence of the shape and with the signatures of
// a TEE, made in software and judged by the real schemes and a policy. Chains and
// collateral have been seen before, the reports have not.
func BenchmarkRatioDialTEE(b *testing.B) {
	for _, c := range []struct {
		name string
		v    vendor
	}{
		{"channel.full_snp_vs_tls_cpu", attesttest.NewSEVSNP(sevsnp.Milan, 3)},
		{"channel.full_tdx_vs_tls_cpu", attesttest.NewTDX("mesh")},
	} {
		b.Run(c.name, func(b *testing.B) {
			var attesters []*attesttest.Attester
			p := newBenchPair(b, func(n *meshtest.Node, cfg *Config) {
				_, a := onTEE(b, c.v, n, cfg)
				attesters = append(attesters, a)
			})
			for b.Loop() {
				before := attesters[0].Calls()
				ratio.Print(c.name, p.dialRatio(false))
				if n := attesters[0].Calls() - before; n != (dialRounds+1)*dialsPerRound {
					b.Fatalf("%d quotes for %d dials", n, (dialRounds+1)*dialsPerRound)
				}
			}
		})
	}
}
