package fetch

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

// Request is one object to fetch.
type Request struct {
	Name string // as in package collateral
	Type string // of the item
	// URLs are tried in turn: where a report does not say its product line, each is asked.
	URLs []string
	// Report is the one whose key's certificate this must be, if any.
	Report []byte

	chainHeader string        // that brings the issuers' chain
	impossible  *Error        // why it cannot be asked for
	beside      []attest.Item // what evidence brought to verify it with
}

// tdx returns the requests for what a quote needs.
func (f *Fetcher) tdx(p collateral.Platform) []Request {
	crl := f.pckCRL(p.PCKCA)
	crl.beside = p.PCKCAs
	return []Request{f.tcbInfo(p.FMSPC), f.qeIdentity(), crl, f.rootCRL()}
}

// renewals returns the requests for what an index has that is published anew from time to
// time: Intel's documents and all revocation lists.
func (f *Fetcher) renewals(index collateral.Index) (out []Request) {
	seen := map[string]bool{}
	kinds := map[string]string{}
	for _, e := range index.Entries() {
		if parts := strings.Split(e.Name, "/"); len(parts) > 2 && parts[0] == "sevsnp" && parts[1] != "crl" {
			kinds[parts[2]] = strings.ToUpper(parts[1])
		}
	}
	for _, e := range index.Entries() {
		if seen[e.Name] {
			continue
		}
		seen[e.Name] = true
		parts := strings.Split(e.Name, "/")
		last := parts[len(parts)-1]
		switch {
		case strings.HasPrefix(e.Name, collateral.NameSEVSNPCRL("")):
			out = append(out, f.sevsnpCRL(last, kinds[last]))
		case strings.HasPrefix(e.Name, collateral.NameTCBInfo("")):
			out = append(out, f.tcbInfo(last))
		case e.Name == collateral.NameQEIdentity:
			out = append(out, f.qeIdentity())
		case e.Name == collateral.NameRootCRL:
			out = append(out, f.rootCRL())
		case strings.HasPrefix(e.Name, collateral.NamePCKCRL("")):
			out = append(out, f.pckCRL(last))
		}
	}
	return out
}

// certificate asks for the certificate of the key that signed a report.
func (f *Fetcher) certificate(p collateral.Platform) Request {
	r := Request{Name: p.CertificateName(), Type: attest.TypeCertificate, Report: p.Report}
	switch {
	case p.Key.Kind == "VLEK":
		r.impossible = fail(attest.CodeCollateralMissing, "ask the cloud provider for the VLEK certificate, or take it with the report (SNP_GET_EXT_REPORT), and import it",
			"AMD gives VLEK certificates to cloud providers only")
	case p.Key.Kind != "VCEK" || len(p.Key.Products()) == 0:
		r.impossible = fail(attest.CodeUnsupported, "use a newer release", "AMD's service is not known to have keys of kind %q for %q", p.Key.Kind, p.Key.Product)
	case p.Key.Masked():
		r.impossible = fail(attest.CodeCollateralMissing, "take the VCEK certificate on the host, or with the report (SNP_GET_EXT_REPORT), and import it",
			"the host masks the chip id, so that AMD cannot be asked for the chip's certificate")
	}
	for _, product := range p.Key.Products() {
		r.URLs = append(r.URLs, f.config.AMD+VCEKPath(product, p.Key))
	}
	return r
}

// VCEKPath returns path and query for the certificate of a report's key on a product line
// (AMD 57230, "KDS Interface").
func VCEKPath(product string, key sevsnp.Key) string {
	tcb := key.TCB(product)
	query := fmt.Sprintf("blSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d", tcb.BootLoader, tcb.TEE, tcb.SNP, tcb.Microcode)
	if product == sevsnp.Turin {
		query = fmt.Sprintf("fmcSPL=%02d&%s", tcb.FMC, query)
	}
	return "/vcek/v1/" + product + "/" + key.HWID(product) + "?" + query
}

func (f *Fetcher) sevsnpCRL(product, kind string) Request {
	service := "vcek"
	if kind == "VLEK" {
		service = "vlek"
	}
	return Request{Name: collateral.NameSEVSNPCRL(product), Type: attest.TypeCRL,
		URLs: []string{f.config.AMD + "/" + service + "/v1/" + url.PathEscape(product) + "/crl"}}
}

// set is the part of a query that says which of Intel's sets is wanted.
func (f *Fetcher) set() string {
	if n := f.config.Evaluation; n > 0 {
		return fmt.Sprintf("tcbEvaluationDataNumber=%d", n)
	}
	return "update=" + f.config.Update
}

func (f *Fetcher) tcbInfo(fmspc string) Request {
	return Request{Name: collateral.NameTCBInfo(fmspc), Type: attest.TypeTDXTCBInfo, chainHeader: "TCB-Info-Issuer-Chain",
		URLs: []string{f.config.Intel + "/tdx/certification/v4/tcb?fmspc=" + url.QueryEscape(fmspc) + "&" + f.set()}}
}

func (f *Fetcher) qeIdentity() Request {
	return Request{Name: collateral.NameQEIdentity, Type: attest.TypeTDXQEIdent, chainHeader: "SGX-Enclave-Identity-Issuer-Chain",
		URLs: []string{f.config.Intel + "/tdx/certification/v4/qe/identity?" + f.set()}}
}

func (f *Fetcher) pckCRL(ca string) Request {
	return Request{Name: collateral.NamePCKCRL(ca), Type: attest.TypeCRL, chainHeader: "SGX-PCK-CRL-Issuer-Chain",
		URLs: []string{f.config.Intel + "/sgx/certification/v4/pckcrl?ca=" + url.QueryEscape(ca) + "&encoding=der"}}
}

func (f *Fetcher) rootCRL() Request {
	return Request{Name: collateral.NameRootCRL, Type: attest.TypeCRL, URLs: []string{f.config.IntelCertificates + "/IntelSGXRootCA.der"}}
}

// there returns what the store has for a request, if it stays current long enough.
func (f *Fetcher) there(r Request, index collateral.Index, now time.Time) (collateral.Entry, bool) {
	if r.Report != nil {
		for _, e := range index.Entries() {
			if e.Type == attest.TypeCertificate && e.Holds(now.Add(f.config.MinValid)) && sevsnp.SignedBy(r.Report, e.Item().Data) {
				return e, true
			}
		}
		return collateral.Entry{}, false
	}
	e, ok := index.Current(r.Name, now)
	if f.config.Evaluation > 0 && e.Evaluation != 0 && e.Evaluation != f.config.Evaluation {
		return e, false
	}
	return e, ok && e.Holds(now) && e.Holds(now.Add(f.config.MinValid))
}
