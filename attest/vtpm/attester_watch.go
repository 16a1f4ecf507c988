package vtpm

import (
	"context"
	"encoding/hex"

	"github.com/google/go-tpm/legacy/tpm2"
)

// imaPCR is the register that IMA extends with every file that it measures.
const imaPCR = 10

// State returns IMA's register in hex. While it stays the same, a new quote would show no
// file that the last one did not: reading one register is cheap, a quote with its logs is not.
func (a *Attester) State(ctx context.Context) (string, error) {
	value, err := do(ctx, a, "read a register", again, func(ch *channel) ([]byte, error) {
		return tpm2.ReadPCR(ch, imaPCR, a.bank)
	})
	return hex.EncodeToString(value), err
}
