//go:build race

package monitor

const raceDetector = true
