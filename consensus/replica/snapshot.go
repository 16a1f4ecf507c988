package replica

// MaxSnapshot bounds a snapshot.
const MaxSnapshot = 96 << 20
