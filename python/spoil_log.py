"""Spoils logs for test_audit.py: single bytes of their files, and leaves, which are signed again by
the keys of package audit/audittest, whose seeds are the SHA-256 of their labels."""

import base64
import copy
import hashlib
import json
import os
import re
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ORGANISATIONS = ("alpha", "beta", "gamma", "delta")


def labels():
    out = ["log", "log 1", "witness", "stranger"]
    for o in ORGANISATIONS:
        out += [f"{o} {role}" for role in ("govern", "enroll", "emergency", "enroll 2", "govern 2")]
        for life in ("", " again", " reborn"):
            out += [f"{o}/n{i}{life} {key}" for i in (1, 2, 3) for key in ("peer", "cosigner")]
    return out


class Keys:
    """Every private key of a mesh of package audittest, by the id of its public half."""

    def __init__(self):
        self.private, self.public = {}, {}
        for label in labels():
            key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(label.encode()).digest())
            raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            key_id = hashlib.sha256(bytes.fromhex("302a300506032b6570032100") + raw).hexdigest()
            self.private[key_id] = key
            self.public[key_id] = raw

    def sign(self, key_id, payload):
        message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
        return self.private[key_id].sign(message)


def read(directory):
    """The files of a log by name."""
    out = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                out[os.path.relpath(path, directory)] = f.read()
    return out


def write(directory, files, source=None):
    """Writes a log; files that are those of source are linked to those in its directory."""
    for name, data in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if source and source[1].get(name) is data:
            os.link(os.path.join(source[0], name), path)
            continue
        with open(path, "wb") as f:
            f.write(data)


# --- bytes -----------------------------------------------------------------------------

def spoil_bytes(rng, files):
    """Files with one random change of the bytes of one of them, and what was done."""
    name = rng.choice(sorted(files))
    data = bytearray(files[name])
    at = rng.randrange(len(data))
    kind = rng.choice(("set", "flip", "delete", "insert", "swap", "cut", "block"))
    if kind == "set":
        data[at] = rng.randrange(256)
    elif kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "delete":
        del data[at:at + rng.choice((1, 1, 2, 32))]
    elif kind == "insert":
        data[at:at] = bytes(rng.choice((rng.randrange(256), data[at])) for _ in range(rng.choice((1, 1, 2, 32))))
    elif kind == "swap":
        other = rng.randrange(len(data))
        data[at], data[other] = data[other], data[at]
    elif kind == "cut":
        del data[at:]
    else:  # two neighbours of 32 bytes, as hashes are
        at -= at % 32
        data[at:at + 64] = data[at + 32:at + 64] + data[at:at + 32]
    return {**files, name: bytes(data)}, f"{kind} at {at} of {name}"


# --- leaves ----------------------------------------------------------------------------

def leaves_of(files):
    """The entries of a log of one or more bundles."""
    out = []
    for name in sorted((n for n in files if n.startswith("tile/entries/")), key=lambda n: n.split(".")[0]):
        data = files[name]
        while data:
            size = int.from_bytes(data[:2], "big")
            out.append(data[2:2 + size])
            data = data[2 + size:]
    return out


def root_of(hashes):
    if len(hashes) == 1:
        return hashes[0]
    if not hashes:
        return hashlib.sha256(b"").digest()
    split = 1 << ((len(hashes) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + root_of(hashes[:split]) + root_of(hashes[split:])).digest()


def files_of(leaves, checkpoint):
    """The files of a log of at most 65,536 leaves."""
    hashes = [hashlib.sha256(b"\0" + x).digest() for x in leaves]
    out = {"checkpoint": checkpoint}
    for n, first in enumerate(range(0, len(leaves), 256)):
        part = leaves[first:first + 256]
        width = "" if len(part) == 256 else f".p/{len(part)}"
        out[f"tile/0/{n:03d}{width}"] = b"".join(hashes[first:first + 256])
        out[f"tile/entries/{n:03d}{width}"] = b"".join(len(x).to_bytes(2, "big") + x for x in part)
    upper = [root_of(hashes[i:i + 256]) for i in range(0, len(leaves) // 256 * 256, 256)]
    if upper:
        out[f"tile/1/000.p/{len(upper)}"] = b"".join(upper)
    return out


def sealed_by_log(keys, leaves):
    """A log of leaves with a checkpoint that nobody cosigned, by the log key of the last Bootstrap among
    them; None if that is nobody's."""
    mesh_id = hashlib.sha256(base64.b64decode(json.loads(leaves[0])["payload"])).hexdigest()
    last = None
    for leaf in leaves[1:]:
        try:
            statement = Forger.payload(leaf)
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(statement, dict) and str(statement.get("predicateType")).endswith("/bootstrap/v1"):
            last = statement["predicate"]
    key_id = last and hashlib.sha256(base64.b64decode(last["log_key"])).hexdigest()
    if key_id not in keys.private:
        return None
    origin = f"{Forger.payload(leaves[0])['predicate']['origin']}/{mesh_id[:16]}/{last['incarnation']}"
    text = f"{origin}\n{len(leaves)}\n{base64.b64encode(root_of([hashlib.sha256(bytes(1) + x).digest() for x in leaves])).decode()}\n"
    digest = hashlib.sha256(origin.encode() + b"\n\1" + keys.public[key_id]).digest()[:4]
    line = base64.b64encode(digest + keys.private[key_id].sign(text.encode())).decode()
    return files_of(leaves, f"{text}\n\u2014 {origin} {line}\n".encode())


class Forger:
    """Publishes other leaves in place of those of a log, and signs what it changes like those who had
    signed it."""

    def __init__(self, files):
        self.keys = Keys()
        self.leaves = leaves_of(files)
        text, _, block = files["checkpoint"].decode().rpartition("\n\n")
        self.origin, names = text.split("\n")[0], [line.split(" ")[1] for line in block.splitlines()]
        self.signers = {n: self._signer(n, line) for n, line in zip(names, block.splitlines())}
        self.strings = {}  # by field name: what stands there somewhere
        for leaf in self.leaves:
            self._collect("", self.payload(leaf))

    def _signer(self, name, line):
        digest = base64.b64decode(line.split(" ")[2])[:4]
        for kind in (1, 4):
            for key_id, raw in self.keys.public.items():
                if hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:4] == digest:
                    return kind, key_id
        raise KeyError(name)

    def _collect(self, field, value):
        if isinstance(value, dict):
            for k, v in value.items():
                self._collect(k, v)
        elif isinstance(value, list):
            for v in value:
                self._collect(field, v)
        else:
            have = self.strings.setdefault(field, [])
            if value not in have:
                have.append(value)

    @staticmethod
    def payload(leaf):
        return json.loads(base64.b64decode(json.loads(leaf)["payload"]))

    def seal(self, leaves, at=1583064242):
        """The files of a log of these leaves, signed and cosigned like the one it began from."""
        hashes = [hashlib.sha256(b"\0" + x).digest() for x in leaves]
        text = f"{self.origin}\n{len(leaves)}\n{base64.b64encode(root_of(hashes)).decode()}\n"
        lines = []
        for name, (kind, key_id) in self.signers.items():
            digest = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + self.keys.public[key_id]).digest()[:4]
            key = self.keys.private[key_id]
            if kind == 1:
                body = key.sign(text.encode())
            else:
                body = at.to_bytes(8, "big") + key.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
            lines.append(f"\u2014 {name} {base64.b64encode(digest + body).decode()}\n")
        return files_of(leaves, f"{text}\n{''.join(lines)}".encode())

    # --- changes -----------------------------------------------------------------------

    def forge(self, rng):
        """Leaves with one to three random changes, and what was done."""
        leaves, done = list(self.leaves), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            i, j = rng.randrange(len(leaves)), rng.randrange(len(leaves))
            kind = rng.choice(("drop", "copy", "swap", "signature", "value", "value", "value", "value", "value", "value"))
            done.append(f"{kind} {i} {j}")
            if kind == "drop":
                del leaves[i]
            elif kind == "copy":
                leaves.insert(j, leaves[i])
            elif kind == "swap":
                leaves[i], leaves[j] = leaves[j], leaves[i]
            elif kind == "signature":
                leaves[i] = self._resigned(rng, leaves[i])
            else:
                leaves[i], what = self._changed(rng, leaves[i])
                done[-1] += f" {what}"
        return leaves, "; ".join(done)

    def _resigned(self, rng, leaf):
        env = json.loads(leaf)
        payload, signatures = base64.b64decode(env["payload"]), env["signatures"]
        kind = rng.choice(("drop", "add", "order", "twice", "another"))
        by = rng.choice(sorted(self.keys.private))
        new = {"keyid": by, "sig": base64.b64encode(self.keys.sign(by, payload)).decode()}
        if kind == "add" or not signatures:
            signatures.append(new)
        elif kind == "drop":
            signatures.pop(rng.randrange(len(signatures)))
        elif kind == "order":
            signatures.reverse()
        elif kind == "twice":
            signatures.append(signatures[0])
        else:
            signatures[rng.randrange(len(signatures))] = new
        return compact(env)

    def _changed(self, rng, leaf):
        """A leaf of which one value is another, signed by those who had signed it."""
        env = json.loads(leaf)
        statement = self.payload(leaf)
        holder, key = rng.choice(list(places(statement.get("predicate") if rng.random() < 0.9 else statement)) or [(statement, "_type")])
        before = json.dumps(holder.get(key) if isinstance(holder, dict) else holder[key])
        field = key if isinstance(key, str) else ""
        holder[key] = self._other(rng, field, json.loads(before))
        what = f"{field}: {before[:60]} -> {json.dumps(holder[key])[:60]}"
        if rng.random() < 0.05:
            holder.pop(key)
        elif rng.random() < 0.05 and isinstance(holder, dict):
            holder["more"] = 1
        if rng.random() < 0.8:
            self._mend(statement)
        payload = compact(statement)
        env["payload"] = base64.b64encode(payload).decode()
        env["signatures"] = [{"keyid": s["keyid"], "sig": base64.b64encode(self.keys.sign(s["keyid"], payload)).decode()}
                             if s["keyid"] in self.keys.private else s for s in env["signatures"]]
        return compact(env), what

    def _other(self, rng, field, v):
        if isinstance(v, bool):
            return not v
        if isinstance(v, int):
            return rng.choice((0, 1, v + 1, v - 1, v * 2, -1, 2**32, 2**64))
        if isinstance(v, list):
            out = copy.deepcopy(v)
            kind = rng.choice(("drop", "twice", "order", "none", "empty"))
            if kind == "drop" and out:
                out.pop(rng.randrange(len(out)))
            elif kind == "twice" and out:
                out.append(out[0])
            elif kind == "order":
                out.reverse()
            return None if kind == "none" else [] if kind == "empty" else out
        if isinstance(v, dict):
            return rng.choice(({}, None, dict(reversed(list(v.items())))))
        if v is None:
            return []
        if re.fullmatch(r"\d{4}-.*Z", v) and rng.random() < 0.7:
            return shifted(v, rng.choice((-86400, -3600, -600, -1, 1, 60, 600, 3600, 86400, 40 * 86400)))
        if len(self.strings.get(field, ())) > 1 and rng.random() < 0.7:
            return rng.choice(self.strings[field])
        if v and rng.random() < 0.7:
            at = rng.randrange(len(v))
            return v[:at] + rng.choice('0a9fzAZ-/"\\\n \u2028\x7f<') + v[at + 1:]
        return rng.choice(("", v + v, v[:-1], v.upper()))

    @staticmethod
    def _mend(statement):
        """Makes the ids that follow from the content follow from it again."""
        p = statement.get("predicate")
        for holder in (*objects(p),):
            if isinstance(holder.get("id"), str) and "measurement" in holder and "kind" in holder:
                body = {k: v for k, v in holder.items() if k not in ("id", "readmit")}
                holder["id"] = hashlib.sha256(compact(body)).hexdigest()[:16]
        subject = statement.get("subject")
        if not isinstance(p, dict) or not isinstance(subject, list) or not subject or not isinstance(subject[0], dict):
            return
        about = p.get("subject") if isinstance(p.get("subject"), dict) else p
        node, peer = about.get("node"), about.get("peer")
        if "organisation" in about and isinstance(node, str) and "/" not in node:
            node = f"{about['organisation']}/{node}"
        if "job" in p and isinstance(p.get("result_root"), str):
            subject[0].update(name=f"job/{p.get('job')}/round/{p.get('round')}/attempt/{p.get('attempt')}", digest={"sha256": p["result_root"]})
        elif isinstance(node, str) and isinstance(peer, str):
            try:
                subject[0].update(name=node, digest={"sha256": hashlib.sha256(base58(peer)).hexdigest()})
            except ValueError:
                pass
        elif isinstance(p.get("mesh_id"), str):
            subject[0].update(name="mesh", digest={"sha256": p["mesh_id"]})


def compact(v):
    return json.dumps(v, separators=(",", ":"), ensure_ascii=False).replace("\u2028", "\\u2028").encode()


def places(v):
    """Every (holder, key) in a tree."""
    if isinstance(v, dict):
        for k in v:
            yield v, k
            yield from places(v[k])
    elif isinstance(v, list):
        for i in range(len(v)):
            yield v, i
            yield from places(v[i])


def objects(v):
    if isinstance(v, dict):
        yield v
        for x in v.values():
            yield from objects(x)
    elif isinstance(v, list):
        for x in v:
            yield from objects(x)


def shifted(text, seconds):
    try:
        at = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S") + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return text
    return at.strftime("%Y-%m-%dT%H:%M:%S") + text[19:]


def base58(text):
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    n = 0
    for c in text:
        n = n * 58 + alphabet.index(c)
    return bytes(len(text) - len(text.lstrip("1"))) + n.to_bytes((n.bit_length() + 7) // 8, "big")
