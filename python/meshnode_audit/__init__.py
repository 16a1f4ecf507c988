"""A second verifier of a mesh's transparency log, which shares no code with the first.

Written from docs/PROTOCOL.md (§9, §20, §23), so that it can disagree with `meshnode log audit`.
It reads a directory of static files, believes nothing in it, and comes to a Report: ok, or
findings of index, code and message. It knows no ticks, as no auditor does: a leaf holds or
does not by what the leaves before it say.

    tiles       files of C2SP tlog-tiles; the tree computed again from the entries
    note        signed notes, checkpoints, cosignatures, levels
    strict      JSON in its one spelling, and the shapes of what is in it
    envelope    DSSE envelopes, statements, keys, signatures
    entries     entries of the allowed set, floors, products, lists of chips
    genesis     organisations, keys, limits, genesis
    statements  every other statement
    policy      the policy that proposals lead to; actions: what they do
    state       nodes, edges, seats, suspensions; seats: how they change hands
    rounds      committed training rounds
    volume      how much organisations had ordered between two state leaves
    replay      the rules for a whole log, leaf by leaf
    report      the audit of a directory

The standard library, and `cryptography` for Ed25519 and P-256.
"""

from .report import Report, audit

__all__ = ["Report", "audit"]
