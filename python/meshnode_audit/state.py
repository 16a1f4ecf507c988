"""Nodes, edges and suspensions as leaves leave them (docs/PROTOCOL.md §23.5). No tick is among
the leaves: nothing here is over before a leaf says so.

apply(leaf) executes the leaf of a known kind, or raises Refused, and returns the leaves that
must come next. Seats are in seats.py."""

from types import SimpleNamespace

from . import seats, statements
from .envelope import sha256_hex
from .genesis import GOVERNANCE, SUSPENSIONS, too_early
from .policy import Policy, majority
from .refused import Malformed, Refused
from .statements import order
from .strict import DAY, END_OF_TIME, HOUR, MINUTE, ZERO_TIME

CLOCK_SKEW = 10 * MINUTE
HEARTBEAT = HOUR // 2
MAX_VERIFIERS = 8
MAX_RETIRED = 1 << 16
MAX_LIVE, MAX_DAILY = 3, 6
DIGEST_EVERY = 1024


class Node:
    """The newest boot of one node."""

    def __init__(self, credential, seat=False):
        self.credential = credential
        self.run = None  # (kind, measurement, entry) that others found
        self.evicted = self.contradicted = self.removed = ""  # codes
        self.seat, self.drained = seat, False

    @property
    def votes(self):
        return self.seat and not self.removed

    @property
    def name(self):
        return self.credential.node


class State:
    def __init__(self, genesis):
        self.policy = Policy(genesis)
        self.genesis = genesis
        self.suspensions = {}  # by id
        self._empty()

    def _empty(self):
        self.nodes = {}  # by name
        self.peers = {}  # newest boots: peer id to name
        self.retired = {}  # older ones
        self.edges = {}  # subject's peer id: verifier's peer id: result
        self.voided = {}  # name: boot_seq
        self.withdrawals = {}  # (proposal, organisation): expires
        self.logged = 0

    @property
    def started(self):
        return self.policy.bootstrap is not None

    def begin(self, bootstrap, *raws):
        """Begins the incarnation of a Bootstrap that was verified."""
        self.policy.bootstrap, self.policy.continues = bootstrap, bootstrap.continues
        for raw in raws:
            self.policy.extend(raw)
        for c in bootstrap.seats:
            self.nodes[c.node] = Node(c, seat=True)
            self.peers[c.peer] = c.node

    def recover(self, raw, at):
        """Ends an incarnation: policy and suspensions stay, all else is void."""
        out = self.policy.recover(raw, at)
        self._empty()
        return out

    # --- seats and quorums -------------------------------------------------------------

    def ordered(self):
        return [self.nodes[name] for name in sorted(self.nodes, key=order)]

    def seats(self):
        return [n for n in self.ordered() if n.votes]

    def seats_n(self):
        """n: organisations with a seat, never below ⌊N/2⌋+1."""
        return max(len(self.seats()), majority(self.policy.n))

    def quorum(self):
        return majority(self.seats_n())

    def strong_quorum(self):
        return 2 * self.seats_n() // 3 + 1

    def remove_seat(self, n, code, cause):
        """Takes a seat from its holder for good, and returns the leaf that says so."""
        n.removed = code
        return self.membership("seat-removed", n, code, cause)

    def membership(self, change, n, code, cause):
        p = self.policy
        return statements.membership_leaf(p.mesh_id, p.incarnation, p.epoch, change, n.name, n.credential.peer, code, cause)

    def of_this_mesh(self, s, what, since=1):
        if s.mesh_id != self.policy.mesh_id:
            raise Refused("wrong_mesh", f"{what} of mesh {s.mesh_id[:16]}")
        if s.incarnation != self.policy.incarnation:
            raise Refused("wrong_incarnation", f"{what} of incarnation {s.incarnation}")
        if self.genesis.fsm_version < since:
            raise too_early(what, since)

    # --- leaves ------------------------------------------------------------------------

    def apply(self, kind, leaf):
        effect = {"credential": self.credential, "attestation-result": self.result, "proposal": self.proposal, "withdrawal": self.withdrawal,
                  "suspension": self.suspension, "suspension-lift": self.lift, "membership": self.expiry, "state": self.state_leaf}.get(kind)
        if effect:
            return effect(leaf)
        return {"ready": seats.ready, "drain": seats.drain, "retirement": seats.retirement}[kind](self, leaf)

    def credential(self, leaf):
        """A new boot of a node, or a renewal for the same boot."""
        c = self.policy.check_credential(leaf)
        if c.peer in self.retired:
            raise Refused("retired", "a peer that was retired")
        if c.boot_seq <= self.voided.get(c.node, 0):
            raise Refused("retired", "a boot that its organisation retired")
        if self.peers.get(c.peer, c.node) != c.node:
            raise Refused("retired", "the peer of another node")
        old = self.nodes.get(c.node)
        if old is not None and c.boot_seq <= old.credential.boot_seq and (self.policy.stands(old.credential) or c.peer == old.credential.peer):
            if c.boot_seq < old.credential.boot_seq or c.peer != old.credential.peer:
                raise Refused("retired", f"boot_seq {c.boot_seq}, want more than {old.credential.boot_seq}")
        if old is None and sum(n.credential.organisation == c.organisation for n in self.nodes.values()) >= self.policy.limits.nodes:
            raise Refused("limit", f"nodes of {c.organisation}")
        self._check_keys(c)
        if old is not None and old.credential.peer == c.peer:
            return self._renew(old, c)
        derived = []
        if old is not None:
            if old.votes and len(self.seats()) == 1 and self.genesis.fsm_version >= GOVERNANCE:
                raise Refused("quorum_loss", "a newer boot of the only seat that is held")
            derived = self.retire(old, "credential " + sha256_hex(leaf))
        self.nodes[c.node] = Node(c)
        self.peers[c.peer] = c.node
        self.voided.pop(c.node, None)
        return derived

    def _renew(self, n, c):
        old = n.credential
        if (c.boot_seq, c.cosigner) != (old.boot_seq, old.cosigner):
            raise Refused("retired", "the same peer with another boot_seq or cosigner key")
        if c.expires <= old.expires and self.policy.stands(old):
            raise Refused("replayed", "a renewal that does not last longer")
        if n.votes and "seat" not in c.roles:
            raise Refused("not_seat", "a seat's renewal without the role")
        n.credential = c
        return []

    def _check_keys(self, c):
        """Demands that no other node has either key of c, and no organisation."""
        own = {c.cosigner, c.peer_key}
        for name, n in self.nodes.items():
            if name != c.node and (n.credential.cosigner in own or n.credential.peer_key == c.cosigner):
                raise Refused("duplicate", "a key in use by another node")
        if any(self.policy.owner(k) or k == self.policy.bootstrap.log_key for k in own):
            raise Refused("duplicate", "a key of an organisation or the log")

    def check_retired_room(self, organisation):
        if sum(order(name)[0] == organisation for name in self.retired.values()) >= MAX_RETIRED:
            raise Refused("limit", f"retired peers of {organisation}")

    def retire(self, n, cause):
        """Puts a boot out for ever, and returns the leaf of its seat."""
        self.check_retired_room(n.credential.organisation)
        derived = [self.remove_seat(n, "retired", cause)] if n.votes else []
        self.bury(n)
        return derived

    def bury(self, n):
        peer = n.credential.peer
        self.retired[peer] = n.name
        self.peers.pop(peer, None)
        self.edges.pop(peer, None)
        for verifiers in self.edges.values():
            verifiers.pop(peer, None)

    # --- attestation results -----------------------------------------------------------

    def result(self, leaf):
        try:
            r = statements.result(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        try:
            r.envelope.verify_peer(r.verifier.peer)
        except Malformed as e:
            raise Refused("wrong_signer", str(e)) from None
        self._admit(r)
        subject = self.nodes[r.subject.node]
        self.edges.setdefault(r.subject.peer, {})[r.verifier.peer] = r
        self._remeasure(subject)
        return self._contradict(subject, "result " + sha256_hex(leaf))

    def _admit(self, r):
        self.of_this_mesh(r, "result")
        if r.epoch > self.policy.epoch:
            raise Refused("behind", f"result of epoch {r.epoch}, now is {self.policy.epoch}")
        for party in (r.verifier, r.subject):
            n = self.nodes.get(party.node)
            if n is None:
                raise Refused("no_credential", f"{party.node} has no Credential in the log")
            if n.credential.peer != party.peer:
                raise Refused("retired", f"another boot of {party.node}")
        if not self._heard(r):
            raise Refused("no_credential", "a verifier with a Credential by a key that was removed")
        roles = self.nodes[r.subject.node].credential.roles
        code = self.policy.allows(r.finding, roles) if r.affirming else ""
        if code:
            raise Refused(code, f"measurement {r.measurement} for {', '.join(roles)}")
        verifiers = self.edges.get(r.subject.peer, {})
        old = verifiers.get(r.verifier.peer)
        if old is None:
            of = order(r.verifier.node)[0]
            if sum(order(e.verifier.node)[0] == of for e in verifiers.values()) >= MAX_VERIFIERS:
                raise Refused("limit", f"verifiers of {of} on {r.subject.node}")
        elif r.at <= old.at:
            raise Refused("replayed", "a result that is no later than the one before")
        elif r.says == old.says and r.at - old.at < HEARTBEAT:
            raise Refused("duplicate", "a result that says nothing new")

    def _heard(self, edge):
        return self.policy.stands(self.nodes[edge.verifier.node].credential)

    def _others(self, n):
        """The newest edges on a node by nodes of other organisations that are heard, by verifier."""
        edges = [e for e in self.edges.get(n.credential.peer, {}).values() if order(e.verifier.node)[0] != n.credential.organisation and self._heard(e)]
        return sorted(edges, key=lambda e: order(e.verifier.node))

    def _remeasure(self, n):
        """Settles what a node runs: what most other organisations found, a tie keeping what is known."""
        found = {}
        for e in self._others(n):
            if e.affirming and (e.finding == n.run or not self.policy.allows(e.finding, n.credential.roles)):
                found.setdefault(e.finding, set()).add(order(e.verifier.node)[0])
        best, most = n.run, len(found.get(n.run, ()))
        for finding in sorted(found):
            if len(found[finding]) > most:
                best, most = finding, len(found[finding])
        if best is not None:
            n.run, n.evicted = best, self.policy.allows(best, n.credential.roles)

    def _contradict(self, subject, cause):
        if self.genesis.fsm_version < GOVERNANCE:
            return []
        subject.contradicted = self._contradiction(subject)
        if subject.contradicted and not subject.votes:
            subject.evicted = subject.contradicted
        derived = []
        for n in self.ordered() if subject.seat else ():
            if not n.votes or not n.contradicted or len(self.seats()) - 1 < self.quorum():
                continue
            n.contradicted = self._contradiction(n)
            if n.contradicted:
                derived.append(self.remove_seat(n, n.contradicted, cause))
                n.evicted = n.contradicted
        return derived

    def _contradiction(self, n):
        """The code for which enough other organisations refuse a node while none of their nodes
        affirms it; ""."""
        refusing, affirming = {}, set()
        for e in self._others(n):
            of = order(e.verifier.node)[0]
            if e.affirming:
                affirming.add(of)
            elif e.verdict == "contraindicated" and e.codes:
                refusing[of] = e.codes[0]
        refusing = {of: code for of, code in refusing.items() if of not in affirming}
        if len(refusing) < max(self.quorum(), majority(self.policy.n)):
            return ""
        return refusing[min(refusing)]

    def affirmed(self, n, at):
        """Whether a node could take part in a round then, if nothing were suspended."""
        c = n.credential
        if not self._allowed(n, at) or at >= c.expires or not self.policy.stands(c):
            return False
        organisations = {order(e.verifier.node)[0] for e in self._others(n) if e.affirming and at < e.expires
                         and self._allowed(self.nodes[e.verifier.node], at) and not self.policy.allows(e.finding, c.roles, at)}
        return len(organisations) >= min(2, self.seats_n() - 1)

    def _allowed(self, n, at):
        return n.run is not None and not n.contradicted and not self.policy.allows(n.run, n.credential.roles, at)

    # --- proposals ---------------------------------------------------------------------

    def proposal(self, leaf):
        try:
            p = statements.proposal(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        change = self._judge(p)
        safe = self._keeps_quorum(change)
        self._check_organisation_keys(change.next)
        self.policy.commit(change)
        cause = "proposal " + p.id
        derived = []
        for n in self.ordered():
            if self.policy.organisation(n.credential.organisation) is None:
                derived += [self.remove_seat(n, "organisation_removed", cause)] if n.votes else []
                self.bury(n)
                del self.nodes[n.name]
        return derived + self._reevaluate(cause, safe)

    def _judge(self, p):
        """Judges a proposal, and once more without the signatures of those who have withdrawn."""
        error = None
        try:
            change = self.policy.judge(p, p.envelope)
        except Refused as e:
            if e.code != "threshold" or not hasattr(e, "change"):
                raise
            error = e
        owner = {k.id: o for o, k in self.policy.keys("govern", p.expires, members_only=True)}
        for brought in filter(None, (a.brings() for a in p.actions)):
            owner.update({k.public.id: brought[0] for k in brought[1]})
        kept = p.envelope.without(lambda key_id: self.withdrawals.get((p.id, owner.get(key_id))) == p.expires)
        if len(kept.signatures) == len(p.envelope.signatures):
            if error:
                raise error
            return change
        if not kept.signatures:
            raise Refused("threshold", "all have withdrawn")
        return self.policy.judge(p, kept)

    def _seats_lost(self, policy):
        """The seats that a policy lets go, and why."""
        lost = {}
        for n in self.seats():
            if policy.organisation(n.credential.organisation) is None:
                lost[n.name] = "organisation_removed"
            elif n.run is not None and policy.allows(n.run, n.credential.roles):
                lost[n.name] = policy.allows(n.run, n.credential.roles)
        return lost

    def _keeps_quorum(self, change):
        """Demands that a change leaves a quorum of seats, unless it confirms otherwise, and returns
        whether seats whose measurement is not allowed leave by it."""
        if change.proposal.confirm_quorum_loss:
            return True
        lost, before = self._seats_lost(change.next), self._seats_lost(self.policy)
        have = len(self.seats())
        left = have - len(lost)
        safe = left >= self.quorum()
        if not safe and any(before.get(name) != code for name, code in lost.items()):
            raise Refused("quorum_loss", f"leaves {left} of {have} seats")
        want = majority(max(left, majority(change.next.n)))
        if change.kind == 2 and left < want and want > self.quorum():
            raise Refused("quorum_loss", f"{change.next.n} organisations, of which {left} have a seat that votes")
        return safe

    def _check_organisation_keys(self, next_):
        if next_.organisations == self.policy.organisations:
            return
        for n in self.nodes.values():
            if next_.owner(n.credential.peer_key) or next_.owner(n.credential.cosigner):
                raise Refused("duplicate", f"a key of the node {n.name}")

    def _reevaluate(self, cause, evict_seats):
        derived = []
        for n in self.ordered():
            if n.run is None:
                continue
            code = self.policy.allows(n.run, n.credential.roles)
            if code and n.votes and not evict_seats:
                continue
            if not code and not n.votes:
                code = n.contradicted
            n.evicted = code
            if code and n.votes:
                derived.append(self.remove_seat(n, code, cause))
        return derived

    def withdrawal(self, leaf):
        try:
            w = statements.withdrawal(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        self.of_this_mesh(w, "withdrawal", GOVERNANCE)
        self.policy.verify(w.envelope, self.policy.keys("govern", w.expires, members_only=True, of=w.organisation), "withdrawal")
        if w.proposal in self.policy.seen:
            raise Refused("replayed", "the proposal was ordered before")
        if self.withdrawals.get((w.proposal, w.organisation)) == w.expires:
            raise Refused("replayed", "a withdrawal that was ordered before")
        self.withdrawals[w.proposal, w.organisation] = w.expires
        return []

    # --- suspensions -------------------------------------------------------------------

    def suspension(self, leaf):
        try:
            x = statements.suspension(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        self.of_this_mesh(x, "suspension", SUSPENSIONS)
        self.policy.verify(x.envelope, self.policy.keys("emergency", x.until, members_only=True, of=x.organisation), "suspension")
        if x.id in self.suspensions:
            raise Refused("replayed", "a suspension that was ordered before")
        target = None
        if x.node and x.node not in self.nodes:
            raise Refused("unknown_node", x.node)
        if x.entry:
            target = self.policy.entries.get(x.entry)
            if target is None:
                raise Refused("unknown_entry", x.entry)
        # When it was ordered is unknown: counted is what had been used up for certain.
        at, own = x.until - 1, [s for s in self.suspensions.values() if s.organisation == x.organisation]
        live, today = sum(not s.lifted and at < s.until for s in own), sum(at < s.ordered + DAY for s in own)
        if live >= MAX_LIVE or today >= MAX_DAILY:
            raise Refused("limit", f"{live} suspensions in force, {today} within a day")
        self.suspensions[x.id] = SimpleNamespace(organisation=x.organisation, node=x.node, target=target, until=x.until,
                                                 ordered=x.issued - CLOCK_SKEW, lifted=False)
        return []

    def lift(self, leaf):
        try:
            s = statements.lift(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        self.of_this_mesh(s, "lift", SUSPENSIONS)
        x = self.suspensions.get(s.suspension)
        signed = self.policy.verify(s.envelope, self.policy.keys("govern", x.until if x else ZERO_TIME, members_only=True), "lift")
        if x is None:
            raise Refused("unknown_suspension", s.suspension)
        if x.lifted:
            raise Refused("replayed", "a suspension that was lifted before")
        n = self.policy.n
        if x.organisation not in signed and len(signed) < min(majority(n), n - 1):
            raise Refused("threshold", f"lifted by {signed}")
        x.lifted = True
        return []

    def suspended_until(self, name, at):
        """When the last suspension ends that hits a node at a time; None without one."""
        n = self.nodes.get(name)
        ends = [x.until for x in self.suspensions.values() if not x.lifted and at < x.until
                and (x.node == name or x.target is not None and n is not None and n.run is not None and self._hits(x.target, n.run))]
        return max(ends, default=None)

    def _hits(self, e, run):
        """Whether a suspended entry allows what was found to run. Where only registers tell them apart,
        and those of what runs are not known, it does."""
        if (e.kind, e.measurement) != run[:2]:
            return False
        matched = self.policy.entries.get(run[2]) or self.policy.revoked.get(run[2])
        known = matched.registers if matched else {}
        return not any(name in known and known[name] != value for name, value in e.registers.items())

    # --- what nobody signs -------------------------------------------------------------

    def expiry(self, leaf):
        """The removal of a seat whose measurement's entries end: the clock's doing, of which the log
        has nothing else."""
        try:
            m = statements.membership(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        n = self.nodes.get(m.node)
        if n is None or n.credential.peer != m.peer or not n.votes:
            raise Refused("not_seat", f"{m.node} has no seat")
        ends = n.run is not None and self.policy.allows(n.run, n.credential.roles, END_OF_TIME) == "expired"
        if not ends or m.code != "expired" or not m.cause.startswith(("tick ", "proposal ")):
            raise Refused("malformed", "a removal for which the log gives no cause")
        if self.membership("seat-removed", n, "expired", m.cause) != leaf:
            raise Refused("malformed", "another leaf than the state derives")
        n.removed = n.evicted = "expired"
        return []

    def state_leaf(self, leaf):
        try:
            s = statements.logged_state(leaf)
        except Malformed as e:
            raise Refused("malformed", str(e)) from None
        self.of_this_mesh(s, "state", GOVERNANCE)
        p = self.policy
        if s.seq < self.logged + DIGEST_EVERY or (s.epoch, s.policy) != (p.epoch, p.digest()):
            raise Refused("malformed", "not the state that the leaves before lead to")
        self.logged = s.seq
        return []
