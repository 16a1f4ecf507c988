package sevsnp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/tsm"
)

// TestEndorsements spoils one thing of a certificate at a time. All of them are correctly
// signed unless that is what is wrong.
func TestEndorsements(t *testing.T) {
	small := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	none, mismatch := attest.CodeNotGenuine, attest.CodeCertificateMismatch
	for _, product := range []string{Milan, Genoa, Turin} {
		v := vendors[product]()
		s := v.scheme(t)
		other := vendors[Milan]()
		if product == Milan {
			other = vendors[Genoa]()
		}
		id := v.chip()
		if product == Turin {
			id = id[:8]
		}
		for name, tc := range map[string]struct {
			edit func(*leaf)
			want attest.Code
		}{
			"as AMD makes it":         {nil, ""},
			"a tagged hardware id":    {func(l *leaf) { l.set(must(asn1.Marshal(id)), 4) }, ""},
			"another product's name":  {func(l *leaf) { l.set(ia5("Naples-A0"), 2) }, ""}, // AMD's own error; the issuer counts
			"no product's name":       {func(l *leaf) { l.drop(2) }, ""},
			"no reserved level":       {func(l *leaf) { l.drop(3, 5) }, ""},
			"a level that is not":     {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 99) }, none},
			"a level that is nothing": {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 1, 1) }, none},
			"no boot loader":          {func(l *leaf) { l.drop(3, 1) }, none},
			"no TEE":                  {func(l *leaf) { l.drop(3, 2) }, none},
			"no SNP":                  {func(l *leaf) { l.drop(3, 3) }, none},
			"no microcode":            {func(l *leaf) { l.drop(3, 8) }, none},
			"two microcodes":          {func(l *leaf) { l.ExtraExtensions = append(l.ExtraExtensions, integer(200, 3, 8)) }, none},
			"a level of 256":          {func(l *leaf) { l.set(must(asn1.Marshal(256)), 3, 8) }, none},
			"a negative level":        {func(l *leaf) { l.set(must(asn1.Marshal(-1)), 3, 8) }, none},
			"a trailing byte":         {func(l *leaf) { l.set(append(must(asn1.Marshal(200)), 0), 3, 8) }, none},
			"a level as a string":     {func(l *leaf) { l.set(ia5("200"), 3, 8) }, none},
			"no hardware id":          {func(l *leaf) { l.drop(4) }, none},
			"an empty provider":       {func(l *leaf) { l.set(ia5(""), 5) }, none},
			"a provider's number":     {func(l *leaf) { l.set(must(asn1.Marshal(1)), 5) }, none},
			"a provider too":          {func(l *leaf) { l.set(ia5("CN=cloud"), 5) }, none},
			"a hardware id cut short": {func(l *leaf) { l.set(id[:len(id)-1], 4) }, mismatch},
			"another chip":            {func(l *leaf) { l.set(append([]byte{id[0] ^ 1}, id[1:]...), 4) }, mismatch},
			"an empty hardware id":    {func(l *leaf) { l.set(nil, 4) }, mismatch},
			"another boot loader":     {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 1) }, mismatch},
			"another TEE":             {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 2) }, mismatch},
			"another SNP":             {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 3) }, mismatch},
			"another microcode":       {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 8) }, mismatch},
			"another reserved level":  {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 5) }, mismatch},
			"a P-256 key":             {func(l *leaf) { l.key = small.Public() }, none},
			"an RSA key":              {func(l *leaf) { l.key = v.keys.Asvk.Public() }, none},
			"another P-384 key":       {func(l *leaf) { l.key = v.keys.Vlek.Public() }, none},
			"PKCS #1 v1.5":            {func(l *leaf) { l.SignatureAlgorithm = x509.SHA384WithRSA }, none},
			"PSS with SHA-256":        {func(l *leaf) { l.SignatureAlgorithm = x509.SHA256WithRSAPSS }, none},
			"a CA":                    {func(l *leaf) { l.IsCA, l.BasicConstraintsValid = true, true }, none},
			"a critical extension": {func(l *leaf) {
				e := extension([]byte{5, 0}, 77)
				e.Critical = true
				l.ExtraExtensions = append(l.ExtraExtensions, e)
			}, none},
			"by the ARK itself":         {func(l *leaf) { l.parent, l.signer = v.root.ARK, v.keys.Ark }, none},
			"by the ASVK":               {func(l *leaf) { l.parent, l.signer = v.root.ASVK, v.keys.Asvk }, none},
			"by the ASVK in ASK's name": {v.impostor, none},
			"under another product":     {func(l *leaf) { l.parent = other.root.ASK }, none},
			"named after neither":       {func(l *leaf) { l.Subject.CommonName = "SEV-VXEK" }, attest.CodeCollateralMissing},
			"named after a VLEK":        {func(l *leaf) { l.Subject.CommonName = "SEV-VLEK" }, none},
			"expired":                   {func(l *leaf) { l.NotAfter = milanAt.AddDate(0, 0, -1) }, none},
			"not yet":                   {func(l *leaf) { l.NotBefore = milanAt.AddDate(0, 0, 1) }, none},
		} {
			if got := verdict(t, s, evidence(v.report(3, nil), v.vcek(tc.edit)), milanAt); got != tc.want {
				t.Errorf("%s: %s: got %q, want %q", product, name, got, tc.want)
			}
		}
	}
}

// TestTurinsCertificate: what only Turin has, and what it has not.
func TestTurinsCertificate(t *testing.T) {
	v := vendors[Turin]()
	s := v.scheme(t)
	for name, tc := range map[string]struct {
		edit func(*leaf)
		want attest.Code
	}{
		"no FMC":               {func(l *leaf) { l.drop(3, 9) }, attest.CodeNotGenuine},
		"another FMC":          {func(l *leaf) { l.set(must(asn1.Marshal(9)), 3, 9) }, attest.CodeCertificateMismatch},
		"a fourth level of 0":  {func(l *leaf) { l.set(must(asn1.Marshal(0)), 3, 4) }, ""},
		"a fourth level of 1":  {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 4) }, attest.CodeNotGenuine},
		"the whole chip id":    {func(l *leaf) { l.set(v.chip(), 4) }, ""},
		"Milan's order":        {func(l *leaf) { l.ExtraExtensions = append(levels(Milan), extension(v.chip()[:8], 4), integer(0, 3, 9)) }, attest.CodeCertificateMismatch},
		"64 bytes, other tail": {func(l *leaf) { l.set(append(v.chip()[:63:63], 1), 4) }, attest.CodeCertificateMismatch},
	} {
		if got := verdict(t, s, evidence(v.report(5, nil), v.vcek(tc.edit)), milanAt); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
	long := v.report(5, func(b []byte) { b[offChipID+8] = 1 })
	if got := verdict(t, s, evidence(long, v.vcek(nil)), milanAt); got != attest.CodeCertificateMismatch {
		t.Errorf("a chip id of 9 bytes: got %q", got)
	}
	m := vendors[Milan]()
	if got := verdict(t, m.scheme(t), evidence(m.report(3, func(b []byte) { clear(b[offChipID+8 : offChipID+64]) }), m.vcek(func(l *leaf) { l.set(m.chip()[:8], 4) })), milanAt); got != attest.CodeCertificateMismatch {
		t.Errorf("8 bytes of a Milan chip: got %q", got)
	}
}

// TestHWIDThatLooksTagged: AMD writes the id without a tag, so an id may begin as one.
func TestHWIDThatLooksTagged(t *testing.T) {
	v := vendors[Milan]()
	id := v.chip()
	id[0], id[1] = 4, 62
	report := v.report(3, func(b []byte) { copy(b[offChipID:], id) })
	if got := verdict(t, v.scheme(t), evidence(report, v.vcek(func(l *leaf) { l.set(id, 4) })), milanAt); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestVLEKs: they are of a provider and of no chip.
func TestVLEKs(t *testing.T) {
	for _, product := range []string{Milan, Genoa, Turin} {
		v := vendors[product]()
		s := v.scheme(t)
		report := v.report(4, func(b []byte) { b[offKeyInfo] = 1 << 2 })
		for name, tc := range map[string]struct {
			edit func(*leaf)
			want attest.Code
		}{
			"as AMD makes it":    {nil, ""},
			"a hardware id":      {func(l *leaf) { l.set(v.chip(), 4) }, attest.CodeNotGenuine},
			"no provider":        {func(l *leaf) { l.drop(5) }, attest.CodeNotGenuine},
			"an empty provider":  {func(l *leaf) { l.set(ia5(""), 5) }, attest.CodeNotGenuine},
			"two words":          {func(l *leaf) { l.set(append(ia5("a"), ia5("b")...), 5) }, attest.CodeNotGenuine},
			"another TCB":        {func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 3) }, attest.CodeCertificateMismatch},
			"by the ASK":         {func(l *leaf) { l.parent, l.signer = v.root.ASK, v.keys.Ask }, attest.CodeNotGenuine},
			"named after a VCEK": {func(l *leaf) { l.Subject.CommonName = "SEV-VCEK" }, attest.CodeNotGenuine},
		} {
			if got := verdict(t, s, evidence(report, v.vlek(tc.edit)), milanAt); got != tc.want {
				t.Errorf("%s: %s: got %q, want %q", product, name, got, tc.want)
			}
		}
		if got := verdict(t, s, evidence(report, v.vcek(nil)), milanAt); got != attest.CodeNotGenuine {
			t.Errorf("%s: under a VCEK: got %q", product, got)
		}
		c, err := s.Verify(t.Context(), evidence(report, v.vlek(nil)), nil, milanAt)
		if err != nil || c.SEVSNP.CSPID != "CN=cloud" || c.SEVSNP.SigningKey != "VLEK" {
			t.Errorf("%s: %v, %+v", product, err, c.SEVSNP)
		}
		// The right key, the wrong kind of certificate.
		if got := verdict(t, s, evidence(report, v.vcek(func(l *leaf) { l.key = v.keys.Vlek.Public() })), milanAt); got != attest.CodeCertificateMismatch {
			t.Errorf("%s: a VCEK of the VLEK's key: got %q", product, got)
		}
	}
}

// TestWhatIsRead of a certificate that nobody has verified.
func TestWhatIsRead(t *testing.T) {
	v, other := vendors[Genoa](), vendors[Milan]()
	small := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if _, ok, err := parseEndorsement(v.vcek(func(l *leaf) { l.key = small.Public() })); ok || err == nil || !strings.Contains(err.Error(), "want ECDSA P-384") {
		t.Errorf("a P-256 key: %v, %v", ok, err)
	}
	if e, err := ReadEndorsement(v.root.ASK.Raw); err == nil || !strings.Contains(err.Error(), "neither a VCEK's nor a VLEK's") {
		t.Errorf("an intermediate: %+v, %v", e, err)
	}
	report, right := v.report(3, nil), v.vcek(nil)
	if e, err := ReadEndorsement(right); err != nil || e.Product != Genoa || !SignedBy(report, right) {
		t.Errorf("%+v, %v", e, err)
	}
	for name, der := range map[string][]byte{"nothing": nil, "an intermediate": v.root.ASK.Raw, "a VLEK": v.vlek(nil),
		"another TCB":   v.vcek(func(l *leaf) { l.set(must(asn1.Marshal(1)), 3, 1) }),
		"another key's": v.vcek(func(l *leaf) { l.key = v.keys.Vlek.Public() })} {
		if SignedBy(report, der) {
			t.Errorf("signed by %s", name)
		}
	}
	for name, tc := range map[string]struct {
		roots Roots
		der   []byte
		at    time.Time
		want  string
	}{
		"as it is":              {Roots{Genoa: v.root}, right, milanAt, ""},
		"no roots":              {nil, right, milanAt, "no root for Genoa VCEK"},
		"of another product":    {Roots{Milan: other.root}, right, milanAt, "no root for Genoa VCEK"},
		"no ARK":                {Roots{Genoa: {ASK: v.root.ASK}}, right, milanAt, "no root for Genoa VCEK"},
		"no ASVK":               {Roots{Genoa: {ARK: v.root.ARK, ASK: v.root.ASK}}, v.vlek(nil), milanAt, "no root for Genoa VLEK"},
		"an ASK of another ARK": {Roots{Genoa: {ARK: other.root.ARK, ASK: v.root.ASK}}, right, milanAt, "issued by"},
		"no time":               {Roots{Genoa: v.root}, right, time.Time{}, "the chain is valid from"},
		"an intermediate":       {Roots{Genoa: v.root}, v.root.ASK.Raw, milanAt, "no root for"},
		"no certificate":        {Roots{Genoa: v.root}, []byte{0x30, 0}, milanAt, "certificate: "},
	} {
		if err := tc.roots.Endorses(tc.der, tc.at); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestRefusalsSayWhy where another check would have refused as well.
func TestRefusalsSayWhy(t *testing.T) {
	v := vendors[Genoa]()
	report, right := v.report(3, nil), v.vcek(nil)
	good, bare := evidence(report, right), evidence(report, right)
	bare.Items = bare.Items[1:]
	ended, end := context.WithCancel(t.Context())
	end()
	for name, tc := range map[string]struct {
		ctx  context.Context
		s    *Scheme
		ev   attest.Evidence
		at   time.Time
		want string
	}{
		"not wanted any more": {ended, v.scheme(t), good, milanAt, context.Canceled.Error()},
		"no time":             {t.Context(), v.scheme(t), good, time.Time{}, "no time"},
		"an empty item":       {t.Context(), v.scheme(t), evidence(report, right, nil), milanAt, "has 0 bytes"},
		"no report":           {t.Context(), v.scheme(t), bare, milanAt, "no report"},
		"another product's":   {t.Context(), vendors[Milan]().scheme(t), good, milanAt, `issued by "SEV-Genoa"`},
		"a long list":         {t.Context(), v.scheme(t), withCRL(good, make([]byte, maxCRL+1)), milanAt, "at most"},
	} {
		if _, err := tc.s.Verify(tc.ctx, tc.ev, nil, tc.at); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestChoose: only a machine without configfs-tsm, or one of another vendor's, is looked for
// by its device.
func TestChoose(t *testing.T) {
	broken := errors.New("the interface does not answer")
	if a, err := choose(nil, broken, os.DevNull); a != nil || !errors.Is(err, broken) {
		t.Errorf("a broken interface: %v, %v", a, err)
	}
	for _, none := range []error{fs.ErrNotExist, tsm.ErrProvider} {
		if a, err := choose(nil, none, filepath.Join(t.TempDir(), "none")); a != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no device: %v, %v", a, err)
		}
	}
}

// TestSeveralCertificates: those of other machines, older ones and forged ones beside the
// right one do no harm.
func TestSeveralCertificates(t *testing.T) {
	v := vendors[Genoa]()
	right := v.vcek(nil)
	other := v.vcek(func(l *leaf) { l.set(make([]byte, 64), 4) })
	old := v.vcek(func(l *leaf) { l.NotAfter = milanAt.AddDate(0, 0, -1) })
	forged := v.vcek(v.impostor)
	broken := v.vcek(func(l *leaf) { l.drop(3, 8) })
	report := v.report(5, nil)
	for name, certs := range map[string][][]byte{
		"other": {other, right}, "old": {old, right}, "forged": {forged, right}, "broken": {broken, {0x30, 0}, right},
		"all": {other, broken, old, forged, v.root.ASK.Raw, v.vlek(nil), right}, "twice": {right, right},
	} {
		if got := verdict(t, v.scheme(t), evidence(report, certs...), milanAt); got != "" {
			t.Errorf("%s: got %q", name, got)
		}
	}
	// A verifier's work is bounded: of many that fit, a few are tried.
	many := [][]byte{forged, forged, forged, forged, right}
	if got := verdict(t, v.scheme(t), evidence(report, many...), milanAt); got != attest.CodeNotGenuine {
		t.Errorf("after four forged ones: got %q", got)
	}
}

// FuzzEndorsement: what is read as an endorsement key's certificate has all that the rest
// relies on, is read to its last byte, and is the same the second time.
func FuzzEndorsement(f *testing.F) {
	for _, product := range []string{Milan, Turin} {
		f.Add(vendors[product]().vcek(nil))
		f.Add(vendors[product]().vlek(nil))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		e, ok, err := parseEndorsement(der)
		if !ok || err != nil {
			if IsEndorsement(der) && err == nil {
				t.Error("an endorsement by name, none by content, and no error")
			}
			return
		}
		if e.key == nil || e.kind != "VCEK" && e.kind != "VLEK" || (e.kind == "VCEK") != (e.hwid != nil) || (e.kind == "VLEK") != (e.cspID != "") || len(e.cert.Raw) != len(der) {
			t.Errorf("got %+v", e)
		}
		if again, ok, err := parseEndorsement(der); !ok || err != nil || again.tcb != e.tcb || again.product != e.product {
			t.Errorf("again: %v, %+v", err, again)
		}
	})
}
