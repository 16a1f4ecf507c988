"""How seats change hands, and how nodes leave (docs/PROTOCOL.md §18.8, §20.2, §23.5)."""

from . import statements
from .envelope import peer_key, sha256_hex
from .genesis import GOVERNANCE
from .policy import majority
from .refused import Malformed, Refused


def _decode(decoder, leaf):
    try:
        return decoder(leaf)
    except Malformed as e:
        raise Refused("malformed", str(e)) from None


def _current(state, s):
    """The node whose newest boot a statement names."""
    if s.peer in state.retired:
        raise Refused("retired", "a peer that was retired")
    n = state.nodes.get(s.node)
    if n is None:
        raise Refused("unknown_node", s.node)
    if n.credential.peer != s.peer:
        raise Refused("wrong_peer", f"another boot of {s.node}")
    return n


def ready(state, leaf):
    """A node takes its organisation's vacant seat, confirmed by holders of others."""
    r = _decode(statements.ready, leaf)
    state.of_this_mesh(r, "ready", GOVERNANCE)
    n = _current(state, r)
    _candidate(state, n)
    keys = [(n.credential.organisation, n.credential.peer_key)] + [(s.credential.organisation, s.credential.peer_key) for s in state.seats()]
    signed = state.policy.verify(r.envelope, keys, "ready")
    want = min(state.quorum(), max(1, len(state.seats())))
    if n.credential.organisation not in signed or len(signed) - 1 < want:
        raise Refused("threshold", f"signed by {signed}, want the node and {want} other organisations")
    n.seat = True
    return [state.membership("seat-taken", n, "", "ready " + sha256_hex(leaf))]


def _candidate(state, n):
    """Demands that a node may take its organisation's seat."""
    if "seat" not in n.credential.roles:
        raise Refused("not_seat", f"{n.name} has not the role")
    if n.seat:
        raise Refused("seat_held", f"this boot of {n.name} has held a seat")
    if n.drained:
        raise Refused("drained", n.name)
    if not state.policy.stands(n.credential):
        raise Refused("no_credential", "a Credential by a key that was removed")
    if n.run is None:
        raise Refused("not_ready", f"nobody has affirmed {n.name}")
    code = state.policy.allows(n.run, n.credential.roles) or n.contradicted
    if code:
        raise Refused(code, n.name)
    if any(s.credential.organisation == n.credential.organisation for s in state.seats()):
        raise Refused("seat_held", f"the seat of {n.credential.organisation} is held")


def drain(state, leaf):
    """A node's own word that it is about to be stopped."""
    d = _decode(statements.drain, leaf)
    state.of_this_mesh(d, "drain", GOVERNANCE)
    n = _current(state, d)
    if len(d.envelope.signatures) != 1:
        raise Refused("wrong_signer", "want the node's signature alone")
    state.policy.verify(d.envelope, [("", peer_key(d.peer))], "drain")
    if n.drained:
        raise Refused("replayed", f"{n.name} was drained before")
    least = min(majority(state.policy.n), len(state.policy.organisations) - 1)
    if n.votes and len(state.seats()) - 1 < least:
        raise Refused("quorum_loss", f"leaves fewer than {least} seats")
    derived = [state.remove_seat(n, "drained", "drain " + sha256_hex(leaf))] if n.votes else []
    n.drained = True
    return derived


def retirement(state, leaf):
    """An organisation's word that one boot of its node is void for ever."""
    r = _decode(statements.retirement, leaf)
    state.of_this_mesh(r, "retirement", GOVERNANCE)
    organisation = statements.order(r.node)[0]
    state.policy.verify(r.envelope, state.policy.keys("enroll", of=organisation) + state.policy.keys("govern", of=organisation), "retirement")
    if r.peer in state.retired:
        raise Refused("replayed", "a peer that was retired before")
    if r.peer not in state.peers:
        state.check_retired_room(organisation)
        state.retired[r.peer] = r.node
        return []
    if state.peers[r.peer] != r.node:
        raise Refused("wrong_peer", f"the peer of {state.peers[r.peer]}")
    n = state.nodes[r.node]
    if n.votes and len(state.seats()) == 1:
        raise Refused("quorum_loss", "the only seat that is held")
    derived = state.retire(n, "retirement " + sha256_hex(leaf))
    state.voided[r.node] = n.credential.boot_seq
    del state.nodes[r.node]
    return derived
