package data

// Limits on a data file. They are generous for tables and keep a slip (a video named
// .csv) from taking the machine's memory.
const (
	// MaxFile bounds a CSV file in bytes.
	MaxFile = 512 << 20
	// MaxLine bounds one line of it in bytes: MaxFeatures numbers of 60 characters.
	MaxLine = 1 << 20
	// MaxFeatures bounds the feature columns.
	MaxFeatures = 1 << 14
	// MaxValues bounds rows × features: 256 MiB as float64.
	MaxValues = 32 << 20
	// MaxLabels bounds the distinct labels.
	MaxLabels = 1000
	// MaxLabel bounds one label in bytes.
	MaxLabel = 64
)
