"""meshnode_audit.py [--genesis FILE] [--max-age DURATION] [--json] DIR

Exit 0: everything holds. 1: something does not; the findings say which entry and why. 2: the
input is no log. 3: too old, or it could not be read to the end."""

import argparse
import json
import os
import re
import sys

from .genesis import parse_genesis
from .refused import Malformed, Refused
from .report import audit
from .strict import HOUR, MINUTE, SECOND
from .tiles import Directory, Missing, TooLarge, Unavailable

MAX_GENESIS = 64 << 10


def main(argv=None):
    parser = argparse.ArgumentParser(prog="meshnode_audit.py", description="Check a published log offline: every hash, every "
                                     "signature, every rule. A second verifier that shares no code with meshnode log audit.")
    parser.add_argument("--genesis", metavar="FILE", help="genesis file of the mesh that is meant (default: the log's own)")
    parser.add_argument("--max-age", metavar="DURATION", type=duration, default=0,
                        help="exit 3 if the quorum's cosignatures are older, as 5m or 24h (default: no limit)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("directory", metavar="DIR", help='holds "checkpoint" and "tile/"')
    args = parser.parse_args(argv)
    try:
        genesis = read_genesis(args.genesis) if args.genesis else None
        report = audit(open_log(args.directory), genesis, max_age=args.max_age)
    except OSError as e:
        return unusable(f"{e.filename}: {e.strerror}")
    except (Malformed, Refused) as e:
        return unusable(e)
    if report is None:
        return unusable(f"{args.directory}: no published log there; want a directory with \"checkpoint\" and \"tile/\"")
    if args.json:
        print(json.dumps(report.json(), ensure_ascii=True, separators=(",", ":")))
    else:
        print(text(args.directory, report))
    return report.exit_code


def unusable(why):
    print(f"meshnode_audit: {why}", file=sys.stderr)
    return 2


def duration(text):
    """Milliseconds of a duration such as 90s, 5m or 1h30m."""
    if not re.fullmatch("([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?", text) or not text:
        raise argparse.ArgumentTypeError("give a duration such as 5m")
    ms = sum(int(n) * {"h": HOUR, "m": MINUTE, "s": SECOND}[unit] for n, unit in re.findall("([0-9]+)([hms])", text))
    if ms == 0:
        raise argparse.ArgumentTypeError("want more than zero")
    return ms


def read_genesis(path):
    with open(path, "rb") as f:
        raw = f.read(MAX_GENESIS + 1)
    try:
        return parse_genesis(raw[:-1] if raw.endswith(b"\n") else raw)
    except (Malformed, Refused) as e:
        raise Malformed(f"{path}: want a genesis that all organisations have signed: {e}") from None


def open_log(path):
    """The log in a directory, or the one that a kept directory holds under "log"."""
    if path.startswith(("http://", "https://")):
        raise Malformed(f"{path}: only directories are read; make a copy with meshnode log export {path} DIR")
    log = Directory(path)
    try:
        log.read("checkpoint", 1 << 16)
    except Missing:
        below = os.path.join(path, "log")
        if not log.has_tiles() and (os.path.exists(os.path.join(below, "checkpoint")) or os.path.isdir(os.path.join(below, "tile"))):
            return Directory(below)
    except (TooLarge, Unavailable):
        pass
    return log


def text(location, report):
    lines = [f"log        {location}", f"entries    {report.entries}", f"root       {report.root}",
             f"cosigners  {', '.join(report.cosigners) or 'nobody'} ({report.level})"]
    lines += [f"FINDING    {f'entry {index}' if index < report.entries else 'checkpoint'}: {code}: {message}" for index, code, message in report.findings]
    lines.append("verdict    " + {0: "everything holds", 1: "NOT as it should be", 3: "cannot decide"}[report.exit_code])
    return "\n".join(line.encode("ascii", "backslashreplace").decode() for line in lines)
