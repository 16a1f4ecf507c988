package tdx_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioVerify is a whole verification of a quote with its collateral: of a platform
// that is remembered, against one check of the P-256 signature that the quote carries; of
// one seen for the first time, against go-tdx-guest with the same evidence; and the judgement
// of its claims.
func BenchmarkRatioVerify(b *testing.B) {
	forger := attesttest.NewTDX("bench")
	known := forger.Scheme()
	data := attest.ReportData{1}
	ev, err := forger.Attester(attesttest.Measurement("bench")).Attest(context.Background(), data)
	if err != nil {
		b.Fatal(err)
	}
	at := time.Now()
	verifyBy := func(scheme func() attest.Scheme) func() {
		return func() {
			if c, err := scheme().Verify(context.Background(), ev, &data, at); err != nil || c.TDX.TCBStatus != "UpToDate" {
				b.Fatal(c.TDX, err)
			}
		}
	}
	cached := verifyBy(func() attest.Scheme { return known })
	first := verifyBy(func() attest.Scheme { return forger.Scheme() })
	library := func() {
		if err := byLibrary(ev, forger.Root(), at); err != nil {
			b.Fatal(err)
		}
	}
	one := p256(b)
	c, err := known.Verify(context.Background(), ev, &data, at)
	if err != nil {
		b.Fatal(err)
	}
	p := forger.Policy(c.Measurement)
	for b.Loop() {
		ratio.Print("attest.tdx_cached_vs_p256", ratio.Of(25, ratio.CPU(100, cached), ratio.CPU(100, one)))
		ratio.Print("attest.tdx_first_vs_p256", ratio.Of(15, ratio.CPU(40, first), ratio.CPU(40, one)))
		ratio.Print("attest.tdx_vs_library", ratio.Of(25, ratio.CPU(20, first), ratio.CPU(20, library)))
		ratio.Print("attest.tdx_policy_us", perCall(2000, func() {
			if !attest.Appraise(c, p, at).Affirming() {
				b.Fatal("refused")
			}
		}))
		ratio.Print("attest.tdx_alloc_kib", allocated(50, first))
	}
}

// p256 returns one check of a P-256 signature.
func p256(b *testing.B) func() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("quote"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("a good signature was refused")
		}
	}
}

// perCall is the processor time of a call in microseconds.
func perCall(n int, f func()) float64 {
	return float64(ratio.CPU(n, f)().Nanoseconds()) / float64(n) / 1e3
}

// allocated is what a call allocates in KiB.
func allocated(n int, f func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(n) / 1024
}

// byLibrary verifies evidence with all its collateral by go-tdx-guest, under a root.
func byLibrary(ev attest.Evidence, root *x509.Certificate, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(root)
	service, err := serve(ev)
	if err != nil {
		return err
	}
	return verify.RawTdxQuote(ev.Items[0].Data, &verify.Options{GetCollateral: true, CheckRevocations: true, Getter: service, TrustedRoots: roots,
		Now: &verify.TimeSet{PckCertChain: at, TcbInfo: at, QeIdentity: at, PckCrl: at, RootCaCrl: at}})
}
