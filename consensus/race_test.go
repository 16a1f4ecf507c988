//go:build race

package consensus

// underRace is set where signatures cost ten times as much: tests of many random changes then
// take fewer.
const underRace = true

// few is n where that is quick, and a twelfth of it under the race detector.
func few(n int) int { return (n + 11) / 12 }
