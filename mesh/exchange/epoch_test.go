package exchange_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

func TestEpochBody(t *testing.T) {
	for _, e := range []identity.Epoch{0, 23, 24, 1 << 16, math.MaxUint64} {
		body := exchange.EncodeEpoch(e)
		if got, err := exchange.DecodeEpoch(body); err != nil || got != e || len(body) > exchange.MaxEpoch {
			t.Errorf("%d: got %d, %v from %x", e, got, err, body)
		}
	}
}

func FuzzEpoch(f *testing.F) {
	f.Add(exchange.EncodeEpoch(0))
	f.Add(exchange.EncodeEpoch(math.MaxUint64))
	f.Add([]byte{0x18, 0x07}) // seven, too long
	f.Fuzz(func(t *testing.T, body []byte) {
		if e, err := exchange.DecodeEpoch(body); err == nil && !bytes.Equal(exchange.EncodeEpoch(e), body) {
			t.Errorf("%x reads as %d, which is %x", body, e, exchange.EncodeEpoch(e))
		}
	})
}
