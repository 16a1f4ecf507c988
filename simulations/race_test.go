//go:build race

package simulations

import "testing"

// underRace is set where everything costs several times as much: scenarios then take one seed,
// and real processes, which the detector does not see, are left to the other run.
const underRace = true

// long leaves a scenario of many virtual minutes, whose steps shorter ones take as well, to the
// run without the detector.
func long(t *testing.T) { t.Skip("many virtual minutes: left to the run without the race detector") }
