package attesttest

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// TDXCollateral is what a fake Intel says about a family of platforms, in the terms of Intel's
// provisioning service (PCS API v4: TCB info version 3, enclave identity version 2).
type TDXCollateral struct {
	InfoID, QEID  string // what the two documents say they are: TDX and TD_QE
	InfoVersion   int
	QEVersion     int
	FMSPC, PCEID  string
	Info, QE, CRL Validity // TCB info, QE identity, both revocation lists
	Evaluation    int      // tcbEvaluationDataNumber of the TCB info
	QEEvaluation  int      // and of the QE identity
	Levels        []TDXLevel
	Modules       []TDXModule
	QELevels      []TDXPartLevel
	RevokePCK     bool // the platform
	RevokeCA      bool // the issuer of its certificate
	RevokeSigner  bool // the signer of TCB info and QE identity
}

// Validity is when a part of the collateral was issued and when the next one is due.
type Validity struct{ Issued, Next time.Time }

// TDXLevel is a TCB level: every SGX component at SGX, every TDX component at TDX save the
// second, the version of the TDX module, which is zero in Intel's.
type TDXLevel struct {
	SGX, TDX   uint8
	PCE        uint16
	Status     string
	Date       string // RFC 3339
	Advisories []string
}

// TDXModule is the identity of a TDX module, by its version.
type TDXModule struct {
	Version uint8
	Levels  []TDXPartLevel
}

// TDXPartLevel is a TCB level of a TDX module or of the quoting enclave.
type TDXPartLevel struct {
	SVN        uint16
	Status     string
	Date       string
	Advisories []string
}

const levelDate = "2024-03-13T00:00:00Z"

// defaultCollateral says of a default platform that it is up to date.
func defaultCollateral() TDXCollateral {
	always := Validity{validFrom, validTo}
	return TDXCollateral{InfoID: "TDX", QEID: "TD_QE", InfoVersion: 3, QEVersion: 2, FMSPC: fmspc, PCEID: pceID, Info: always, QE: always, CRL: always, Evaluation: 17, QEEvaluation: 17,
		Levels: []TDXLevel{
			{SGX: 3, TDX: tdxSVN, PCE: 13, Status: "UpToDate", Date: levelDate},
			{SGX: 3, TDX: 0, PCE: 13, Status: "OutOfDate", Date: "2018-01-04T00:00:00Z", Advisories: []string{"INTEL-SA-00106"}},
		},
		Modules:  []TDXModule{{Version: 1, Levels: []TDXPartLevel{{SVN: 4, Status: "UpToDate", Date: levelDate}, {SVN: 2, Status: "OutOfDate", Date: "2023-08-09T00:00:00Z", Advisories: []string{"INTEL-SA-01036"}}}}},
		QELevels: []TDXPartLevel{{SVN: qeSVN, Status: "UpToDate", Date: levelDate}, {SVN: 1, Status: "OutOfDate", Date: "2018-01-04T00:00:00Z"}},
	}
}

// clone returns a copy that shares nothing with c.
func (c TDXCollateral) clone() TDXCollateral {
	c.Levels, c.Modules, c.QELevels = slices.Clone(c.Levels), slices.Clone(c.Modules), slices.Clone(c.QELevels)
	for i := range c.Modules {
		c.Modules[i].Levels = slices.Clone(c.Modules[i].Levels)
	}
	return c
}

type (
	object = map[string]any
	list   = []any
)

// items signs the collateral. pck is the platform's certificate, if its revocation matters.
func (f fakeIntel) items(p *TDXPlatform, pck *x509.Certificate) []attest.Item {
	c := p.Collateral
	zeros, ones := strings.Repeat("0", 96), strings.Repeat("F", 16)
	module := object{"mrsigner": zeros, "attributes": zeros[:16], "attributesMask": ones}
	identities := list{}
	for _, m := range c.Modules {
		identities = append(identities, object{"id": tdxModuleName(m.Version), "mrsigner": zeros, "attributes": zeros[:16], "attributesMask": ones, "tcbLevels": parts(m.Levels)})
	}
	levels := list{}
	for _, l := range c.Levels {
		levels = append(levels, level(object{"sgxtcbcomponents": components(l.SGX, l.SGX), "pcesvn": l.PCE, "tdxtcbcomponents": components(l.TDX, 0)}, l.Status, l.Date, l.Advisories))
	}
	info := object{"id": c.InfoID, "version": c.InfoVersion, "issueDate": stamp(c.Info.Issued), "nextUpdate": stamp(c.Info.Next), "fmspc": c.FMSPC, "pceId": c.PCEID,
		"tcbType": 0, "tcbEvaluationDataNumber": c.Evaluation, "tdxModule": module, "tdxModuleIdentities": identities, "tcbLevels": levels}
	identity := object{"id": c.QEID, "version": c.QEVersion, "issueDate": stamp(c.QE.Issued), "nextUpdate": stamp(c.QE.Next), "tcbEvaluationDataNumber": c.QEEvaluation,
		"miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11" + zeros[:30], "attributesMask": "FB" + ones[:14] + zeros[:16],
		"mrsigner": strings.ToUpper(intelQESigner), "isvprodid": qeProdID, "tcbLevels": parts(c.QELevels)}
	var revoked []*x509.Certificate
	ca, caKey := f.ca(p)
	for cert, is := range map[*x509.Certificate]bool{pck: c.RevokePCK && pck != nil, ca: c.RevokeCA, f.signer: c.RevokeSigner} {
		if is {
			revoked = append(revoked, cert)
		}
	}
	return []attest.Item{
		{Type: attest.TypeTDXTCBInfo, Data: f.signed("tcbInfo", info)}, {Type: attest.TypeTDXQEIdent, Data: f.signed("enclaveIdentity", identity)},
		{Type: attest.TypeTDXTCBChain, Data: toPEM(f.signer, f.root)},
		{Type: attest.TypeCRL, Data: crl(ca, caKey, 7, c.CRL.Issued, c.CRL.Next, revoked...)},
		{Type: attest.TypeCRL, Data: crl(f.root, f.rootKey, 8, c.CRL.Issued, c.CRL.Next, revoked...)},
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func level(tcb object, status, date string, advisories []string) object {
	out := object{"tcb": tcb, "tcbDate": date, "tcbStatus": status}
	if len(advisories) > 0 {
		out["advisoryIDs"] = advisories
	}
	return out
}

func parts(levels []TDXPartLevel) list {
	out := list{}
	for _, l := range levels {
		out = append(out, level(object{"isvsvn": l.SVN}, l.Status, l.Date, l.Advisories))
	}
	return out
}

// components are 16, of which the second has a version of its own.
func components(svn, second uint8) list {
	out := list{}
	for range 16 {
		out = append(out, object{"svn": svn})
	}
	out[1] = object{"svn": second}
	return out
}

// signed returns an answer of the service: the body as signed, and R and S in hex.
func (f fakeIntel) signed(name string, body object) []byte {
	text := must(json.Marshal(body))
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, text, must(sign256(f.signerKey, text)))
}

func tdxModuleName(version uint8) string { return fmt.Sprintf("TDX_%02x", version) }
