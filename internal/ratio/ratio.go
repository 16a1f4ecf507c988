// Package ratio holds what our benchmarks say in common: one piece of code against another
// in the same run, as a line
//
//	ratio NAME VALUE
//
// on standard output. NAME is area.what_vs_what; VALUE has three digits after the point
// and, where NAME ends in a unit, that unit. A ratio means the same on a fast machine and
// on a busy one; a time does not, so no test compares times. "make bench" runs every
// benchmark whose name begins with BenchmarkRatio; docs/PERFORMANCE.md says what each
// value should be.
//
// The two sides alternate in rounds, and the order in each round, so that what else the
// machine does meets both; the median of the rounds' quotients is the value.
package ratio

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Of runs a and b once each to warm up, then in rounds, and returns the median of a/b.
// Both return how long they took.
func Of(rounds int, a, b func() time.Duration) float64 {
	a()
	b()
	quotients := make([]float64, 0, rounds)
	for i := range rounds {
		var ta, tb time.Duration
		if i%2 == 0 {
			ta, tb = a(), b()
		} else {
			tb, ta = b(), a()
		}
		quotients = append(quotients, float64(ta)/float64(max(tb, 1)))
	}
	return Median(quotients)
}

// Median returns the middle value, the upper one of two; zero of none.
func Median[T float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// Wall makes a side that takes as long as n calls of f on the clock.
func Wall(n int, f func()) func() time.Duration {
	return func() time.Duration {
		start := time.Now()
		for range n {
			f()
		}
		return time.Since(start)
	}
}

// CPU makes a side that takes as long as n calls of f on all processors together, in user
// and kernel mode: with both ends of a connection in this process, both count.
func CPU(n int, f func()) func() time.Duration {
	return func() time.Duration {
		start := used()
		for range n {
			f()
		}
		return used() - start
	}
}

// used is the processor time of this process.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // no machine that we run on refuses it
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Print writes the line.
func Print(name string, value float64) { fmt.Printf("ratio %s %.3f\n", name, value) }
