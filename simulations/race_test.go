//go:build race

package simulations

// underRace is set where everything costs several times as much: scenarios then take one seed,
// and real processes, which the detector does not see, are left to the other run.
const underRace = true
