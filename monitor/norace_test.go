//go:build !race

package monitor

const raceDetector = false
