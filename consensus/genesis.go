package consensus

import (
	"crypto"
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
	// signed are Credentials whose signature held under a key of their organisation, by digest.
	signed *lru.Cache[[sha256.Size]byte, *Credential]
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
	// Floors and Denied are demands on hardware, in the order of their JSON and distinct, as
	// RaiseFloor and DenyProduct make them; from fsm_version 4 on.
	Floors []attest.Floor   `json:"floors,omitempty"`
	Denied []attest.Product `json:"denied,omitempty"`
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
	signed, err := env.Verify(g.keys(KeyGovern))
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
		if signed, err = env.Verify(g.keys(KeyGovern)); err != nil {
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

// Organisation returns the founder named id.
func (g *Genesis) Organisation(id identity.OrgID) (Organisation, bool) {
	return organisations(g.Organisations).find(id)
}

// Amendable reports whether organisations, keys, limits and witnesses may change after the
// start: whether genesis is no more than what the mesh began with.
func (g *Genesis) Amendable() bool { return g.FSMVersion >= fsmGovernance }

// N is the number of founders that are members.
func (g *Genesis) N() int { return organisations(g.Organisations).n() }

// OrgKeys returns the keys of one role, of one founder. What is signed after the start is by
// the keys in force: see PolicyState.OrgKeys.
func (g *Genesis) OrgKeys(org identity.OrgID, role string) []envelope.Key {
	return organisations(g.Organisations).orgKeys(org, role, time.Time{})
}

// KeyOwner returns the organisation and role of a public key that genesis names.
func (g *Genesis) KeyOwner(pub crypto.PublicKey) (identity.OrgID, string, bool) {
	org, k, ok := organisations(g.Organisations).owner(pub)
	return org, k.Role, ok
}

// keys are the founders' keys of one role.
func (g *Genesis) keys(role string) []envelope.Key {
	return organisations(g.Organisations).keys(role, false, time.Time{})
}

func (g *Genesis) missing(signed []identity.OrgID) []identity.OrgID {
	return organisations(g.Organisations).missing(signed)
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
	if err := organisations(g.Organisations).validate(g.FSMVersion); err != nil {
		return err
	}
	if err := g.validateKinds(); err != nil {
		return err
	}
	if err := g.validateEntries(); err != nil {
		return err
	}
	if name := ownWitness(g.LogOrigin, g.Witnesses); name != "" {
		return fmt.Errorf("witnesses: %.60q is a name of this mesh's own logs", name)
	}
	if err := validateWitnesses(g.Witnesses); err != nil {
		return err
	}
	return g.Limits.validate(g.FSMVersion)
}
