package tdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"github.com/attestmesh/meshnode/attest"
)

// evaluate compares the platform behind q with the collateral and enters what that says
// into c.
func (col collateral) evaluate(q quote, ext *pcs.PckExtensions, c *attest.TDXClaims) error {
	if !strings.EqualFold(col.info.FMSPC, ext.FMSPC) || !strings.EqualFold(col.info.PCEID, ext.PCEID) {
		return refuse(attest.CodeCertificateMismatch, "tdx.fmspc", "collateral of "+col.info.FMSPC+"/"+col.info.PCEID,
			ext.FMSPC+"/"+ext.PCEID, nil)
	}
	if m := col.qe.describes(q); m != nil {
		return refuse(attest.CodeNotGenuine, m.claim, m.got, m.want, nil)
	}
	if m := col.info.module(q); m != nil {
		return refuse(attest.CodeSEAM, m.claim, m.got, m.want, nil)
	}
	v := q.svns(ext)
	st := stand(col.info, col.qe, v)
	c.TCBStatus, c.TDXModuleID = st.status, st.moduleID
	for _, p := range []struct {
		level  *tcbLevel
		status *string
		date   *string
	}{{st.platform, &c.PlatformStatus, &c.TCBDate}, {st.module, &c.ModuleStatus, &c.ModuleTCBDate}, {st.qe, &c.QEStatus, &c.QETCBDate}} {
		if p.level != nil {
			*p.status, *p.date = p.level.Status, date(p.level.Date)
		}
	}
	c.Advisories, c.Shortfalls = st.advisories(), v.short(col.info, col.qe)
	c.TCBEvaluation, c.QEEvaluation = col.info.Evaluation, col.qe.Evaluation
	c.EarliestIssueDate, c.LatestIssueDate, c.EarliestExpirationDate = date(col.firstIssued), date(col.lastIssued), date(col.span.To)
	c.PCKCRLNumber, c.RootCRLNumber = col.pckCRL, col.rootCRL
	return nil
}

// date prints a time of the collateral.
func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// moduleName is how TCB info names the TDX module of a version.
func moduleName(version byte) string { return fmt.Sprintf("TDX_%02x", version) }

// identity returns the identity of the TDX module of a version, nil if Intel lists none.
func (info tcbInfo) identity(version byte) *moduleIdentity {
	for i := range info.Identities {
		if strings.EqualFold(info.Identities[i].ID, moduleName(version)) {
			return &info.Identities[i]
		}
	}
	return nil
}

// module compares the TDX module that q names with its identity. One that Intel does not
// list has no level; that is for stand to say.
func (info tcbInfo) module(q quote) *mismatch {
	id := &info.TDXModule
	if v := q.teeTCBSVN()[1]; v > 0 {
		if id = info.identity(v); id == nil {
			return nil
		}
	}
	if signer := hex.EncodeToString(q.mrSignerSeam()); !strings.EqualFold(id.MRSigner, signer) {
		return &mismatch{"tdx.mrsignerseam", signer, id.MRSigner}
	}
	// The library of Intel demands zero of all of them besides.
	if !masked(q.seamAttributes(), id.AttributesMask, id.Attributes) || slices.Max(q.seamAttributes()) != 0 {
		return &mismatch{"tdx.seam_attributes", hex.EncodeToString(q.seamAttributes()), id.Attributes + " under " + id.AttributesMask}
	}
	return nil
}

// describes compares a QE report with the identity.
func (id qeIdentity) describes(q quote) *mismatch {
	if signer := hex.EncodeToString(q.qeMRSigner()); !strings.EqualFold(id.MRSigner, signer) {
		return &mismatch{"qe_report.mrsigner", signer, id.MRSigner}
	}
	if id.ProdID != q.qeProdID() {
		return &mismatch{"qe_report.isvprodid", strconv.Itoa(int(q.qeProdID())), strconv.Itoa(int(id.ProdID))}
	}
	// MISCSELECT is an integer: big-endian in the identity, little-endian in the report.
	misc := binary.BigEndian.AppendUint32(nil, binary.LittleEndian.Uint32(q.qeMiscSelect()))
	if !masked(misc, id.MiscSelectMask, id.MiscSelect) {
		return &mismatch{"qe_report.miscselect", hex.EncodeToString(misc), id.MiscSelect + " under " + id.MiscSelectMask}
	}
	if !masked(q.qeAttributes(), id.AttributesMask, id.Attributes) {
		return &mismatch{"qe_report.attributes", hex.EncodeToString(q.qeAttributes()), id.Attributes + " under " + id.AttributesMask}
	}
	return nil
}

// masked reports whether value under mask is want; wrong sizes are not.
func masked(value []byte, maskHex, wantHex string) bool {
	mask, err1 := hex.DecodeString(maskHex)
	want, err2 := hex.DecodeString(wantHex)
	if err1 != nil || err2 != nil || len(mask) != len(value) || len(want) != len(value) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}
