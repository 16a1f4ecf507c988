"""What proposals do (docs/PROTOCOL.md §20.3, §23.4): each action with its fields, its class, the
fsm_version that it came with, and its effect on a policy that nobody else sees yet."""

from types import SimpleNamespace

from . import strict
from .entries import Chips, added_entry, chips, covered, entry_id, floor, floor_covers, product, scope
from .genesis import (GOVERNANCE, KEY_FIELDS, MAX_ORGANISATIONS, admit_entry, check_key, check_organisation, check_witnesses, limits,
                      organisation, own_witness)
from .refused import Malformed, Refused, demand
from .strict import Optional, ZERO_TIME, digest, hexadecimal, listing, name, struct, time

NARROW, WIDEN, CONSTITUTION = range(3)


# --- entries ---------------------------------------------------------------------------

def _add_entry(next_, a):
    e = a.entry
    if e.id in next_.entries and (not a.readmit or e.id not in next_.ends):
        raise Refused("replayed", f"entry {e.id} is allowed already")
    admit_entry(next_.genesis, e)
    for other in e.supersedes:
        if other not in next_.entries and other not in next_.revoked:
            raise Refused("unknown_entry", f"supersedes {other}")
    for other in [x.id for x in next_.revoked.values() if x.measurement == e.measurement]:
        if not a.readmit:
            raise Refused("revoked", f"measurement {e.measurement} was revoked")
        del next_.revoked[other]
    next_.entries[e.id] = e
    next_.ends.pop(e.id, None)
    if e.supersede_at != ZERO_TIME:
        for other in e.supersedes:
            if other in next_.entries:
                next_.ends[other] = min(e.supersede_at, next_.ends.get(other, e.supersede_at))


_removed = struct(id=Optional(entry_id), measurement=Optional(hexadecimal(32, 48, 64)))


def _removal(v):
    r = _removed(v)
    demand((r.id == "") != (r.measurement == ""), "want exactly one of id and measurement")
    return r


def _remove_entry(next_, r):
    def names(e):
        return r.id == e.id if r.id else r.measurement == e.measurement
    gone = [e for e in next_.entries.values() if names(e)]
    if not gone and not any(names(e) for e in next_.revoked.values()):
        raise Refused("unknown_entry", r.id + r.measurement)
    for e in gone:
        next_.revoked[e.id] = e
        del next_.entries[e.id]
        next_.ends.pop(e.id, None)


# --- keys and organisations ------------------------------------------------------------

def _organisation(next_, id_):
    for o in next_.organisations:
        if o.id == id_:
            return o
    raise Refused("unknown_organisation", id_)


def _find_key(next_, id_, role, key_id):
    o = _organisation(next_, id_)
    for i, k in enumerate(o.keys):
        if k.role == role and k.public.id == key_id:
            return o, i
    raise Refused("unknown_key", f"{id_} has no {role} key {key_id[:16]}")


_rotation = struct(organisation=name, role=strict.string, old=digest, public=KEY_FIELDS["public"], not_after=Optional(time, ZERO_TIME))


def _new_key(role, public, not_after):
    return check_key(SimpleNamespace(role=role, public=public, not_after=not_after))


def _rotate(v):
    r = _rotation(v)
    r.key = _new_key(r.role, r.public, r.not_after)
    return r


def _rotate_key(next_, r):
    o, i = _find_key(next_, r.organisation, r.role, r.old)
    next_.forget(o.id, o.keys[i])
    next_.replace(o, o.keys[:i] + [r.key] + o.keys[i + 1:])


_addition = struct(organisation=name, **KEY_FIELDS)


def _add(v):
    a = _addition(v)
    a.key = _new_key(a.role, a.public, a.not_after)
    return a


def _add_key(next_, a):
    o = _organisation(next_, a.organisation)
    if next_.owner(a.key.public):
        raise Refused("duplicate", "a key has one role and one organisation")
    next_.replace(o, o.keys + [a.key])


_removed_key = struct(organisation=name, role=strict.matching("govern|enroll|emergency"), id=digest)


def _remove_key(next_, r):
    o, i = _find_key(next_, r.organisation, r.role, r.id)
    next_.forget(o.id, o.keys[i])
    next_.replace(o, o.keys[:i] + o.keys[i + 1:])


def _new_organisation(v):
    return check_organisation(organisation(v), GOVERNANCE, set())


def _add_organisation(next_, o):
    if any(x.id == o.id for x in next_.organisations):
        raise Refused("replayed", f"organisation {o.id} is in already")
    if any(next_.owner(k.public) for k in o.keys):
        raise Refused("duplicate", "a key has one role and one organisation")
    if len(next_.organisations) >= MAX_ORGANISATIONS:
        raise Refused("limit", f"{len(next_.organisations)} organisations")
    next_.organisations = sorted(next_.organisations + [o], key=lambda x: x.id)


def _remove_organisation(next_, r):
    o = _organisation(next_, r.id)
    for k in o.keys:
        next_.forget(o.id, k)
    next_.organisations = [x for x in next_.organisations if x.id != r.id]


def _set_limits(next_, new):
    if next_.limits == new:
        raise Refused("replayed", "these limits are in force already")
    next_.limits = new


_witnesses = struct(witnesses=listing(strict.string, null=False))


def _new_witnesses(v):
    return check_witnesses(_witnesses(v).witnesses)


def _set_witnesses(next_, new):
    if next_.witnesses == new:
        raise Refused("replayed", "these witnesses are in force already")
    if own_witness(next_.genesis.origin, new):
        raise Refused("malformed", "a witness with a name of this mesh")
    next_.witnesses = new


# --- hardware --------------------------------------------------------------------------

def _raise_floor(next_, f):
    if not covered(next_.floors, f):
        next_.floors = sorted([g for g in next_.floors if not floor_covers(f, g)] + [f], key=lambda g: g.key)


def _deny_product(next_, p):
    next_.denied = next_.denied | {p}


def _allow_product(next_, p):
    if p not in next_.denied:
        raise Refused("replayed", f"{p} is not denied")
    next_.denied = next_.denied - {p}


def _scoped(with_chips, readmit=False):
    fields = dict(organisation=Optional(name), entry=Optional(entry_id))
    if with_chips:
        fields["chips"] = chips
    if readmit:
        fields["readmit"] = Optional(strict.boolean, False)
    shape = struct(**fields)

    def of(v):
        a = shape(v)
        a.scope = scope(a.organisation, a.entry)
        return a
    return of


def _known(next_, a):
    if a.entry and a.entry not in next_.entries and a.entry not in next_.revoked:
        raise Refused("unknown_entry", a.entry)
    if a.organisation and not any(o.id == a.organisation for o in next_.organisations) and not any(f[1] == a.organisation for f in next_.former):
        raise Refused("wrong_organisation", a.organisation)


def _limit_hardware(next_, a):
    _known(next_, a)
    old = next_.chips_of(a.scope)
    next_.set_chips(a.scope, Chips(False, {c for c in a.chips if old.admits(c)}, old.removed))


def _remove_hardware(next_, a):
    _known(next_, a)
    old = next_.chips_of(a.scope)
    next_.set_chips(a.scope, Chips(old.any, old.listed - set(a.chips), old.removed | set(a.chips)))


def _add_hardware(next_, a):
    _known(next_, a)
    old = next_.chips_of(a.scope)
    for c in a.chips:
        if old.admits(c):
            raise Refused("replayed", f"chip {c} is allowed already")
        if c in old.removed and not a.readmit:
            raise Refused("revoked", f"chip {c} was removed")
    more = set(a.chips)
    next_.set_chips(a.scope, Chips(old.any, old.listed if old.any else old.listed | more, old.removed - more))


def _unlimit_hardware(next_, a):
    old = next_.chips_of(a.scope)
    if old.any:
        raise Refused("replayed", f"{a.scope} has no list of chips")
    next_.set_chips(a.scope, Chips(True, (), old.removed))


# name: shape, class, first fsm_version, effect
ACTIONS = {
    "add_entry": (added_entry, WIDEN, 1, _add_entry),
    "remove_entry": (_removal, NARROW, 1, _remove_entry),
    "rotate_key": (_rotate, CONSTITUTION, GOVERNANCE, _rotate_key),
    "add_key": (_add, CONSTITUTION, GOVERNANCE, _add_key),
    "remove_key": (_removed_key, CONSTITUTION, GOVERNANCE, _remove_key),
    "add_organisation": (_new_organisation, CONSTITUTION, GOVERNANCE, _add_organisation),
    "remove_organisation": (struct(id=name), CONSTITUTION, GOVERNANCE, _remove_organisation),
    "set_limits": (limits, CONSTITUTION, GOVERNANCE, _set_limits),
    "set_witnesses": (_new_witnesses, CONSTITUTION, GOVERNANCE, _set_witnesses),
    "raise_floor": (floor, NARROW, GOVERNANCE, _raise_floor),
    "deny_product": (product, NARROW, GOVERNANCE, _deny_product),
    "allow_product": (product, WIDEN, GOVERNANCE, _allow_product),
    "limit_hardware": (_scoped(True), NARROW, GOVERNANCE, _limit_hardware),
    "add_hardware": (_scoped(True, readmit=True), WIDEN, GOVERNANCE, _add_hardware),
    "remove_hardware": (_scoped(True), NARROW, GOVERNANCE, _remove_hardware),
    "unlimit_hardware": (_scoped(False), WIDEN, GOVERNANCE, _unlimit_hardware),
}


class Action:
    """One change: what it is called, and what its fields say."""

    def __init__(self, kind, body):
        self.kind, self.body = kind, body
        _, self.lowest, self.since, self.effect = ACTIONS[kind]

    def brings(self):
        """The organisation that gets keys, and the keys; or None."""
        if self.kind in ("rotate_key", "add_key"):
            return self.body.organisation, [self.body.key]
        if self.kind == "add_organisation":
            return self.body.id, self.body.keys
        return None


def action(v):
    """The shape of an action: an object of exactly one member."""
    demand(isinstance(v, dict) and len(v) == 1, "want exactly one action")
    (kind, body), = v.items()
    if kind not in ACTIONS:
        raise Malformed(f"no action {kind[:40]!r}")
    return Action(kind, ACTIONS[kind][0](body))
