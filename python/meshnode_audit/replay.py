"""The rules for a whole log, leaf by leaf (docs/PROTOCOL.md §23): what the first leaves are, which
leaf must follow from those before, and what times in signed bytes rule out."""

from types import SimpleNamespace

from . import statements
from .envelope import kind_of
from .genesis import parse_genesis
from .refused import Malformed, Refused
from .rounds import Rounds
from .state import CLOCK_SKEW, State
from .strict import ZERO_TIME
from .volume import Volume

KINDS = ("credential", "attestation-result", "proposal", "membership", "suspension", "suspension-lift", "withdrawal", "state", "ready", "drain", "retirement")


class Replay:
    """place() is (size, root in hex) of the leaves before the present one, now the auditor's time in
    Unix ms."""

    def __init__(self, genesis, now, place):
        self.given, self.now, self.place = genesis, now, place
        self.state = None
        self.broken = False  # genesis, a Bootstrap or a Recovery do not hold
        self.derived = []  # leaves that must come next
        self.rounds = Rounds()
        self.volume = Volume()
        self.recoveries, self.parts = [], []
        self.suspects = []
        # A time that the members' clock had passed: the newest result so far would not have been
        # ordered any earlier than CLOCK_SKEW before it was made.
        self.earliest = ZERO_TIME
        self.latest = now + CLOCK_SKEW  # how new a result can be under the present checkpoint

    @property
    def started(self):
        return self.state is not None and not self.broken and self.state.started

    def leaf(self, index, leaf):
        """Replays one leaf and returns what is wrong with it: (index, code, message)."""
        if index == 0:
            return self.first(leaf)
        if self.broken:
            return []
        if index == 1:
            return self.second(leaf)
        out = []
        if self.derived:
            if self.derived[0] == leaf:
                del self.derived[0]
                return []
            if not self.by_expiry(leaf):
                out.append((index, "derived_missing", "want the leaf that follows from those before"))
                self.derived = []
        return out + self.dispatch(index, leaf)

    def first(self, leaf):
        self.broken = True
        try:
            g = parse_genesis(leaf)
        except (Malformed, Refused) as e:
            return [(0, "genesis_invalid", str(e))]
        if self.given is not None and self.given.mesh_id != g.mesh_id:
            return [(0, "genesis_mismatch", f"the log is of mesh {g.mesh_id}, the given genesis of {self.given.mesh_id}")]
        self.state, self.broken = State(g), False
        return []

    def second(self, leaf):
        try:
            self.state.begin(self.state.policy.check_bootstrap(leaf), self.state.genesis.raw, leaf)
        except (Malformed, Refused) as e:
            self.broken = True
            return [(1, "bootstrap_invalid", str(e))]
        return []

    def dispatch(self, index, leaf):
        kind = kind_of(leaf)
        if kind == "recovery" or not self.state.started:
            return self.recovery(index, kind, leaf)
        if kind == "round":
            return self.rounds.leaf(self, index, leaf)
        if kind == "":
            return [(index, "malformed", "no DSSE envelope over an in-toto Statement in canonical form")]
        if kind not in KINDS:
            return [(index, "unknown_leaf", f"kind {kind[:100]}")]
        out = self.times(index, kind, leaf)
        try:
            self.derived += self.state.apply(kind, leaf)
        except Refused as e:
            return out + [(index, "not_derived" if kind in ("membership", "state") else e.code, str(e))]
        if kind == "attestation-result":
            self.heard(statements.result(leaf))
        out += self.volume.leaf(index, kind, leaf, self.state)
        latest = self.not_reached(kind, leaf)
        return out + (self.clock_before(latest) if latest else [])

    def recovery(self, index, kind, leaf):
        """The two leaves that an incarnation above 0 begins with. Where they do not hold there is no
        membership to judge what follows by."""
        state, (size, root) = self.state, self.place()
        try:
            if kind == "recovery":
                if self.derived:
                    raise Refused("malformed", "a Recovery in place of what follows from the leaves before it")
                self.volume = Volume()
                r, signers = state.recover(leaf, SimpleNamespace(size=size, root=root))
                if r.planned:
                    self.parts.append((index, r.checkpoint))
                self.recoveries.append((index, r, signers))
            elif kind == "bootstrap":
                state.begin(state.policy.check_bootstrap(leaf), state.policy.recovery.raw, leaf)
            else:
                raise Refused("not_started", "want the Bootstrap of the Recovery")
        except (Malformed, Refused) as e:
            self.broken = True
            return [(index, "recovery_invalid", str(e))]
        return []

    # --- time --------------------------------------------------------------------------

    def times(self, index, kind, leaf):
        """Finds leaves that were ordered after the members' clock had passed their end."""
        code = None
        try:
            if kind in ("proposal", "withdrawal"):
                s = statements.proposal(leaf) if kind == "proposal" else statements.withdrawal(leaf)
                code = "proposal_expired" if self.earliest >= s.expires else None
            elif kind == "attestation-result":
                code = self._late_result(statements.result(leaf))
            elif kind == "suspension":
                code = "suspension_ended" if self.earliest >= statements.suspension(leaf).until else None
            elif kind == "suspension-lift":
                x = self.state.suspensions.get(statements.lift(leaf).suspension)
                code = "suspension_ended" if x and not x.lifted and self.earliest >= x.until else None
            elif kind == "membership":
                n = self._holder(statements.membership(leaf).peer)
                if n is not None and n.run is not None and self.last_end(n.run) > self.now + CLOCK_SKEW:
                    return [(index, "not_derived", f"{n.name} was removed as expired, but its measurement is still allowed")]
        except Malformed:
            pass  # apply says why
        return [(index, code, "over before results were made that were ordered before it")] if code else []

    def _late_result(self, r):
        r.envelope.verify_peer(r.verifier.peer)
        if r.at > self.latest:
            return "ahead"
        passed = max(self.earliest, r.at - CLOCK_SKEW)
        if passed >= r.expires:
            return "stale"
        end = self.last_end(r.finding)
        return "expired" if r.affirming and end != ZERO_TIME and passed >= end else None

    def heard(self, r):
        """What follows from a result that holds."""
        if r.at <= self.latest:
            self.earliest = max(self.earliest, r.at - CLOCK_SKEW)

    def _holder(self, peer):
        return self.state.nodes.get(self.state.peers.get(peer))

    def last_end(self, run):
        """When the last entry for a measurement ends; ZERO_TIME if one never does, or there is none."""
        policy = self.state.policy
        ends = [policy.end(e) for e in policy.entries.values() if (e.kind, e.measurement) == run[:2]]
        return ZERO_TIME if ZERO_TIME in ends else max(ends, default=ZERO_TIME)

    def by_expiry(self, leaf):
        """Whether a leaf is a removal by expiry, which can come between leaves that are derived."""
        try:
            return kind_of(leaf) == "membership" and statements.membership(leaf).code == "expired"
        except Malformed:
            return False

    def lower_bound(self):
        """earliest, unless an entry begins after it: the clock may have passed that beginning too, and
        what it allows must not be held against anybody."""
        return ZERO_TIME if any(e.not_before > self.earliest for e in self.state.policy.entries.values()) else self.earliest

    @staticmethod
    def not_reached(kind, leaf):
        """What the members' clock had not reached when a leaf was ordered that they accepted."""
        if kind == "attestation-result":
            return statements.result(leaf).expires
        if kind == "proposal":
            return statements.proposal(leaf).expires
        if kind == "withdrawal":
            return statements.withdrawal(leaf).expires
        if kind == "suspension":
            return statements.suspension(leaf).until
        return None

    def suspect(self, index, node, part):
        """Notes that a node took part in a round, if it was suspended for all that the leaves before say.
        A suspension ends by the clock, which leaves no leaf: it is found where the clock cannot have
        passed the end."""
        until = self.state.suspended_until(node, self.earliest)
        if until is None:
            return []
        self.suspects.append((until - CLOCK_SKEW, (index, "suspended", f"{part}: {node} took part, but was suspended")))
        return self.clock_before(self.now + CLOCK_SKEW)

    def clock_before(self, t):
        """The members' clock had not reached t yet; returns what that decides."""
        certain = [f for ends, f in self.suspects if ends >= t]
        self.suspects = [(ends, f) for ends, f in self.suspects if ends < t]
        return certain
