package attest

// Codes of the life of a seat.
const (
	// CodeSeatHeld: the organisation's seat has a holder, or this boot has held it before.
	CodeSeatHeld Code = "seat_held"
	// CodeNotReady: the node has not shown that it can hold a seat.
	CodeNotReady Code = "not_ready"
	// CodeDrained: the node was drained by its operator and takes part in nothing more.
	CodeDrained Code = "drained"
)

var remediesSeats = map[Code]string{
	CodeSeatHeld: "an organisation has one seat: restart the node that holds it, or void it if its machine is lost (meshnode node retire)",
	CodeNotReady: "wait until other organisations have attested the node and it has caught up; meshnode status says what is missing",
	CodeDrained:  "stop the node and start it again; draining is the first half of a shutdown and has no way back",
}
