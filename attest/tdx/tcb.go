package tdx

import (
	"github.com/google/go-tdx-guest/pcs"
)

// Statuses of TCB levels in Intel's TCB info and QE identity, and those that Intel's
// algorithm adds.
const (
	upToDate                  = "UpToDate"
	swHardening               = "SWHardeningNeeded"
	configuration             = "ConfigurationNeeded"
	configurationAndHardening = "ConfigurationAndSWHardeningNeeded"
	outOfDate                 = "OutOfDate"
	outOfDateConfiguration    = "OutOfDateConfigurationNeeded"
	revoked                   = "Revoked"
	relaunch                  = "TDRelaunchAdvised"
	relaunchConfiguration     = "TDRelaunchAdvisedConfigurationNeeded"
	noMatchingLevel           = "NoMatchingLevel"
	unrecognised              = "UnrecognizedStatus"
)

// svns are the security versions of a platform.
type svns struct {
	sgx []byte // 16 SGX TCB components, of the PCK certificate
	pce uint16 // PCESVN, of the same
	tee []byte // TEE_TCB_SVN
	now []byte // TEE_TCB_SVN2; nil before TDX 1.5
	qe  uint16 // ISVSVN of the quoting enclave
}

func (q quote) svns(ext *pcs.PckExtensions) svns {
	return svns{sgx: ext.TCB.CPUSvnComponents, pce: ext.TCB.PCESvn, tee: q.teeTCBSVN(), now: q.teeTCBSVN2(), qe: q.qeSVN()}
}

// standing is where a platform stands in Intel's levels. A part has no level where none
// matches, or where there is no such part.
type standing struct {
	status               string // converged
	moduleID             string // "" before TDX 1.5
	platform, module, qe *tcbLevel
}

// stand computes the status as Intel's Quote Verification Library does (checkTcbLevel):
// the platform's level by all SGX components, PCESVN and TDX components; the TDX module's
// by its minor version, from TDX 1.5 on; relaunch, for TD reports of 1.5; the quoting
// enclave's. Whichever is worse decides.
func stand(info tcbInfo, qe qeIdentity, v svns) (out standing) {
	out.status = noMatchingLevel
	sgx := find(info.Levels, v.holdSGX)
	out.platform = find(info.Levels, v.hold)
	out.qe = find(qe.Levels, func(l tcbLevel) bool { return v.qe >= l.TCB.ISVSVN })
	moduleStatus := upToDate
	if version := v.tee[1]; version > 0 {
		out.moduleID = moduleName(version)
		identity := info.identity(version)
		if identity == nil {
			return out
		}
		out.module = find(identity.Levels, func(l tcbLevel) bool { return uint16(v.tee[0]) >= l.TCB.ISVSVN })
		if out.module == nil {
			return out
		}
		moduleStatus = partStatus(out.module.Status)
	}
	if sgx == nil || out.platform == nil || out.qe == nil {
		return out
	}
	status := converge(platformStatus(out.platform.Status), moduleStatus)
	qeStatus := partStatus(out.qe.Status)
	if v.now != nil && qeStatus == upToDate {
		status = relaunched(info, v.now, platformStatus(sgx.Status), status, moduleStatus)
	}
	out.status = converge(status, qeStatus)
	return out
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

// holdSGX reports whether all SGX components and PCESVN are at least at level l.
func (v svns) holdSGX(l tcbLevel) bool {
	if len(l.TCB.SGX) != len(v.sgx) || len(v.sgx) == 0 || v.pce < l.TCB.PCESVN {
		return false
	}
	for i, c := range l.TCB.SGX {
		if v.sgx[i] < c.SVN {
			return false
		}
	}
	return true
}

// hold reports whether every component is at least at level l.
func (v svns) hold(l tcbLevel) bool {
	if len(l.TCB.TDX) != len(v.tee) || !v.holdSGX(l) {
		return false
	}
	for i := v.firstTDX(); i < len(v.tee); i++ {
		if v.tee[i] < l.TCB.TDX[i].SVN {
			return false
		}
	}
	return true
}

// firstTDX is the first TDX component that counts for the platform: from TDX 1.5 on the
// first two are the module's, which has levels of its own.
func (v svns) firstTDX() int {
	if v.tee[1] > 0 {
		return 2
	}
	return 0
}

// platformStatus returns status if a TCB info can have it.
func platformStatus(status string) string {
	switch status {
	case upToDate, swHardening, configuration, configurationAndHardening, outOfDate, outOfDateConfiguration, revoked:
		return status
	}
	return unrecognised
}

// partStatus returns status if a TDX module or a quoting enclave can have it.
func partStatus(status string) string {
	switch status {
	case upToDate, outOfDate, revoked:
		return status
	}
	return unrecognised
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
		}
		return platform
	case revoked:
		return revoked
	}
	return unrecognised // what we do not know is not accepted
}

// relaunched returns status, or that the TD should be launched again: everything that it
// runs on is up to date now, but it was launched by a TDX module that was not (Quote
// Verification Library, checkForRelaunch).
func relaunched(info tcbInfo, now []byte, sgx, status, module string) string {
	switch sgx {
	case upToDate, swHardening, configuration, configurationAndHardening:
	default:
		return status
	}
	if status != outOfDate && status != outOfDateConfiguration || module != outOfDate || len(info.Levels) == 0 {
		return status
	}
	newest := info.Levels[0]
	if len(newest.TCB.TDX) != len(now) || now[2] < newest.TCB.TDX[2].SVN {
		return status
	}
	wanted := uint16(newest.TCB.TDX[0].SVN)
	if now[1] > 0 {
		identity := info.identity(now[1])
		if identity == nil || len(identity.Levels) == 0 {
			return noMatchingLevel
		}
		wanted = identity.Levels[0].TCB.ISVSVN
	}
	switch {
	case uint16(now[0]) < wanted:
		return status
	case status == outOfDateConfiguration || sgx == configuration || sgx == configurationAndHardening:
		return relaunchConfiguration
	}
	return relaunch
}
