//go:build race

package vtpm

// Under the race detector the flips are sampled.
const flipStep = 97
