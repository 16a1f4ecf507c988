//go:build !race

package vtpm

const flipStep = 1
