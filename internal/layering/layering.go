// Package layering holds the rules of which room of the house may know which, as a table
// with the reason of each, and the tests that keep them over transitive imports.
//
// A package of ours is named by its path below the module. A pattern is such a path, or
// one followed by "/..." for it and everything below. Own packages without a rule are
// refused: who adds a room says here whom it may know. Imports of tests are free.
package layering

import "strings"

// Module is the path of our module.
const Module = "github.com/attestmesh/meshnode"

// Room says whom one part of the house may know.
type Room struct {
	// Pattern selects the packages; the first room that matches is a package's own.
	Pattern string
	// Direct lists which of our packages it may import. No entry means none of ours.
	Direct []string
	// Through lists which of our packages it may reach further off, besides those. It is
	// empty for most rooms: what may not be imported may mostly not be reached either.
	Through []string
	// Reason says what would be lost.
	Reason string
}

// everything matches every package.
const everything = "..."

// Rooms returns the table.
func Rooms() []Room {
	return []Room{
		{Pattern: "attest",
			Reason: "the vocabulary of attestation depends on nothing of ours, so that it can be read and re-used alone"},
		{Pattern: "attest/attesttest", Direct: []string{"attest/...", "internal/..."},
			Reason: "a forger knows the schemes it forges and no more"},
		{Pattern: "attest/...", Direct: []string{"attest/...", "internal/..."},
			Reason: "a scheme knows the vocabulary and its vendor, not the mesh: a stranger can verify evidence with it"},
		{Pattern: "measure",
			Reason: "what an image will measure as follows from its bytes alone; a release engineer needs no mesh, and no evidence yet"},
		{Pattern: "mesh/...", Direct: []string{"mesh/...", "attest", "internal/..."},
			Reason: "the channel carries any protocol; what runs over it is bound to it in node"},
		{Pattern: "consensus/replica", Direct: []string{"consensus/...", "attest", "internal/..."},
			Reason: "the Raft adapter orders commands; the streams it needs are given to it by node"},
		{Pattern: "consensus", Direct: []string{"attest", "internal/..."},
			Reason: "governance is a pure function of ordered commands, whatever orders and carries them"},
		{Pattern: "transparency/...", Direct: []string{"transparency/...", "internal/..."},
			Reason: "the log keeps bytes; whoever audits it must not need the mesh that wrote it"},
		{Pattern: "federated/...", Direct: []string{"federated/...", "attest", "internal/..."},
			Reason: "rounds and rules are functions of values, re-executed by auditors far from any mesh"},
		{Pattern: "enroll", Direct: []string{"attest", "consensus", "internal/..."},
			Reason: "an enroller stands outside every TEE and outside the mesh; the schemes it believes are given to it"},
		{Pattern: "audit/...", Direct: []string{"audit/...", "attest/...", "consensus", "transparency/...", "federated/...", "internal/..."},
			Reason: "a stranger runs it, offline and years later"},
		{Pattern: "monitor/...", Direct: []string{"monitor/...", "attest", "audit/...", "consensus", "transparency/...", "federated", "internal/..."}, Through: []string{"attest/...", "federated/..."},
			Reason: "it follows a log from outside as an auditor does; whom it tells is given to it"},
		{Pattern: "service/run", Direct: []string{"service/...", "internal/..."}, Through: []string{"attest", "attest/runtimelog"},
			Reason: "it holds programs and runs them; who may deploy one and who may ask it is decided in node"},
		{Pattern: "service", Direct: []string{"attest", "attest/runtimelog", "internal/..."},
			Reason: "what an owner and a node sign is checked by clients and auditors, far from any node"},
		{Pattern: "client/...", Direct: []string{"client/...", "attest/...", "consensus", "transparency/...", "service", "internal/..."},
			Reason: "Alice links it into her own program; it speaks HTTPS only"},
		{Pattern: "redteam/...", Direct: []string{"redteam/...", "mesh/...", "attest/...", "internal/..."},
			Reason: "an attacker of the channel needs the channel only"},
		{Pattern: "demo/...", Direct: []string{"demo/...", "internal/..."},
			Reason: "the demo drives processes and reads their --json: whatever it shows, a person can do by hand"},
		{Pattern: "node/...", Direct: []string{"node/...", "attest/...", "mesh/...", "consensus/...", "transparency/...", "federated/...", "enroll", "audit/...", "service/...", "internal/..."},
			Reason: "the one package that sees all rooms, and none of the programs that use it"},
		{Pattern: "simulations/...", Direct: []string{everything},
			Reason: "scenarios build whole meshes in one process, with forged evidence"},
		{Pattern: "cmd/...", Direct: []string{"cmd/...", "attest/...", "consensus", "transparency/...", "federated/...", "audit/...", "monitor", "node/...", "enroll", "client/...", "redteam/...", "demo/...", "service", "measure", "internal/..."},
			Through: []string{"mesh/...", "consensus/replica", "service/run"},
			Reason:  "a subcommand parses, calls one room and prints; channel and Raft are reached through node"},
		{Pattern: "examples/...", Direct: []string{"examples/...", "federated/safetensors", "service", "internal/..."}, Through: []string{"attest", "attest/runtimelog"},
			Reason: "an example is what somebody outside writes: programs that a node is given, and processes driven by hand"},
		{Pattern: "internal/tamper", Direct: []string{"audit/audittest", "attest", "consensus", "federated/...", "internal/..."}, Through: []string{"attest/...", "transparency/..."},
			Reason: "it spoils logs with the C2SP libraries and raw bytes: it has leaves to spoil from elsewhere, and neither writes nor reads a log with what it tests"},
		{Pattern: "internal/logjudge", Direct: []string{"audit", "audit/audittest", "consensus", "transparency"}, Through: []string{"attest/...", "federated/...", "internal/..."},
			Reason: "it tells another verifier's tests what ours says of their logs"},
		{Pattern: "internal/loggen", Direct: []string{"audit/...", "transparency", "internal/..."}, Through: []string{"attest/...", "consensus", "transparency/...", "federated/..."},
			Reason: "it makes long logs for trials of an audit, and knows no more than tests do"},
		{Pattern: "internal/...", Direct: []string{"internal/..."},
			Reason: "what all rooms share knows none of them"},
	}
}

// Edge is a pair that may not be connected at any distance, whatever the rooms allow.
type Edge struct {
	From   string // pattern of ours
	Except string // pattern of ours within From, or ""
	// To is a pattern of ours, or the import path of foreign packages with all below it.
	To     string
	Reason string
}

// Forbidden returns the table of such edges.
func Forbidden() []Edge {
	const libp2p, raft = "github.com/libp2p", "github.com/hashicorp/raft"
	return []Edge{
		{From: everything, Except: "simulations/...", To: "attest/attesttest",
			Reason: "a forger of evidence must not be linked with what decides by evidence"},
		{From: "audit", To: "audit/audittest", Reason: "an auditor must not be linked with what forges logs"},
		{From: "node/...", To: "audit/audittest", Reason: "its private keys are known to everybody"},
		{From: "cmd/...", To: "audit/audittest", Reason: "its private keys are known to everybody"},
		{From: everything, To: "attest/vtpm/vtpmtest",
			Reason: "it starts software TPMs for tests, whose keys prove nothing"},
		{From: everything, To: "transparency/tlogwitness/witnesstest", Reason: "it starts a witness for tests"},
		{From: everything, Except: "simulations/...", To: "simulations/...",
			Reason: "the simulator's clocks and networks must not be in the measured binary"},
		{From: "simulations/...", To: "cmd/...", Reason: "a simulation builds nodes by their Go API, not by the command line"},
		{From: everything, Except: "transparency/tlogwitness/witnesstest", To: "internal/loopback", Reason: "it finds ports for tests, and brings package testing's flags"},
		{From: everything, To: "internal/canary", Reason: "it looks for leaks in tests"},
		{From: everything, To: "internal/deps", Reason: "it only keeps dependencies in go.mod and would link all of them"},
		{From: "audit/...", To: libp2p, Reason: "an auditor must not need, or trust, the mesh's network"},
		{From: "audit/...", To: raft, Reason: "an auditor replays what was ordered, whoever ordered it"},
		{From: "client/...", To: libp2p, Reason: "Alice needs HTTPS, not a peer-to-peer stack"},
		{From: "client/...", To: raft, Reason: "Alice never orders anything"},
		{From: "attest/...", To: libp2p, Reason: "evidence is judged by people who are no peers"},
		{From: "attest/...", To: raft, Reason: "evidence is judged by people who are no voters"},
		{From: "mesh/...", To: raft, Reason: "the channel carries Raft's streams without knowing them"},
		{From: "consensus/...", To: libp2p, Reason: "Raft runs over streams it is given, and governance replays without a network"},
		{From: "consensus", To: raft, Reason: "governance replays without Raft, in audit and in clients"},
		{From: "transparency/...", To: libp2p, Reason: "the log is read over HTTP or from a directory"},
		{From: "transparency/...", To: raft, Reason: "the log is told the order, it does not make it"},
		{From: "federated/...", To: libp2p, Reason: "sums are re-executed by people who are no peers"},
		{From: "federated/...", To: raft, Reason: "sums are re-executed by people who are no voters"},
		{From: "enroll", To: libp2p, Reason: "an enroller speaks HTTPS to its own nodes and nothing to the mesh"},
		{From: "enroll", To: raft, Reason: "an enroller signs what it was shown, it orders nothing"},
		{From: "demo/...", To: libp2p, Reason: "the demo starts processes; it is no peer itself"},
		{From: "demo/...", To: raft, Reason: "the demo starts processes; it is no voter itself"},
		{From: everything, Except: "cmd/...", To: "attest/collateral/fetch",
			Reason: "vendors' services are asked by a person or a timer, never where a connection waits for an answer"},
		{From: everything, Except: "internal/deps", To: "github.com/google/go-sev-guest/testing",
			Reason: "a vendor's test signer must not be linked with what decides by evidence"},
		{From: everything, Except: "internal/deps", To: "net/http/pprof",
			Reason: "it serves heap and goroutines, with their keys, on the default mux as a side effect of being imported"},
	}
}

// match reports whether a pattern selects a package path.
func match(pattern, path string) bool {
	if pattern == everything {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

// matchAny reports whether any of the patterns selects a package path.
func matchAny(patterns []string, path string) bool {
	for _, p := range patterns {
		if match(p, path) {
			return true
		}
	}
	return false
}

// RoomOf returns the room of a package path below the module.
func RoomOf(path string) (Room, bool) {
	for _, r := range Rooms() {
		if match(r.Pattern, path) {
			return r, true
		}
	}
	return Room{}, false
}

// MayImport reports whether a package of r may import another of ours.
func (r Room) MayImport(to string) bool { return matchAny(r.Direct, to) }

// MayReach reports whether a package of r may reach another of ours at any distance.
func (r Room) MayReach(to string) bool { return r.MayImport(to) || matchAny(r.Through, to) }

// Forbids reports whether e forbids from (a path of ours) to reach to: a path of ours, or
// a foreign import path with its import path as name.
func (e Edge) Forbids(from, to string, ours bool) bool {
	if !match(e.From, from) || e.Except != "" && match(e.Except, from) {
		return false
	}
	if ours {
		return match(e.To, to)
	}
	return to == e.To || strings.HasPrefix(to, e.To+"/")
}
