package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Platforms is what the organisations of a mesh demand of hardware beyond the sections of a
// Policy. It can refuse and never admits: its zero value demands nothing.
type Platforms struct {
	// Floors must all be met from their own time on.
	Floors []Floor
	// Denied products are refused, whatever their TCB.
	Denied []Product
	// Hardware lists must all have the chip.
	Hardware []HardwareList
}

// Floor is a least TCB: of one product line of SEV-SNP, or of TDX. Exactly one of SEVSNP and
// TDX is set, Product with the former.
type Floor struct {
	Product string     `json:"product,omitempty"`
	SEVSNP  *TCB       `json:"sevsnp,omitempty"`
	TDX     *TDXDemand `json:"tdx,omitempty"`
	// From is when it comes into force, zero for at once. Until then a platform below it gets
	// a note (tcb_floor_ahead) that leaves its verdict as it is.
	From time.Time `json:"from,omitzero"`
	// Wait is how much later it binds those that this policy is for; it is no part of what was
	// demanded, and counts only where From is set.
	Wait time.Duration `json:"-"`
}

// due reports whether f is in force at a time.
func (f Floor) due(at time.Time) bool { return f.From.IsZero() || !at.Before(f.From.Add(f.Wait)) }

// TDXDemand is what is demanded of a TDX platform's TCB, in the terms of TDXPolicy; fields
// that are unset demand nothing.
type TDXDemand struct {
	TCBStatuses          []string  `json:"tcb_statuses,omitempty" yaml:"tcb_statuses"`
	RejectedAdvisoryIDs  []string  `json:"rejected_advisory_ids,omitempty" yaml:"rejected_advisory_ids"`
	MinimumTCBEvaluation int       `json:"minimum_tcb_evaluation_data_number,omitempty" yaml:"minimum_tcb_evaluation_data_number"`
	MinimumTCBDate       time.Time `json:"minimum_tcb_date,omitzero" yaml:"minimum_tcb_date"`
}

// Product is a class of hardware; exactly one field is set.
type Product struct {
	Line  string `json:"product,omitempty" yaml:"product"` // of SEV-SNP: Milan, Genoa, Turin
	CPUID *CPUID `json:"cpuid,omitempty" yaml:"cpuid"`     // of SEV-SNP: one stepping of one part
	FMSPC string `json:"fmspc,omitempty" yaml:"fmspc"`     // of TDX: Intel's class of platforms, in hex
}

// String names the class as people do.
func (p Product) String() string {
	switch {
	case p.CPUID != nil:
		return fmt.Sprintf("SEV-SNP part %s of %s", p.CPUID, SEVSNPProduct(p.CPUID.Family, p.CPUID.Model))
	case p.FMSPC != "":
		return "TDX platforms with FMSPC " + p.FMSPC
	}
	return "SEV-SNP product " + p.Line
}

// names reports whether c is of the class, or may be: a report that does not say its part may
// be every part of its product line, and a quote without FMSPC of every class.
func (p Product) names(c Claims) bool {
	switch snp, tdx := c.SEVSNP, c.TDX; {
	case p.FMSPC != "":
		return tdx != nil && (tdx.FMSPC == "" || tdx.FMSPC == p.FMSPC)
	case snp == nil:
		return false
	case p.CPUID == nil:
		return snp.Product == p.Line
	case snp.CPUID == nil:
		return snp.Product == SEVSNPProduct(p.CPUID.Family, p.CPUID.Model)
	default:
		return *snp.CPUID == *p.CPUID
	}
}

// SEVSNPProducts are the product lines of SEV-SNP.
func SEVSNPProducts() []string { return []string{"Genoa", "Milan", "Turin"} }

// SEVSNPProduct maps CPU family and model, with their extensions added, to a product line (AMD
// 57230, "Determining the Product Name"): Zen 4c parts (Bergamo, Siena) are Genoa, Zen 5c
// Turin. A part that nobody knows gets a name that no certificate has.
func SEVSNPProduct(family, model uint8) string {
	switch {
	case family == 0x19 && model <= 0x0f:
		return "Milan"
	case family == 0x19 && (model >= 0x10 && model <= 0x1f || model >= 0xa0 && model <= 0xaf):
		return "Genoa"
	case family == 0x1a && model <= 0x11:
		return "Turin"
	default:
		return fmt.Sprintf("family %#x model %#x", family, model)
	}
}

// HardwareList names chips by commitments (HardwareCommitment), so that who reads a list
// learns no chip. The zero value lists none and refuses all.
type HardwareList struct {
	// Of says whose list it is, for people.
	Of string
	// Any says that only Removed decides.
	Any     bool
	Listed  map[string]struct{}
	Removed map[string]struct{}
}

// Admits reports whether the list lets a commitment pass; "", of evidence that opens none,
// never.
func (l HardwareList) Admits(commitment string) bool {
	_, listed := l.Listed[commitment]
	_, removed := l.Removed[commitment]
	return commitment != "" && !removed && (l.Any || listed)
}

// SaltSize is the size of a chip's salt in bytes.
const SaltSize = 32

const hardwareLabel = "meshnode-hardware/v1"

// HardwareCommitment returns the lower-case hex of SHA-256 over lp(label) lp(salt) lp(kind)
// lp(id), where id are the bytes of a hardware id that is given in hex: CHIP_ID of SEV-SNP (64
// bytes as in the report), PPID of TDX. kind is "sevsnp" or "tdx". Without the salt nobody can
// test a guess of the chip, not even a cloud that knows all of its own.
func HardwareCommitment(salt [SaltSize]byte, kind, id string) (string, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) == 0 {
		return "", fmt.Errorf("hardware id: %d characters, want hex", len(id))
	}
	buf := LengthPrefixed(nil, []byte(hardwareLabel))
	buf = LengthPrefixed(buf, salt[:])
	buf = LengthPrefixed(buf, []byte(kind))
	sum := sha256.Sum256(LengthPrefixed(buf, raw))
	return hex.EncodeToString(sum[:]), nil
}

// HardwareKind is the part of a kind that names the chip: the TEE's, also beside a TPM.
func HardwareKind(kind string) string {
	tee, _, _ := strings.Cut(kind, ",")
	return tee
}

// covers reports whether whoever meets f meets g, at every time.
func (f Floor) covers(g Floor) bool {
	if f.Product != g.Product || f.From.After(g.From) {
		return false
	}
	if f.SEVSNP != nil && g.SEVSNP != nil {
		return f.SEVSNP.Covers(*g.SEVSNP)
	}
	return f.TDX != nil && g.TDX != nil && f.TDX.Covers(*g.TDX)
}

// Covers reports whether whoever meets d meets e.
func (d TDXDemand) Covers(e TDXDemand) bool {
	within := len(e.TCBStatuses) == 0 || len(d.TCBStatuses) > 0 && subset(d.TCBStatuses, e.TCBStatuses)
	return within && subset(e.RejectedAdvisoryIDs, d.RejectedAdvisoryIDs) &&
		d.MinimumTCBEvaluation >= e.MinimumTCBEvaluation && !d.MinimumTCBDate.Before(e.MinimumTCBDate)
}

// subset reports whether b has every one of a.
func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// Raise returns floors and f, without those that another one covers, and whether f was not
// covered. The result does not depend on the order in which floors were raised, but for the
// order of its members.
func Raise(floors []Floor, f Floor) ([]Floor, bool) {
	if Covered(floors, f) {
		return floors, false
	}
	out := slices.DeleteFunc(slices.Clone(floors), f.covers)
	return append(out, f), true
}

// Covered reports whether one of floors covers f.
func Covered(floors []Floor, f Floor) bool {
	return slices.ContainsFunc(floors, func(g Floor) bool { return g.covers(f) })
}

// Covers reports whether whoever meets the floor t meets the floor u.
func (t TCB) Covers(u TCB) bool { return len(shortfalls("", t, u)) == 0 }
