package vtpm

import (
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/attestmesh/meshnode/internal/cursor"
)

// Values of TPMS_ATTEST (TPM 2.0 Library, Part 2: Structures, §6.2 and §6.9).
const (
	magicGenerated = 0xff544347 // TPM_GENERATED_VALUE: a TPM signs no foreign data that begins so
	tagQuote       = 0x8018     // TPM_ST_ATTEST_QUOTE
)

// statement is what a TPM signs when it quotes, TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE
// (Part 2, §10.12.12); integers big-endian:
//
//	u32 magic, u16 type, TPM2B qualified signer, TPM2B extra data,
//	u64 clock, u32 reset count, u32 restart count, u8 safe, u64 firmware version,
//	u32 number of selections { u16 hash, u8 size, size bytes of bits }, TPM2B PCR digest
type statement struct {
	nonce        []byte // extra data
	clock        uint64 // milliseconds that the TPM was powered
	resetCount   uint32
	restartCount uint32
	clockSafe    bool
	firmware     uint64
	selections   []selection
	digest       []byte
}

// selection is one bank of a quote and its registers, ascending.
type selection struct {
	bank      crypto.Hash
	registers []int
}

// Refusals of statements that are well-formed but no quotes of a TPM.
var (
	errMagic = errors.New("the statement was not made inside a TPM")
	errType  = errors.New("the statement is not a quote")
	errBank  = errors.New("a bank this release does not know")
)

// maxBanks bounds the selections of one quote; PC clients have at most four banks.
const maxBanks = 8

// lastRegister is the highest register of a PC client's TPM.
const lastRegister = 23

// parseStatement reads a statement and accounts for every byte. What it points to is raw's.
func parseStatement(raw []byte) (statement, error) {
	r := cursor.Big(raw)
	magic, kind := r.U32(), r.U16()
	switch {
	case r.Short():
		return statement{}, fmt.Errorf("statement: cut short at byte %d", len(raw))
	case magic != magicGenerated:
		return statement{}, fmt.Errorf("%w: magic %#08x, want %#08x", errMagic, magic, uint32(magicGenerated))
	case kind != tagQuote:
		return statement{}, fmt.Errorf("%w: type %#04x, want %#04x", errType, kind, tagQuote)
	}
	sized(&r) // qualified name of the signer: digests of keys that nobody shows us
	s := statement{nonce: sized(&r), clock: r.U64(), resetCount: r.U32(), restartCount: r.U32()}
	safe := r.U8()
	s.clockSafe, s.firmware = safe == 1, r.U64()
	count := r.U32()
	if safe > 1 || count > maxBanks {
		return statement{}, fmt.Errorf("statement: clock safe %d of {0, 1}, %d selections of at most %d", safe, count, maxBanks)
	}
	for range count {
		sel, err := readSelection(&r)
		if err != nil {
			return statement{}, err
		}
		if slices.ContainsFunc(s.selections, func(o selection) bool { return o.bank == sel.bank }) {
			return statement{}, fmt.Errorf("statement: bank %s is selected twice", bankName(sel.bank))
		}
		s.selections = append(s.selections, sel)
	}
	s.digest = sized(&r)
	if r.Short() || r.Len() != 0 {
		return statement{}, fmt.Errorf("statement: %d bytes, cut short or %d behind its end", len(raw), r.Len())
	}
	return s, nil
}

// quoted returns how many registers the statement is about.
func (s statement) quoted() (n int) {
	for _, sel := range s.selections {
		n += len(sel.registers)
	}
	return n
}

// readSelection reads TPMS_PCR_SELECTION: bit i of byte j selects register 8j+i.
func readSelection(r *cursor.Cursor) (selection, error) {
	algorithm := r.U16()
	bits := r.Take(uint64(r.U8()))
	if r.Short() {
		return selection{}, errors.New("statement: cut short in a selection")
	}
	hash, ok := bankHashes[tpm2.TPMAlgID(algorithm)]
	if !ok {
		return selection{}, fmt.Errorf("%w: hash %#04x", errBank, algorithm)
	}
	out := selection{bank: hash}
	for i, b := range bits {
		for bit := range 8 {
			if b>>bit&1 == 0 {
				continue
			}
			if 8*i+bit > lastRegister {
				return selection{}, fmt.Errorf("statement: register %d selected, want at most %d", 8*i+bit, lastRegister)
			}
			out.registers = append(out.registers, 8*i+bit)
		}
	}
	return out, nil
}

// bankHashes are the hashes of banks and of signatures.
var bankHashes = map[tpm2.TPMAlgID]crypto.Hash{
	tpm2.TPMAlgSHA1: crypto.SHA1, tpm2.TPMAlgSHA256: crypto.SHA256, tpm2.TPMAlgSHA384: crypto.SHA384, tpm2.TPMAlgSHA512: crypto.SHA512,
}

func bankName(h crypto.Hash) string {
	switch h {
	case crypto.SHA1:
		return "sha1"
	case crypto.SHA256:
		return "sha256"
	case crypto.SHA384:
		return "sha384"
	case crypto.SHA512:
		return "sha512"
	}
	return ""
}

// bankOf is the inverse of bankName.
func bankOf(name string) (crypto.Hash, bool) {
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if bankName(h) == name {
			return h, true
		}
	}
	return 0, false
}

// sized reads a TPM2B: u16 length, then as many bytes.
func sized(r *cursor.Cursor) []byte { return r.Take(uint64(r.U16())) }
