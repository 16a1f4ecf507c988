"""Manifests and receipts of services, read without any of the Go code.

What owners and nodes sign is described in docs/SERVICES.md; this follows that text. Ed25519 is
RFC 8032 §5.1 written out: slow, and enough to check a signature somebody has kept. It is not
for keys that matter: it takes no care of side channels.
"""

import base64
import binascii
import hashlib
import json
import re

from meshnode_protocol import sha256

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
MANIFEST = "https://attestmesh.github.io/meshnode/service-manifest/v1"
RECEIPT = "https://attestmesh.github.io/meshnode/service-receipt/v1"
MAX_ENVELOPE = 60 << 10

MANIFEST_FIELDS = ["mesh_id", "service", "version", "program", "model", "args"]
RECEIPT_FIELDS = ["mesh_id", "incarnation", "node", "peer", "service", "version", "manifest", "program", "model",
                  "runtime_head", "request", "response", "nonce", "time"]



class Refused(Exception):
    """What is not signed by who it should be, or has another form."""


# Ed25519, RFC 8032 §5.1.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def _add(a, b):
    u, v = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    w, z = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = v - u, z - w, z + w, v + u
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(n, point):
    out = (0, 1, 1, 0)
    while n:
        if n & 1:
            out = _add(out, point)
        point, n = _add(point, point), n >> 1
    return out


def _x(y, sign):
    if y >= P:
        raise Refused("ed25519: no point")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    if square == 0:
        if sign:
            raise Refused("ed25519: no point")
        return 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P:
        raise Refused("ed25519: no point")
    return P - x if x & 1 != sign else x


def _point(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    x = _x(y, sign)
    return x, y, 1, x * y % P


def _encode(point):
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


_BASE_Y = 4 * pow(5, P - 2, P) % P
BASE = (_x(_BASE_Y, 0), _BASE_Y, 1, _x(_BASE_Y, 0) * _BASE_Y % P)


def ed25519_public(seed):
    """The public key of a 32-byte seed."""
    h = bytearray(hashlib.sha512(seed).digest()[:32])
    h[0] &= 248
    h[31] = h[31] & 127 | 64
    return _encode(_times(int.from_bytes(h, "little"), BASE))


def ed25519_verify(public, message, signature):
    """Refuses a signature that is not by public over message."""
    if len(public) != 32 or len(signature) != 64:
        raise Refused("ed25519: a key has 32 bytes, a signature 64")
    a, r, s = _point(public), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    if s >= L:
        raise Refused("ed25519: the signature is not reduced")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    if _encode(_times(s, BASE)) != _encode(_add(r, _times(k, a))):
        raise Refused("ed25519: not a signature by this key")


def key_id(public):
    """Hex SHA-256 of the SubjectPublicKeyInfo DER of an Ed25519 key."""
    return sha256(bytes.fromhex("302a300506032b6570032100") + public).hex()


# Envelope and Statement.


def canonical(value):
    """Compact JSON in the order of the fields."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _pairs(pairs):
    if len({k for k, _ in pairs}) != len(pairs):
        raise Refused("json: a field twice")
    return dict(pairs)


def _load(raw):
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_pairs, parse_float=_no_float, parse_constant=_no_float)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise Refused(f"json: {err}") from err
    if canonical(value) != raw:
        raise Refused("json: not in canonical form")
    return value


def _no_float(text):
    raise Refused(f"json: {text} is no integer")


def _fields(value, names, what):
    if not isinstance(value, dict) or list(value) != names:
        raise Refused(f"{what}: want the fields {names} in this order")
    return value


def _base64(text, what):
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as err:
        raise Refused(f"{what}: {err}") from err
    if base64.b64encode(raw).decode() != text:
        raise Refused(f"{what}: not canonical base64")
    return raw


def read_envelope(raw, predicate_type, public):
    """The payload and the one Statement of an envelope with exactly one signature, by public,
    which is a key or a function from the predicate to one."""
    if len(raw) > MAX_ENVELOPE:
        raise Refused("envelope: too large")
    env = _fields(_load(raw), ["payloadType", "payload", "signatures"], "envelope")
    if env["payloadType"] != PAYLOAD_TYPE or not isinstance(env["signatures"], list) or len(env["signatures"]) != 1:
        raise Refused("envelope: another payload type, or not one signature")
    signature = _fields(env["signatures"][0], ["keyid", "sig"], "signature")
    payload = _base64(env["payload"], "payload")
    st = _fields(_load(payload), ["_type", "subject", "predicateType", "predicate"], "statement")
    if st["_type"] != STATEMENT or st["predicateType"] != predicate_type:
        raise Refused("statement: another type")
    if callable(public):
        public = public(st["predicate"])
    if signature["keyid"] != key_id(public):
        raise Refused("signature: by another key")
    kind = PAYLOAD_TYPE.encode()
    pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    ed25519_verify(public, pae, _base64(signature["sig"], "signature"))
    return payload, st


def _digest(value, what):
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise Refused(f"{what}: want 64 characters of lower-case hex")
    return value


def _subject(st, name, digest):
    if st["subject"] != [{"name": name, "digest": {"sha256": digest}}]:
        raise Refused("subject: not what the predicate says")


def read_manifest(raw, owner):
    """The predicate of a manifest signed by owner, and the digest that runtime logs have."""
    payload, st = read_envelope(raw, MANIFEST, owner)
    m = _fields(st["predicate"], MANIFEST_FIELDS, "manifest")
    for part in ("program", "model"):
        _digest(_fields(m[part], ["sha256", "size"], part)["sha256"], part)
        if type(m[part]["size"]) is not int or m[part]["size"] < 1:
            raise Refused(f"{part}: size")
    if type(m["version"]) is not int or m["version"] < 1 or not isinstance(m["args"], list):
        raise Refused("manifest: version or args")
    _subject(st, m["service"], m["program"]["sha256"])
    return m, sha256(payload).hex()


ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer_key(peer):
    """The Ed25519 key within a peer id: multihash "identity" over a protobuf key."""
    n = 0
    for c in peer:
        if c not in ALPHABET:
            raise Refused("peer: no base58")
        n = n * 58 + ALPHABET.index(c)
    raw = bytes(len(peer) - len(peer.lstrip("1"))) + n.to_bytes((n.bit_length() + 7) // 8, "big")
    if len(raw) != 38 or raw[:6] != bytes.fromhex("002408011220"):
        raise Refused("peer: no Ed25519 peer id")
    return raw[6:]


def read_receipt(raw):
    """The predicate of a receipt, signed by the peer that it names."""
    _, st = read_envelope(raw, RECEIPT, lambda r: peer_key(_fields(r, RECEIPT_FIELDS, "receipt")["peer"]))
    r = st["predicate"]
    for name in ("manifest", "program", "model", "runtime_head"):
        _digest(r[name], name)
    _digest(_fields(r["request"], ["method", "path", "sha256"], "request")["sha256"], "request")
    _digest(_fields(r["response"], ["status", "sha256"], "response")["sha256"], "response")
    if r["nonce"] != "":
        _digest(r["nonce"], "nonce")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", r["time"]):
        raise Refused("time: want whole seconds of UTC")
    _subject(st, r["service"], r["response"]["sha256"])
    return r
