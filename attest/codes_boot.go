package attest

// Codes of measured boot and of IMA lists.
const (
	CodeFirmwareDebug  Code = "firmware_debug"
	CodeBootLog        Code = "boot_log"
	CodeDBXTooOld      Code = "dbx_too_old"
	CodeSBATTooOld     Code = "sbat_too_old"
	CodeBootComponent  Code = "boot_component"
	CodeCommandLine    Code = "command_line"
	CodeBootFile       Code = "boot_file"
	CodeMOK            Code = "mok"
	CodeIMAUnlisted    Code = "ima_unlisted"
	CodeIMAViolation   Code = "ima_violation"
	CodeIMAUnverified  Code = "ima_unverified"
	CodeIMAAggregate   Code = "ima_boot_aggregate"
	CodeIMAListMissing Code = "ima_list_missing"
)

var remediesBoot = map[Code]string{
	CodeFirmwareDebug:  "turn the firmware's debugger off and its DMA protection on",
	CodeBootLog:        "boot again and send that boot's log as the firmware made it; if it repeats, update the firmware",
	CodeDBXTooOld:      "install the newest Secure Boot revocation list (fwupdmgr update, or dbxtool), then reboot",
	CodeSBATTooOld:     "install the newest shim and let it apply its revocations (mokutil --set-sbat-policy latest), then reboot",
	CodeBootComponent:  "boot images that the policy names, or name the digest of this one in its list of components",
	CodeCommandLine:    "boot with a command line that the policy names, or name this one in it",
	CodeBootFile:       "boot with kernel, initrd and loader files that the policy names, or name this one's digest in it",
	CodeMOK:            "remove the machine owner's keys (mokutil --reset), or name their digests in the policy",
	CodeIMAUnlisted:    "remove the file from the machine and reboot, or put its digest on the allow-list",
	CodeIMAViolation:   "reboot; a file changed while it was being measured, so that its digest means nothing",
	CodeIMAUnverified:  "send the kernel's list as it is (binary_runtime_measurements), unedited",
	CodeIMAAggregate:   "send list and quote of the same boot; the list began on other registers",
	CodeIMAListMissing: "boot with an IMA policy (ima_policy=tcb) and send the list with the quote",
}
