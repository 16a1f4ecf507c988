package consensus

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Entry allows software of one measurement to hold roles in the mesh.
type Entry struct {
	// ID is computed from all other fields: see EntryID.
	ID string `json:"id"`
	// Kind of evidence, a composite's parts joined by ','.
	Kind string `json:"kind"`
	// Measurement is the kind's primary reference value in lower-case hex.
	Measurement string `json:"measurement"`
	// Registers must all match too, under the vendor's names.
	Registers map[string]string `json:"registers,omitempty"`
	// Roles that a node of this measurement may hold, sorted, "member" among them.
	Roles []string `json:"roles"`
	// NotBefore and NotAfter bound the validity; zero is unbounded.
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// Supersedes names the entries that this one is meant to replace.
	Supersedes []string `json:"supersedes,omitempty"`
	// Provenance is the SHA-256 of an in-toto or SLSA statement, in hex.
	Provenance string `json:"provenance,omitempty"`
	// IMA lists the digests of all files that the kernel's IMA list may show, as "sha256:HEX",
	// sorted and distinct. With a list, evidence without an IMA list that its quote covers is refused; with
	// none, files are not judged and the measurement must cover all that can run. For kinds
	// with a TPM only, from fsm_version 3 on.
	IMA []string `json:"ima,omitempty"`

	// The rest is from fsm_version 4 on.

	// SupersedeAt ends the entries that this one supersedes, at that ordered time; until then
	// both are in force. Zero leaves them.
	SupersedeAt time.Time `json:"supersede_at,omitzero"`
	// Builder names who built the release, as the statement's builder id does, and Rebuilds
	// who got the same bytes from the same source.
	Builder  string    `json:"builder,omitempty"`
	Rebuilds []Rebuild `json:"rebuilds,omitempty"`
	// MinimumTCB are floors by product line of SEV-SNP: only these lines are admitted.
	MinimumTCB map[string]attest.TCB `json:"minimum_tcb,omitempty"`
	// TDX demands more of TDX platforms, but that its statuses take the place of UpToDate.
	TDX *attest.TDXDemand `json:"tdx,omitempty"`
}

// Rebuild is the word of one organisation that it got the entry's release from its source.
type Rebuild struct {
	Organisation identity.OrgID `json:"organisation" yaml:"organisation"`
	// Statement is the SHA-256 of an in-toto statement, in hex.
	Statement string `json:"statement" yaml:"statement"`
}

// entryBody is an Entry without its id: what the id is the hash of.
type entryBody struct {
	Kind        string            `json:"kind"`
	Measurement string            `json:"measurement"`
	Registers   map[string]string `json:"registers,omitempty"`
	Roles       []string          `json:"roles"`
	NotBefore   time.Time         `json:"not_before,omitzero"`
	NotAfter    time.Time         `json:"not_after,omitzero"`
	Supersedes  []string          `json:"supersedes,omitempty"`
	Provenance  string            `json:"provenance,omitempty"`
	IMA         []string          `json:"ima,omitempty"`

	SupersedeAt time.Time             `json:"supersede_at,omitzero"`
	Builder     string                `json:"builder,omitempty"`
	Rebuilds    []Rebuild             `json:"rebuilds,omitempty"`
	MinimumTCB  map[string]attest.TCB `json:"minimum_tcb,omitempty"`
	TDX         *attest.TDXDemand     `json:"tdx,omitempty"`
}

// EntryID returns the first 16 hex characters of the SHA-256 of e's compact JSON without
// its id.
func EntryID(e Entry) string {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	// Strings, maps of strings and times in range cannot fail to encode.
	if err := enc.Encode(entryBody{e.Kind, e.Measurement, e.Registers, e.Roles, e.NotBefore, e.NotAfter, e.Supersedes, e.Provenance, e.IMA,
		e.SupersedeAt, e.Builder, e.Rebuilds, e.MinimumTCB, e.TDX}); err != nil {
		return ""
	}
	sum := sha256.Sum256(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
	return hex.EncodeToString(sum[:8])
}

// NewEntry returns e normalised (roles, times) with its id computed. An id that is already
// set must be the computed one.
func NewEntry(e Entry) (Entry, error) {
	e.Roles = NormaliseRoles(e.Roles)
	e.NotBefore, e.NotAfter, e.SupersedeAt = canonicalTime(e.NotBefore), canonicalTime(e.NotAfter), canonicalTime(e.SupersedeAt)
	stated := e.ID
	e.ID = EntryID(e)
	if stated != "" && stated != e.ID {
		return Entry{}, fmt.Errorf("entry: id %.40q, but its content has id %s; leave id out", stated, e.ID)
	}
	return e, e.check()
}

var registerName = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// check demands a well-formed entry whose id is that of its content.
func (e *Entry) check() error {
	if err := checkHex("entry id", e.ID, 8); err != nil {
		return err
	}
	kinds, err := attest.ParseKinds(e.Kind)
	if err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if err := checkMeasurement(kinds, e.Measurement); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if err := checkRegisters(e.Registers); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if err := checkRoles(e.Roles); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if err := checkWindow(e.NotBefore, e.NotAfter); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if len(e.Supersedes) > MaxSupersedes || !slices.IsSorted(e.Supersedes) || len(slices.Compact(slices.Clone(e.Supersedes))) != len(e.Supersedes) {
		return fmt.Errorf("entry %s: supersedes: want at most %d distinct ids in order", e.ID, MaxSupersedes)
	}
	for _, s := range e.Supersedes {
		if err := checkHex("supersedes", s, 8); err != nil {
			return fmt.Errorf("entry %s: %w", e.ID, err)
		}
	}
	if e.Provenance != "" {
		if err := checkHex("provenance", e.Provenance, 32); err != nil {
			return fmt.Errorf("entry %s: %w", e.ID, err)
		}
	}
	if err := checkIMA(kinds, e.IMA); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if err := e.checkGovernance(kinds); err != nil {
		return fmt.Errorf("entry %s: %w", e.ID, err)
	}
	if want := EntryID(*e); e.ID != want {
		return fmt.Errorf("entry %s: its content has id %s", e.ID, want)
	}
	return nil
}

// checkMeasurement knows the sizes: SHA-384 of SEV-SNP, TDX and sim, a PCR digest of any
// bank where the TPM stands alone.
func checkMeasurement(kinds []string, m string) error {
	if len(kinds) == 1 && kinds[0] == attest.KindVTPM {
		return checkHex("measurement", m, 32, 48, 64)
	}
	return checkHex("measurement", m, 48)
}

func checkRegisters(registers map[string]string) error {
	if len(registers) > MaxRegisters || registers != nil && len(registers) == 0 {
		return fmt.Errorf("registers: %d, want 1 to %d or none at all", len(registers), MaxRegisters)
	}
	for name, v := range registers {
		if !registerName.MatchString(name) {
			return fmt.Errorf("registers: %.40q is no register name", name)
		}
		if err := checkHex("register "+name, v, 20, 32, 48, 64); err != nil {
			return err
		}
	}
	return nil
}

// fileHashes are the algorithms by which IMA may name files, with the sizes of digests.
var fileHashes = map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}

func checkIMA(kinds, files []string) error {
	if files == nil {
		return nil
	}
	if !slices.Contains(kinds, attest.KindVTPM) {
		return fmt.Errorf("ima: evidence of kind %s has no IMA list", strings.Join(kinds, ","))
	}
	if len(files) == 0 || len(files) > MaxIMA {
		return fmt.Errorf("ima: %d digests, want 1 to %d or none at all", len(files), MaxIMA)
	}
	for i, f := range files {
		algorithm, digest, _ := strings.Cut(f, ":")
		size, known := fileHashes[algorithm]
		if !known {
			return fmt.Errorf("ima: got %.20q, want a digest like sha256:HEX; SHA-1 names no file", f)
		}
		if err := checkHex("ima "+algorithm, digest, size); err != nil {
			return err
		}
		if i > 0 && files[i-1] >= f {
			return fmt.Errorf("ima: %.24s… after %.24s…, want distinct digests in order", f, files[i-1])
		}
	}
	return nil
}

func checkWindow(from, to time.Time) error {
	if !from.IsZero() {
		if err := checkTime("not_before", from); err != nil {
			return err
		}
	}
	if !to.IsZero() {
		if err := checkTime("not_after", to); err != nil {
			return err
		}
		if !to.After(from) {
			return fmt.Errorf("not_after %s is not later than not_before", to.Format(time.RFC3339))
		}
	}
	return nil
}

// listsAll reports whether a node that has shown only files of other has shown only files of e.
func (e *Entry) listsAll(other *Entry) bool {
	if len(e.IMA) == 0 {
		return true
	}
	return len(other.IMA) > 0 && !slices.ContainsFunc(other.IMA, func(f string) bool {
		_, listed := slices.BinarySearch(e.IMA, f)
		return !listed
	})
}

func (e *Entry) reference() attest.Reference {
	return attest.Reference{ID: e.ID, Kind: e.Kind, Measurement: e.Measurement, Registers: maps.Clone(e.Registers),
		IMA: slices.Clone(e.IMA), NotBefore: e.NotBefore, NotAfter: e.NotAfter, Platform: e.platform()}
}

// Describe returns one line for people, made from the fields alone.
func (e *Entry) Describe() string {
	s := fmt.Sprintf("%s  %s measurement %s", e.ID, e.Kind, e.Measurement)
	for _, k := range slices.Sorted(maps.Keys(e.Registers)) {
		s += fmt.Sprintf(" and %s %s", k, e.Registers[k])
	}
	if len(e.IMA) > 0 {
		s += fmt.Sprintf(" with %d files in its IMA list", len(e.IMA))
	}
	s += " as " + strings.Join(e.Roles, ", ")
	if !e.NotBefore.IsZero() {
		s += " from " + e.NotBefore.Format(time.RFC3339)
	}
	if !e.NotAfter.IsZero() {
		s += " until " + e.NotAfter.Format(time.RFC3339)
	}
	if len(e.Supersedes) > 0 {
		s += " in place of " + strings.Join(e.Supersedes, ", ")
	}
	if !e.SupersedeAt.IsZero() {
		s += ", which ends " + e.SupersedeAt.Format(time.RFC3339)
	}
	return s + e.describePlatform() + " " + e.DescribeProvenance()
}
