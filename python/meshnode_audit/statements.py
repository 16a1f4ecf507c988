"""Every statement but genesis: its fields, and what its bytes alone have to show (docs/PROTOCOL.md
§9, §20.2, §20.3, §23). Decoders raise Malformed; who signed is judged elsewhere."""

from functools import lru_cache
from types import SimpleNamespace

from . import envelope, strict
from .actions import action
from .entries import entry_id, kinds, roles
from .envelope import public_key, sha256, sha256_hex
from .genesis import MAX_ORGANISATIONS
from .refused import demand
from .strict import DAY, HOUR, Optional, digest, hexadecimal, int8, listing, matching, name, node_ref, ordered, peer, struct, time, uint32, uint64

MAX_CREDENTIAL, MAX_RESULT, MAX_READY, MAX_SUSPENSION_SIZE, MAX_RECOVERY_SIZE = 3 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10
MAX_PROPOSAL_LIFETIME, MAX_SUSPENSION, MAX_RECOVERY, MAX_PLANNED_RECOVERY = 14 * DAY, DAY, DAY, 30 * DAY
MAX_ACTIONS, MAX_CODES, MAX_PARTICIPANTS, MAX_ROUNDS, MAX_ATTEMPTS = 32, 16, 64, 1000, 16
ZEROS = "00" * 32

code = matching("[a-z][a-z0-9_]{0,39}")
nonce = hexadecimal(16)
place = struct(size=uint64, root=digest)
NOWHERE = SimpleNamespace(size=0, root="")
_about = dict(mesh_id=digest, incarnation=uint64)


def subject_of(s):
    """The subject of a statement about a node: its name, and the SHA-256 of its peer id."""
    return s.node, sha256_hex(s.peer)


def mesh_subject(s):
    return "mesh", s.mesh_id


def _decode(raw, kind, shape, limit, subject):
    demand(len(raw) <= limit, f"{kind} of {len(raw)} bytes")
    env = envelope.parse(raw)
    s, about = envelope.statement(env.payload, kind, shape)
    demand(getattr(s, "mesh_id", "") != ZEROS, "mesh_id is zero")
    envelope.check_subject(about, *subject(s))
    s.raw, s.envelope, s.id = raw, env, sha256(env.payload).hex()
    return s


def _lasts(start, end, limit):
    demand(0 < end - start <= limit, "a time that is over before it begins, or too long")


# --- credential ------------------------------------------------------------------------

_credential = struct(mesh_id=digest, incarnation=uint64, organisation=name, node=name, peer=peer, cosigner=public_key, roles=roles, boot_seq=uint64,
                     checkpoint=Optional(place, NOWHERE), issued=time, expires=time, ak=Optional(digest))


@lru_cache(maxsize=512)
def credential(raw):
    """A Credential. Its node is organisation/name; key is the id of the one key that signed it."""
    c = _decode(raw, "credential", _credential, MAX_CREDENTIAL, lambda c: (f"{c.organisation}/{c.node}", sha256_hex(c.peer)))
    demand(c.cosigner.ed25519 is not None, "cosigner: want an Ed25519 key")
    demand(c.cosigner != envelope.peer_key(c.peer), "the key of the peer id must not sign checkpoints")
    demand(c.boot_seq > 0, "boot_seq is zero")
    _lasts(c.issued, c.expires, DAY)
    c.node = f"{c.organisation}/{c.node}"
    c.peer_key = envelope.peer_key(c.peer)
    c.key = c.envelope.signatures[0][0] if len(c.envelope.signatures) == 1 else ""
    return c


# --- bootstrap and recovery ------------------------------------------------------------

_bootstrap = struct(**_about, attempt=uint32, credentials=listing(strict.string), log_key=public_key, recovery=Optional(strict.string),
                    continues=Optional(place, NOWHERE))


def bootstrap(raw):
    b = _decode(raw, "bootstrap", _bootstrap, envelope.MAX_SIZE, mesh_subject)
    demand(b.attempt > 0, "attempt is zero")
    demand(b.log_key.ed25519 is not None, "log_key: want an Ed25519 key")
    return b


_recovery = struct(**_about, previous_origin=strict.string, checkpoint=place, epoch=uint64, base=uint64, policy=digest,
                   organisations=ordered(name, MAX_ORGANISATIONS, least=1), planned=Optional(strict.boolean, False), nonce=nonce, created=time, expires=time)


@lru_cache(maxsize=16)
def recovery(raw):
    r = _decode(raw, "recovery", _recovery, envelope.MAX_SIZE, mesh_subject)
    demand(len(r.envelope.payload) <= MAX_RECOVERY_SIZE, "a recovery that is too large")
    demand(r.incarnation > 0, "incarnation 0 is genesis's")
    demand(1 <= len(r.previous_origin.encode()) <= 200, "previous_origin")
    demand(r.checkpoint.size >= 2, "a log begins with genesis and Bootstrap")
    _lasts(r.created, r.expires, MAX_PLANNED_RECOVERY if r.planned else MAX_RECOVERY)
    return r


# --- attestation result ----------------------------------------------------------------

_party = struct(node=node_ref, peer=peer)
_vector = strict.struct_of(*((n, n.replace("-", "_"), int8) for n in (
    "instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque", "sourced-data")))
_result = struct(verifier=_party, subject=_party, mesh_id=digest, incarnation=uint64, epoch=uint64, kind=strict.string,
                 measurement=matching("([0-9a-f]{2}){0,64}"), verdict=matching("affirming|warning|none|contraindicated"), codes=listing(code, null=False), vector=_vector, reference=Optional(strict.string),
                 evidence=digest, at=time, expires=time)


@lru_cache(maxsize=512)
def result(raw):
    r = _decode(raw, "attestation-result", _result, MAX_RESULT, lambda r: subject_of(r.subject))
    demand(r.verifier.peer != r.subject.peer and r.verifier.node != r.subject.node, "a node that judges itself")
    demand(r.kind == "" or kinds(r.kind), "no kind")
    demand(len(r.codes) <= MAX_CODES, "too many codes")
    r.affirming = r.verdict == "affirming"
    if r.affirming:
        demand(r.kind and r.measurement, "an affirming result names kind and measurement")
        entry_id(r.reference)
    else:
        demand(r.reference == "", "only an affirming result matched an entry")
    _lasts(r.at, r.expires, HOUR)
    r.finding = (r.kind, r.measurement, r.reference)
    r.says = (r.verdict, r.finding, tuple(vars(r.vector).values()), tuple(r.codes))
    return r


# --- proposal, withdrawal --------------------------------------------------------------

_proposal = struct(**_about, base=uint64, nonce=nonce, created=time, expires=time, confirm_quorum_loss=Optional(strict.boolean, False), actions=listing(action))


@lru_cache(maxsize=64)
def proposal(raw):
    p = _decode(raw, "proposal", _proposal, envelope.MAX_SIZE, mesh_subject)
    _lasts(p.created, p.expires, MAX_PROPOSAL_LIFETIME)
    demand(1 <= len(p.actions) <= MAX_ACTIONS, f"{len(p.actions)} actions")
    return p


_withdrawal = struct(**_about, organisation=name, proposal=digest, expires=time, issued=time)


def withdrawal(raw):
    w = _decode(raw, "withdrawal", _withdrawal, MAX_SUSPENSION_SIZE, mesh_subject)
    demand(w.proposal != ZEROS, "proposal is zero")
    return w


# --- suspension ------------------------------------------------------------------------

_suspension = struct(**_about, organisation=name, nonce=nonce, entry=Optional(entry_id), node=Optional(node_ref),
                     cause=matching("precaution|vulnerable|compromised|misbehaving"), issued=time, until=time)
_lift = struct(**_about, suspension=digest)


def suspension(raw):
    x = _decode(raw, "suspension", _suspension, MAX_SUSPENSION_SIZE, mesh_subject)
    demand((x.entry == "") != (x.node == ""), "want exactly one of entry and node")
    _lasts(x.issued, x.until, MAX_SUSPENSION)
    return x


def lift(raw):
    s = _decode(raw, "suspension-lift", _lift, MAX_SUSPENSION_SIZE, mesh_subject)
    demand(s.suspension != ZEROS, "suspension is zero")
    return s


# --- seats -----------------------------------------------------------------------------

_ready = struct(**_about, node=node_ref, peer=peer, seq=uint64, digest=digest)
_departure = struct(**_about, node=node_ref, peer=peer)


def ready(raw):
    r = _decode(raw, "ready", _ready, MAX_READY, subject_of)
    demand(r.seq > 0, "seq is zero")
    return r


def drain(raw):
    return _decode(raw, "drain", _departure, MAX_READY, subject_of)


def retirement(raw):
    return _decode(raw, "retirement", _departure, MAX_READY, subject_of)


# --- what nobody signs -----------------------------------------------------------------

_membership = struct(**_about, epoch=uint64, change=matching("seat-removed|seat-taken"), node=node_ref, peer=peer, code=strict.string, cause=strict.string)
_state = struct(**_about, epoch=uint64, seq=uint64, policy=digest, digest=digest)


def _unsigned(raw, kind, shape, subject):
    env = envelope.parse(raw)
    demand(not env.signatures, "signed, though nobody signs it")
    s, about = envelope.statement(env.payload, kind, shape)
    envelope.check_subject(about, *subject(s))
    return s


def membership(raw):
    m = _unsigned(raw, "membership", _membership, subject_of)
    demand((m.change == "seat-taken") == (m.code == ""), "a seat is removed for a reason and taken for none")
    return m


def membership_leaf(mesh_id, incarnation, epoch, change, node, peer_id, why, cause):
    return envelope.marshal(envelope.payload_of("membership", node, sha256_hex(peer_id), {
        "mesh_id": mesh_id, "incarnation": incarnation, "epoch": epoch, "change": change, "node": node, "peer": strict.peer_text(peer_id), "code": why, "cause": cause}))


def logged_state(raw):
    return _unsigned(raw, "state", _state, mesh_subject)


# --- round -----------------------------------------------------------------------------

_accepted = struct(node=node_ref, peer=peer, update_root=digest, examples_commitment=digest, statement=digest)
_rejected = struct(node=node_ref, peer=peer, code=matching("[a-z0-9_]{1,64}"))
_round = struct(mesh_id=digest, job=hexadecimal(8), round=strict.integer(0, MAX_ROUNDS), attempt=strict.integer(1, MAX_ATTEMPTS),
                base_root=digest, epoch=uint64, rule=strict.string, arithmetic=strict.string, result_root=digest, aggregator=node_ref, peer=peer,
                accepted=listing(_accepted), rejected=listing(_rejected))


def order(node):
    """What nodes are ordered by: organisation, then name."""
    return tuple(node.split("/"))


@lru_cache(maxsize=64)
def committed_round(raw):
    """The leaf of a committed round, which the peer that it names has signed."""
    r = _decode(raw, "round", _round, envelope.MAX_SIZE, lambda r: (f"job/{r.job}/round/{r.round}/attempt/{r.attempt}", r.result_root))
    demand((r.base_root == ZEROS) == (r.round == 0), "only round 0 has no base root")
    demand(r.result_root != ZEROS, "no result root")
    demand(len(r.accepted) + len(r.rejected) <= MAX_PARTICIPANTS, "too many participants")
    for listed in (r.accepted, r.rejected):
        nodes = [order(x.node) for x in listed]
        demand(all(a < b for a, b in zip(nodes, nodes[1:])), "want node order")
    demand(not {x.node for x in r.accepted} & {x.node for x in r.rejected}, "a node that is accepted and rejected")
    r.envelope.verify_peer(r.peer)
    return r
