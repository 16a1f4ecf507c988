package eventlog

// Limits on logs, checked before parsing.
const (
	MaxLog    = 1 << 20 // bytes of one log
	MaxEvents = 1 << 16 // entries of one log
)
