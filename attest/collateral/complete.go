package collateral

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// Lack is collateral that evidence needs and that neither it nor the index has.
type Lack struct {
	Name string `json:"name"`
	// Expired is when what there is stopped to count; zero where there is none.
	Expired time.Time `json:"expired,omitzero"`
}

// Platform is what evidence says about the platform that made it: by what to look for its
// collateral. It is not authentic.
type Platform struct {
	Report []byte // the SEV-SNP report, if there is one
	Key    sevsnp.Key

	FMSPC  string // of the TDX platform, if there is a quote
	PCKCA  string // platform or processor
	PCKCAs []attest.Item
}

// PlatformOf reads the platform of evidence. Parts that cannot be read are left empty: then
// a Scheme refuses the evidence, whatever its collateral.
func PlatformOf(ev attest.Evidence) (p Platform) {
	reports := ev.Find(attest.TypeSEVSNPReport)
	for _, raw := range ev.Find(attest.TypeHCLReport) { // a paravisor's, with the report within
		if r, err := hcl.Parse(raw); err == nil && r.TEE == attest.KindSEVSNP {
			reports = append(reports, r.Hardware)
		}
	}
	for _, raw := range reports {
		if key, err := sevsnp.NameKey(raw); err == nil && p.Report == nil {
			p.Report, p.Key = raw, key
		}
	}
	for _, raw := range ev.Find(attest.TypeTDXQuote) {
		p.readPCK(raw)
	}
	return p
}

// readPCK finds the certificates that a quote carries in PEM (certification data type 5).
func (p *Platform) readPCK(quote []byte) {
	defer func() { _ = recover() }() // go-tdx-guest reads the extensions of a certificate nobody vouched for
	start := bytes.Index(quote, []byte("-----BEGIN CERTIFICATE-----"))
	if start < 0 || len(quote) > attest.MaxQuote {
		return
	}
	rest := quote[start:]
	for range 3 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return
		}
		if pckCAs[cert.Subject.CommonName] != "" {
			p.PCKCAs = append(p.PCKCAs, attest.Item{Type: attest.TypeCertificate, Data: cert.Raw})
			continue
		}
		if ca := pckCAs[cert.Issuer.CommonName]; ca != "" {
			if ext, err := pcs.PckCertificateExtensions(cert); err == nil {
				p.FMSPC, p.PCKCA = strings.ToLower(ext.FMSPC), ca
			}
		}
	}
}

// Names returns the names of all collateral that Intel's quote needs, in the order in which
// Complete adds them.
func (p Platform) tdxNames() []string {
	if p.FMSPC == "" {
		return nil
	}
	return []string{NameTCBInfo(p.FMSPC), NameQEIdentity, NamePCKCRL(p.PCKCA), NameRootCRL}
}

// Complete returns evidence with the collateral that counts at a time, and what is lacking.
// Items that evidence brought itself take part as if they were in the index: they are
// replaced by what counts, and kept where nothing better is known. The report, quote and
// logs stay as they are. Nothing is verified here: what a Scheme would refuse it still
// refuses.
func (x Index) Complete(ev attest.Evidence, at time.Time) (attest.Evidence, []Lack) {
	p := PlatformOf(ev)
	c := completion{all: NewIndex(append(IndexOf(ev.Items).entries, x.entries...)...), at: at,
		ev: attest.Evidence{Kind: ev.Kind, Items: slices.Clone(ev.Items)}}
	if p.Report != nil {
		c.sevsnp(p)
	}
	if p.FMSPC != "" {
		c.tdx(p)
	}
	return c.ev, c.lacks
}

// completion is one call of Complete.
type completion struct {
	all   Index
	at    time.Time
	ev    attest.Evidence
	lacks []Lack
}

// use puts the entry of a name that counts into the evidence, in place of others of that
// name. required says that its absence is a lack.
func (c *completion) use(name string, required bool) (Entry, bool) {
	e, ok := c.all.Current(name, c.at)
	if ok {
		c.put(e)
	}
	if required && (!ok || !e.Holds(c.at)) {
		c.lacks = append(c.lacks, Lack{name, e.Expires})
	}
	return e, ok
}

// put adds an entry in place of others of its name.
func (c *completion) put(e Entry) {
	c.ev.Items = slices.DeleteFunc(c.ev.Items, func(it attest.Item) bool {
		old, err := Read(it)
		return err == nil && old.Name == e.Name
	})
	c.ev.Items = append(c.ev.Items, e.Item())
}

// sevsnp adds the certificate of the key that signed the report, and the revocation list of
// its product line where there is one.
func (c *completion) sevsnp(p Platform) {
	var found *Entry
	for i, e := range c.all.entries {
		if e.Type != attest.TypeCertificate || !strings.HasPrefix(e.Name, "sevsnp/v") || e.Issued.After(c.at) {
			continue
		}
		// The names differ cheaply; the signature decides.
		if p.mayBe(e.Name) && (found == nil || !older(e, *found)) && sevsnp.SignedBy(p.Report, e.data) {
			found = &c.all.entries[i]
		}
	}
	if found == nil {
		c.lacks = append(c.lacks, Lack{Name: p.CertificateName()})
		return
	}
	c.put(*found)
	if !found.Holds(c.at) {
		c.lacks = append(c.lacks, Lack{found.Name, found.Expires})
	}
	c.use(NameSEVSNPCRL(strings.Split(found.Name, "/")[2]), false)
}

// mayBe reports whether a certificate of this name can be that of the report's key.
func (p Platform) mayBe(name string) bool {
	for _, product := range p.Key.Products() {
		if p.Key.Kind == "VLEK" && strings.HasPrefix(name, "sevsnp/vlek/"+product+"/") &&
			strings.HasSuffix(name, "/"+tcbText(product, p.Key.TCB(product))) {
			return true
		}
		vcek := "sevsnp/vcek/" + product + "/"
		if p.Key.Kind == "VCEK" && strings.HasPrefix(name, vcek) && strings.HasSuffix(name, "/"+tcbText(product, p.Key.TCB(product))) &&
			(p.Key.Masked() || name == NameVCEK(product, p.Key.HWID(product), p.Key.TCB(product))) {
			return true
		}
	}
	return false
}

// CertificateName names the certificate of the key that signed the report, as far as the
// report says it.
func (p Platform) CertificateName() string {
	product := strings.Join(p.Key.Products(), "|")
	if product == "" {
		product = p.Key.Product
	}
	if p.Key.Kind != "VCEK" {
		return "sevsnp/" + strings.ToLower(p.Key.Kind) + "/" + product
	}
	if len(p.Key.Products()) != 1 {
		return "sevsnp/vcek/" + product + "/" + p.Key.HWID("")
	}
	return NameVCEK(product, p.Key.HWID(product), p.Key.TCB(product))
}

// tdx adds the five parts that a quote needs.
func (c *completion) tdx(p Platform) {
	for _, name := range p.tdxNames() {
		e, ok := c.use(name, true)
		if ok && e.Type == attest.TypeTDXTCBInfo {
			c.signingChain(e)
		}
	}
}

// signingChain adds the chain that signed a document: the newest of those that did.
func (c *completion) signingChain(document Entry) {
	chains := c.all.named(NameSigningChain)
	for _, chain := range slices.Backward(chains) {
		if tdx.SignedBy(document.Type, document.data, chain.data) {
			c.ev.Items = slices.DeleteFunc(c.ev.Items, func(it attest.Item) bool { return it.Type == chain.Type })
			c.ev.Items = append(c.ev.Items, chain.Item())
			if !chain.Holds(c.at) {
				c.lacks = append(c.lacks, Lack{chain.Name, chain.Expires})
			}
			return
		}
	}
	c.lacks = append(c.lacks, Lack{Name: NameSigningChain})
}
