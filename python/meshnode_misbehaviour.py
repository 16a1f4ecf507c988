"""Verifies a misbehaviour file (docs/PROTOCOL.md §21): who has signed two histories of a log.

    python3 python/meshnode_misbehaviour.py --genesis FILE FILE

Prints one JSON object. Exit 0: it proves what it says; 1: it does not; 2: it is no such file."""

import argparse
import json
import sys

from meshnode_audit import note, statements, strict
from meshnode_audit.cli import read_genesis
from meshnode_audit.envelope import ed25519_verify, kind_of, sha256
from meshnode_audit.note import COSIGNATURE, LOG_KEY, key_hash
from meshnode_audit.policy import Policy
from meshnode_audit.refused import Malformed, Refused, demand
from meshnode_audit.strict import Optional, hexadecimal, listing, struct

MAX_FILE = (64 << 20) + (8 << 20)
_file = struct(meshnode=strict.string, mesh_id=hexadecimal(32), chain=listing(strict.string), credentials=listing(strict.string),
               checkpoints=listing(strict.string), root=Optional(hexadecimal(32), None), proof=Optional(listing(hexadecimal(32)), None))


def parse(data):
    demand(len(data) <= MAX_FILE, f"{len(data)} bytes")
    f = _file(strict.decode(data))
    demand(f.meshnode == "misbehaviour/v1", "another form")
    demand(1 <= len(f.chain) <= 16384 and len(f.credentials or []) <= 200 and len(f.checkpoints) == 2 and len(f.proof or []) <= 64, "too much, or too little")
    return f


def replay(genesis, chain):
    """The policy that a chain leads to, and every enroll key that was in force on the way."""
    p, steps, ever = Policy(genesis), list(chain), {}
    p.extend(genesis.raw)

    def meet():
        for o in p.organisations:
            ever.update({(o.id, k.public.id): k.public for k in o.keys if k.role == "enroll"})
    meet()
    while steps:
        raw = steps.pop(0).encode("utf-8")
        if p.bootstrap is None:
            p.bootstrap = p.check_bootstrap(raw)
            p.extend(raw)
        elif kind_of(raw) == "recovery":
            demand(steps, "a Recovery without its Bootstrap")  # which says where the log went on
            p.recover(raw, statements.bootstrap(steps[0].encode("utf-8")).continues)
            p.extend(raw)
        else:
            s = statements.proposal(raw)
            p.commit(p.judge(s, s.envelope))
        meet()
    demand(p.bootstrap is not None, "no Bootstrap")
    return p, ever


def consistent(n, root_n, m, root_m, proof):
    """RFC 9162 §2.1.4.2: whether the tree of size m has root_n at size n, 0 < n < m."""
    path = list(proof)
    if not path:
        return False
    if n & (n - 1) == 0:
        path.insert(0, root_n)
    fn, sn = n - 1, m - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = sha256(b"\x01" + c + fr), sha256(b"\x01" + c + sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = sha256(b"\x01" + sr + c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == root_n and sr == root_m


def signed(n, name, kind, public):
    """Whether some line of a note is by this key under this name, at whatever time."""
    for by, digest, s in n.signatures:
        if by != name or digest != key_hash(name, kind, public):
            continue
        text = n.text if kind == LOG_KEY else f"cosignature/v1\ntime {int.from_bytes(s[:8], 'big')}\n{n.text}"
        body = s if kind == LOG_KEY else s[8:]
        if len(body) == 64 and ed25519_verify(public, text.encode(), body):
            return True
    return False


def verify(data, genesis):
    """What a file proves under a genesis, as a dict. Malformed, or Refused, if it proves nothing."""
    f = parse(data)
    if f.mesh_id != genesis.mesh_id:
        raise Refused("wrong_mesh", f"the file is about mesh {f.mesh_id}")
    p, ever = replay(genesis, f.chain)
    keys = {}  # (name, key): organisation
    for raw in [c.encode() for c in p.bootstrap.credentials] + [c.encode() for c in f.credentials or []]:
        c = statements.credential(raw)
        if (c.mesh_id, c.incarnation) != (p.mesh_id, p.incarnation) or len(c.envelope.signatures) != 1:
            raise Refused("no_credential", f"Credential of {c.node}: of another mesh or incarnation")
        key = ever.get((c.organisation, c.key))
        demand(key is not None, f"Credential of {c.node}: by no enroll key of its organisation")
        c.envelope.verify([(c.organisation, key)])
        keys[f"{p.origin}/{c.node}/{c.boot_seq}", c.cosigner.ed25519] = c.organisation
    notes = [note.parse(n.encode("utf-8")) for n in f.checkpoints]
    a, b = (note.checkpoint_of(n.text) for n in notes)
    if {a.origin, b.origin} != {p.origin}:
        raise Refused("wrong_mesh", "a checkpoint of another log")
    demand(0 < a.size <= b.size, "the smaller first, and none empty")
    if a.size == b.size:
        demand(f.root is None and f.proof is None, "a proof between checkpoints of one size")
        nothing = a.root == b.root
    else:
        demand(f.root is not None, "no root of the smaller in the larger")
        then = bytes.fromhex(f.root)
        nothing = then == a.root
        if not nothing and not consistent(a.size, then, b.size, b.root, [bytes.fromhex(h) for h in f.proof or []]):
            raise Refused("root_mismatch", "the proof does not lead to the larger root")
    if nothing:
        raise Refused("proves_nothing", "one history")
    by = [{k for k in keys if signed(n, k[0], COSIGNATURE, k[1])} for n in notes]
    orgs = [sorted({keys[k] for k in side}) for side in by]
    log_key = [signed(n, p.origin, LOG_KEY, p.bootstrap.log_key.ed25519) for n in notes]
    outside = [{w.name for w in note.outside_witnesses(p.witnesses) if signed(n, w.name, COSIGNATURE, w.public)} for n in notes]
    convicted, published = sorted(by[0] & by[1]), min(map(len, orgs)) >= len(p.organisations) // 2 + 1
    if convicted or published or outside[0] & outside[1]:
        verdict = "misbehaviour"
    elif all(log_key):
        verdict = "log_key_leaked"
    else:
        raise Refused("proves_nothing", "nobody has signed both")
    return {"verdict": verdict, "origin": p.origin, "convicted": sorted({keys[k] for k in convicted}), "published": published,
            "checkpoints": [{"size": c.size, "root": c.root.hex(), "cosigners": o} for c, o in zip((a, b), orgs)]}


def main(argv=None):
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--genesis", required=True)
    args.add_argument("file")
    args = args.parse_args(argv)
    try:
        with open(args.file, "rb") as f:
            data = f.read(MAX_FILE + 1)
        print(json.dumps(verify(data, read_genesis(args.genesis))))
    except Refused as e:
        print(json.dumps({"error": {"code": e.code, "message": str(e)}}))
        return 1
    except (Malformed, OSError) as e:
        print(json.dumps({"error": {"code": "malformed", "message": str(e)}}))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
