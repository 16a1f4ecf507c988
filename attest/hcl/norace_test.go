//go:build !race

package hcl_test

// Most of the bits are the report's, each of which package sevsnp flips.
const flipStep = 5
