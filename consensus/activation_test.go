package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// fileOf is the digest of a file that a kernel measures.
func fileOf(name string) string { return "sha256:" + digestOfText("file "+name) }

func digestOfText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func filesOf(names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, fileOf(n))
	}
	slices.Sort(out)
	return out
}

// booted is an entry for a measured boot.
func booted(t testing.TB, files ...string) Entry {
	t.Helper()
	e, err := NewEntry(Entry{Kind: attest.KindVTPM, Measurement: digestOfText("boot"), Roles: []string{RoleMember, RoleTrainer}, IMA: filesOf(files...)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// measuring is a started mesh of fsm_version that admits measured boots as members.
func measuring(t testing.TB, version int) *mesh {
	t.Helper()
	g := genesisOf(t, 3)
	g.FSMVersion = version
	g.Kinds.Member = append(g.Kinds.Member, attest.KindVTPM)
	g.Roots.VTPM = []RootKey{RootKey(public("ek authority"))}
	m := newMeshOf(t, g)
	m.start()
	return m
}

func activated(c *Credential) { c.AK = digestOfText("ak") }

// The AK is signed, ordered and returned; a Credential without one has the bytes it always had.
func TestCredentialNamesAttestationKey(t *testing.T) {
	m := measuring(t, fsmActivation)
	raw := m.credential("alpha/n2", 1, activated)
	m.ok(m.command(KindCredential, raw))
	c, err := m.s.VerifyCredential(raw, m.at)
	if err != nil || c.AK != digestOfText("ak") {
		t.Errorf("got %+v, %v", c, err)
	}
	if env := must(envelope.Parse(m.credential("alpha/n3", 1))); strings.Contains(string(env.Payload), `"ak"`) {
		t.Errorf("a Credential without an AK has the field: %s", env.Payload)
	}
	for _, bad := range []string{"ab", strings.ToUpper(digestOfText("ak")), digestOfText("ak") + "00"} {
		c := m.credentialOf("alpha/n2", 1)
		c.AK = bad
		if _, err := SignCredential(signer(t, "alpha enroll"), c); err == nil {
			t.Errorf("ak %q is signed", bad)
		}
	}
}

// Releases that run a mesh of an older fsm_version cannot decode the new fields: if one
// replica ordered them, the others would come to another state.
func TestOlderMeshesKnowNoActivation(t *testing.T) {
	m := measuring(t, fsmActivation-1)
	raw := m.credential("alpha/n2", 1, activated)
	m.refused(m.command(KindCredential, raw), attest.CodeWrongVersion)
	if _, err := m.s.VerifyCredential(raw, m.at); err == nil || ReasonOf(err).Code != attest.CodeWrongVersion {
		t.Errorf("verified: %v", err)
	}
	m.refused(m.order(m.propose(add(booted(t, "meshnode"))), 3), attest.CodeWrongVersion)
	m.ok(m.order(m.propose(add(booted(t))), 3))
	g := genesisOf(t, 3)
	g.FSMVersion, g.Kinds.Member, g.Roots.VTPM = fsmActivation-1, []string{"sim", "vtpm"}, []RootKey{RootKey(public("ek authority"))}
	g.Policy.Entries = []Entry{booted(t, "meshnode")}
	if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), "fsm_version") {
		t.Errorf("genesis: %v", err)
	}
}

func TestEntryListsFiles(t *testing.T) {
	e := booted(t, "meshnode", "init")
	if e.ID == booted(t).ID || e.ID == booted(t, "meshnode").ID {
		t.Error("the id does not cover the files")
	}
	many := make([]string, MaxIMA+1)
	for i := range many {
		many[i] = fileOf(string(rune('a' + i)))
	}
	slices.Sort(many)
	for name, change := range map[string]func(*Entry){
		"empty":         func(e *Entry) { e.IMA = []string{} },
		"too many":      func(e *Entry) { e.IMA = many },
		"no order":      func(e *Entry) { slices.Reverse(e.IMA) },
		"twice":         func(e *Entry) { e.IMA[1] = e.IMA[0] },
		"sha1":          func(e *Entry) { e.IMA[0] = "sha1:" + e.IMA[0][7:47] },
		"no algorithm":  func(e *Entry) { e.IMA[0] = e.IMA[0][7:] },
		"short":         func(e *Entry) { e.IMA[0] = e.IMA[0][:len(e.IMA[0])-2] },
		"upper-case":    func(e *Entry) { e.IMA[0] = "sha256:" + strings.ToUpper(e.IMA[0][7:]) },
		"another kind":  func(e *Entry) { e.Kind, e.Measurement = attest.KindTDX, measurement("x") },
		"simulated too": func(e *Entry) { e.Kind, e.Measurement = attest.KindSim, measurement("x") },
	} {
		bad := e
		bad.ID, bad.IMA = "", slices.Clone(e.IMA)
		change(&bad)
		if _, err := NewEntry(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	fits := e
	fits.ID, fits.IMA = "", many[:MaxIMA]
	m := measuring(t, fsmActivation)
	m.ok(m.order(m.propose(add(must(NewEntry(fits)))), 3))
	if got := m.s.AttestPolicy(identity.NodeRef{}, RoleTrainer).References; !slices.ContainsFunc(got, func(r attest.Reference) bool { return slices.Equal(r.IMA, fits.IMA) }) {
		t.Error("the appraisal policy lacks the files")
	}
}

// A node that was found to run only what one list names is allowed by another list exactly if
// that names all of it.
func TestFilesDecide(t *testing.T) {
	m := measuring(t, fsmActivation)
	small, large, other := booted(t, "init", "meshnode"), booted(t, "init", "meshnode", "trainer"), booted(t, "init", "trainer")
	for _, e := range []Entry{small, large, other} {
		m.ok(m.order(m.propose(add(e)), 3))
	}
	code := func(matched Entry) attest.Code {
		return m.s.allows(measured{attest.KindVTPM, matched.Measurement, matched.ID}, []string{RoleMember}, m.at)
	}
	m.ok(m.order(m.propose(removeID(small.ID)), 2))
	if got := code(small); got != "" {
		t.Errorf("a larger list covers it, got %q", got)
	}
	m.ok(m.order(m.propose(removeID(large.ID)), 2))
	if got := code(small); got != attest.CodeRevoked {
		t.Errorf("no list covers it, got %q", got)
	}
	if got := code(other); got != "" {
		t.Errorf("its own entry stands, got %q", got)
	}
	if unlisted := booted(t); code(unlisted) != attest.CodeRevoked {
		t.Error("a node whose files were not judged passes for one with a list")
	}
}

func TestVouch(t *testing.T) {
	ak, other := digestOfText("ak"), digestOfText("other")
	claims := func(digest, trust string) attest.Claims {
		return attest.Claims{Kind: attest.KindVTPM, Genuine: true, VTPM: &attest.VTPMClaims{AKDigest: digest, AKTrust: trust}}
	}
	for name, tc := range map[string]struct {
		named  string
		claims attest.Claims
		trust  string
		code   attest.Code
	}{
		"activated":               {ak, claims(ak, ""), attest.AKTrustActivation, ""},
		"certified too":           {ak, claims(ak, attest.AKTrustCertificate), attest.AKTrustCertificate, ""},
		"another key":             {ak, claims(other, ""), "", attest.CodeWrongAttestationKey},
		"another, certified key":  {ak, claims(other, attest.AKTrustCertificate), "", attest.CodeWrongAttestationKey},
		"no key at all":           {ak, attest.Claims{Kind: attest.KindSim, Genuine: true}, "", attest.CodeWrongAttestationKey},
		"nothing named":           {"", claims(ak, ""), "", ""},
		"nothing named, no claim": {"", claims("", ""), "", ""},
		"nothing named, believed": {"", claims(ak, attest.AKTrustReport), attest.AKTrustReport, ""},
	} {
		got, why := (&Credential{AK: tc.named}).Vouch(tc.claims)
		switch {
		case tc.code != "":
			if why == nil || why.Code != tc.code || got.Genuine {
				t.Errorf("%s: got %+v, %v", name, got, why)
			}
		case why != nil || got.VTPM.AKTrust != tc.trust:
			t.Errorf("%s: got %+v, %v", name, got.VTPM, why)
		}
	}
}

func TestRootsOfTPMs(t *testing.T) {
	rsa1024 := must(rsa.GenerateKey(rand.Reader, 1024))
	rsa2048 := must(rsa.GenerateKey(rand.Reader, 2048))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	spki := func(pub any) []byte { return must(x509.MarshalPKIXPublicKey(pub)) }
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start.Add(time.Hour)}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, p384.Public(), p384))
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for name, tc := range map[string]struct {
		in string
		ok bool
	}{
		"base64 RSA":       {base64.StdEncoding.EncodeToString(spki(rsa2048.Public())), true},
		"PEM public key":   {text("PUBLIC KEY", spki(p384.Public())), true},
		"PEM certificate":  {text("CERTIFICATE", certificate), true},
		"two certificates": {text("CERTIFICATE", certificate) + text("CERTIFICATE", certificate), false},
		"private key":      {text("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(p384))), false},
		"short RSA":        {base64.StdEncoding.EncodeToString(spki(rsa1024.Public())), false},
		"nothing":          {"", false},
		"no base64":        {"key", false},
		"trailing":         {base64.StdEncoding.EncodeToString(append(spki(p384.Public()), 0)), false},
	} {
		k, err := parseRootKey(tc.in)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		var back RootKey
		if err := back.UnmarshalText(must(k.MarshalText())); err != nil || must(back.id()) != must(k.id()) {
			t.Errorf("%s: read back: %v", name, err)
		}
	}
	g := genesisOf(t, 3)
	g.FSMVersion, g.Kinds.Member, g.Roots.VTPM = FSMVersion, []string{"sim", "vtpm"}, []RootKey{{rsa2048.Public()}, {p384.Public()}}
	m := newMeshOf(t, g)
	if got := m.g.VTPMRoots(); len(got) != 2 || !rsa2048.PublicKey.Equal(got[0]) || !p384.PublicKey.Equal(got[1]) {
		t.Errorf("roots %v", got)
	}
	for name, change := range map[string]func(*Genesis){
		"none, vtpm alone": func(g *Genesis) { g.Roots.VTPM = []RootKey{} },
		"twice":            func(g *Genesis) { g.Roots.VTPM = append(g.Roots.VTPM, g.Roots.VTPM[0]) },
		"short":            func(g *Genesis) { g.Roots.VTPM[0] = RootKey{rsa1024.Public()} },
		"nil":              func(g *Genesis) { g.Roots.VTPM[0] = RootKey{} },
	} {
		g := genesisOf(t, 3)
		g.Kinds.Member, g.Roots.VTPM = []string{"vtpm"}, []RootKey{{rsa2048.Public()}}
		change(g)
		if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), "roots.vtpm") {
			t.Errorf("%s: %v", name, err)
		}
	}
	composite := genesisOf(t, 3)
	composite.Kinds.Member = []string{"sim", "sevsnp,vtpm"}
	if _, err := composite.Payload(); err != nil {
		t.Errorf("a composite needs no root of TPMs: %v", err)
	}
}
