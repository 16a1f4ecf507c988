package consensus

import "time"

// Limits on what peers and files may hand us. Sizes are checked before anything is parsed.
const (
	// MinOrganisations and MaxOrganisations bound the organisations at any time; seven voters
	// is where Raft's latency stops being worth it.
	MinOrganisations = 2
	MaxOrganisations = 7
	// MaxKeys bounds one organisation's keys: three roles, each in rotation, and spares.
	MaxKeys = 8
	// MaxFormerKeys bounds the remembered keys that were removed.
	MaxFormerKeys = 1024
	// MaxEntries bounds the allowed set; a snapshot of it stays small.
	MaxEntries = 200
	// MaxRegisters bounds the further measured values of an entry: TDX and TPM have 24.
	MaxRegisters = 32
	// MaxIMA bounds the files of an entry: a list of this length fits a log leaf with all
	// signatures. Images of more files put them under the boot measurement (dm-verity).
	MaxIMA = 512
	// MaxRebuilds bounds the rebuild statements of an entry, MaxAdvisories the lists of what is
	// demanded of TDX platforms, maxEvaluation their number, which Intel raises some times a
	// year.
	MaxRebuilds   = 16
	MaxAdvisories = 64
	maxEvaluation = 1 << 20
	// MaxFloors, MaxDenied and MaxChips bound what is demanded of platforms: floors of which
	// none covers another, denied products, and the chips that one list names, listed and
	// removed each. MaxActionChips bounds the chips that one action names.
	MaxFloors      = 64
	MaxDenied      = 256
	MaxChips       = 2048
	MaxActionChips = 256
	// MaxHardware bounds the lists of chips: one for each organisation and some entries.
	MaxHardware = 64
	// MaxRevoked bounds the remembered removals.
	MaxRevoked = 4096
	// MaxSupersedes bounds the entries that one entry replaces.
	MaxSupersedes = 8
	// MaxRoots and MaxWitnesses bound lists of genesis.
	MaxRoots     = 8
	MaxWitnesses = 16
	// MaxActions bounds one proposal.
	MaxActions = 32
	// MaxProposalLifetime is the longest time from creation to expiry.
	MaxProposalLifetime = 14 * 24 * time.Hour
	// MaxSuspension is the longest time that one organisation can withhold data by itself,
	// MaxSuspensionSize bounds an encoded suspension or lift.
	MaxSuspension     = 24 * time.Hour
	MaxSuspensionSize = 16 << 10
	// MaxSuspensionsLive and MaxSuspensionsDaily bound the suspensions of one organisation:
	// in force together, and ordered within suspensionDay. Who has stolen an emergency key
	// must not outlast those who lift what it does.
	MaxSuspensionsLive  = 3
	MaxSuspensionsDaily = 6
	suspensionDay       = 24 * time.Hour
	// MaxProvisional bounds the statements that one node keeps before they are ordered. Every
	// organisation may have six of suspensions and lifts; narrowings take a majority.
	MaxProvisional = 128
	// MaxWithdrawals bounds the withdrawals of one organisation from proposals that have not
	// expired.
	MaxWithdrawals = 16
	// MaxCredential bounds an encoded Credential: it must fit a HELLO of 4 KiB.
	MaxCredential = 3 << 10
	// MaxCredentialLifetime is the longest validity of a Credential, ClockSkew what we
	// grant an enroller's clock.
	MaxCredentialLifetime = 24 * time.Hour
	ClockSkew             = 10 * time.Minute
	// maxSigned bounds the Credentials that are remembered as correctly signed, by enroll
	// keys alone: one for each boot of a node, of a few KiB.
	maxSigned = 2048
	// MaxRoles bounds the roles of a Credential or entry: there are four.
	MaxRoles = 4
	// MaxResult bounds one encoded attestation result, MaxResultLifetime its validity.
	MaxResult         = 4 << 10
	MaxResultLifetime = time.Hour
	// HeartbeatAfter is how old an unchanged edge must be to be logged again: once per
	// lifetime, with half of it left to get through.
	HeartbeatAfter = MaxResultLifetime / 2
	// MaxCodes bounds the codes of one result.
	MaxCodes = 16
	// MaxResults bounds one results command.
	MaxResults = 128
	// MaxVerifiers bounds the edges that the nodes of one organisation hold on one
	// subject: eligibility counts organisations, so more would only cost memory.
	MaxVerifiers = 8
	// MaxReady bounds an encoded Ready, drain or retirement: seven signatures and room.
	MaxReady = 8 << 10
	// MaxTimeSample bounds one encoded time sample.
	MaxTimeSample = 2 << 10
	// MaxCommand bounds an encoded command of any kind.
	MaxCommand = 1 << 20
	// MaxNodes bounds the nodes of one organisation, DefaultNodes is what genesis gets
	// where its file names no number.
	MaxNodes     = 1024
	DefaultNodes = 256
	// DefaultResults to DefaultSuspensions are what one organisation may have ordered between
	// two ticks where the limits in force name no number, MaxQuota what they may name.
	DefaultResults     = 256
	DefaultCredentials = 64
	DefaultProposals   = 64
	DefaultSuspensions = 4
	MaxQuota           = 1 << 16
	// MaxRetired bounds the retired peer ids of one organisation: 4 reboots a day of
	// 20 nodes for two years.
	MaxRetired = 1 << 16
	// MaxChain and MaxChainBytes bound a policy chain.
	MaxChain      = 1 << 14
	MaxChainBytes = 64 << 20
	// TickInterval is the time between two ticks, and the largest step without a quorum
	// of samples.
	TickInterval = 2 * time.Second
)
