//go:build race

package tdx

// Under the race detector the flips are sampled.
const flipStep = 89
