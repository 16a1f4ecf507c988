"""The attested channel of docs/PROTOCOL.md, a second time.

Written from that text alone, on the standard library alone, so that it can disagree with
the implementation: decoders that refuse everything but the one canonical form, and every
value that evidence is bound to. It verifies; it opens no connection and knows no vendor's
evidence.

Every function refuses by raising Refused, whose first word is the reason code that the
protocol gives for it.
"""

import hashlib
import hmac
import struct

VERSION = 1

# Frames.
HELLO_I, HELLO_R, ATT_I, ATT_R, ACK, REFUSAL, ACCEPT, CLOSE, FAST_I, FAST_R, EPOCH = range(1, 12)

# Purposes and roles.
CHANNEL, REATTEST, RATLS, CLIENT_CHALLENGE, ENROLMENT = range(1, 6)
CLIENT, SERVER = 1, 2

# Limits in bytes, but where said otherwise.
MAX_HELLO = 4 << 10
MAX_EVIDENCE = 2 << 20
MAX_ATTESTATION = MAX_EVIDENCE + (8 << 10)
MAX_REFUSAL = 16 << 10
MAX_REASONS = 16  # reasons
MAX_REASON_TEXT = 256
MAX_CODE = 64
MAX_PATH = 16  # hashes
MAX_QUOTE = 64 << 10
MAX_LOG = 1 << 20
MAX_ITEMS = 48  # items
MAX_CERTIFICATES = 32  # items
MAX_FAST = 3 * 34 + 1

EXPORTER_ATTEST = b"EXPORTER-meshnode-attest-v1"
EXPORTER_PAIR = b"EXPORTER-meshnode-pair-v1"

KINDS = ("sevsnp", "sim", "tdx", "vtpm")
PEER_PREFIX = bytes.fromhex("002408011220")


class Refused(Exception):
    """What a node answers with a REFUSAL, or closes the connection for."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


# --- building blocks -------------------------------------------------------------------

def u8(n):
    return struct.pack(">B", n)


def u32(n):
    return struct.pack(">I", n)


def u64(n):
    return struct.pack(">Q", n)


def lp(*parts):
    """The concatenation of u32 length and bytes of each part."""
    return b"".join(u32(len(p)) + p for p in parts)


def sha256(data):
    return hashlib.sha256(data).digest()


def sha512(data):
    return hashlib.sha512(data).digest()


def peer_id(ed25519_key):
    """The binary libp2p peer id of a 32-byte Ed25519 key."""
    if len(ed25519_key) != 32:
        raise ValueError("an Ed25519 key has 32 bytes")
    return PEER_PREFIX + ed25519_key


# --- deterministic CBOR: unsigned integers, byte and text strings, arrays ---------------

def cbor_encode(value):
    """The only encoding of an int, bytes, str or list."""
    if isinstance(value, bool) or value is None:
        raise ValueError("the protocol knows no booleans and no null")
    if isinstance(value, int):
        return _head(0, value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        raw = value.encode("utf-8")
        return _head(3, len(raw)) + raw
    if isinstance(value, (list, tuple)):
        return _head(4, len(value)) + b"".join(cbor_encode(v) for v in value)
    raise ValueError(f"no encoding of {type(value).__name__}")


def _head(major, n):
    if n < 24:
        return u8(major << 5 | n)
    for info, size, form in ((24, 1, ">B"), (25, 2, ">H"), (26, 4, ">I"), (27, 8, ">Q")):
        if n < 1 << 8 * size:
            return u8(major << 5 | info) + struct.pack(form, n)
    raise ValueError("an integer above 64 bits")


def cbor_decode(data, limit, max_items=16, max_depth=4):
    """Decodes data, which must be one value in its only encoding and nothing after it."""
    if len(data) > limit:
        raise Refused("protocol", f"{len(data)} bytes, the limit is {limit}")
    value, end = _value(data, 0, max_items, max_depth)
    if end != len(data):
        raise Refused("malformed", f"{len(data) - end} trailing bytes")
    return value


def _value(data, at, max_items, depth):
    if at >= len(data):
        raise Refused("malformed", "the value is cut")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        n = info
    elif info < 28:
        size = 1 << info - 24
        if at + size > len(data):
            raise Refused("malformed", "a length is cut")
        n = int.from_bytes(data[at:at + size], "big")
        at += size
        if n < (24 if size == 1 else 1 << 4 * size):
            raise Refused("malformed", "an integer is not in its shortest form")
    else:
        raise Refused("malformed", "an indefinite or reserved length")
    if major == 0:
        return n, at
    if major in (2, 3):
        if n > len(data) - at:
            raise Refused("malformed", "a string is longer than what is left")
        raw = data[at:at + n]
        if major == 2:
            return raw, at + n
        try:
            return raw.decode("utf-8"), at + n
        except UnicodeDecodeError:
            raise Refused("malformed", "a text is not UTF-8") from None
    if major == 4:
        if depth == 0 or n > max_items:
            raise Refused("malformed", f"an array of {n}, or nested too deep")
        out = []
        for _ in range(n):
            item, at = _value(data, at, max_items, depth - 1)
            out.append(item)
        return out, at
    raise Refused("malformed", f"CBOR major type {major} is not used")


def _shape(value, what, *types):
    """Requires an array of exactly these types; an int in types is a byte string so long."""
    if not isinstance(value, list) or len(value) != len(types):
        raise Refused("malformed", f"{what}: want an array of {len(types)}")
    for v, t in zip(value, types):
        if isinstance(t, int):
            if not isinstance(v, bytes) or len(v) != t:
                raise Refused("malformed", f"{what}: want {t} bytes")
        elif type(v) is not t:
            raise Refused("malformed", f"{what}: a {type(v).__name__}, want {t.__name__}")
    return value


# --- frames ----------------------------------------------------------------------------

def frame(kind, body):
    return u8(kind) + u32(len(body)) + body


def read_frame(data, want, limit):
    """Returns the body of the first frame of data and the bytes after it."""
    if len(data) < 5:
        raise Refused("malformed", "a frame header has 5 bytes")
    kind, size = data[0], int.from_bytes(data[1:5], "big")
    if kind == REFUSAL:
        limit = MAX_REFUSAL
    elif kind != want:
        raise Refused("protocol", f"frame type {kind}, want {want}")
    if size > limit:
        raise Refused("protocol", f"a frame of {size} bytes, the limit is {limit}")
    if len(data) - 5 < size:
        raise Refused("malformed", "the frame is cut")
    body, rest = data[5:5 + size], data[5 + size:]
    if kind == REFUSAL:
        reasons = decode_reasons(body)
        raise Refused(reasons[0][0] if reasons else "no_credential", f"the peer refused: {reasons}")
    return body, rest


def decode_hello(body):
    """The content of a HELLO as a dictionary."""
    value = cbor_decode(body, MAX_HELLO)
    if not isinstance(value, list) or not value or type(value[0]) is not int:
        raise Refused("malformed", "hello: want an array that starts with the version")
    if value[0] != VERSION:
        raise Refused("wrong_version", f"version {value[0]}")
    _shape(value, "hello", int, 32, int, int, 32, str, bytes, bytes)
    names = ("version", "mesh_id", "incarnation", "epoch", "nonce", "kinds", "want", "credential")
    hello = dict(zip(names, value))
    if hello["nonce"] == bytes(32):
        raise Refused("protocol", "a nonce of zeros")
    check_kinds(hello["kinds"])
    if len(hello["want"]) not in (0, 32):
        raise Refused("protocol", "want is neither empty nor a pair id")
    return hello


def encode_hello(h):
    return cbor_encode([h["version"], h["mesh_id"], h["incarnation"], h["epoch"], h["nonce"], h["kinds"], h["want"], h["credential"]])


def check_kinds(kinds):
    parts = kinds.split(",")
    if sorted(set(parts)) != parts or not all(p in KINDS for p in parts):
        raise Refused("kind_not_allowed", f"kinds {kinds!r}")


def decode_attestation(body):
    value = cbor_decode(body, MAX_ATTESTATION)
    transcript, evidence, head, inclusion = _shape(value, "attestation", 32, bytes, 32, list)
    index, size, path = _shape(inclusion, "inclusion", int, int, list)
    if not evidence or len(path) > MAX_PATH or not all(isinstance(p, bytes) for p in path):
        raise Refused("malformed", "attestation: no evidence, or a path that is none")
    return {"transcript": transcript, "evidence": evidence, "runtime_head": head, "index": index, "size": size, "path": path}


def decode_fast(body):
    value = cbor_decode(body, MAX_FAST)
    transcript, mac, head = _shape(value, "fast", 32, 32, 32)
    return {"transcript": transcript, "mac": mac, "runtime_head": head}


def decode_reasons(body):
    """The body of a REFUSAL or CLOSE: a list of (code, claim, got, want)."""
    value = cbor_decode(body, MAX_REFUSAL)
    if not isinstance(value, list) or len(value) > MAX_REASONS:
        raise Refused("malformed", "reasons: want an array of at most 16")
    out = []
    for reason in value:
        code, *texts = _shape(reason, "reason", str, str, str, str)
        if not 0 < len(code) <= MAX_CODE or code.strip("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise Refused("malformed", "reason: a code that is not snake_case")
        for text in texts:
            if len(text) > MAX_REASON_TEXT or any(not " " <= c <= "~" for c in text):
                raise Refused("malformed", f"reason {code}: a text that is too long or not printable ASCII")
        out.append((code, *texts))
    return out


def decode_epoch(body):
    value = cbor_decode(body, 9)
    if type(value) is not int:
        raise Refused("malformed", "epoch: want an unsigned integer")
    return value


_LOGS = ("application/vnd.meshnode.tcg-event-log", "application/vnd.meshnode.ima-log",
         "application/vnd.meshnode.tpm-attestation", "application/pkix-crl")


def decode_evidence(raw):
    """The kind and the (type, data) items of encoded evidence."""
    kind, items = _shape(cbor_decode(raw, MAX_EVIDENCE, max_items=MAX_ITEMS), "evidence", str, list)
    check_kinds(kind)
    certificates = 0
    for item in items:
        item_type, data = _shape(item, "evidence item", str, bytes)
        certificates += item_type == "application/pkix-cert"
        if not 0 < len(data) <= (MAX_LOG if item_type in _LOGS else MAX_QUOTE):
            raise Refused("malformed", f"evidence: {item_type} has {len(data)} bytes")
    if not items or certificates > MAX_CERTIFICATES:
        raise Refused("malformed", "evidence: no items, or too many certificates")
    return kind, [tuple(i) for i in items]


# --- binding ---------------------------------------------------------------------------

def exporter_context(hello_i, hello_r):
    """The context of both exporters' values: the SHA-256 of both HELLOs."""
    return sha256(lp(hello_i, hello_r))


def binder(purpose, role, mesh_id, incarnation, attester, verifier=b"", hello_i=b"", hello_r=b"", spki_hash=b"", ekm=b""):
    """The 32 bytes that evidence is bound to."""
    return binder_of([u8(purpose), u8(role), mesh_id, u64(incarnation), attester, verifier, hello_i, hello_r, spki_hash, ekm])


def binder_of(parts):
    return sha256(lp(b"meshnode-attest/v1 binder", *parts))


BINDER_FIELDS = ("purpose", "role", "mesh_id", "incarnation", "attester", "verifier", "hello_i", "hello_r", "spki_hash", "ekm")

# The fields that are empty for each purpose; all others are not.
EMPTY = {
    CHANNEL: {"spki_hash"},
    REATTEST: {"spki_hash"},
    RATLS: {"verifier", "hello_i", "hello_r", "ekm"},
    CLIENT_CHALLENGE: {"verifier", "hello_r", "spki_hash"},
    ENROLMENT: {"spki_hash"},  # and ekm, where evidence is handed over as a file
}


def report_data(kinds, mesh_id, attester, runtime_head, root):
    """The 64 bytes that a report carries; a TPM quote carries their SHA-256."""
    return report_data_of([kinds.encode("ascii"), mesh_id, attester, runtime_head, root])


def report_data_of(parts):
    return sha512(lp(b"meshnode-attest/v1 report", *parts))


REPORT_FIELDS = ("kinds", "mesh_id", "attester", "runtime_head", "root")


def transcript(ekm, *bodies):
    """The digest of all bodies before a frame, both directions, in order."""
    return sha256(lp(b"meshnode-attest/v1 transcript", ekm, *bodies))


# --- batches ---------------------------------------------------------------------------

def leaf(bind):
    return sha256(b"\x00" + bind)


def node(left, right):
    return sha256(b"\x01" + left + right)


def batch_root(binds):
    """The RFC 6962 root of a batch."""
    if not 0 < len(binds) <= 1 << MAX_PATH:
        raise ValueError("a batch has 1 to 65536 binders")
    return _root([leaf(b) for b in binds])


def _root(hashes):
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node(_root(hashes[:split]), _root(hashes[split:]))


def batch_path(binds, index):
    """The audit path of one leaf, from the leaf upwards."""
    return _path([leaf(b) for b in binds], index)


def _path(hashes, index):
    if len(hashes) == 1:
        return []
    split = 1 << (len(hashes) - 1).bit_length() - 1
    if index < split:
        return _path(hashes[:split], index) + [_root(hashes[split:])]
    return _path(hashes[split:], index - split) + [_root(hashes[:split])]


def inclusion_root(bind, index, size, path):
    """The only root under which path proves bind at index of size leaves."""
    if not 0 < size <= 1 << MAX_PATH or index >= size or len(path) > MAX_PATH or any(len(p) != 32 for p in path):
        raise Refused("not_bound", "inclusion: no proof of any tree")
    at, last, current = index, size - 1, leaf(bind)
    for sibling in path:
        if last == 0:
            raise Refused("not_bound", "inclusion: the path is longer than the tree is high")
        if at & 1 or at == last:
            current = node(sibling, current)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            current = node(current, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise Refused("not_bound", "inclusion: the path ends below the root")
    return current


# --- fast mode -------------------------------------------------------------------------

def pair_context(role, hello_i, hello_r):
    """The exporter context of the pair key of the attester that had role."""
    return sha256(lp(u8(role), sha256(lp(hello_i, hello_r))))


def pair_id(key):
    """What a verifier's HELLO calls the pair key it holds."""
    return sha256(lp(b"meshnode-attest/v1 pair id", key))


def fast_mac(key, bind, runtime_head):
    return hmac.new(key, lp(b"meshnode-attest/v1 fast", bind, runtime_head), hashlib.sha256).digest()


def same(a, b):
    """Whether two secrets are equal, in constant time."""
    return hmac.compare_digest(a, b)


# --- RA-TLS certificate and client challenge --------------------------------------------

CMW_OID = "1.3.6.1.5.5.7.1.35"
CMW_TYPE = "application/vnd.meshnode.proof+cbor"
CMW_EVIDENCE = 4  # the indicator bit of evidence


def decode_cmw(raw):
    """The proof inside the CMW record of a certificate's extension."""
    media_type, proof, indicator = _shape(cbor_decode(raw, MAX_ATTESTATION), "CMW record", str, bytes, int)
    if media_type != CMW_TYPE or indicator != CMW_EVIDENCE:
        raise Refused("malformed", f"CMW record of {media_type!r} with indicator {indicator}")
    return proof


def decode_proof(raw):
    """[evidence, runtime head, inclusion] as RA-TLS and the client challenge carry it."""
    evidence, head, inclusion = _shape(cbor_decode(raw, MAX_ATTESTATION), "proof", bytes, 32, list)
    index, size, path = _shape(inclusion, "inclusion", int, int, list)
    return {"evidence": evidence, "runtime_head": head, "index": index, "size": size, "path": path}


def client_head_leaf(nonce):
    """The leaf of a client's nonce in the batch that seats sign."""
    return sha256(lp(b"meshnode-attest/v1 client head", nonce))


# --- runtime event log -----------------------------------------------------------------

def runtime_head(events):
    """The head of a log of encoded events; of an empty one 32 zero bytes."""
    head = bytes(32)
    for event in events:
        head = sha256(lp(b"meshnode-attest/v1 runtime event", head, event))
    return head


# --- the certificate around a proof ------------------------------------------------------

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
MAX_CERTIFICATE_PROOF = 64 << 10
CMW_OID_DER = bytes.fromhex("2b06010505070123")
SAN_OID_DER = bytes.fromhex("551d11")


def base58(raw):
    """The text form of a binary peer id."""
    n, out = int.from_bytes(raw, "big"), ""
    while n:
        n, digit = divmod(n, 58)
        out = BASE58[digit] + out
    return "1" * (len(raw) - len(raw.lstrip(b"\x00"))) + out


def der(data):
    """Reads one DER element: (tag, content, whole element, rest)."""
    if len(data) < 2:
        raise Refused("malformed", "DER: cut")
    size, at = data[1], 2
    if size & 0x80:
        count = size & 0x7f
        raw = data[2:2 + count]
        size, at = int.from_bytes(raw, "big"), 2 + count
        if not 0 < count <= 4 or len(raw) != count or raw[0] == 0 or size < 0x80:
            raise Refused("malformed", "DER: a length is not in its shortest form")
    if len(data) - at < size:
        raise Refused("malformed", "DER: cut")
    return data[0], data[at:at + size], data[:at + size], data[at + size:]


def der_all(data):
    """Every element of a sequence's content, as (tag, content, whole element)."""
    out = []
    while data:
        tag, content, whole, data = der(data)
        out.append((tag, content, whole))
    return out


def octet_string(data):
    tag, content, _, rest = der(data)
    if tag != 0x04 or rest:
        raise Refused("malformed", "want one DER OCTET STRING and nothing after it")
    return content


def decode_certificate(raw):
    """What of an RA-TLS certificate speaks of attestation: the SPKI's hash, the URI, the proof.

    Its own signature, dates and key type are X.509's to check and not done here."""
    tag, content, _, rest = der(raw)
    if tag != 0x30 or rest:
        raise Refused("malformed", "a certificate is one DER SEQUENCE")
    fields = der_all(der(content)[1])
    if fields[0][0] != 0xa0:
        raise Refused("malformed", "want an X.509 v3 certificate")
    spki, uris, proofs = fields[6][2], [], []
    for tag, wrapped, _ in fields[7:]:
        if tag != 0xa3:
            continue
        for _, extension, _ in der_all(der(wrapped)[1]):
            parts = der_all(extension)
            if parts[0][1] == SAN_OID_DER:
                uris += [name.decode("ascii") for kind, name, _ in der_all(der(parts[-1][1])[1]) if kind == 0x86]
            if parts[0][1] == CMW_OID_DER:
                if len(parts) != 2:
                    raise Refused("malformed", "id-pe-cmw is not critical")
                proofs.append(parts[1][1])
    if len(uris) != 1 or len(proofs) != 1:
        raise Refused("malformed", f"{len(uris)} URIs and {len(proofs)} proofs, want one of each")
    return {"spki_hash": sha256(spki), "spki": spki, "uri": uris[0], "extension": proofs[0],
            "proof": decode_cmw(octet_string(proofs[0]))}


def certificate_uri(mesh_id, incarnation, attester):
    return f"urn:meshnode:{mesh_id.hex()}:{incarnation}:{base58(attester)}"


def challenge_request(nonce):
    """The body of a client's challenge."""
    return '{"nonce":"' + nonce.hex() + '"}'
