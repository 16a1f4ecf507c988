//go:build !race

package misbehaviour

const underRace = false
