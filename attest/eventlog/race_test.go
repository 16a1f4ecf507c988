//go:build race

package eventlog

// sampled returns the step of a sweep: the race detector makes whole ones too slow.
func sampled(_, some int) int { return some }
