//go:build !race

package simulations

const underRace = false
