"""Holds meshnode_misbehaviour against `meshnode log verify`, which shares no code with it: on files that
convict and files that do not, on parts exchanged, and on random changes of bytes.

MESHNODE_SPOILED is how many of those are tried, MESHNODE_SEED begins them."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import unittest

try:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401
except ImportError:
    raise unittest.SkipTest("no module cryptography: apt-get install python3-cryptography") from None

import meshnode_misbehaviour as misbehaviour
from meshnode_audit import strict
from meshnode_audit.cli import read_genesis
from meshnode_audit.refused import Malformed, Refused

ROOT = pathlib.Path(__file__).resolve().parent.parent
MADE = ROOT / "audit" / "misbehaviour" / "testdata"
SPOILED = int(os.environ.get("MESHNODE_SPOILED", "300"))
SEED = int(os.environ.get("MESHNODE_SEED", "20260301"))


def judged(data, genesis):
    """(verdict, convicted) of a file, or ("", []) of one that proves nothing."""
    try:
        r = misbehaviour.verify(data, genesis)
    except (Malformed, Refused):
        return "", []
    return r["verdict"], r["convicted"]


def spoiled(rnd, files):
    """Files with parts exchanged or left out, and with bytes changed."""
    made = [strict.decode(f) for f in files]
    for _ in range(SPOILED // 3):
        f, g = (json.loads(json.dumps(rnd.choice(made))) for _ in range(2))
        for part in rnd.sample(["chain", "credentials", "checkpoints", "root", "proof", "swap", "note", "line"], 2):
            notes = f["checkpoints"]
            if part == "swap":
                notes.reverse()
            elif part == "note":
                notes[rnd.randrange(2)] = rnd.choice(g["checkpoints"])
            elif part == "line":  # a signature of one under the text of another
                body, _, _ = notes[0].partition("\n\n")
                notes[0] = body + "\n\n" + rnd.choice(g["checkpoints"]).partition("\n\n")[2]
            elif part in g:
                f[part] = g[part]
            else:
                f.pop(part, None)
        yield strict.encode(f)
    for _ in range(SPOILED - SPOILED // 3):
        data = bytearray(rnd.choice(files))
        for _ in range(rnd.choice([1, 1, 2])):
            data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
        yield bytes(data)


class Misbehaviour(unittest.TestCase):
    def setUp(self):
        self.genesis = read_genesis(MADE / "genesis.json")
        self.files = [(MADE / name).read_bytes() for name in ("convicts.json", "leaked.json", "removed.json")]

    def test_made_once(self):
        convicts, leaked, removed = (misbehaviour.verify(f, self.genesis) for f in self.files)
        self.assertEqual((convicts["verdict"], convicts["convicted"], convicts["published"]), ("misbehaviour", ["delta"], True))
        self.assertEqual((leaked["verdict"], leaked["convicted"], leaked["published"]), ("log_key_leaked", [], False))
        self.assertEqual((removed["verdict"], removed["convicted"]), ("misbehaviour", ["alpha"]))  # under a key that was removed since

    def test_nobody_else_is_convicted(self):
        for data in spoiled(random.Random(SEED + 1), self.files):
            self.assertIn(judged(data, self.genesis)[1], ([], ["delta"], ["alpha"]))

    def test_agrees_with_log_verify(self):
        go = shutil.which("go")
        if go is None:
            self.skipTest("go is not installed")
        files = self.files + list(spoiled(random.Random(SEED), self.files))
        with tempfile.TemporaryDirectory() as tmp:
            meshnode = pathlib.Path(tmp) / "meshnode"
            subprocess.run([go, "build", "-o", meshnode, "./cmd/meshnode"], cwd=ROOT, check=True)
            names = []
            for i, data in enumerate(files):
                names.append(f"{tmp}/{i}.json")
                pathlib.Path(names[-1]).write_bytes(data)
            out = subprocess.run([meshnode, "log", "verify", "--json", "--genesis", MADE / "genesis.json", *names], capture_output=True, timeout=300).stdout
        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(len(lines), len(files))
        held = 0
        for i, (line, data) in enumerate(zip(lines, files)):
            theirs = (line.get("verdict", ""), sorted({c["organisation"] for c in line["convicted"]})) if line["ok"] else ("", [])
            self.assertEqual(judged(data, self.genesis), theirs, f"seed {SEED}, file {i}: {line.get('message')}")
            held += line["ok"]
        self.assertGreater(held, 2, "no changed file holds: nothing was compared")


if __name__ == "__main__":
    unittest.main()
