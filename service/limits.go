package service

// Limits on what an owner may deploy and a client may ask. All are checked before memory is
// taken for what they bound.
const (
	// MaxProgram bounds the executable.
	MaxProgram = 256 << 20
	// MaxModel bounds the weights; how much of it fits is decided by the machine's free memory.
	MaxModel = 2 << 30
	// MaxArgs bounds the argument list, MaxArg each of them.
	MaxArgs = 64
	MaxArg  = 1 << 10
	// MaxRequest bounds a request's body. It is held in memory until the program answers,
	// because the receipt names its digest.
	MaxRequest = 8 << 20
	// MaxBuffered bounds an answer that is held back until its receipt can go into a header.
	// Longer ones, and those of unknown length, are streamed with the receipt behind them.
	MaxBuffered = 1 << 20
	// MaxTarget bounds the path and query of a request.
	MaxTarget = 8 << 10
	// NonceSize is the size of a client's nonce in bytes.
	NonceSize = 32
)
