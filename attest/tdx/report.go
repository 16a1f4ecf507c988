package tdx

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/attestmesh/meshnode/attest"
)

// TD report body (Intel TDX DCAP Quoting Library API, A.3.2 and A.4.3), offsets within it.
func (q quote) teeTCBSVN() []byte      { return q.td[0:16] }
func (q quote) mrSeam() []byte         { return q.td[16:64] }
func (q quote) mrSignerSeam() []byte   { return q.td[64:112] }
func (q quote) seamAttributes() []byte { return q.td[112:120] }
func (q quote) reportData() []byte     { return q.td[520:584] }

// teeTCBSVN2 is the TCB of the TDX module that runs now, where teeTCBSVN is that of the one
// that launched the TD: they differ after an update that preserved TDs. Nil before TDX 1.5.
func (q quote) teeTCBSVN2() []byte {
	if q.size < body15Size {
		return nil
	}
	return q.td[584:600]
}

// mrServiceTD is the hash of the service TDs that are bound to this one. Nil before TDX 1.5.
func (q quote) mrServiceTD() []byte {
	if q.size < body15Size {
		return nil
	}
	return q.td[600:648]
}

var rtmrNames = [4]string{"rtmr0", "rtmr1", "rtmr2", "rtmr3"}

// claims reads the body of a quote whose signatures were verified.
func (q quote) claims() attest.Claims {
	h, b := hex.EncodeToString, q.td
	out := attest.Claims{
		Kind: attest.KindTDX, Genuine: true, Measurement: h(b[136:184]), ReportData: h(q.reportData()),
		Registers: make(map[string]string, len(rtmrNames)),
		TDX: &attest.TDXClaims{
			QuoteVersion: q.version, BodyType: q.bodyType,
			TEETCBSVN: h(q.teeTCBSVN()), TEETCBSVN2: h(q.teeTCBSVN2()), MRServiceTD: h(q.mrServiceTD()),
			MRSEAM: h(q.mrSeam()), MRSignerSEAM: h(q.mrSignerSeam()), SEAMAttributes: h(q.seamAttributes()),
			TDAttributes: h(b[120:128]), Debug: b[120] != 0, SEPTVEDisable: b[123]&(1<<4) != 0, XFAM: h(b[128:136]),
			MRConfigID: h(b[184:232]), MROwner: h(b[232:280]), MROwnerConfig: h(b[280:328]),
			QESVN: q.qeSVN(),
		},
	}
	for i, name := range rtmrNames {
		out.Registers[name] = h(b[328+48*i : 376+48*i])
	}
	return out
}

// QE report (an SGX REPORTBODY), offsets within it.
func (q quote) qeMiscSelect() []byte { return q.qeReport[16:20] }
func (q quote) qeAttributes() []byte { return q.qeReport[48:64] }
func (q quote) qeMRSigner() []byte   { return q.qeReport[128:160] }
func (q quote) qeProdID() uint16     { return binary.LittleEndian.Uint16(q.qeReport[256:]) }
func (q quote) qeSVN() uint16        { return binary.LittleEndian.Uint16(q.qeReport[258:]) }
func (q quote) qeReportData() []byte { return q.qeReport[320:384] }
