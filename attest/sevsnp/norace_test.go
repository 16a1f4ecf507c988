//go:build !race

package sevsnp

const flipStep = 1
