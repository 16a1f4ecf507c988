// Package inference is the story of README.md as a test with real processes: Charlie releases
// a program and its weights to Bob's node, and Alice asks it, without trusting Bob.
package inference
