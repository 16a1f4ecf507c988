"""DSSE envelopes over in-toto Statements, keys and signatures (docs/PROTOCOL.md §9, §20.1)."""

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from . import strict
from .refused import Malformed, demand

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
TYPES = "https://attestmesh.github.io/meshnode/"
MAX_SIZE = 60 << 10
MAX_SIGNATURES = 32
REMEMBERED = 1 << 15  # signatures, by digest

_ED25519 = bytes.fromhex("302a300506032b6570032100")
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_CURVES = ("secp224r1", "secp256r1", "secp384r1", "secp521r1")


def sha256(data):
    return hashlib.sha256(data).digest()


def sha256_hex(data):
    return hashlib.sha256(data).hexdigest()


# --- keys and signatures ---------------------------------------------------------------

class Key:
    """A public key by its SubjectPublicKeyInfo. ed25519 are the 32 bytes of an Ed25519 key, None of
    another kind."""

    def __init__(self, der):
        self.der, self.id = der, sha256_hex(der)
        self.ed25519 = der[len(_ED25519):] if der.startswith(_ED25519) else None

    def __eq__(self, other):
        return isinstance(other, Key) and self.der == other.der

    def __hash__(self):
        return hash(self.der)


@lru_cache(maxsize=1024)
def ed25519_key(public):
    return Key(_ED25519 + public)


def peer_key(peer):
    """The key that a peer id inlines."""
    return ed25519_key(peer[6:])


def public_key(v):
    """The shape of a key of the mesh: base64 of the SubjectPublicKeyInfo, Ed25519 or P-256."""
    der = strict.b64(v)
    if len(der) == 44 and der.startswith(_ED25519):
        return Key(der)
    demand(len(der) == 91 and der.startswith(_P256), "neither Ed25519 nor P-256")
    _p256(der)
    return Key(der)


def root_key(v):
    """The shape of a key that certifies hardware: RSA of 2048 to 8192 bits, a NIST curve, Ed25519."""
    der = strict.b64(v)
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise Malformed(f"key: {e}") from None
    if isinstance(key, rsa.RSAPublicKey):
        demand(2048 <= key.key_size <= 8192, f"RSA of {key.key_size} bits")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        demand(key.curve.name in _CURVES, f"curve {key.curve.name}")
    else:
        demand(isinstance(key, ed25519.Ed25519PublicKey), "none of RSA, ECDSA and Ed25519")
    same = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    demand(same == der, "a key that is not in its one encoding")
    return Key(der)


@lru_cache(maxsize=1024)
def _p256(der):
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), der[len(_P256) - 1:])
    except ValueError as e:
        raise Malformed(f"key: {e}") from None


@lru_cache(maxsize=1024)
def _ed25519(public):
    return ed25519.Ed25519PublicKey.from_public_bytes(public)


_known = {}


def ed25519_verify(public, message, signature):
    return verify(ed25519_key(public), message, signature)


def verify(key, message, signature):
    """Whether key has signed message. What was verified is remembered, by digest."""
    what = hashlib.sha256(b"".join(len(x).to_bytes(4, "big") + x for x in (key.der, signature, message))).digest()
    if what not in _known:
        if len(_known) >= REMEMBERED:
            _known.clear()
        _known[what] = _verify(key, message, signature)
    return _known[what]


def _verify(key, message, signature):
    try:
        if key.ed25519 is not None:
            _ed25519(key.ed25519).verify(signature, message)
        else:
            _p256(key.der).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


# --- envelopes -------------------------------------------------------------------------

_SHAPE = strict.struct(payloadType=strict.string, payload=strict.b64, signatures=strict.listing(
    strict.struct(keyid=strict.string, sig=strict.b64), null=False))


@dataclass(frozen=True)
class Envelope:
    payload: bytes
    signatures: tuple  # (key id, signature)

    def without(self, drop):
        """This envelope without the signatures whose key ids drop says yes to."""
        return Envelope(self.payload, tuple(s for s in self.signatures if not drop(s[0])))

    def verify(self, keys):
        """Verifies every signature by keys, pairs of organisation and Key, and returns the
        distinct organisations that signed. Any that does not hold is an error."""
        by_id = {}
        for organisation, key in keys:
            demand(key.id not in by_id, f"key {key.id[:16]} is listed twice")
            by_id[key.id] = (organisation, key)
        demand(self.signatures, "no signature")
        message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(self.payload), self.payload)
        seen, organisations = set(), set()
        for key_id, signature in self.signatures:
            demand(key_id not in seen, f"key {key_id[:16]} signs twice")
            demand(key_id in by_id, f"a signature by key {key_id[:16]!r}, which is not one of the {len(by_id)} expected")
            seen.add(key_id)
            organisation, key = by_id[key_id]
            demand(verify(key, message, signature), f"the signature by key {key_id[:16]} does not hold")
            organisations.add(organisation)
        return sorted(organisations)

    def verify_peer(self, peer):
        demand(len(self.signatures) == 1, f"{len(self.signatures)} signatures, want that of the peer alone")
        self.verify([("", peer_key(peer))])


@lru_cache(maxsize=256)
def parse(raw):
    """Decodes an envelope in its one spelling, and checks no signature."""
    demand(len(raw) <= MAX_SIZE, f"an envelope of {len(raw)} bytes")
    v = _SHAPE(strict.decode(raw))
    demand(v.payloadType == PAYLOAD_TYPE, "another payload type")
    demand(len(v.signatures) <= MAX_SIGNATURES, f"{len(v.signatures)} signatures")
    return Envelope(v.payload, tuple((s.keyid, s.sig) for s in v.signatures))


def marshal(payload, signatures=()):
    return strict.encode({"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(),
                          "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in signatures]})


# --- statements ------------------------------------------------------------------------

_SUBJECT = strict.struct(name=strict.string, digest=strict.mapping(strict.string, strict.string))


def statement(payload, kind, shape):
    """Decodes the payload of a statement of a kind, and returns its predicate and subject."""
    v = strict.struct(_type=strict.string, subject=strict.listing(_SUBJECT), predicateType=strict.string, predicate=shape)(strict.decode(payload))
    demand(v._type == STATEMENT_TYPE, "another type of statement")
    demand(v.predicateType == f"{TYPES}{kind}/v1", f"want a statement of kind {kind}")
    demand(len(v.subject) == 1, "want one subject")
    return v.predicate, v.subject[0]


def check_subject(subject, name, digest):
    demand(subject.name == name and subject.digest == {"sha256": digest}, f"the subject is not {name}")


def payload_of(kind, name, digest, predicate):
    """The payload of a statement; predicate is a dict in the order of its fields."""
    return strict.encode({"_type": STATEMENT_TYPE, "subject": [{"name": name, "digest": {"sha256": digest}}],
                          "predicateType": f"{TYPES}{kind}/v1", "predicate": predicate})


@lru_cache(maxsize=512)
def kind_of(leaf):
    """The kind of a leaf: bootstrap, proposal, … of predicate types of this mesh's form, "other"
    and the predicate type of others, and "" of what is no envelope."""
    try:
        predicate = strict.decode_predicate_type(parse(leaf).payload)
    except Malformed:
        return ""
    if predicate.startswith(TYPES) and predicate.endswith("/v1"):
        return predicate[len(TYPES):-3]
    return predicate and "other " + predicate
