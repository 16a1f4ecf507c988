//go:build race

package federated

// underRace is set where every load and store of the trainer costs ten times as much: the
// accuracy tests then take fewer seeds and leave the comparisons out.
const underRace = true
