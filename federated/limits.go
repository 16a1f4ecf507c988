package federated

// Limits on jobs, rounds and what peers send about them.
const (
	// MaxParticipants bounds a round: a star of one aggregator carries no more.
	MaxParticipants = 64
	// MaxRounds bounds the training rounds of a job.
	MaxRounds = 1000
	// MaxAttempts bounds the attempts at one round; the job fails after the last.
	MaxAttempts = 16
	// MaxJobs bounds the jobs of one ledger, ended ones included.
	MaxJobs = 256
	// MaxHidden bounds the hidden layer.
	MaxHidden = 1 << 14
	// MaxEpochs and MaxBatch bound what a round asks of a participant.
	MaxEpochs = 1000
	MaxBatch  = 1 << 16
	// MaxDeadline bounds a round's deadline in seconds: one day.
	MaxDeadline = 86_400
	// MaxExamples is the largest max_examples, the weight one participant may claim.
	MaxExamples = 1 << 32
	// MaxCause bounds the cause of an attempt in bytes.
	MaxCause = 200
	// MaxCommand bounds the body of a Raft command: a close with the statements of
	// MaxParticipants participants is under 160 KiB.
	MaxCommand = 256 << 10
	// MaxCertificate bounds a certificate file.
	MaxCertificate = 1 << 20
	// MaxModel bounds a model, update or statistics file.
	MaxModel = 1 << 30
)
