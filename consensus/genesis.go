package consensus

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sigstore/sigstore/pkg/signature"
)

// FSMVersion is the version of the state machine that this package is, and that of new
// meshes. Genesis fixes it; the meshes of older versions stay as they are.
const FSMVersion = 4

// fsmSuspensions is the first version that orders suspensions, fsmActivation the first whose
// Credentials name attestation keys and whose entries list files, fsmGovernance the first whose
// proposals change more than entries, whose seats move and whose state is logged.
const (
	fsmSuspensions = 2
	fsmActivation  = 3
	fsmGovernance  = 4
)

// Key roles. A key has exactly one.
const (
	KeyGovern    = "govern"    // signs genesis and proposals; Ed25519 or P-256
	KeyEnroll    = "enroll"    // signs Bootstrap and Credentials; Ed25519, online
	KeyEmergency = "emergency" // signs suspensions and nothing else; Ed25519 or P-256
)

// Roles of organisations. A member organisation has a vote on proposals and a seat; a
// neutral seat has a seat only.
const (
	OrgMember = "member"
	OrgSeat   = "seat"
)

// Store kinds.
const (
	StoreMemory = "memory"
	StoreDisk   = "disk" // no rollback protection
)

// Genesis is the constitution of a mesh: its organisations, their keys, and all choices
// that bear on security. It never names nodes.
type Genesis struct {
	Name      string    `json:"name"`
	Nonce     string    `json:"nonce"` // 32 bytes in hex
	CreatedAt time.Time `json:"created_at"`
	// LogOrigin is the prefix of every log origin; it begins "sim." exactly if
	// simulated evidence is admitted.
	LogOrigin     string         `json:"origin"`
	FSMVersion    int            `json:"fsm_version"`
	StoreKind     string         `json:"store"`
	AllowSim      bool           `json:"allow_sim"`
	Organisations []Organisation `json:"organisations"` // sorted by id
	Kinds         Kinds          `json:"kinds"`
	Roots         Roots          `json:"roots"`
	Policy        FirstPolicy    `json:"policy"`
	Witnesses     []string       `json:"witnesses"` // C2SP verifier keys of outside witnesses
	Limits        Limits         `json:"limits"`

	meshID  identity.MeshID
	payload []byte
	raw     []byte
	// signed are Credentials whose signature held under the keys of this genesis, by digest.
	signed *lru.Cache[[sha256.Size]byte, *Credential]
}

// Organisation is one founder.
type Organisation struct {
	ID    identity.OrgID `json:"id"`
	Roles []string       `json:"roles"` // exactly one of OrgMember, OrgSeat
	Keys  []Key          `json:"keys"`
}

// Key is a public key with its one role.
type Key struct {
	Role   string             `json:"role"`
	Public envelope.PublicKey `json:"public"`
}

// Kinds lists the kinds of evidence admitted for each role. Trainers are members.
type Kinds struct {
	Member     []string `json:"member"`
	Seat       []string `json:"seat"`
	Aggregator []string `json:"aggregator"`
}

// Roots holds trust anchors that are not compiled in.
type Roots struct {
	Sim []envelope.PublicKey `json:"sim"`
	// VTPM certify TPMs: endorsement keys, which enrollers look at, or attestation keys.
	VTPM []RootKey `json:"vtpm"`
}

// FirstPolicy is the allowed set at epoch 0.
type FirstPolicy struct {
	Entries []Entry `json:"entries"` // sorted by id
}

// Limits are quotas that the founders agreed on.
type Limits struct {
	// Nodes is the largest number of nodes of one organisation.
	Nodes int `json:"nodes"`
}

// DecodeGenesis decodes and validates a genesis payload without any signature, for
// showing and signing it. What it returns has no Raw and cannot start a State.
func DecodeGenesis(payload []byte) (*Genesis, error) {
	st, err := envelope.Decode[Genesis](payload, envelope.TypeGenesis)
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	g := &st.Predicate
	if err := g.validate(); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	if err := checkSubject(st.Subject, g.subject()); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	g.payload, g.meshID = payload, sha256.Sum256(payload)
	if g.signed, err = lru.New[[sha256.Size]byte, *Credential](maxSigned); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	return g, nil
}

// ParseGenesis decodes a signed genesis and demands a signature by a govern key of every
// founding organisation.
func ParseGenesis(raw []byte) (*Genesis, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	g, err := DecodeGenesis(env.Payload)
	if err != nil {
		return nil, err
	}
	signed, err := env.Verify(g.keys(KeyGovern, false))
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	if missing := g.missing(signed); len(missing) > 0 {
		return nil, refuse(attest.CodeThreshold, "genesis", fmt.Sprintf("no signature by %s", missing), "a govern key of every founding organisation")
	}
	g.raw = raw
	return g, nil
}

// SignedBy returns the organisations whose govern keys have signed an envelope of g, which
// may still lack some; a bad signature is an error.
func (g *Genesis) SignedBy(env *envelope.Envelope) (signed, missing []identity.OrgID, err error) {
	if len(env.Signatures) > 0 {
		if signed, err = env.Verify(g.keys(KeyGovern, false)); err != nil {
			return nil, nil, fmt.Errorf("genesis: %w", err)
		}
	}
	return signed, g.missing(signed), nil
}

// Payload encodes a genesis that was built in memory, after validating it.
func (g *Genesis) Payload() ([]byte, error) {
	if g.payload != nil {
		return g.payload, nil
	}
	if err := g.validate(); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	return envelope.NewPayload(envelope.TypeGenesis, g.subject(), *g)
}

// SignGenesis signs g with the given keys and parses the result: all founding
// organisations must be among the signers.
func SignGenesis(g *Genesis, signers ...signature.Signer) (*Genesis, error) {
	payload, err := g.Payload()
	if err != nil {
		return nil, err
	}
	env := &envelope.Envelope{Payload: payload}
	for _, s := range signers {
		if err := env.Sign(s); err != nil {
			return nil, fmt.Errorf("genesis: %w", err)
		}
	}
	return ParseGenesis(env.Marshal())
}

func (g *Genesis) subject() envelope.Subject {
	nonce, _ := hex.DecodeString(g.Nonce) // validated
	return envelope.SubjectOf(g.Name, nonce)
}

// MeshID is the SHA-256 of the payload.
func (g *Genesis) MeshID() identity.MeshID { return g.meshID }

// Raw returns the signed envelope that was parsed.
func (g *Genesis) Raw() []byte { return slices.Clone(g.raw) }

// Origin returns the log origin of one incarnation: "<origin>/<16 hex of mesh id>/<incarnation>".
func (g *Genesis) Origin(inc identity.Incarnation) string {
	return fmt.Sprintf("%s/%s/%d", g.LogOrigin, g.meshID.Short(), inc)
}

// CosignerName returns the note key name of one boot of a node:
// "<origin of the incarnation>/<org>/<node>/<boot_seq>".
func (g *Genesis) CosignerName(inc identity.Incarnation, ref identity.NodeRef, boot identity.BootSeq) string {
	return fmt.Sprintf("%s/%s/%d", g.Origin(inc), ref, boot)
}

// SimRoots returns the sim platform roots, none unless simulated evidence is allowed.
func (g *Genesis) SimRoots() []crypto.PublicKey {
	if !g.AllowSim {
		return nil
	}
	return publicKeys(g.Roots.Sim)
}

// VTPMRoots returns the trust anchors of TPMs.
func (g *Genesis) VTPMRoots() []crypto.PublicKey {
	var out []crypto.PublicKey
	for _, k := range g.Roots.VTPM {
		out = append(out, k.PublicKey)
	}
	return out
}

func publicKeys(in []envelope.PublicKey) []crypto.PublicKey {
	var out []crypto.PublicKey
	for _, k := range in {
		out = append(out, k.PublicKey)
	}
	return out
}

// Organisation returns the organisation named id.
func (g *Genesis) Organisation(id identity.OrgID) (Organisation, bool) {
	for _, o := range g.Organisations {
		if o.ID == id {
			return o, true
		}
	}
	return Organisation{}, false
}

// IsMember reports whether o may vote on proposals.
func (o Organisation) IsMember() bool { return slices.Contains(o.Roles, OrgMember) }

// N is the number of member organisations: what governance counts.
func (g *Genesis) N() int {
	n := 0
	for _, o := range g.Organisations {
		if o.IsMember() {
			n++
		}
	}
	return n
}

// OrgKeys returns the keys of one role, of one organisation.
func (g *Genesis) OrgKeys(org identity.OrgID, role string) []envelope.Key {
	return slices.DeleteFunc(g.keys(role, false), func(k envelope.Key) bool { return k.Org != org })
}

// keys returns all keys of one role, of member organisations only if so asked.
func (g *Genesis) keys(role string, membersOnly bool) []envelope.Key {
	var out []envelope.Key
	for _, o := range g.Organisations {
		if membersOnly && !o.IsMember() {
			continue
		}
		for _, k := range o.Keys {
			if k.Role == role {
				out = append(out, envelope.Key{Org: o.ID, Public: k.Public.PublicKey})
			}
		}
	}
	return out
}

// KeyOwner returns the organisation and role of a public key that genesis names.
func (g *Genesis) KeyOwner(pub crypto.PublicKey) (identity.OrgID, string, bool) {
	want, err := envelope.KeyID(pub)
	if err != nil {
		return "", "", false
	}
	for _, o := range g.Organisations {
		for _, k := range o.Keys {
			if id, err := envelope.KeyID(k.Public.PublicKey); err == nil && id == want {
				return o.ID, k.Role, true
			}
		}
	}
	return "", "", false
}

func (g *Genesis) missing(signed []identity.OrgID) []identity.OrgID {
	var out []identity.OrgID
	for _, o := range g.Organisations {
		if !slices.Contains(signed, o.ID) {
			out = append(out, o.ID)
		}
	}
	return out
}

// tooEarly refuses what the state machine of an older mesh does not know.
func (g *Genesis) tooEarly(what string, version int) error {
	return refuse(attest.CodeWrongVersion, what, fmt.Sprintf("fsm_version %d in genesis", g.FSMVersion), fmt.Sprintf("%d or more", version))
}

// kindsFor returns the kinds admitted for a role.
func (k *Kinds) kindsFor(role string) []string {
	switch role {
	case RoleSeat:
		return k.Seat
	case RoleAggregator:
		return k.Aggregator
	default:
		return k.Member
	}
}

var (
	originPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}(/[a-z0-9][a-z0-9.-]{0,31}){0,3}$`)
	witnessPattern = regexp.MustCompile(`^[!-*,-~]{1,160}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{43,64}={0,2}$`)
)

func (g *Genesis) validate() error {
	if err := identity.OrgID(g.Name).Validate(); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if err := checkHex("nonce", g.Nonce, 32); err != nil {
		return err
	}
	if err := checkTime("created_at", g.CreatedAt); err != nil {
		return err
	}
	if g.FSMVersion < 1 || g.FSMVersion > FSMVersion {
		return fmt.Errorf("fsm_version: got %d, this release runs 1 to %d", g.FSMVersion, FSMVersion)
	}
	if g.StoreKind != StoreMemory && g.StoreKind != StoreDisk {
		return fmt.Errorf("store: got %.20q, want %q or %q", g.StoreKind, StoreMemory, StoreDisk)
	}
	if len(g.LogOrigin) > 100 || !originPattern.MatchString(g.LogOrigin) {
		return fmt.Errorf("origin: got %.120q, want a lower-case name like example.org/mesh", g.LogOrigin)
	}
	if g.AllowSim != strings.HasPrefix(g.LogOrigin, "sim.") {
		return fmt.Errorf("origin: got %q with allow_sim %t, origins of meshes that admit simulated evidence, and only those, begin \"sim.\"", g.LogOrigin, g.AllowSim)
	}
	if err := validateOrganisations(g.Organisations); err != nil {
		return err
	}
	if err := g.validateKinds(); err != nil {
		return err
	}
	if err := g.validateEntries(); err != nil {
		return err
	}
	for i, w := range g.Witnesses {
		if !witnessPattern.MatchString(w) || slices.Contains(g.Witnesses[:i], w) {
			return fmt.Errorf("witnesses: %.60q is no verifier key of the form name+hash+key, or repeated", w)
		}
	}
	if len(g.Witnesses) > MaxWitnesses {
		return fmt.Errorf("witnesses: %d, want at most %d", len(g.Witnesses), MaxWitnesses)
	}
	if g.Limits.Nodes < 1 || g.Limits.Nodes > MaxNodes {
		return fmt.Errorf("limits.nodes: got %d, want 1 to %d", g.Limits.Nodes, MaxNodes)
	}
	return nil
}

func validateOrganisations(orgs []Organisation) error {
	if len(orgs) < MinOrganisations || len(orgs) > MaxOrganisations {
		return fmt.Errorf("organisations: %d, want %d to %d", len(orgs), MinOrganisations, MaxOrganisations)
	}
	members, owners := 0, map[string]identity.OrgID{}
	for i, o := range orgs {
		if err := o.ID.Validate(); err != nil {
			return fmt.Errorf("organisations: %w", err)
		}
		if i > 0 && orgs[i-1].ID >= o.ID {
			return fmt.Errorf("organisations: %q after %q, want distinct ids in order", o.ID, orgs[i-1].ID)
		}
		if len(o.Roles) != 1 || o.Roles[0] != OrgMember && o.Roles[0] != OrgSeat {
			return fmt.Errorf("organisation %s: roles %.60q, want exactly one of %q and %q", o.ID, o.Roles, OrgMember, OrgSeat)
		}
		if o.IsMember() {
			members++
		}
		if err := validateKeys(o, owners); err != nil {
			return fmt.Errorf("organisation %s: %w", o.ID, err)
		}
	}
	if members < MinOrganisations {
		return fmt.Errorf("organisations: %d members, want at least %d", members, MinOrganisations)
	}
	return nil
}

// validateKeys demands one role per key and no key twice in the whole genesis.
func validateKeys(o Organisation, owners map[string]identity.OrgID) error {
	if len(o.Keys) > MaxKeys {
		return fmt.Errorf("%d keys, want at most %d", len(o.Keys), MaxKeys)
	}
	have := map[string]int{}
	for _, k := range o.Keys {
		id, err := envelope.KeyID(k.Public.PublicKey)
		if err != nil {
			return err
		}
		if other, ok := owners[id]; ok {
			return fmt.Errorf("key %s is listed already, for %s: a key has one role and one organisation", id[:16], other)
		}
		owners[id] = o.ID
		have[k.Role]++
		switch k.Role {
		case KeyGovern, KeyEmergency:
		case KeyEnroll:
			if _, ok := k.Public.PublicKey.(ed25519.PublicKey); !ok {
				return fmt.Errorf("enroll key %s is not Ed25519", id[:16])
			}
		default:
			return fmt.Errorf("key %s has role %.20q, want %s, %s or %s", id[:16], k.Role, KeyGovern, KeyEnroll, KeyEmergency)
		}
	}
	if have[KeyGovern] == 0 || have[KeyEnroll] == 0 {
		return fmt.Errorf("%d govern and %d enroll keys, want at least one of each", have[KeyGovern], have[KeyEnroll])
	}
	return nil
}
