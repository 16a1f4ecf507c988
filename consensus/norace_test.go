//go:build !race

package consensus

const underRace = false

// few is n where that is quick, and a twelfth of it under the race detector.
func few(n int) int { return n }
