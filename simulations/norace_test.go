//go:build !race

package simulations

import "testing"

const underRace = false

func long(*testing.T) {}
