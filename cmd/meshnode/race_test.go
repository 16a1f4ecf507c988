//go:build race

package main

// underRace is set where every process costs several times as much: of the tests that start a
// dozen of them, only one of a kind runs then. The other run takes all.
const underRace = true
