package attest

// Codes of recovery: when a majority of the seats is gone, and how a mesh goes on.
const (
	// CodeRolledBack: a state, or a log, that is older than one that was seen, or another.
	CodeRolledBack Code = "rolled_back"
	// CodeSuperseded: a higher incarnation of the mesh has begun.
	CodeSuperseded Code = "superseded"
	// CodeLiveMajority: the incarnation that is to be given up still orders.
	CodeLiveMajority Code = "live_majority"
	// CodeRecoveryExpired: a Recovery that may start nothing any more, or not yet.
	CodeRecoveryExpired Code = "recovery_expired"
)

var remediesRecovery = map[Code]string{
	CodeRolledBack:      "find the newest log that any node or witness has kept (meshnode recover inspect) and go on from that one",
	CodeSuperseded:      "stop this process and start the node again: it then joins the incarnation that the organisations have begun",
	CodeLiveMajority:    "do not recover: the mesh still orders; restore this node's connection to it. If it is meant to end, stop its seats first",
	CodeRecoveryExpired: "have the organisations sign a Recovery anew (meshnode recover draft), to a higher incarnation where this one was signed already",
}
