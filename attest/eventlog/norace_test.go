//go:build !race

package eventlog

import "testing"

// sampled returns the step of a sweep: every case, or a sample in short runs.
func sampled(all, some int) int {
	if testing.Short() {
		return some
	}
	return all
}
