"""The audit of a directory: the tree, every leaf, and the checkpoint (docs/PROTOCOL.md §23)."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone

from . import note, tiles
from .findings import Findings
from .refused import Malformed
from .replay import Replay
from .state import CLOCK_SKEW

UNDECIDED = ("stale", "unavailable")


@dataclass
class Report:
    entries: int = 0
    size: int = 0  # of the checkpoint
    root: str = "00" * 32
    cosigners: list = field(default_factory=list)
    level: str = "unpublished"
    findings: list = field(default_factory=list)  # (index, code, message)
    recoveries: list = field(default_factory=list)
    outside: list = field(default_factory=list)

    @property
    def ok(self):
        return not self.findings

    @property
    def exit_code(self):
        """0 everything holds, 1 something does not, 3 it could not be decided."""
        return 0 if self.ok else 3 if all(self._undecided(*f) for f in self.findings) else 1

    def _undecided(self, index, code, _):
        # A result that was ordered after it had expired is stale too, and stands before the end.
        return code in UNDECIDED and (code != "stale" or index >= self.size)

    def json(self):
        out = {"ok": self.ok, "entries": self.entries, "root": self.root, "cosigners": self.cosigners, "level": self.level,
               "findings": [dict(zip(("index", "code", "message"), f)) for f in self.findings]}
        if self.recoveries:
            out["recoveries"] = self.recoveries
        if self.outside:
            out["outside"] = self.outside
        return out


def audit(directory, genesis=None, now=None, max_age=0):
    """Audits the log in a tiles.Directory, of the mesh of a genesis that was parsed, or of the log's
    own. now and max_age are Unix ms and ms; 0 does not judge age. None where there is no log."""
    now = int(datetime.now(timezone.utc).timestamp() * 1000) if now is None else now
    return _Audit(directory, genesis, now, max_age).run()


class _Audit:
    def __init__(self, log, genesis, now, max_age):
        self.log, self.now, self.max_age = log, now, max_age
        self.report, self.findings, self.leaves = Report(), Findings(), Findings()
        self.tree = tiles.Accumulator()
        self.replay = Replay(genesis, now, lambda: (self.tree.size, self.tree.root().hex()))
        self.signed = False
        self.raw = self.head = None

    def run(self):
        try:
            if not self.checkpoint():
                return None
            if self.head:
                self.all_leaves()
        except tiles.Unavailable as e:
            self.findings.add(self.report.entries, "unavailable", str(e))
        self.report.findings = self.findings.sorted()
        if self.findings.more:
            self.report.findings.append((self.head.size, "more_findings", f"{self.findings.more} more findings are not listed"))
        return self.report

    def checkpoint(self):
        """Reads the checkpoint unverified: the log key is in leaf 1. False where there is no log."""
        try:
            self.raw = self.log.read("checkpoint", note.MAX_NOTE)
            self.head = note.checkpoint_of(note.parse(self.raw).text)
            self.report.root, self.report.size = self.head.root.hex(), self.head.size
        except tiles.Missing:
            if not self.log.has_tiles():
                return False
            self.findings.add(0, "checkpoint_missing", "there are tiles, but no checkpoint says which of them count")
        except tiles.TooLarge:
            self.findings.add(0, "checkpoint_invalid", "larger than any checkpoint")
        except Malformed as e:
            self.findings.add(0, "checkpoint_invalid", str(e))
        return True

    def all_leaves(self):
        walk = tiles.Walk(self.log, self.head.size, self.head.root, self.leaf)
        self.replay.latest = (note.newest_cosignature(self.raw, self.head.origin) * 1000 or self.now) + CLOCK_SKEW
        try:
            walk.run()
            if self.replay.started and not self.signed:
                self.hold()  # it is of an incarnation that these leaves do not come to
        except tiles.Stop:  # what the tree has to say hangs on a checkpoint that nobody signed
            walk.findings = Findings()
            return
        finally:
            self.report.entries = walk.read
            self.merge(walk.findings)
        self.judge_checkpoint()
        self.judge_parts()

    def leaf(self, index, leaf):
        """Replays one leaf. As soon as the log key of the checkpoint's incarnation is known, the
        checkpoint must be signed by it, or the walk ends."""
        for f in self.replay.leaf(index, leaf):
            self.leaves.add(*f)
        self.tree.append(tiles.leaf_hash(leaf))
        if self.signed or not self.replay.started or self.later_incarnation():
            return
        self.signed = True
        self.hold()

    def hold(self):
        """Demands that the log key has signed the checkpoint."""
        try:
            self.verify([])
        except Malformed as e:
            self.findings.add(self.head.size, "checkpoint_invalid", str(e))
            raise tiles.Stop from None

    def later_incarnation(self):
        policy = self.replay.state.policy
        own = policy.origin[:-len(str(policy.incarnation))]
        number = self.head.origin[len(own):]
        if not self.head.origin.startswith(own) or not re.fullmatch("0*[0-9]{1,20}", number, re.ASCII):
            return False
        return policy.incarnation < int(number.lstrip("0") or "0") < 1 << 64

    def verify(self, cosigners):
        state = self.replay.state
        return note.verify(self.raw, state.policy.origin, state.policy.bootstrap.log_key.ed25519, cosigners + note.outside_witnesses(state.policy.witnesses),
                           state.quorum(), state.strong_quorum(), self.now // 1000)

    def merge(self, found):
        """Puts the findings of the tree and of the replay together. From the first entry on that is not
        the one in the tree, what the replay finds is a consequence and left out."""
        ordered = Findings()
        ordered.list, ordered.more = found.sorted(), found.more + self.leaves.more
        foreign = min((i for i, code, _ in ordered.list if code == "entry_mismatch"), default=None)
        self.findings.merge(ordered)
        for f in self.leaves.list:
            if foreign is None or f[0] < foreign:
                self.findings.add(*f)

    def judge_checkpoint(self):
        """Counts the cosigners against the membership at the checkpoint's size."""
        size, state = self.head.size, self.replay.state
        if not self.replay.started:
            if not self.findings.list:
                self.findings.add(size, "unpublished", "without a valid genesis and Bootstrap nobody can be counted as a cosigner")
            return
        self.report.recoveries = [recovered(*x) for x in self.replay.recoveries]
        seats = [note.Cosigner(f"{state.policy.origin}/{n.name}/{n.credential.boot_seq}", n.credential.organisation, n.credential.cosigner.ed25519)
                 for n in state.seats() if n.run is not None and not n.evicted]
        try:
            v = self.verify(seats)
        except Malformed as e:
            self.findings.add(size, "checkpoint_invalid", str(e))
            return
        for code, name in v.problems:
            self.findings.add(size, code, f"{name}: a cosignature that does not count")
        self.report.cosigners, self.report.level = v.organisations, v.level
        self.report.outside = [{"name": name, "at": rfc3339(at * 1000)} for name, at in v.outside]
        if v.level == "unpublished":
            self.findings.add(size, "unpublished", f"cosigned by {len(v.organisations)} organisations with an affirmed seat in the log, want {state.quorum()}; "
                              f"{v.strangers} signatures by others do not count")
        elif self.max_age and self.now - v.fresh * 1000 > self.max_age:
            self.findings.add(size, "stale", f"the quorum last cosigned at {rfc3339(v.fresh * 1000)}")

    def judge_parts(self):
        """Reads the beginnings of the log again that planned Recoveries name."""
        for index, part in self.replay.parts:
            tree = tiles.Accumulator()

            def leaf(i, data):
                if i == part.size:
                    raise tiles.Stop
                tree.append(tiles.leaf_hash(data))
            try:
                tiles.Walk(self.log, self.head.size, self.head.root, leaf).run()
            except tiles.Stop:
                pass
            if tree.size != part.size or tree.root().hex() != part.root:
                self.findings.add(index, "recovery_invalid", f"the Recovery goes on from no older a log than size {part.size} with root {part.root}")


def recovered(index, r, signers):
    out = {"index": index, "incarnation": r.incarnation}
    if r.planned:
        out["planned"] = True
    return {**out, "created": rfc3339(r.created), "signers": signers, "founders": r.organisations}


def rfc3339(ms):
    try:
        at = datetime.fromtimestamp(ms // 1000, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(ms)
    fraction = f".{ms % 1000:03d}".rstrip("0") if ms % 1000 else ""
    return at.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
