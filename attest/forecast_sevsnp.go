package attest

import "fmt"

// Shortfall is a component of a TCB that is below a floor.
type Shortfall struct {
	Claim     string `json:"claim"`     // sevsnp.reported_tcb, .committed_tcb or .launch_tcb
	Component string `json:"component"` // fmc, bl, tee, snp or ucode
	Got       uint8  `json:"got"`
	Want      uint8  `json:"want"`
}

func (s Shortfall) got() string  { return fmt.Sprintf("%s=%d", s.Component, s.Got) }
func (s Shortfall) want() string { return fmt.Sprintf("%s of at least %d", s.Component, s.Want) }

// String returns "claim: component got, want at least want".
func (s Shortfall) String() string {
	return fmt.Sprintf("%s: %s=%d, want at least %d", s.Claim, s.Component, s.Got, s.Want)
}

// ForecastSEVSNP says what would be short if floor were the floor of all TCBs of the same
// evidence: nothing if c would still be accepted. A platform that is short in the launch TCB
// alone needs no update, the guest must be started again. It returns nil for claims that
// are not SEV-SNP's.
func ForecastSEVSNP(c Claims, floor TCB) []Shortfall {
	if c.SEVSNP == nil {
		return nil
	}
	var out []Shortfall
	for _, t := range []struct {
		claim string
		tcb   TCB
	}{{"sevsnp.reported_tcb", c.SEVSNP.ReportedTCB}, {"sevsnp.committed_tcb", c.SEVSNP.CommittedTCB}, {"sevsnp.launch_tcb", c.SEVSNP.LaunchTCB}} {
		out = append(out, shortfalls(t.claim, t.tcb, floor)...)
	}
	return out
}

// shortfalls lists the components of got that are below those of floor.
func shortfalls(claim string, got, floor TCB) []Shortfall {
	var out []Shortfall
	want := floor.components()
	for i, c := range got.components() {
		if c.value < want[i].value {
			out = append(out, Shortfall{claim, c.name, c.value, want[i].value})
		}
	}
	return out
}
