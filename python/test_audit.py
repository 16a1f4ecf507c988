"""Holds meshnode_audit against `meshnode log audit`, which shares no code with it: on logs that are
as they should be, on every tampered one, on random changes of bytes, and on leaves that were
changed and signed again.

MESHNODE_SPOILED and MESHNODE_FORGED are how many random changes are tried, MESHNODE_SEED begins
them. MESHNODE_SECOND_VERIFIER=1 also has every log judged that the tests of packages audit and
consensus make (make second-verifier).
"""

import calendar
import contextlib
import io
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

try:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401
except ImportError:
    raise unittest.SkipTest("no module cryptography: apt-get install python3-cryptography") from None

import spoil_log
from meshnode_audit import audit, cli, envelope, note, statements, strict, tiles
from meshnode_audit.genesis import parse_genesis
from meshnode_audit.refused import Malformed, Refused
from meshnode_audit.replay import Replay

ROOT = pathlib.Path(__file__).resolve().parent.parent
GO = shutil.which("go")
NOW = 1_900_000_000_000  # later than every signature in the logs here
SPOILED = int(os.environ.get("MESHNODE_SPOILED", "300"))
FORGED = int(os.environ.get("MESHNODE_FORGED", "100"))
LIMIT = 60  # seconds that one log may take
needs_go = unittest.skipUnless(GO, "no go tool, which builds the other verifier")


def verdict(report):
    """What two verifiers have to agree on, of a report as JSON."""
    found = [(f["index"], f["code"]) for f in report["findings"]]
    return {k: v for k, v in report.items() if k != "findings"} | {"findings": found}


@contextlib.contextmanager
def within(seconds):
    """Fails what does not come to an end."""
    def late(*_):
        raise AssertionError(f"no verdict within {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judged(directory, genesis=None, now=NOW, max_age=0):
    with within(LIMIT):
        report = audit(tiles.Directory(str(directory)), genesis, now, max_age)
    return report and verdict(report.json())


class Judge:
    """The other verifier, in one process that judges a log a line."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answers = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(b"")

    def ask(self, directory, genesis="", now=NOW, max_age=0):
        line = json.dumps({"dir": str(directory), "genesis": str(genesis), "at": now, "max_age_ms": max_age})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.answers.get(timeout=LIMIT)
        if not line:
            raise AssertionError("the other verifier ended")
        report = json.loads(line).get("report")
        return report and verdict(report)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=LIMIT)
        self.reader.join()
        self.process.stdout.close()


class WithGo(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="meshnode-audit-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        program = cls.scratch / "logjudge"
        cls.run_go("build", "-o", str(program), "./internal/logjudge")
        cls.complete = cls.scratch / "complete"
        subprocess.run([program, "write", cls.complete], check=True)
        cls.large = cls.scratch / "large"
        subprocess.run([program, "write", cls.large, "600"], check=True)
        cls.judge = Judge(program)
        cls.addClassCleanup(cls.judge.close)

    @staticmethod
    def run_go(*args, **env):
        subprocess.run([GO, *args], cwd=ROOT, check=True, env={**os.environ, "GOFLAGS": "-buildvcs=false", **env}, stdout=subprocess.DEVNULL)

    def agree(self, directory, what, genesis=None, now=NOW, max_age=0):
        self.judge.ask(directory, genesis or "", now, max_age)
        mine = judged(directory, genesis and parse_genesis(pathlib.Path(genesis).read_bytes()), now, max_age)
        self.assertEqual(mine, self.judge.answer(), what)
        return mine

    def random(self, count, change, source):
        """Has both judge count logs, which change(rng) makes and describes, a batch at a time."""
        seed = os.environ.get("MESHNODE_SEED") or str(random.randrange(1 << 32))
        print(f"{count} times, MESHNODE_SEED={seed}", flush=True)
        rng, batch, good = random.Random(seed), self.scratch / "batch", 0
        for first in range(0, count, 200):
            made = []
            for i in range(first, min(first + 200, count)):
                files, what = change(rng)
                spoil_log.write(str(batch / str(i)), files, source)
                self.judge.ask(batch / str(i))
                made.append((batch / str(i), what))
            for directory, what in made:
                mine = judged(directory)
                self.assertEqual(mine, self.judge.answer(), f"seed {seed}: {what}")
                good += mine["findings"] == []
            shutil.rmtree(batch)
        self.assertLess(good, count // 3 + 1, "most changes are found")


@needs_go
class Agreement(WithGo):
    def test_complete_log(self):
        for log in (self.complete, self.large):
            mine = self.agree(log / "log", log, log / "genesis.json")
            self.assertEqual((mine["ok"], mine["level"]), (True, "strong"), mine)
        self.assertTrue(list((self.large / "log/tile/1").iterdir()), "no tile above level 0")

    def test_another_genesis(self):
        other = ROOT / "audit/testdata/published/genesis.json"
        mine = self.agree(self.complete / "log", "another genesis", other)
        self.assertEqual(mine["findings"], [(0, "genesis_mismatch")])

    def test_bytes(self):
        """Random changes of single bytes, blocks and lengths, in every file of a complete log."""
        base = self.complete / "log"
        files = spoil_log.read(str(base))
        self.random(SPOILED, lambda rng: spoil_log.spoil_bytes(rng, files), (str(base), files))

    def test_bytes_of_upper_tiles(self):
        base = self.large / "log"
        files = spoil_log.read(str(base))
        self.random(SPOILED // 100 + 20, lambda rng: spoil_log.spoil_bytes(rng, files), (str(base), files))

    def test_special_files(self):
        """What is no regular file, leads elsewhere, is gone, cut, or larger than anything valid."""
        def moved(path, link):
            inside = path.parent.joinpath(*[".."] * (len(path.relative_to(log).parts) - 1), "moved")
            path.rename(inside)
            path.symlink_to(inside.resolve() if link == "absolute" else os.path.relpath(inside.resolve(), path.parent))
        spoil = {"fifo": os.mkfifo, "directory": pathlib.Path.mkdir, "outside": lambda p: p.symlink_to("/etc/passwd"), "loop": lambda p: p.symlink_to(p.name),
                 "nowhere": lambda p: p.symlink_to("nowhere"), "gone": lambda p: None, "empty": pathlib.Path.touch}
        keep = {"absolute": lambda p: moved(p, "absolute"), "relative": lambda p: moved(p, "relative"), "huge": lambda p: os.truncate(p, 17 << 20),
                "parent": lambda p: p.parent != log and (shutil.rmtree(p.parent), p.parent.touch())}
        log = self.scratch / "special"
        for name in spoil_log.read(str(self.complete / "log")):
            for what, do in (spoil | keep).items():
                shutil.copytree(self.complete / "log", log)
                if what in spoil:
                    (log / name).unlink()
                do(log / name)
                self.judge.ask(log)
                self.assertEqual(judged(log), self.judge.answer(), f"{what} {name}")
                shutil.rmtree(log)

    def test_forged_leaves(self):
        """Leaves left out, moved and changed, signed again by whoever had signed them, and cosigned by
        all: what the rules alone can find."""
        forger = spoil_log.Forger(spoil_log.read(str(self.complete / "log")))

        def change(rng):
            leaves, what = forger.forge(rng)
            return forger.seal(leaves), what
        self.random(FORGED, change, None)

    @unittest.skipUnless(os.environ.get("MESHNODE_SECOND_VERIFIER"), "MESHNODE_SECOND_VERIFIER is not set")
    def test_logs_of_other_tests(self):
        """Every log that the tests of package audit make, with the options that they judge it by."""
        kept = self.scratch / "kept"
        kept.mkdir()
        self.run_go("test", "-count=1", "./audit", MESHNODE_KEEP_LOGS=str(kept))
        logs = sorted(kept.iterdir())
        self.assertGreater(len(logs), 100)
        for log in logs:
            said = json.loads((log / "verdict.json").read_text())
            genesis = log / "genesis.json"
            given = parse_genesis(genesis.read_bytes()) if genesis.exists() else None
            with self.subTest(said["test"]):
                self.assertEqual(judged(log / "log", given, unix_ms(said["at"]), said["max_age_ms"]), verdict(said["report"]))

    @unittest.skipUnless(os.environ.get("MESHNODE_SECOND_VERIFIER"), "MESHNODE_SECOND_VERIFIER is not set")
    def test_leaves_of_other_tests(self):
        """The leaves that the meshes of package consensus's tests come to, and after them each envelope
        that was refused there, as a lying majority could log it. Tests that make thousands are left out."""
        kept = self.scratch / "leaves"
        kept.mkdir()
        self.run_go("test", "-count=1", "-skip", "DryRun|Image|TenThousand|Commute|Narrow|OneSeat|ConstitutionReplays|Centuries", "./consensus", MESHNODE_KEEP_LEAVES=str(kept))
        keys, seen = spoil_log.Keys(), set()
        for path in sorted(kept.iterdir()):
            mesh = json.loads(path.read_text())
            leaves = [x.encode() for x in mesh["leaves"]]
            for tried in [leaves] + [leaves[:x["after"]] + [x["leaf"].encode()] for x in mesh["forced"] or []]:
                files = spoil_log.sealed_by_log(keys, tried) if len(tried) > 1 else None
                if files and files["checkpoint"] not in seen:
                    seen.add(files["checkpoint"])
                    log = self.scratch / "one"
                    spoil_log.write(str(log), files)
                    self.agree(log, (mesh["test"], len(tried)))
                    shutil.rmtree(log)
        self.assertGreater(len(seen), 500)


def unix_ms(text):
    whole, _, fraction = text.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 1000 + int((fraction + "000")[:3])


class Golden(unittest.TestCase):
    def test_published_logs(self):
        for name, entries in (("published", 15), ("suspended", 13), ("certified", 14)):
            log = ROOT / "audit/testdata" / name
            mine = judged(log / "log", parse_genesis((log / "genesis.json").read_bytes()))
            self.assertEqual((mine["ok"], mine["entries"], mine["level"]), (True, entries, "strong"), mine)

    def test_statements(self):
        """Every golden statement decodes, and in no other spelling."""
        decoders = {"attestation-result": statements.result, "bootstrap": statements.bootstrap, "credential": statements.credential, "drain": statements.drain,
                    "genesis": parse_genesis, "membership": statements.membership, "proposal": statements.proposal, "ready": statements.ready,
                    "recovery": statements.recovery, "retirement": statements.retirement, "state": statements.logged_state, "suspension": statements.suspension,
                    "suspension-lift": statements.lift, "withdrawal": statements.withdrawal}
        seen = set()
        for path in sorted((ROOT / "consensus/testdata/golden").glob("*.json")):
            raw = path.read_bytes().rstrip(b"\n")
            kind = envelope.kind_of(raw)
            if kind not in decoders:
                self.assertIn(kind, ("time-sample", "state-digest"), path)
                continue
            seen.add(kind)
            decoders[kind](raw)
            for other in (raw + b" ", raw.replace(b":", b": ", 1), raw[:-1], b""):
                with self.assertRaises((Malformed, Refused)):
                    decoders[kind](other)
        self.assertEqual(seen, set(decoders))


class Garbage(unittest.TestCase):
    """Whatever the files are, there is a verdict, and soon."""

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="meshnode-audit-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.log = self.directory / "log"
        self.golden = ROOT / "audit/testdata/published/log"
        shutil.copytree(self.golden, self.log)

    def codes(self):
        return [code for _, code in judged(self.log)["findings"]]

    def test_random_files(self):
        rng = random.Random(1)
        names = [p for p in self.log.rglob("*") if p.is_file()]
        for _ in range(200):
            name = rng.choice(names)
            was = name.read_bytes()
            name.write_bytes(rng.choice((rng.randbytes(rng.randrange(2000)), b"", was * 3, b"\xff" * 70000, b"\n\n" * 9)))
            self.assertTrue(self.codes(), name)
            name.write_bytes(was)
        self.assertEqual(self.codes(), [])

    def test_leaves(self):
        """Leaves with any value in any field, signed again: refused or not, never a crash."""
        rng = random.Random(2)
        forger = spoil_log.Forger(spoil_log.read(str(self.golden)))
        for _ in range(300):
            leaves, what = forger.forge(rng)
            replay = Replay(None, NOW, lambda: (2, "00" * 32))
            for i, leaf in enumerate(leaves):
                for index, code, _ in replay.leaf(i, leaf):
                    self.assertTrue(0 <= index <= i and code, what)

    def test_nested_json(self):
        for text in (b"[" * 50000, b'{"a":' * 20000, b'"' + b"\\" * 30001, b"1" * 40000, b"-" * 9, b'{"payloadType":1e400}', b"null", b"\xed\xa0\x80", b'"\\ud800"'):
            leaf = text[:65535]
            self.assertEqual(envelope.kind_of(leaf), "")
            with self.assertRaises(Malformed):
                strict.decode(leaf)
                envelope.parse(leaf)
            payload = envelope.marshal(text[:40000])
            self.assertEqual(envelope.kind_of(payload), "")

    def test_enormous_size(self):
        lines = (self.log / "checkpoint").read_text().split("\n")
        for size, code in ((1 << 40, "entries_missing"), ((1 << 40) + 1, "checkpoint_invalid"), (10**400, "checkpoint_invalid")):
            (self.log / "checkpoint").write_text("\n".join([lines[0], str(size), *lines[2:]]))
            self.assertEqual(self.codes()[0], code)

    def test_no_regular_files(self):
        bundle = next((self.log / "tile/entries/000.p").iterdir())
        raw = bundle.read_bytes()
        for replace, code in ((lambda: os.mkfifo(bundle), "entries_missing"), (bundle.mkdir, "entries_missing"),
                              (lambda: bundle.symlink_to("/etc/passwd"), "unavailable"), (lambda: bundle.symlink_to(bundle.name), "unavailable")):
            bundle.unlink()
            replace()
            self.assertEqual(self.codes()[0], code)
            bundle.rmdir() if bundle.is_dir() and not bundle.is_symlink() else bundle.unlink()
            bundle.write_bytes(raw)
        self.assertEqual(self.codes(), [])

    def test_no_log(self):
        for path in (self.directory / "none", self.log / "checkpoint", self.directory):
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(cli.main([str(path)]), 0 if path == self.directory else 2, path)
        os.unlink(self.log / "checkpoint")
        self.assertEqual(self.codes(), ["checkpoint_missing"])


class CommandLine(unittest.TestCase):
    def run_main(self, *args):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            return cli.main([str(a) for a in args]), out.getvalue()

    def test_exit_codes(self):
        log = ROOT / "audit/testdata/published"
        code, out = self.run_main("--json", "--genesis", log / "genesis.json", log / "log")
        self.assertEqual((code, list(json.loads(out))), (0, ["ok", "entries", "root", "cosigners", "level", "findings"]))
        code, out = self.run_main("--genesis", ROOT / "audit/testdata/suspended/genesis.json", log)
        self.assertEqual(code, 1)
        self.assertIn("FINDING    entry 0: genesis_mismatch", out)
        self.assertEqual(self.run_main("--genesis", log / "log/checkpoint", log)[0], 2)
        code, out = self.run_main("--max-age", "5m", log)
        self.assertEqual(code, 3)
        self.assertIn("FINDING    checkpoint: stale", out)

    def test_says_what_it_cannot_use(self):
        log = ROOT / "audit/testdata/published"
        for args, want in ((["nowhere"], "nowhere: no such directory"), ([log / "genesis.json"], "genesis.json: no such directory"),
                           (["https://example.org/log"], "meshnode log export https://example.org/log DIR"),
                           (["--genesis", log / "log/checkpoint", log], "checkpoint: want a genesis"),
                           (["--genesis", "nowhere", log], "nowhere: No such file")):
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                self.assertEqual(cli.main([str(a) for a in args]), 2)
            self.assertIn(want, err.getvalue())


class Notes(unittest.TestCase):
    def test_malformed(self):
        good = (ROOT / "audit/testdata/published/log/checkpoint").read_bytes()
        self.assertEqual(note.checkpoint_of(note.parse(good).text).size, 15)
        for bad in (b"", good[:-1], good.replace(b"\n\n", b"\n"), good.replace(b"\n", b"\r\n"), good.replace("\u2014".encode(), b"-"), good + b"\n", good + b"x\n",
                    b"\xff" + good, good * 200):
            with self.assertRaises(Malformed):
                note.checkpoint_of(note.parse(bad).text)


class Paths(unittest.TestCase):
    def test_tile_paths(self):
        for level, n, want in ((0, 0, "tile/0/000"), (3, 999, "tile/3/999"), ("entries", 1234067, "tile/entries/x001/x234/067"), (1, 1000, "tile/1/x001/000")):
            self.assertEqual(tiles.tile_path(level, n), want)


if __name__ == "__main__":
    unittest.main()
