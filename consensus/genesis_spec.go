package consensus

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/strictyaml"
)

// genesisSpec is the file that people write before they sign; its YAML keys are documented
// in docs/OPERATIONS.md.
type genesisSpec struct {
	Name          string    `yaml:"name"`
	Origin        string    `yaml:"origin"`
	Store         string    `yaml:"store"`
	AllowSim      bool      `yaml:"allow_sim"`
	Nonce         string    `yaml:"nonce"`
	CreatedAt     string    `yaml:"created_at"`
	Organisations []orgSpec `yaml:"organisations"`
	Kinds         struct {
		Member     []string `yaml:"member"`
		Seat       []string `yaml:"seat"`
		Aggregator []string `yaml:"aggregator"`
	} `yaml:"kinds"`
	Roots struct {
		Sim  []string `yaml:"sim"`
		VTPM []string `yaml:"vtpm"`
	} `yaml:"roots"`
	Entries   []entrySpec      `yaml:"entries"`
	Floors    []floorSpec      `yaml:"floors"`
	Denied    []attest.Product `yaml:"denied"`
	Witnesses []string         `yaml:"witnesses"`
	Limits    limitsSpec       `yaml:"limits"`
}

type orgSpec struct {
	ID    string    `yaml:"id"`
	Roles []string  `yaml:"roles"`
	Keys  []keySpec `yaml:"keys"`
}

type keySpec struct {
	Role   string `yaml:"role"`
	Public string `yaml:"public"`
	// NotAfter ends the key; it signs nothing that ends later.
	NotAfter string `yaml:"not_after"`
}

// entrySpec is an entry in YAML.
type entrySpec struct {
	ID          string            `yaml:"id"`
	Kind        string            `yaml:"kind"`
	Measurement string            `yaml:"measurement"`
	Registers   map[string]string `yaml:"registers"`
	Roles       []string          `yaml:"roles"`
	NotBefore   string            `yaml:"not_before"`
	NotAfter    string            `yaml:"not_after"`
	Supersedes  []string          `yaml:"supersedes"`
	Provenance  string            `yaml:"provenance"`
	IMA         []string          `yaml:"ima"`

	SupersedeAt string                `yaml:"supersede_at"`
	Builder     string                `yaml:"builder"`
	Rebuilds    []Rebuild             `yaml:"rebuilds"`
	MinimumTCB  map[string]attest.TCB `yaml:"minimum_tcb"`
	TDX         *tdxSpec              `yaml:"tdx"`
}

func (s entrySpec) entry() (Entry, error) {
	e := Entry{ID: s.ID, Kind: s.Kind, Measurement: s.Measurement, Registers: s.Registers, Roles: s.Roles,
		Supersedes: slices.Sorted(slices.Values(s.Supersedes)), Provenance: s.Provenance, IMA: slices.Compact(slices.Sorted(slices.Values(s.IMA)))}
	if len(e.Registers) == 0 {
		e.Registers = nil
	}
	var err error
	if e.NotBefore, err = parseTime("not_before", s.NotBefore); err != nil {
		return Entry{}, err
	}
	if e.NotAfter, err = parseTime("not_after", s.NotAfter); err != nil {
		return Entry{}, err
	}
	if err := s.govern(&e); err != nil {
		return Entry{}, err
	}
	return NewEntry(e)
}

func parseTime(what, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: got %.40q, want a time like 2026-01-31T12:00:00Z", what, s)
	}
	return t.UTC(), nil
}

// NewGenesis makes a validated, unsigned genesis from a spec file called name in errors.
// nonce (32 bytes) and created are used where the file names none.
func NewGenesis(name string, spec []byte, nonce []byte, created time.Time) (*Genesis, error) {
	var s genesisSpec
	if err := strictyaml.Decode(name, spec, &s); err != nil {
		return nil, err
	}
	g, err := s.genesis(nonce, created)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	payload, err := g.Payload()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return DecodeGenesis(payload)
}

func (s *genesisSpec) genesis(nonce []byte, created time.Time) (*Genesis, error) {
	g := &Genesis{Name: s.Name, Nonce: s.Nonce, CreatedAt: canonicalTime(created), LogOrigin: s.Origin, FSMVersion: FSMVersion,
		StoreKind: s.Store, AllowSim: s.AllowSim, Witnesses: append([]string{}, s.Witnesses...), Limits: s.Limits.limits()}
	if g.Nonce == "" {
		g.Nonce = hex.EncodeToString(nonce)
	}
	if s.CreatedAt != "" {
		t, err := parseTime("created_at", s.CreatedAt)
		if err != nil {
			return nil, err
		}
		g.CreatedAt = t
	}
	if g.StoreKind == "" {
		g.StoreKind = StoreMemory
	}
	if g.Limits.Nodes == 0 {
		g.Limits.Nodes = DefaultNodes
	}
	g.Kinds = Kinds{kindsOr(s.Kinds.Member), kindsOr(s.Kinds.Seat), kindsOr(s.Kinds.Aggregator)}
	var err error
	if g.Roots.Sim, err = parseRoots("roots.sim", s.Roots.Sim, parsePublic); err != nil {
		return nil, err
	}
	if g.Roots.VTPM, err = parseRoots("roots.vtpm", s.Roots.VTPM, parseRootKey); err != nil {
		return nil, err
	}
	for _, o := range s.Organisations {
		org, err := o.organisation()
		if err != nil {
			return nil, err
		}
		g.Organisations = append(g.Organisations, org)
	}
	slices.SortStableFunc(g.Organisations, func(a, b Organisation) int { return strings.Compare(string(a.ID), string(b.ID)) })
	g.Policy.Entries = []Entry{}
	for _, es := range s.Entries {
		e, err := es.entry()
		if err != nil {
			return nil, fmt.Errorf("entries: %w", err)
		}
		g.Policy.Entries = append(g.Policy.Entries, e)
	}
	sortEntries(g.Policy.Entries)
	if err := g.Policy.setPlatforms(s.Floors, s.Denied); err != nil {
		return nil, err
	}
	return g, nil
}

func sortEntries(entries []Entry) {
	slices.SortStableFunc(entries, func(a, b Entry) int { return strings.Compare(a.ID, b.ID) })
}

func kindsOr(kinds []string) []string {
	if len(kinds) == 0 {
		return []string{attest.KindSEVSNP, attest.KindTDX}
	}
	return kinds
}

func parseRoots[Key any](what string, in []string, parse func(string) (Key, error)) ([]Key, error) {
	out := []Key{}
	for _, s := range in {
		pub, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, pub)
	}
	return out, nil
}

func parsePublic(s string) (envelope.PublicKey, error) {
	var pub envelope.PublicKey
	if _, err := base64.StdEncoding.DecodeString(s); err != nil || s == "" {
		return pub, fmt.Errorf("got %.40q, want the base64 public key that meshnode keygen prints", s)
	}
	return pub, pub.UnmarshalText([]byte(s))
}
