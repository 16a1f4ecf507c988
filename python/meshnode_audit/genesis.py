"""Organisations, their keys, limits, witnesses, and the genesis that names the first of all
(docs/PROTOCOL.md §23.2)."""

import re
from functools import lru_cache

from . import envelope, strict
from .entries import MAX_ENTRIES, covered, entry, floor, governs, kinds, product
from .envelope import public_key, root_key, sha256, sha256_hex
from .refused import Refused, demand
from .strict import Optional, ZERO_TIME, hexadecimal, integer, listing, matching, name, struct, time

FSM_VERSION = 4
SUSPENSIONS, ACTIVATION, GOVERNANCE = 2, 3, 4  # the first fsm_version that has them
MIN_ORGANISATIONS, MAX_ORGANISATIONS, MAX_KEYS, MAX_ROOTS, MAX_WITNESSES = 2, 7, 8, 8, 16
MAX_FLOORS, MAX_DENIED, MAX_NODES, MAX_QUOTA = 64, 256, 1024, 1 << 16

ORIGIN = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}(/[a-z0-9][a-z0-9.-]{0,31}){0,3}")
WITNESS = re.compile(r"[!-*,-~]{1,160}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{43,64}={0,2}")

KEY_FIELDS = dict(role=strict.string, public=public_key, not_after=Optional(time, ZERO_TIME))
key = struct(**KEY_FIELDS)
organisation = struct(id=name, roles=listing(strict.string), keys=listing(key))
limits = struct(nodes=integer(1, MAX_NODES), results=Optional(integer(0, MAX_QUOTA), 0), credentials=Optional(integer(0, MAX_QUOTA), 0),
                proposals=Optional(integer(0, MAX_QUOTA), 0), suspensions=Optional(integer(0, MAX_QUOTA), 0))


def check_key(k, version=GOVERNANCE):
    demand(k.role in ("govern", "enroll", "emergency"), f"role {k.role[:20]!r} of a key")
    demand(k.role != "enroll" or k.public.ed25519 is not None, "an enroll key is Ed25519")
    demand(k.not_after == ZERO_TIME or version >= GOVERNANCE, f"fsm_version {version} knows no not_after")
    return k


def check_organisation(o, version, owners):
    demand(o.roles in (["member"], ["seat"]), f"roles of {o.id}: want member or seat")
    demand(len(o.keys) <= MAX_KEYS, f"{len(o.keys)} keys of {o.id}")
    for k in o.keys:
        check_key(k, version)
        demand(k.public not in owners, "a key has one role and one organisation")
        owners.add(k.public)
    have = [k.role for k in o.keys]
    demand("govern" in have and "enroll" in have, f"{o.id} has no govern or no enroll key")
    return o


def check_organisations(all_, version):
    demand(MIN_ORGANISATIONS <= len(all_) <= MAX_ORGANISATIONS, f"{len(all_)} organisations")
    demand(all(a.id < b.id for a, b in zip(all_, all_[1:])), "want distinct organisations in order")
    owners = set()
    for o in all_:
        check_organisation(o, version, owners)
    demand(members(all_) >= MIN_ORGANISATIONS, "want at least two members")


def members(all_):
    return sum(o.roles == ["member"] for o in all_)


def check_witnesses(vkeys):
    demand(len(vkeys) <= MAX_WITNESSES, f"{len(vkeys)} witnesses")
    for w in vkeys:
        demand(WITNESS.fullmatch(w), "a witness that is no verifier key")
    names = [w.partition("+")[0] for w in vkeys]
    demand(len(set(names)) == len(names), "a witness named twice")
    return vkeys


def own_witness(origin, vkeys):
    """Whether a witness has a name of this mesh's own logs, or of their cosigners."""
    return any(w.partition("+")[0] == origin or w.startswith(origin + "/") for w in vkeys)


def outlives(k, end):
    """Whether a key may sign what ends then."""
    return k.not_after == ZERO_TIME or end <= k.not_after


def keys_of(organisations, role, end=ZERO_TIME, members_only=False):
    """The keys of one role that may sign what ends then, with their organisations."""
    return [(o.id, k.public) for o in organisations if not members_only or o.roles == ["member"] for k in o.keys if k.role == role and outlives(k, end)]


_kinds = struct(member=listing(kinds), seat=listing(kinds), aggregator=listing(kinds))
_roots = struct(sim=listing(public_key), vtpm=listing(root_key))
_policy = struct(entries=listing(entry), floors=Optional(listing(floor), ()), denied=Optional(listing(product), ()))
_genesis = struct(name=name, nonce=hexadecimal(32), created_at=time, origin=strict.string, fsm_version=integer(1, FSM_VERSION),
                  store=matching("memory|disk"), allow_sim=strict.boolean, organisations=listing(organisation), kinds=_kinds, roots=_roots, policy=_policy,
                  witnesses=listing(strict.string), limits=limits)


def kinds_for(g, role):
    return {"seat": g.kinds.seat, "aggregator": g.kinds.aggregator}.get(role, g.kinds.member)


def too_early(what, version):
    return Refused("wrong_version", f"{what}: only from fsm_version {version} on")


def admit_entry(g, e):
    """Demands that the kind of an entry is admitted for each of its roles, and that this mesh
    knows all of its fields."""
    if e.ima and g.fsm_version < ACTIVATION:
        raise too_early("ima", ACTIVATION)
    if governs(e) and g.fsm_version < GOVERNANCE:
        raise too_early("entry", GOVERNANCE)
    for role in e.roles:
        if e.kind not in kinds_for(g, role):
            raise Refused("kind_not_allowed", f"entry {e.id}: {e.kind} as {role}")


@lru_cache(maxsize=64)
def parse_genesis(raw):
    """Decodes a genesis and demands a govern key's signature of every organisation. It has mesh_id
    and raw besides."""
    env = envelope.parse(raw)
    g, subject = envelope.statement(env.payload, "genesis", _genesis)
    _check(g)
    envelope.check_subject(subject, g.name, sha256_hex(bytes.fromhex(g.nonce)))
    signed = env.verify(keys_of(g.organisations, "govern"))
    demand(signed == [o.id for o in g.organisations], "want signatures of all founders")
    g.raw, g.mesh_id = raw, sha256(env.payload).hex()
    return g


def _check(g):
    demand(len(g.origin) <= 100 and ORIGIN.fullmatch(g.origin), "no origin")
    demand(g.allow_sim == g.origin.startswith("sim."), "only origins with simulated evidence begin sim.")
    check_organisations(g.organisations, g.fsm_version)
    _check_kinds(g)
    _check_policy(g)
    demand(not own_witness(g.origin, g.witnesses), "a witness with a name of this mesh")
    check_witnesses(g.witnesses)
    quotas = (g.limits.results, g.limits.credentials, g.limits.proposals, g.limits.suspensions)
    demand(g.fsm_version >= GOVERNANCE or not any(quotas), "quotas before fsm_version 4")


def _check_kinds(g):
    uses = set()
    for listed in (g.kinds.member, g.kinds.seat, g.kinds.aggregator):
        demand(1 <= len(listed) <= 8 and len(set(listed)) == len(listed), "want 1 to 8 distinct kinds")
        for k in listed:
            parts = k.split(",")
            uses |= {p for p in parts if p != "vtpm" or len(parts) == 1}  # beside a TEE the TEE says whose the TPM is
    demand(g.allow_sim or "sim" not in uses and not g.roots.sim, "simulated evidence is not allowed")
    for kind, roots in (("sim", g.roots.sim), ("vtpm", g.roots.vtpm)):
        demand(kind not in uses or roots, f"no roots of {kind}")
        demand(len(roots) <= MAX_ROOTS and len(set(roots)) == len(roots), f"want distinct roots of {kind}")


def _check_policy(g):
    p = g.policy
    demand(len(p.entries) <= MAX_ENTRIES, f"{len(p.entries)} entries")
    demand(all(a.id < b.id for a, b in zip(p.entries, p.entries[1:])), "want distinct entries in order")
    for e in p.entries:
        admit_entry(g, e)
        demand(not e.supersedes, "genesis supersedes nothing")
    demand(g.fsm_version >= GOVERNANCE or not (p.floors or p.denied), "floors before fsm_version 4")
    demand(len(p.floors) <= MAX_FLOORS and len(p.denied) <= MAX_DENIED, "too many floors or products")
    for i, f in enumerate(p.floors):
        demand(i == 0 or p.floors[i - 1].key < f.key, "want floors in order")
        demand(not covered([x for j, x in enumerate(p.floors) if j != i], f), "a floor that another covers")
    demand(all(a < b for a, b in zip(p.denied, p.denied[1:])), "want distinct products in order")
