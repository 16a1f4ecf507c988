//go:build !race

package federated

const underRace = false
