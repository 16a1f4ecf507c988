//go:build race

package misbehaviour

// underRace is set where signatures and hashes cost ten times as much: tests of many like trials
// then take fewer.
const underRace = true
