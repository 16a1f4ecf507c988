package consensus

import "fmt"

// Tolerance is how many of n seats may fail at the same time without stopping the mesh: each
// organisation has one, and a commit needs ⌊n/2⌋+1.
func Tolerance(n int) int { return max(0, (n-1)/2) }

// SeatWarning says what people should know before they found or run a mesh of n seats; empty
// where there is nothing to say.
func SeatWarning(n int) string {
	switch {
	case n <= 1:
		return "one seat: no fault tolerance, and nobody confirms what it orders"
	case n == 2:
		return "two seats: no fault tolerance. While either is away nothing can be ordered, and if one is lost the mesh needs a recovery. " +
			"Add a third organisation with the role seat alone, or drain a node before you stop it"
	case n%2 == 0:
		return fmt.Sprintf("%d seats bear no more failures than %d: %d", n, n-1, Tolerance(n))
	}
	return ""
}
