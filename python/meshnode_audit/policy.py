"""The policy: what genesis, Bootstraps, proposals and Recoveries lead to by themselves
(docs/PROTOCOL.md §20.3, §20.5, §23.4). Nothing here has a clock: what is compared with a
time is compared with times in signed bytes."""

import bisect
import copy
from types import SimpleNamespace

from . import cbor, statements
from .actions import CONSTITUTION, NARROW, WIDEN
from .entries import MAX_ENTRIES, MAX_REVOKED, Chips, covered, covers_platform, lists_all
from .envelope import sha256
from .genesis import (GOVERNANCE, MAX_DENIED, MAX_FLOORS, MIN_ORGANISATIONS, check_organisations, keys_of, members, too_early)
from .refused import Malformed, Refused
from .statements import NOWHERE
from .strict import ZERO_TIME

MAX_CHAIN, MAX_CHAIN_BYTES, MAX_FORMER = 1 << 14, 64 << 20, 1024
MAX_CHIPS, MAX_HARDWARE = 2048, 64


def majority(n):
    return n // 2 + 1


def widen_threshold(n):
    return max(majority(n), (2 * n + 2) // 3)


def signed_by(env, keys):
    """The distinct organisations of those keys that have signed; the signatures were verified."""
    ids = {k for k, _ in env.signatures}
    return sorted({organisation for organisation, key in keys if key.id in ids})


class Policy:
    def __init__(self, genesis):
        self.genesis = genesis
        self.mesh_id = genesis.mesh_id
        self.incarnation = self.epoch = self.base = 0
        self.entries = {e.id: e for e in genesis.policy.entries}
        self.revoked = {}
        self.ends = {}  # by entry that another supersedes
        self.floors, self.denied, self.hardware = list(genesis.policy.floors), frozenset(genesis.policy.denied), {}
        self.organisations, self.limits, self.witnesses = list(genesis.organisations), genesis.limits, list(genesis.witnesses)
        self.former = []  # (id, organisation, role) of keys that were removed, by id
        self.seen = set()  # ids of proposals of this incarnation
        self.bootstrap = self.recovery = None
        self.continues = NOWHERE
        self.chain = []  # SHA-256 of each envelope
        self.chain_bytes = 0

    def clone(self):
        new = copy.copy(self)
        for name in ("entries", "revoked", "ends", "hardware", "seen"):
            setattr(new, name, getattr(self, name).copy())
        new.former, new.chain = list(self.former), list(self.chain)
        return new

    @property
    def origin(self):
        return f"{self.genesis.origin}/{self.mesh_id[:16]}/{self.incarnation}"

    @property
    def n(self):
        return members(self.organisations)

    def founders(self):
        return list(self.recovery.organisations) if self.recovery else [o.id for o in self.organisations]

    # --- keys --------------------------------------------------------------------------

    def owner(self, key):
        """(organisation, role) of a key in force, or None."""
        for o in self.organisations:
            for k in o.keys:
                if k.public == key:
                    return o.id, k.role
        return None

    def forget(self, organisation, k):
        ids = [f[0] for f in self.former]
        self.former.insert(bisect.bisect_left(ids, k.public.id), (k.public.id, organisation, k.role))

    def former_key(self, key_id):
        return next((f for f in self.former if f[0] == key_id), None)

    def replace(self, organisation, keys):
        """Puts other keys in the place of an organisation's."""
        new = SimpleNamespace(id=organisation.id, roles=organisation.roles, keys=keys)
        self.organisations = [new if o.id == new.id else o for o in self.organisations]

    def stands(self, credential):
        """Whether a Credential that was verified once is by a key that is still in force."""
        return any(o.id == credential.organisation and k.role == "enroll" and k.public.id == credential.key for o in self.organisations for k in o.keys)

    def organisation(self, id_):
        return next((o for o in self.organisations if o.id == id_), None)

    def keys(self, role, end=ZERO_TIME, members_only=False, of=None):
        return keys_of([o for o in self.organisations if of is None or o.id == of], role, end, members_only)

    def chips_of(self, scope):
        return self.hardware.get(scope, Chips())

    def set_chips(self, scope, chips):
        self.hardware.pop(scope, None)
        if not chips.any or chips.removed:
            self.hardware[scope] = chips

    # --- what is allowed ---------------------------------------------------------------

    def end(self, e):
        """When an entry ends; ZERO_TIME is never."""
        end = self.ends.get(e.id)
        return e.not_after if end is None or e.not_after != ZERO_TIME and e.not_after < end else end

    def allows(self, run, roles, at=ZERO_TIME):
        """"" if what a node was found to run, (kind, measurement, entry), may hold roles then, else the
        code of why not. At an unknown time, ZERO_TIME, nothing is over."""
        code = "measurement_not_allowed"
        for e in self.entries.values():
            if e.kind != run[0] or e.measurement != run[1] or not set(roles) <= set(e.roles) or not self._known(e, run[2]):
                continue
            if at == ZERO_TIME:
                return ""
            end = self.end(e)
            if e.not_before <= at and (end == ZERO_TIME or at < end):
                return ""
            code = "expired"
        if code != "expired" and any((r.kind, r.measurement) == run[:2] for r in self.revoked.values()):
            return "revoked"
        return code

    def _known(self, e, reference):
        """Whether a node that matched the entry called reference has what e demands besides."""
        if e.id == reference:
            return True
        matched = self.entries.get(reference) or self.revoked.get(reference)
        listed = "entry " + e.id in self.hardware
        if matched is None or (matched.kind, matched.measurement) != (e.kind, e.measurement):
            return not (e.registers or e.ima or listed or e.minimum_tcb or e.tdx is not None)
        if any(matched.registers.get(name) != value for name, value in e.registers.items()):
            return False
        return lists_all(e, matched) and not listed and covers_platform(matched, e)

    # --- digest ------------------------------------------------------------------------

    def digest(self):
        """What seats sign to name this policy (docs/PROTOCOL.md §23.7), in hex."""
        def orNull(items):
            return sorted(items) or None
        image = [self.genesis.fsm_version, bytes.fromhex(self.mesh_id), self.incarnation, self.epoch, self.base, orNull(self.entries), orNull(self.revoked),
                 orNull(bytes.fromhex(s) for s in self.seen), sha256(b"".join(self.chain)), len(self.chain), self.chain_bytes]
        without = sha256(cbor.encode(image))
        if self.genesis.fsm_version < GOVERNANCE:
            return without.hex()
        lim = self.limits
        constitution = [[[o.id, o.roles, [[k.role, k.public.id, 0 if k.not_after == ZERO_TIME else k.not_after] for k in o.keys]] for o in self.organisations],
                        [lim.nodes, lim.results, lim.credentials, lim.proposals, lim.suspensions], self.witnesses, [list(f) for f in self.former]]
        platforms = [[[i, self.ends[i]] for i in sorted(self.ends)], [f.key for f in self.floors], sorted(self.denied),
                     [[s, c.any, sorted(c.listed), sorted(c.removed)] for s, c in sorted(self.hardware.items())]]
        return sha256(cbor.encode([without, [["constitution", constitution], ["platforms", platforms]]])).hex()

    def extend(self, raw):
        self.chain.append(sha256(raw))
        self.chain_bytes += len(raw)

    # --- proposals ---------------------------------------------------------------------

    def judge(self, p, env):
        """Decides whether a proposal with the signatures of env may take effect, and returns the change.
        Where only signatures fall short the error has the change too."""
        if p.mesh_id != self.mesh_id:
            raise Refused("wrong_mesh", "proposal of another mesh")
        if p.incarnation != self.incarnation:
            raise Refused("wrong_incarnation", f"proposal of incarnation {p.incarnation}")
        if p.id in self.seen:
            raise Refused("replayed", f"proposal {p.id} was ordered before")
        if len(self.chain) >= MAX_CHAIN or self.chain_bytes + len(p.raw) > MAX_CHAIN_BYTES:
            raise Refused("limit", "the policy chain is full")
        if p.base > self.base:
            raise Refused("behind", f"proposal on base {p.base}, at most {self.base}")
        lowest = max(a.lowest for a in p.actions)
        self._check_base(p, lowest)
        next_ = self._after(p, lowest)
        change = SimpleNamespace(proposal=p, next=next_, kind=max(lowest, self._classify(next_)), organisations=[])
        self._check_base(p, change.kind)
        self._count(env, change)
        return change

    def _check_base(self, p, kind):
        if kind != NARROW and p.base != self.base:
            raise Refused("stale_base", f"proposal on base {p.base}, want {self.base}")

    def _after(self, p, lowest):
        next_ = self.clone()
        for i, a in enumerate(p.actions):
            if self.genesis.fsm_version < a.since:
                raise too_early(f"action {i}", a.since)
            a.effect(next_, a.body)
        if all(a.kind == "raise_floor" and covered(self.floors, a.body) for a in p.actions):
            raise Refused("floor_not_raised", "no floor is higher than those in force")
        chips = max((max(len(c.listed), len(c.removed)) for c in next_.hardware.values()), default=0)
        if len(next_.floors) > MAX_FLOORS or len(next_.denied) > MAX_DENIED or len(next_.hardware) > MAX_HARDWARE or chips > MAX_CHIPS:
            raise Refused("limit", "too much is demanded of platforms")
        if len(next_.entries) > MAX_ENTRIES or len(next_.revoked) > MAX_REVOKED:
            raise Refused("limit", "too many entries")
        if lowest == CONSTITUTION:
            next_._check_constitution()
        return next_

    def _check_constitution(self):
        if self.n < MIN_ORGANISATIONS:
            raise Refused("unreachable_threshold", f"{self.n} members are left")
        try:
            check_organisations(self.organisations, self.genesis.fsm_version)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        for o in self.organisations:
            for k in o.keys:
                if self.former_key(k.public.id):
                    raise Refused("replayed", f"a key of {o.id} was removed before")
        if len(self.former) > MAX_FORMER:
            raise Refused("limit", "too many removed keys")
        used = [self.bootstrap.log_key] + [c.cosigner for c in self.bootstrap.seats]
        if any(self.owner(k) for k in used):
            raise Refused("duplicate", "the log's key or a seat's cosigner key")

    def _classify(self, after):
        """The lowest class that the difference of two policies has."""
        if (self.limits, self.witnesses, self.organisations) != (after.limits, after.witnesses, after.organisations):
            return CONSTITUTION
        if not after.entries.keys() <= self.entries.keys():
            return WIDEN
        lasts = any(i in after.entries and (i not in after.ends or after.ends[i] > end) for i, end in self.ends.items())
        if lasts or not all(covered(after.floors, f) for f in self.floors) or not self.denied <= after.denied:
            return WIDEN
        if not all(scope in after.hardware and after.hardware[scope].within(c) for scope, c in self.hardware.items()):
            return WIDEN
        return NARROW

    def _count(self, env, change):
        """Verifies every signature and demands enough distinct member organisations."""
        end = change.proposal.expires
        before = self.keys("govern", end, members_only=True)
        if change.kind == CONSTITUTION:
            self._count_constitution(env, change, before, end)
            return
        if change.kind == NARROW:  # does not go stale by a change of keys
            env = env.without(lambda key_id: (self.former_key(key_id) or ("", "", ""))[2] == "govern")
        change.organisations = self.verify(env, before, "proposal")
        want = majority(self.n) if change.kind == NARROW else widen_threshold(self.n)
        if len(change.organisations) < want:
            raise self._short(change, f"{len(change.organisations)} organisations, want {want} of {self.n}")

    def _count_constitution(self, env, change, before, end):
        after = change.next.keys("govern", end, members_only=True)
        added = [(o, k) for o, k in change.next.keys("govern") if not self.owner(k)]
        every = {k.id: (o, k) for o, k in added + after + before}
        change.organisations = self.verify(env, list(every.values()), "proposal")
        if any(not signed_by(env, [k]) for k in added):
            raise self._short(change, "a new govern key has not signed")
        own = {a.body.organisation if a.kind == "rotate_key" else None for a in change.proposal.actions}
        rotates = len(own) == 1 and None not in own and own <= set(signed_by(env, before))
        for keys, n in ((before, self.n), (after, change.next.n)):
            signed, want = signed_by(env, keys), majority(n) if rotates else widen_threshold(n)
            if len(signed) < want:
                raise self._short(change, f"{len(signed)} organisations, want {want} of {n}")

    @staticmethod
    def _short(change, text):
        error = Refused("threshold", text)
        error.change = change
        return error

    @staticmethod
    def verify(env, keys, what):
        try:
            return env.verify(keys)
        except Malformed as e:
            raise Refused("wrong_signer", f"{what}: {e}") from None

    def commit(self, change):
        """Makes this policy the one after a change that was judged on it."""
        self.__dict__ = change.next.__dict__
        self.epoch += 1
        self.base += change.kind != NARROW
        self.seen.add(change.proposal.id)
        self.extend(change.proposal.raw)

    # --- Bootstrap and Recovery --------------------------------------------------------

    def check_bootstrap(self, raw):
        """Verifies a Bootstrap of the incarnation that this policy begins, and of its founders."""
        b = statements.bootstrap(raw)
        if (b.mesh_id, b.incarnation) != (self.mesh_id, self.incarnation):
            raise Refused("wrong_incarnation", "Bootstrap of another mesh or incarnation")
        if self.recovery is None:
            if b.recovery or b.continues != NOWHERE:
                raise Refused("malformed", "a Bootstrap of incarnation 0 continues nothing")
        else:
            if b.recovery != self.recovery.id or b.continues == NOWHERE:
                raise Refused("replay_mismatch", "Bootstrap of another Recovery")
            check_place(self.recovery, b.continues)
            if self.continues != NOWHERE and b.continues != self.continues:
                raise Refused("replay_mismatch", "Bootstrap that continues another log")
        founders = self.founders()
        if len(b.credentials) != len(founders):
            raise Refused("malformed", "want one Credential of each organisation")
        b.seats, used = [], set()

        def claim(key):
            if key in used or self.owner(key):
                raise Refused("malformed", "a key with two uses")
            used.add(key)
        claim(b.log_key)
        for founder, text in zip(founders, b.credentials):
            c = self.check_credential(text.encode("utf-8"))
            if c.organisation != founder or "seat" not in c.roles:
                raise Refused("not_seat", f"want a seat of {founder}")
            claim(c.peer_key)
            claim(c.cosigner)
            b.seats.append(c)
        signed = self.verify(b.envelope, self.keys("enroll"), "bootstrap")
        if not set(founders) <= set(signed):
            raise Refused("threshold", "want an enroll key of every founding organisation")
        return b

    def check_credential(self, raw):
        """Verifies a Credential of this mesh and incarnation, by an enroll key in force."""
        try:
            c = statements.credential(raw)
        except Malformed as e:
            raise Refused("no_credential", str(e)) from None
        if c.mesh_id != self.mesh_id:
            raise Refused("wrong_mesh", "Credential of another mesh")
        if c.incarnation != self.incarnation:
            raise Refused("wrong_incarnation", f"Credential of incarnation {c.incarnation}")
        if c.ak and self.genesis.fsm_version < 3:
            raise too_early("ak", 3)
        if len(c.envelope.signatures) != 1:
            raise Refused("no_credential", "want one signature, by an enroll key")
        keys, former = self.keys("enroll", c.expires, of=c.organisation), self.former_key(c.key)
        if former and not keys:
            raise Refused("organisation_removed", former[1])
        if former:
            raise Refused("no_credential", "by a key that was removed")
        try:
            c.envelope.verify(keys)
        except Malformed as e:
            raise Refused("no_credential", str(e)) from None
        return c

    def recover(self, raw, at):
        """Begins the incarnation that a Recovery starts where the log has the size and root at. Returns
        the Recovery and who signed it."""
        r = statements.recovery(raw)
        if r.mesh_id != self.mesh_id or self.genesis.fsm_version < GOVERNANCE:
            raise Refused("wrong_mesh", "a Recovery that this mesh does not know")
        if self.bootstrap is None or r.incarnation <= self.incarnation or r.previous_origin != self.origin:
            raise Refused("wrong_incarnation", "a Recovery of another incarnation")
        if r.planned:
            if self.epoch < r.epoch or self.base != r.base:
                raise Refused("rolled_back", "an older state, or another base")
        elif (self.epoch, self.base, self.digest()) != (r.epoch, r.base, r.policy):
            raise Refused("rolled_back", "another state")
        check_place(r, at)
        chosen = [self.organisation(i) for i in r.organisations]
        if None in chosen or members(chosen) < majority(self.n):
            raise Refused("threshold", "too few organisations found the incarnation")
        signers = self.verify(r.envelope, self.keys("govern", r.expires, members_only=True), "recovery")
        if len(signers) < widen_threshold(self.n):
            raise Refused("threshold", f"{len(signers)} organisations signed the Recovery")
        if len(self.chain) + 2 > MAX_CHAIN or self.chain_bytes + len(raw) > MAX_CHAIN_BYTES:
            raise Refused("limit", "the policy chain is full")
        self.incarnation, self.recovery, self.bootstrap, self.continues = r.incarnation, r, None, at
        self.epoch += 1
        self.base += 1
        self.seen = set()
        return r, signers


def check_place(r, at):
    """Whether the log may go on from a size and root."""
    if at != r.checkpoint and not (r.planned and at.size > r.checkpoint.size):
        raise Refused("rolled_back", f"goes on from size {at.size}")
