package collect

// Limits on what is read, checked before parsing.
const (
	maxFile  = 1 << 20  // bytes of one file
	maxPart  = 64 << 10 // bytes of a certificate or collateral file beside evidence
	maxFiles = 256      // files looked at in one folder
)
