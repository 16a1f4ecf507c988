package attest

// Codes of the transparency log, where it is not the one that was seen, or not seen widely enough.
const (
	// CodeMisbehaviour: somebody has cosigned two histories of the log.
	CodeMisbehaviour Code = "misbehaviour"
	// CodeLogKeyLeaked: the log's key has signed another history, which convicts nobody.
	CodeLogKeyLeaked Code = "log_key_leaked"
)

var remediesLog = map[Code]string{
	CodeMisbehaviour: "keep the file that status names and have every organisation verify it (meshnode log verify FILE); vote out who is convicted, or recover the mesh without them",
	CodeLogKeyLeaked: "nothing that was admitted is touched; begin a new incarnation with a new log key (meshnode recover draft) when it suits, and keep the file",
}
