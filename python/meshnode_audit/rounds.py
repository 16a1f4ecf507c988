"""Committed training rounds (docs/PROTOCOL.md §23.6): who signed and who took part, against the
membership at that place, and how a round continues its job. Whether the sum is right is what
a job's certificates prove."""

from types import SimpleNamespace

from . import statements
from .refused import Malformed
from .statements import ZEROS


class Rounds:
    def __init__(self):
        self.jobs = {}  # by id: what its rounds have come to

    def leaf(self, replay, index, leaf):
        """Findings (index, code, message) of one round."""
        try:
            r = statements.committed_round(leaf)
        except Malformed as e:
            return [(index, "bad_signature", str(e))]
        out, part = [], f"job {r.job} round {r.round}"

        def found(code, text):
            out.append((index, code, f"{part}: {text}"))
        state = replay.state
        if r.mesh_id != state.policy.mesh_id:
            found("wrong_mesh", f"of mesh {r.mesh_id}")
            return out
        at = replay.lower_bound()
        if not eligible(state, r.aggregator, r.peer, "aggregator", at):
            found("not_aggregator", f"{r.aggregator} was no eligible aggregator")
        for a in r.accepted:
            if not eligible(state, a.node, a.peer, "trainer", at):
                found("not_eligible", f"{a.node} was no eligible trainer")
        if not r.accepted:
            found("below_minimum", "nobody took part")
        for node in [r.aggregator] + [a.node for a in r.accepted if a.node != r.aggregator]:
            out += replay.suspect(index, node, part)
        job = self.jobs.get(r.job) or SimpleNamespace(rounds=0, result=ZEROS, epoch=0, rule="", arithmetic="")
        if not job.epoch <= r.epoch <= state.policy.epoch:
            found("behind", f"opened in epoch {r.epoch}, after one in {job.epoch} and before the present {state.policy.epoch}")
        if r.round != job.rounds:
            found("stale_round", f"follows {job.rounds} rounds")
        elif r.base_root != job.result:
            found("root_mismatch", f"starts from {r.base_root}, the round before ended in {job.result}")
        elif job.rounds > 1 and (r.rule, r.arithmetic) != (job.rule, job.arithmetic):
            found("protocol", "another rule than that of the rounds before")
        self.jobs[r.job] = SimpleNamespace(rounds=r.round + 1, result=r.result_root, epoch=max(job.epoch, r.epoch), rule=r.rule, arithmetic=r.arithmetic)
        return out


def eligible(state, node, peer, role, at):
    """Whether a peer was the node's identity, had the role and could take part then. Suspensions are
    judged apart."""
    n = state.nodes.get(node)
    return state.peers.get(peer) == node and role in n.credential.roles and state.affirmed(n, at)
