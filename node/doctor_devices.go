package node

import (
	"context"

	"github.com/attestmesh/meshnode/attest/machine"
)

// DiagnoseMachine looks at what this machine can attest with, without a configuration.
func DiagnoseMachine(ctx context.Context) Diagnosis {
	d := &doctor{out: Diagnosis{Checks: []Check{}}}
	d.devices(ctx)
	return d.concluded()
}

// concluded says whether every check is well.
func (d *doctor) concluded() Diagnosis {
	d.out.OK = true
	for _, c := range d.out.Checks {
		d.out.OK = d.out.OK && c.OK
	}
	return d.out
}

// devices says which sources of evidence this machine has. None is amiss by itself: which
// one a node needs is said by its configuration, and looked at with that.
func (d *doctor) devices(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	for _, s := range machine.Sources(ctx) {
		got := "absent"
		switch {
		case s.Err != nil:
			got = "present, but: " + s.Err.Error()
		case s.Present && s.Says != "":
			got = "present; " + s.Says
		case s.Present:
			got = "present"
		}
		if s.Name != s.Path {
			got += " (" + s.Path + ")"
		}
		d.good("device "+s.Name, got, s.Gives+"; needed only to attest by it")
	}
}
