// Package simulations runs whole meshes in one process, in virtual time: real nodes
// (node.Run), real libp2p with TLS, exchange and yamux, real Raft, over a wire in memory
// that can be parted and healed. Only evidence (attesttest), the enrollers and the wire are
// stand-ins. It must run in a testing/synctest bubble, whose clock moves when all
// goroutines wait.
//
// # Scenarios
//
// A scenario is a text, one command a line, '#' begins a comment. NODE is "org/name" or
// "leader": the node that most running nodes name as Raft's leader at that moment. NODES is
// a list of them, where "rest" is every running node that the line does not name otherwise
// and "-NODE" is out of "rest". RELEASE may be "of:NODE": what that node runs. TIME is a duration, or two of them, as "5s-15s", to be drawn by the seed.
//
//	mesh ORG[:seat]...                           first line: the founding organisations; neutral ones have a seat only
//	allow RELEASE...                             what genesis allows, in every role
//	keep N                                       of commands and Raft entries behind a published state, nodes keep so few
//	start NODE RELEASE [ROLE...]                 start a node that runs a release
//	reboot NODE RELEASE [ROLE...]                start a newer boot elsewhere; the older runs on as NODE'
//	name WORD NODE                               the node's further name, as "victim leader"
//	stop NODE                                    end a node as its operator would
//	drain NODE [refused CODE]                    take a node out as its operator would, and wait until it is
//	retire NODE at NODE                          its organisation's govern key voids its present boot
//	crash NODE                                   end a node without a word to anybody
//	wait TIME
//	silence NODES | NODES [| ...]                part the groups; nobody is told
//	cut NODES | NODES [| ...]                    part the groups; connections break at once
//	heal                                         undo all of silence and cut
//	propose add|remove RELEASE signed ORG... at NODE [refused CODE]
//	suspend NODE|RELEASE for TIME by ORG at NODE [refused CODE]     with its emergency key
//	lift signed ORG... at NODE [refused CODE]    of the last suspension, with govern keys
//	clients N                                    start N clients; see History
//	quiet                                        stop the clients
//	expect leader among NODES [within TIME]
//	expect phase PHASE [code CODE] of NODES [within TIME]
//	expect closed NODE by NODES within TIME      since the last propose, by their own records
//	expect linked NODES [within TIME]            each with each other
//	expect kept NODES [within TIME]              the same, by links from before the last propose
//	expect proof PROOF of NODES at NODES [within TIME]   what the log holds of their verdicts
//	expect unlinked NODE from NODES [within TIME]
//	expect voters NODES at NODES [within TIME]
//	expect voting NODES [within TIME]            each has a vote and hears the leader, by its own view
//	expect equal NODES [within TIME]             commands, state digests, log sizes and roots
//	expect published NODES [within TIME]         a published checkpoint over the whole log
//	expect copied NODES [within TIME]            each can start others from a copy of the state
//
// An expectation that is not met within its time (30 s if it names none) ends the scenario
// with an error that names file and line. The seed draws times and what clients do; the
// interleaving is not drawn by it, since raft, libp2p and the scheduler draw their own.
//
// # History
//
// What is linearizable in a mesh is the ordered state, and of it the clients use the base:
// the number that a widening binds. A client knows any running node and does, at random,
//
//	swap   propose a widening on the base it saw last. Ordered first on that base it is
//	       accepted and moves the base by one; otherwise it is refused, and the refusal
//	       tells the base.
//	read   propose on a base that cannot be, which is refused and tells the base: ordered
//	       like every command, so it is a read behind a barrier.
//
// Both go through the control socket of a node that need not lead. A swap whose outcome is
// not known may take effect at any later time or never; so may one whose node said that it
// could not be ordered in time, since a frame may still be under way. A read without an
// answer is no part of the history. History.Check decides with porcupine, outside the
// bubble; a verdict that is not Ok within its time is a failure.
//
// What status and policy show is a node's own view and may be old: they are not
// linearizable, and Options.StaleReads, which reads so, is how the tests show that the
// checker finds what it looks for.
package simulations
