package vtpm

import (
	"context"
	"fmt"
	"testing"

	tpmpb "github.com/google/go-tpm-tools/proto/tpm"

	"google.golang.org/protobuf/proto"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioVerify is a whole verification of a genuine quote of one bank with its event
// log, of a machine whose key and log are remembered, against one check of the signature that
// it carries. Our attester's keys are of P-256; RSA is the harder one, as its signatures are
// cheap to check.
func BenchmarkRatioVerify(b *testing.B) {
	for b.Loop() {
		for name, alg := range map[string]string{"attest.tpm_cached_vs_sig": "ecc", "attest.tpm_rsa_cached_vs_sig": "rsa"} {
			raw, q, key := oneBank(b, "secureboot-on-"+alg+".pb")
			known, ev := New(nil), evidence(raw)
			ratio.Print(name, ratio.Of(25, ratio.CPU(100, func() {
				if _, err := known.Verify(context.Background(), ev, nil, at); err != nil {
					b.Fatal(err)
				}
			}), ratio.CPU(100, func() {
				if _, err := signedBy(key.public, q.GetQuote(), q.GetRawSig(), false); err != nil {
					b.Fatal(err)
				}
			})))
		}
	}
}

// oneBank returns a sample with its last quote, of the strongest bank, alone.
func oneBank(tb testing.TB, name string) ([]byte, *tpmpb.Quote, attestationKey) {
	tb.Helper()
	msg, err := Parse(sample(tb, name))
	if err != nil {
		tb.Fatal(err)
	}
	last := msg.Quotes[len(msg.Quotes)-1]
	msg.Quotes = msg.Quotes[len(msg.Quotes)-1:]
	key, err := areaKey(msg.AkPub)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := proto.Marshal(msg)
	if err != nil {
		tb.Fatal(err)
	}
	return raw, last, key
}

// BenchmarkVerify shows time and memory of one appraisal.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []string{"rsa", "ecc"} {
		for _, cached := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/cached=%v", alg, cached), func(b *testing.B) {
				raw, _, _ := oneBank(b, "secureboot-on-"+alg+".pb")
				s, ev := New(nil), evidence(raw)
				b.ReportAllocs()
				for b.Loop() {
					if !cached {
						s = New(nil)
					}
					if _, err := s.Verify(context.Background(), ev, nil, at); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
