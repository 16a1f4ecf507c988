//go:build race

package sevsnp

// Under the race detector a P-384 check costs tenfold; the flips are sampled.
const flipStep = 61
