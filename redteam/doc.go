// Package redteam attacks one live node, its owner's own, and says of each attack whether
// the node held. It is what an outsider would try on the channel, as a program: every
// attack is a value with a name, what it tries, what a flawed node would do, what it needs
// and a Run. The tests of this package let the same attacks loose on channels that miss
// one check each, where they succeed: a green report is never vacuous.
//
// # Whom it attacks
//
// A Target is the public URL of a node. Two things must hold before anything hostile is
// sent to one of its addresses, and NewCampaign demands both:
//
//   - the address is a loopback address, or Target.Own is set: the caller has checked that
//     an enroll key of his own organisation signed the Target's Credential;
//   - whoever answers there has finished one honest TLS handshake as the peer that the
//     Credential names. The announcement itself is not signed, so without this a stranger's
//     page could point the attacks at anybody.
//
// The public HTTP listener proves nothing of its own. It is attacked only on the loopback
// or at the IP address of a mesh address that has passed.
//
// # Outcomes
//
//	held     the node refused or closed as it must, and still serves afterwards
//	broken   the node let something through, or no longer serves
//	skipped  something the attack needs is not there, or the node refused for a reason that
//	         says nothing about this attack (busy, not_started, …); Evidence says which
//
// A refusal proves little if the honest attempt is refused as well. So attacks that lie in
// one detail run only where the same attempt without the lie was accepted before.
//
// # Bounds
//
// Attacks run one after another, each within AttackTimeout and with at most maxConns
// connections; nothing goes on when Run returns. Nothing in a report but the Target's
// peer id, reason codes and sizes comes from the Target, and texts are printable.
package redteam
