package attesttest

import (
	"bytes"
	"slices"

	"github.com/attestmesh/meshnode/attest"
)

// TDXFault is one thing that is wrong with a platform, a TD or what Intel says about them.
type TDXFault struct {
	Name string
	// Genuine reports whether it is left to the policy of the forger to refuse it.
	Genuine bool
	Code    attest.Code // with which it is refused, alone
	Spoil   func(*TDXPlatform)
}

// TDXFaults lists them. The forger f.With(fault.Spoil) makes evidence with that fault, in
// the form of the quotes of f.
func TDXFaults() []TDXFault {
	return slices.Concat(quoteFaults(), enclaveFaults(), collateralFaults(), guestFaults(), statusFaults())
}

// then returns first, if there is one, followed by second.
func then(first, second func([]byte)) func([]byte) {
	if first == nil {
		return second
	}
	return func(b []byte) { first(b); second(b) }
}

func quoteFaults() (out []TDXFault) {
	for name, edit := range map[string]func([]byte){
		"header: version":            func(h []byte) { h[0] = 6 },
		"header: key type":           func(h []byte) { h[2] = 3 },
		"header: TEE type":           func(h []byte) { h[4] = 0 },
		"header: quoting enclave of": func(h []byte) { h[12] = 0 },
	} {
		out = append(out, TDXFault{name, false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Header = then(p.Header, edit) }})
	}
	return out
}

func enclaveFaults() (out []TDXFault) {
	for name, edit := range map[string]func([]byte){
		"QE: signer":      func(r []byte) { r[128] ^= 1 },
		"QE: product":     func(r []byte) { r[256] = 1 },
		"QE: debug":       func(r []byte) { r[48] |= 2 },
		"QE: attributes":  func(r []byte) { r[48] |= 0x20 },
		"QE: MISCSELECT":  func(r []byte) { r[16] = 1 },
		"QE: another key": func(r []byte) { r[320] ^= 1 },
		"QE: key padding": func(r []byte) { r[383] = 1 },
	} {
		out = append(out, TDXFault{name, false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.QE = then(p.QE, edit) }})
	}
	return out
}

func collateralFaults() []TDXFault {
	late := Validity{validFrom.AddDate(-1, 0, 0), validFrom.AddDate(0, 0, -1)}
	early := Validity{validTo.AddDate(0, 0, -1), validTo}
	out := []TDXFault{
		{"revoked: PCK", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.RevokePCK = true }},
		{"revoked: CA of the PCK", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.RevokeCA = true }},
		{"revoked: TCB signer", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.RevokeSigner = true }},
		{"collateral of another FMSPC", false, attest.CodeCertificateMismatch, func(p *TDXPlatform) { p.Collateral.FMSPC = "00a06d080000" }},
		{"TCB info of SGX", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.InfoID = "SGX" }},
		{"TCB info of a later version", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.InfoVersion = 4 }},
		{"QE identity of SGX", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.QEID = "QE" }},
		{"QE identity of a later version", false, attest.CodeNotGenuine, func(p *TDXPlatform) { p.Collateral.QEVersion = 3 }},
		{"collateral of another PCE", false, attest.CodeCertificateMismatch, func(p *TDXPlatform) { p.Collateral.PCEID = "0001" }},
	}
	for name, v := range map[string]Validity{"expired": late, "not yet issued": early} {
		out = append(out,
			TDXFault{"TCB info " + name, true, attest.CodeCollateralStale, func(p *TDXPlatform) { p.Collateral.Info = v }},
			TDXFault{"QE identity " + name, true, attest.CodeCollateralStale, func(p *TDXPlatform) { p.Collateral.QE = v }},
			TDXFault{"revocation lists " + name, true, attest.CodeCollateralStale, func(p *TDXPlatform) { p.Collateral.CRL = v }})
	}
	for i, name := range []string{"TCB info", "QE identity", "TCB signing chain", "revocation list of the CA", "revocation list of the root"} {
		out = append(out,
			TDXFault{"without " + name, true, attest.CodeCollateralMissing, func(p *TDXPlatform) {
				p.Items = func(items []attest.Item) []attest.Item { return slices.Delete(slices.Clone(items), i+1, i+2) }
			}},
			TDXFault{"forged " + name, false, attest.CodeNotGenuine, func(p *TDXPlatform) {
				p.Items = func(items []attest.Item) []attest.Item { return spoilSigned(items, i+1) }
			}})
	}
	return out
}

// spoilSigned changes what was signed in one item of collateral, keeping its form.
func spoilSigned(items []attest.Item, i int) []attest.Item {
	items = slices.Clone(items)
	data := slices.Clone(items[i].Data)
	switch items[i].Type {
	case attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent: // what it says
		data = bytes.Replace(data, []byte(`"OutOfDate"`), []byte(`"UpToDate"`), 1)
	case attest.TypeTDXTCBChain: // within its first certificate
		data[len(data)/3] ^= 1
	default: // the signature, which comes last
		data[len(data)-1] ^= 1
	}
	items[i].Data = data
	return items
}

func guestFaults() (out []TDXFault) {
	for _, f := range []struct {
		name string
		at   int
		or   byte
		code attest.Code
	}{
		{"TD: debug", 120, 1, attest.CodeDebug}, {"TD: profiling", 120, 1 << 5, attest.CodeDebug},
		{"TD: migratable", 123, 1 << 5, attest.CodeMigratable}, {"TD: protection keys", 123, 1 << 6, attest.CodeTDAttributes},
		{"TD: AMX", 130, 1 << 1, attest.CodeXFAM}, {"module: signer", 64, 1, attest.CodeSEAM}, {"module: attributes", 112, 1, attest.CodeSEAM},
	} {
		out = append(out, TDXFault{f.name, f.code != attest.CodeSEAM, f.code, func(p *TDXPlatform) {
			p.TD = then(p.TD, func(body []byte) { body[f.at] |= f.or })
		}})
	}
	return append(out, TDXFault{"TD: SEPT_VE_DISABLE off", true, attest.CodeSEPTVEDisable, func(p *TDXPlatform) {
		p.TD = then(p.TD, func(body []byte) { body[123] = 0 })
	}})
}

func statusFaults() (out []TDXFault) {
	for _, status := range []string{"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
		"OutOfDateConfigurationNeeded", "Revoked", "Sunny"} {
		out = append(out, TDXFault{"platform: " + status, true, attest.CodeTCBStatus, func(p *TDXPlatform) { p.Collateral.Levels[0].Status = status }})
	}
	for _, status := range []string{"OutOfDate", "Revoked", "SWHardeningNeeded"} {
		out = append(out,
			TDXFault{"module: " + status, true, attest.CodeTCBStatus, func(p *TDXPlatform) { p.Collateral.Modules[0].Levels[0].Status = status }},
			TDXFault{"QE: " + status, true, attest.CodeTCBStatus, func(p *TDXPlatform) { p.Collateral.QELevels[0].Status = status }})
	}
	for name, spoil := range map[string]func(*TDXPlatform){
		"no level of the platform": func(p *TDXPlatform) { p.SGXSVN = 1 },
		"no level of PCESVN":       func(p *TDXPlatform) { p.PCESVN = 1 },
		"no level of the module":   func(p *TDXPlatform) { p.TD = then(p.TD, func(body []byte) { body[0] = 1 }) },
		"no such module":           func(p *TDXPlatform) { p.TD = then(p.TD, func(body []byte) { body[1] = 9 }) },
		"no level of the QE":       func(p *TDXPlatform) { p.QE = then(p.QE, func(report []byte) { report[258] = 0 }) },
	} {
		out = append(out, TDXFault{name, true, attest.CodeTCBStatus, spoil})
	}
	return out
}
