package safetensors

// Limits on what a peer's bytes may claim, checked before anything is allocated for them.
const (
	// MaxHeader bounds the JSON header. The format allows 100 MB; a model of MaxTensors
	// tensors with long names needs under 1 MiB.
	MaxHeader = 1 << 20
	// MaxTensors bounds the number of tensors.
	MaxTensors = 4096
	// MaxName bounds a tensor's name.
	MaxName = 200
	// MaxDims bounds the rank of a tensor.
	MaxDims = 8
	// MaxData bounds the data part; whoever decodes holds it in memory whole.
	MaxData = 4 << 30
)
