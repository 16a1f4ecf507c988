//go:build !race

package tdx

const flipStep = 1
