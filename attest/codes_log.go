package attest

// Codes of the transparency log, where it is not the one that was seen, or not seen widely enough.
const (
	// CodeMisbehaviour: somebody has cosigned two histories of the log.
	CodeMisbehaviour Code = "misbehaviour"
	// CodeLogKeyLeaked: the log's key has signed another history, which convicts nobody.
	CodeLogKeyLeaked Code = "log_key_leaked"
	// CodeNotStrong: a change of the policy that lets somebody in is ordered, and too few organisations
	// have cosigned it.
	CodeNotStrong Code = "not_strong"
)

var remediesLog = map[Code]string{
	CodeMisbehaviour: "keep the file that status names and have every organisation verify it (meshnode log verify FILE); vote out who is convicted, or recover the mesh without them",
	CodeNotStrong:    "wait a moment; if it stays, bring the seats back whose cosignatures are missing, or have those that are gone retired (meshnode node retire)",
	CodeLogKeyLeaked: "nothing that was admitted is touched; begin a new incarnation with a new log key (meshnode recover draft) when it suits, and keep the file",
}
