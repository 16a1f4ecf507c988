"""Signed notes (c2sp.org/signed-note), checkpoints and cosignatures (c2sp.org/tlog-checkpoint,
tlog-cosignature)."""

import base64
import hashlib
import re
from dataclasses import dataclass, field

from .envelope import ed25519_verify
from .refused import Malformed, demand

MAX_NOTE = 64 << 10
MAX_SIGNATURES = 100
MAX_SIZE = 1 << 40
MAX_SKEW = 120  # seconds that a cosigner's clock may be ahead
LOG_KEY, COSIGNATURE = 1, 4  # signature types

_B64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


def b64_loose(text):
    """Padded base64 whose last character may have bits that say nothing, as in signature lines."""
    demand(_B64.fullmatch(text), "no base64")
    return base64.b64decode(text)


def key_hash(name, kind, public):
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def valid_name(name):
    return name != "" and "+" not in name and not _SPACE.search(name)


@dataclass
class Note:
    text: str
    signatures: list  # (name, key hash, signature), in order, identical lines once


def parse(raw):
    """Splits a signed note into text and signatures, and verifies none."""
    demand(len(raw) <= MAX_NOTE, f"checkpoint of {len(raw)} bytes")
    try:
        whole = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("checkpoint: not UTF-8") from None
    demand(not any(c < " " and c != "\n" for c in whole), "checkpoint: control characters")
    split = whole.rfind("\n\n")
    demand(split >= 0, "checkpoint: no signatures")
    text, block = whole[:split + 1], whole[split + 2:]
    demand(block.endswith("\n"), "checkpoint: no signatures")
    out, seen = [], set()
    lines = block[:-1].split("\n")
    demand(len(lines) <= MAX_SIGNATURES, "checkpoint: too many signatures")
    for line in lines:
        demand(line.startswith("\u2014 "), "checkpoint: a line that is no signature")
        name, _, b64 = line[2:].partition(" ")
        data = b64_loose(b64)
        demand(valid_name(name) and len(data) >= 5, "checkpoint: a malformed signature")
        if line not in seen:
            seen.add(line)
            out.append((name, data[:4], data[4:]))
    return Note(text, out)


@dataclass
class Checkpoint:
    origin: str
    size: int
    root: bytes


def checkpoint_of(text):
    """Decodes origin, size and root, in their one spelling and without extensions."""
    lines = text.split("\n")
    demand(len(lines) == 4 and lines[3] == "" and lines[0] != "", "checkpoint: not origin, size and root")
    demand(re.fullmatch("0|[1-9][0-9]{0,18}", lines[1]), "checkpoint: no size")
    size, root = int(lines[1]), b64_loose(lines[2])
    demand(size <= MAX_SIZE, f"checkpoint: size {size}")
    demand(len(root) == 32 and base64.b64encode(root).decode() == lines[2], "checkpoint: no root")
    return Checkpoint(lines[0], size, root)


@dataclass(frozen=True)
class Cosigner:
    name: str
    organisation: str  # "" for a witness outside the mesh
    public: bytes


def outside_witnesses(vkeys):
    """The witnesses that verifier keys name. What is no key counts for nothing; of several under
    one name the first counts."""
    out = []
    for vkey in vkeys:
        name, _, rest = vkey.partition("+")
        digest, _, key = rest.partition("+")
        try:
            raw = b64_loose(key)
        except Malformed:
            continue
        if not valid_name(name) or len(raw) != 33 or raw[0] != COSIGNATURE or not re.fullmatch("[0-9a-fA-F]{8}", digest):
            continue
        if key_hash(name, COSIGNATURE, raw[1:]) != bytes.fromhex(digest) or any(w.name == name for w in out):
            continue
        out.append(Cosigner(name, "", raw[1:]))
    return out


@dataclass
class Verified:
    checkpoint: Checkpoint
    level: str = "unpublished"
    organisations: list = field(default_factory=list)
    fresh: int = 0  # Unix seconds, 0 without a quorum
    problems: list = field(default_factory=list)  # (code, name)
    outside: list = field(default_factory=list)  # (name, Unix seconds)
    strangers: int = 0


def verify(raw, origin, log_key, cosigners, published, strong, now):
    """Holds a checkpoint against an origin, a log key and cosigners. now is Unix seconds."""
    known = {}
    for c in cosigners:
        demand(c.name not in known, f"cosigner {c.name} is named twice")
        known[c.name] = c
    note = parse(raw)
    want, signed, rest = key_hash(origin, LOG_KEY, log_key), False, []
    for name, digest, signature in note.signatures:
        if name != origin or digest != want:
            rest.append((name, digest, signature))
        elif not signed:  # a second one by one key is not looked at
            demand(ed25519_verify(log_key, note.text.encode(), signature), "checkpoint: not by the log key")
            signed = True
    checkpoint = checkpoint_of(note.text)
    demand(checkpoint.origin == origin, f"checkpoint: origin {checkpoint.origin}, want {origin}")
    demand(signed, "checkpoint: not signed by the log key")
    out = Verified(checkpoint)
    times, outside = {}, {}
    for name, digest, signature in rest:
        signer = known.get(name)
        if signer is None:
            out.strangers += 1
            continue
        at, code = cosigned(signer, note.text, digest, signature, now)
        if code:
            out.problems.append((code, name))
        elif signer.organisation == "":
            outside[name] = at
        else:
            times[signer.organisation] = max(at, times.get(signer.organisation, 0))
    out.organisations = sorted(times)
    newest = sorted(times.values(), reverse=True)
    if len(times) >= strong:
        out.level = "strong"
    elif len(times) >= published:
        out.level = "published"
    if len(newest) >= published:
        out.fresh = newest[published - 1]
    out.outside = [(c.name, outside[c.name]) for c in cosigners if c.name in outside]
    return out


def newest_cosignature(raw, origin):
    """The newest time, in Unix seconds, that a cosignature by a name of origin gives, which need not
    hold; 0 if there is none."""
    times = [int.from_bytes(s[:8], "big") for name, _, s in parse(raw).signatures if name.startswith(origin + "/") and len(s) == 72]
    return max((t for t in times if t < 1 << 40), default=0)


def cosigned(signer, text, digest, signature, now):
    """The time of a cosignature/v1, or the code of why it does not count."""
    if digest != key_hash(signer.name, COSIGNATURE, signer.public):
        return 0, "cosignature_key"
    at = int.from_bytes(signature[:8], "big")
    message = f"cosignature/v1\ntime {at}\n{text}".encode()
    if len(signature) != 72 or not ed25519_verify(signer.public, message, signature[8:]):
        return 0, "cosignature_invalid"
    if at == 0 or at > now + MAX_SKEW:
        return 0, "cosignature_time"
    return at, None
