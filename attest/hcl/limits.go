package hcl

// Limits on a report, checked before parsing.
const (
	// MaxReport bounds a whole report; the NV index that holds it has 2,600 bytes.
	MaxReport = 16 << 10
	// maxKeys bounds the keys that runtime data name; there are two.
	maxKeys = 16
)
