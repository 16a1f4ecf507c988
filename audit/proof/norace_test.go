//go:build !race

package proof

// step is which of many like trials are made: all.
const step = 1
