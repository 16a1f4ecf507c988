package tdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tdx-guest/pcs"

	"github.com/attestmesh/meshnode/attest"
)

// Statuses of Intel's TCB levels that convergence speaks of.
const (
	upToDate                  = "UpToDate"
	swHardening               = "SWHardeningNeeded"
	configuration             = "ConfigurationNeeded"
	configurationAndHardening = "ConfigurationAndSWHardeningNeeded"
	outOfDate                 = "OutOfDate"
	outOfDateConfiguration    = "OutOfDateConfigurationNeeded"
	revoked                   = "Revoked"
	noMatchingLevel           = "NoMatchingLevel"
)

// evaluate computes the status of the platform behind q and enters it into c.
func (col collateral) evaluate(q quote, ext *pcs.PckExtensions, c *attest.TDXClaims) error {
	if !strings.EqualFold(col.info.FMSPC, ext.FMSPC) || !strings.EqualFold(col.info.PCEID, ext.PCEID) {
		return refuse(attest.CodeCertificateMismatch, "tdx.fmspc", "collateral of "+col.info.FMSPC+"/"+col.info.PCEID,
			ext.FMSPC+"/"+ext.PCEID, nil)
	}
	if err := col.qe.describes(q); err != nil {
		return refuse(attest.CodeNotGenuine, "quoting enclave", "not Intel's", "the QE identity", err)
	}
	module, err := col.info.module(q)
	if err != nil {
		return refuse(attest.CodeSEAM, "tdx.mrsignerseam", "", "", err)
	}
	c.TCBStatus = noMatchingLevel
	platform := find(col.info.Levels, func(l tcbLevel) bool { return l.holds(q, ext) })
	qe := find(col.qe.Levels, func(l tcbLevel) bool { return q.qeSVN() >= l.TCB.ISVSVN })
	if platform == nil || qe == nil {
		return nil
	}
	levels := []*tcbLevel{platform, qe}
	status := platform.Status
	if q.teeTCBSVN()[1] > 0 {
		var level *tcbLevel
		if module != nil {
			level = find(module.Levels, func(l tcbLevel) bool { return uint16(q.teeTCBSVN()[0]) >= l.TCB.ISVSVN })
		}
		if level == nil {
			return nil
		}
		levels = append(levels, level)
		status = converge(status, level.Status)
	}
	c.TCBStatus = converge(status, qe.Status)
	c.TCBDate = platform.Date
	for _, l := range levels {
		c.Advisories = append(c.Advisories, l.Advisories...)
	}
	slices.Sort(c.Advisories)
	c.Advisories = slices.Compact(c.Advisories)
	return nil
}

// find returns the first level, newest first as Intel lists them, that a platform holds.
func find(levels []tcbLevel, holds func(tcbLevel) bool) *tcbLevel {
	for i := range levels {
		if holds(levels[i]) {
			return &levels[i]
		}
	}
	return nil
}

// holds reports whether every component of the platform is at least at level l. From TDX
// 1.5 on the first two TDX components are the module's, which has levels of its own.
func (l tcbLevel) holds(q quote, ext *pcs.PckExtensions) bool {
	cpu, tee := ext.TCB.CPUSvnComponents, q.teeTCBSVN()
	if len(l.TCB.SGX) != len(cpu) || len(l.TCB.TDX) != len(tee) || ext.TCB.PCESvn < l.TCB.PCESVN {
		return false
	}
	for i, c := range l.TCB.SGX {
		if cpu[i] < c.SVN {
			return false
		}
	}
	first := 0
	if tee[1] > 0 {
		first = 2
	}
	for i := first; i < len(tee); i++ {
		if tee[i] < l.TCB.TDX[i].SVN {
			return false
		}
	}
	return true
}

// converge combines the status of a platform with that of a part of it: the worse wins.
func converge(platform, part string) string {
	switch part {
	case upToDate:
		return platform
	case outOfDate:
		switch platform {
		case upToDate, swHardening:
			return outOfDate
		case configuration, configurationAndHardening:
			return outOfDateConfiguration
		default:
			return platform
		}
	case revoked:
		return revoked
	default:
		// Intel gives parts no other status; what we do not know is not accepted.
		return part
	}
}

// module returns the identity of the TDX module that q names, nil if Intel lists none, or
// an error if the module is not the one Intel signed.
func (info tcbInfo) module(q quote) (*moduleIdentity, error) {
	id := &info.TDXModule
	if v := q.teeTCBSVN()[1]; v > 0 {
		id = nil
		for i := range info.Identities {
			if info.Identities[i].ID == fmt.Sprintf("TDX_%02x", v) {
				id = &info.Identities[i]
			}
		}
		if id == nil {
			return nil, nil
		}
	}
	if !strings.EqualFold(id.MRSigner, hex.EncodeToString(q.mrSignerSeam())) {
		return nil, fmt.Errorf("signer %x, want %s", q.mrSignerSeam(), id.MRSigner)
	}
	if !masked(q.seamAttributes(), id.AttributesMask, id.Attributes) {
		return nil, fmt.Errorf("attributes %x, want %s under %s", q.seamAttributes(), id.Attributes, id.AttributesMask)
	}
	return id, nil
}

// describes compares a QE report with the identity.
func (id qeIdentity) describes(q quote) error {
	// MISCSELECT is an integer: big-endian in the identity, little-endian in the report.
	misc := binary.BigEndian.AppendUint32(nil, binary.LittleEndian.Uint32(q.qeMiscSelect()))
	switch {
	case !strings.EqualFold(id.MRSigner, hex.EncodeToString(q.qeMRSigner())) || id.ProdID != q.qeProdID():
		return fmt.Errorf("signer %x with product id %d", q.qeMRSigner(), q.qeProdID())
	case !masked(misc, id.MiscSelectMask, id.MiscSelect):
		return fmt.Errorf("MISCSELECT %x", misc)
	case !masked(q.qeAttributes(), id.AttributesMask, id.Attributes):
		return fmt.Errorf("attributes %x", q.qeAttributes())
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
