package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

func TestGenesisNames(t *testing.T) {
	g := newMesh(t, 3).g
	id := g.MeshID().String()
	if want := "sim.example.org/trial/" + id[:16] + "/2"; g.Origin(2) != want {
		t.Errorf("origin %s, want %s", g.Origin(2), want)
	}
	if want := g.Origin(0) + "/alpha/n1/7"; g.CosignerName(0, identity.NodeRef{Org: "alpha", Name: "n1"}, 7) != want {
		t.Errorf("cosigner %s", g.CosignerName(0, identity.NodeRef{Org: "alpha", Name: "n1"}, 7))
	}
	if got := sha256Hex(must(envelope.Parse(g.Raw())).Payload); got != id {
		t.Errorf("mesh id %s is not the SHA-256 of the payload, %s", id, got)
	}
	back, err := ParseGenesis(g.Raw())
	if err != nil || back.MeshID() != g.MeshID() || back.N() != 3 {
		t.Errorf("%v %v", back, err)
	}
}

func TestGenesisRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vtpm := Entry{Kind: "vtpm", Measurement: strings.Repeat("ab", 32), Roles: []string{RoleMember}}
	vtpm.ID = EntryID(vtpm)
	for name, tc := range map[string]struct {
		change func(*Genesis)
		want   string
	}{
		"name":                        {func(g *Genesis) { g.Name = "A" }, "name"},
		"nonce":                       {func(g *Genesis) { g.Nonce = "ab" }, "nonce"},
		"upper-case nonce":            {func(g *Genesis) { g.Nonce = strings.Repeat("AB", 32) }, "nonce"},
		"zero time":                   {func(g *Genesis) { g.CreatedAt = time.Time{} }, "created_at"},
		"other zone":                  {func(g *Genesis) { g.CreatedAt = start.In(time.FixedZone("x", 3600)) }, "created_at"},
		"nanoseconds":                 {func(g *Genesis) { g.CreatedAt = start.Add(1) }, "created_at"},
		"fsm version":                 {func(g *Genesis) { g.FSMVersion = FSMVersion + 1 }, "fsm_version"},
		"store":                       {func(g *Genesis) { g.StoreKind = "tape" }, "store"},
		"origin":                      {func(g *Genesis) { g.LogOrigin = "sim.Example.org" }, "origin"},
		"origin not sim":              {func(g *Genesis) { g.LogOrigin = "example.org" }, "origin"},
		"sim origin":                  {func(g *Genesis) { g.AllowSim = false }, "origin"},
		"sim not allowed":             {func(g *Genesis) { g.AllowSim, g.LogOrigin = false, "example.org" }, "allow_sim"},
		"no sim root":                 {func(g *Genesis) { g.Roots.Sim = []envelope.PublicKey{} }, "roots.sim"},
		"root twice":                  {func(g *Genesis) { g.Roots.Sim = append(g.Roots.Sim, g.Roots.Sim[0]) }, "listed twice"},
		"no kind":                     {func(g *Genesis) { g.Kinds.Seat = []string{} }, "kinds.seat"},
		"unknown kind":                {func(g *Genesis) { g.Kinds.Seat = []string{"sgx"} }, "unknown kind"},
		"kind twice":                  {func(g *Genesis) { g.Kinds.Seat = []string{"sim", "sim"} }, "twice"},
		"one organisation":            {func(g *Genesis) { g.Organisations = g.Organisations[:1] }, "organisations: 1"},
		"eight":                       {func(g *Genesis) { g.Organisations = append(g.Organisations, make([]Organisation, 5)...) }, "organisations: 8"},
		"order":                       {func(g *Genesis) { g.Organisations[0], g.Organisations[1] = g.Organisations[1], g.Organisations[0] }, "in order"},
		"same organisation":           {func(g *Genesis) { g.Organisations[1].ID = "alpha" }, "in order"},
		"both roles":                  {func(g *Genesis) { g.Organisations[0].Roles = []string{OrgMember, OrgSeat} }, "exactly one"},
		"no role":                     {func(g *Genesis) { g.Organisations[0].Roles = []string{} }, "exactly one"},
		"one member":                  {func(g *Genesis) { g.Organisations[0].Roles[0], g.Organisations[1].Roles[0] = OrgSeat, OrgSeat }, "1 members"},
		"key under two organisations": {func(g *Genesis) { g.Organisations[1].Keys[0].Public = g.Organisations[0].Keys[0].Public }, "listed already"},
		"key with two roles":          {func(g *Genesis) { g.Organisations[0].Keys[2].Public = g.Organisations[0].Keys[0].Public }, "listed already"},
		"no govern key":               {func(g *Genesis) { g.Organisations[0].Keys = g.Organisations[0].Keys[2:] }, "0 govern"},
		"unknown key role":            {func(g *Genesis) { g.Organisations[0].Keys[3].Role = "root" }, "role"},
		"enroll P-256":                {func(g *Genesis) { g.Organisations[0].Keys[2].Public.PublicKey = p256.Public() }, "not Ed25519"},
		"govern P-384":                {func(g *Genesis) { g.Organisations[0].Keys[0].Public.PublicKey = p384.Public() }, "P-256"},
		"limits":                      {func(g *Genesis) { g.Limits.Nodes = 0 }, "limits.nodes"},
		"witness":                     {func(g *Genesis) { g.Witnesses = []string{"w"} }, "witnesses"},
		"two witnesses, one name":     {func(g *Genesis) { g.Witnesses = []string{witness, strings.Replace(witness, "AA", "BB", 1)} }, "named twice"},
		"witness named as the log": {func(g *Genesis) {
			g.Witnesses = []string{strings.Replace(witness, "witness.example.org", g.LogOrigin+"/x", 1)}
		}, "own logs"},
		"entry order":             {func(g *Genesis) { e := g.Policy.Entries; e[0], e[1] = e[1], e[0] }, "in order"},
		"entry id":                {func(g *Genesis) { g.Policy.Entries[0].ID = strings.Repeat("0", 16) }, "has id"},
		"entry changed":           {func(g *Genesis) { g.Policy.Entries[0].Measurement = measurement("x") }, "has id"},
		"entry kind not admitted": {func(g *Genesis) { g.Policy.Entries = []Entry{vtpm} }, "kind_not_allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			g := genesisOf(t, 3)
			tc.change(g)
			if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestGenesisNeedsEveryFounder(t *testing.T) {
	labels := func(l ...string) []signature.Signer {
		var out []signature.Signer
		for _, s := range l {
			out = append(out, signer(t, s))
		}
		return out
	}
	for name, tc := range map[string]struct {
		signers []signature.Signer
		want    string
	}{
		"nobody":                       {nil, "no signature"},
		"all but one":                  {labels("alpha govern", "beta govern"), "threshold"},
		"one organisation with 2 keys": {labels("alpha govern", "beta govern", "beta govern 2"), "threshold"},
		"wrong role":                   {labels("alpha govern", "beta govern", "gamma enroll"), "not one of"},
		"stranger":                     {labels("alpha govern", "beta govern", "gamma govern", "mallory"), "not one of"},
	} {
		if _, err := SignGenesis(genesisOf(t, 3), tc.signers...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// Organisations may hold P-256 keys; the mesh id does not depend on who signed how.
func TestGenesisWithP256(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := envelope.NewSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := genesisOf(t, 2)
	unsigned.Organisations[0].Keys[0].Public.PublicKey = k.Public()
	g, err := SignGenesis(unsigned, s, signer(t, "beta govern"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := SignGenesis(unsigned, signer(t, "beta govern"), s)
	if err != nil {
		t.Fatal(err)
	}
	if g.MeshID() != again.MeshID() {
		t.Error("the mesh id depends on the signatures")
	}
}

const specText = `
name: trial
origin: sim.example.org/trial
allow_sim: true
organisations:
  - {id: beta, keys: [{role: govern, public: BG}, {role: enroll, public: BE}]}
  - {id: alpha, roles: [member], keys: [{role: govern, public: AG}, {role: enroll, public: AE}]}
kinds: {member: [sim], seat: [sim], aggregator: [sim]}
roots: {sim: [SR]}
entries:
  - {kind: sim, measurement: MM, roles: [seat], not_after: 2027-01-01T00:00:00Z}
`

func TestGenesisSpec(t *testing.T) {
	text := func(label string) string { return string(must(public(label).MarshalText())) }
	spec := strings.NewReplacer("BG", text("beta govern"), "BE", text("beta enroll"), "AG", text("alpha govern"), "AE", text("alpha enroll"),
		"SR", text("sim root"), "MM", measurement("new")).Replace(specText)
	g, err := NewGenesis("spec.yaml", []byte(spec), make([]byte, 32), start.Add(time.Nanosecond))
	if err != nil {
		t.Fatal(err)
	}
	if g.Organisations[0].ID != "alpha" || g.Organisations[1].Roles[0] != OrgMember || g.StoreKind != StoreMemory || g.Limits.Nodes != DefaultNodes ||
		!g.CreatedAt.Equal(start) || strings.Join(g.Policy.Entries[0].Roles, " ") != "member seat" || g.Policy.Entries[0].NotAfter.Year() != 2027 {
		t.Errorf("got %+v", g)
	}
	for from, want := range map[string]string{
		"kinds: {":         `unknown key "kindz"`,
		"role: govern":     "role",
		"2027-01-01T":      "not_after",
		"sim: [":           "roots.sim",
		"id: beta":         "organisation",
		"roles: [seat]":    "unknown role",
		"public: ":         "keygen",
		measurement("new"): "measurement",
	} {
		to := map[string]string{"kinds: {": "kindz: {", "role: govern": "role: king", "2027-01-01T": "soon T", "sim: [": "sim: [x, ", "id: beta": "id: Beta",
			"roles: [seat]": "roles: [boss]", "public: ": "public: zz", measurement("new"): "abcd"}[from]
		if _, err := NewGenesis("spec.yaml", []byte(strings.Replace(spec, from, to, 1)), make([]byte, 32), start); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "spec.yaml") {
			t.Errorf("%q: got %v, want %q", to, err, want)
		}
	}
}

func TestAttestPolicy(t *testing.T) {
	g := genesisOf(t, 3)
	g.Policy.Entries = []Entry{entry(t, "seat", RoleSeat, RoleAggregator), entry(t, "trainer", RoleTrainer)}
	sortEntries(g.Policy.Entries)
	g.Kinds.Member = []string{"sim", "sevsnp"}
	m := newMeshOf(t, g)
	refs := func(roles ...string) int { return len(m.s.AttestPolicy(identity.NodeRef{}, roles...).References) }
	if refs() != 2 || refs(RoleSeat) != 1 || refs(RoleSeat, RoleAggregator) != 1 || refs(RoleSeat, RoleTrainer) != 0 {
		t.Errorf("references: %d %d %d %d", refs(), refs(RoleSeat), refs(RoleSeat, RoleAggregator), refs(RoleSeat, RoleTrainer))
	}
	p := m.s.AttestPolicy(identity.NodeRef{}, RoleTrainer)
	if len(p.Kinds) != 2 || p.Sim == nil || p.SEVSNP == nil || p.TDX != nil || p.AllowNoReferences {
		t.Errorf("got %+v", p)
	}
	if p := m.s.AttestPolicy(identity.NodeRef{}, RoleSeat); len(p.Kinds) != 1 || p.SEVSNP != nil {
		t.Errorf("a seat's kinds: %+v", p)
	}
	var none attest.Policy
	if p := m.s.AttestPolicy(identity.NodeRef{}, "boss"); len(p.References) != len(none.References) {
		t.Errorf("an unknown role is admitted: %+v", p)
	}
}
