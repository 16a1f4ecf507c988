package attest

// Codes of what a mesh demands of hardware.
const (
	CodePlatformDenied Code = "platform_denied"
	CodeFloorAhead     Code = "tcb_floor_ahead"
	CodeFloorNotRaised Code = "floor_not_raised"
)

var remediesPlatform = map[Code]string{
	CodePlatformDenied: "move the node to other hardware; the organisations denied this class of it",
	CodeFloorAhead:     "update the platform before the floor comes into force, and start the guest again",
	CodeFloorNotRaised: "floors never fall; propose one that is higher than what meshnode policy show lists",
}
