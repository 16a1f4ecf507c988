//go:build race

package proof

// step is which of many like trials are made: signatures and hashes cost ten times as much here.
const step = 11
