"""How much organisations had ordered between two state leaves (docs/PROTOCOL.md §20.6). Ticks, between
which quotas are counted, leave no leaf; but a state leaf says how many commands came before."""

from . import statements
from .policy import signed_by
from .statements import order

BATCH = 128  # results in one command
# The quota of a kind of leaf, and what it is where the limits name none.
QUOTAS = {"attestation-result": ("results", 256), "credential": ("credentials", 64), "proposal": ("proposals", 64), "suspension": ("suspensions", 4)}


class Volume:
    def __init__(self):
        self.seq = None  # of the last state leaf
        self._clear()

    def _clear(self):
        self.results = self.others = 0
        self.used = {}  # by organisation and quota: (how many, the last leaf, the highest limit)

    def leaf(self, index, kind, leaf, state):
        """Counts a leaf that holds, and returns findings (index, code, message) at a state leaf."""
        limits = state.policy.limits
        if kind == "state":
            seq = statements.logged_state(leaf).seq
            out = self._over(seq, limits) if self.seq is not None else []
            self.seq = seq
            self._clear()
            return out
        if self.seq is None:
            return []
        if kind == "attestation-result":
            self.results += 1
        elif kind != "membership":  # which follows from another
            self.others += 1
        for organisation in _charged(kind, leaf, state):
            quota, _ = QUOTAS[kind]
            n, _, most = self.used.get((organisation, quota), (0, 0, 0))
            self.used[organisation, quota] = (n + 1, index, max(most, _limit(limits, quota)))
        return []

    def _over(self, seq, limits):
        commands = max(0, seq - self.seq)
        stretches = max(0, commands - self.others - -(-self.results // BATCH)) + 1
        out = []
        for (organisation, quota), (n, last, most) in sorted(self.used.items()):
            allowed = max(most, _limit(limits, quota)) * stretches
            if n > allowed:
                out.append((last, "quota", f"{organisation} had {n} {quota} ordered within {commands} commands, of which {stretches - 1} at most were ticks: {allowed} can have been allowed"))
        return out


def _limit(limits, quota):
    return getattr(limits, quota) or next(default for name, default in QUOTAS.values() if name == quota)


def _charged(kind, leaf, state):
    if kind == "attestation-result":
        return [order(statements.result(leaf).verifier.node)[0]]
    if kind == "credential":
        return [statements.credential(leaf).organisation]
    if kind == "suspension":
        return [statements.suspension(leaf).organisation]
    if kind == "proposal":
        return signed_by(statements.proposal(leaf).envelope, state.policy.keys("govern"))
    return []
