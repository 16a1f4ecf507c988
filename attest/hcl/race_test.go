//go:build race

package hcl_test

// Under the race detector the flips are sampled.
const flipStep = 97
