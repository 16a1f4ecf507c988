"""JSON in its one spelling, and the shapes of what is in it (docs/PROTOCOL.md §20.1).

decode reads, encodes again and demands the same bytes; white space, other escapes, other
number forms and duplicate keys do not survive that. A shape is a function from a decoded
value to what the verifier works with, which raises Malformed. A field that is left out
when it is unset must not be there with the value of unset.
"""

import base64
import json
import re
from types import SimpleNamespace

from .refused import Malformed, demand

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
ZERO_TIME = -62_135_596_800_000  # Unix ms of 0001-01-01T00:00:00Z, which stands for no time
END_OF_TIME = 253_402_300_800_000  # 10000-01-01T00:00:00Z


def _pairs(pairs):
    out = dict(pairs)
    demand(len(out) == len(pairs), "a key twice")
    return out


def _integer(text):
    demand(len(text) <= 20, "an integer out of range")
    return int(text)


def _refuse(text):
    raise Malformed(f"a number {text[:20]}")


def encode(value):
    """Compact JSON, fields in their order, nothing escaped that need not be."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), check_circular=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode("utf-8")


def decode(raw):
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_pairs, parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
        demand(encode(value) == raw, "not in canonical form")
    except (ValueError, RecursionError) as e:  # UnicodeError is a ValueError, Malformed too
        raise Malformed(str(e) or "no JSON") from None
    return value


def decode_predicate_type(raw):
    """The predicate type of a payload, whatever else is wrong with it: it says which rules
    decide. Field names count in either case, and the last of several."""
    def pairs(items):
        return {k.lower() if isinstance(v, str) or k.lower() in ("subject", "predicate") else k: v for k, v in items}
    try:
        value = json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=pairs, parse_int=str)
        demand(isinstance(value, dict), "no object")
        for name in ("_type", "predicatetype"):
            demand(value.get(name) is None or isinstance(value[name], str), "no string")
        subject = value.get("subject")
        demand(subject is None or isinstance(subject, list), "no list")
        return value.get("predicatetype") or ""
    except (ValueError, RecursionError) as e:
        raise Malformed(str(e) or "no JSON") from None


# --- shapes ----------------------------------------------------------------------------

def string(v):
    demand(isinstance(v, str), "want a string")
    return v


def boolean(v):
    demand(isinstance(v, bool), "want true or false")
    return v


def matching(pattern):
    compiled = re.compile(pattern)

    def shape(v):
        demand(isinstance(v, str) and compiled.fullmatch(v), f"want {pattern}")
        return v
    return shape


def hexadecimal(*sizes):
    """Lower-case hex of one of these numbers of bytes."""
    return matching("|".join(f"[0-9a-f]{{{2 * n}}}" for n in sizes))


def integer(low, high):
    def shape(v):
        demand(isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, f"want {low} to {high}")
        return v
    return shape


uint8, uint32, uint64 = integer(0, 255), integer(0, 2**32 - 1), integer(0, 2**64 - 1)
int8 = integer(-128, 127)

name = matching("[a-z0-9-]{1,32}")
node_ref = matching("[a-z0-9-]{1,32}/[a-z0-9-]{1,32}")
digest = hexadecimal(32)

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{0,2}[1-9]))?Z", re.ASCII)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def time(v):
    """A time in UTC with at most milliseconds, of the years 2000 to 9999, in Unix ms."""
    m = _TIME.fullmatch(string(v))
    demand(m, "want a time in UTC with at most milliseconds")
    y, month, day, h, minute, s = (int(m[i]) for i in range(1, 7))
    leap = y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    demand(y >= 2000 and 1 <= month <= 12 and h < 24 and minute < 60 and s < 60, "no such time")
    demand(1 <= day <= _DAYS[month - 1] + (leap and month == 2), "no such day")
    p = y - (month <= 2)  # years that begin in March: days from there, after Howard Hinnant
    days = 365 * p + p // 4 - p // 100 + p // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 719_469
    return days * DAY + h * HOUR + minute * MINUTE + s * SECOND + int((m[7] or "").ljust(3, "0"))


def listing(shape, null=True):
    """A list. Where null is allowed it is an empty one."""
    def of(v):
        if v is None and null:
            return []
        demand(isinstance(v, list), "want a list")
        return [shape(x) for x in v]
    return of


def mapping(key, shape):
    """An object whose names are data: matching key, in order."""
    def of(v):
        demand(isinstance(v, dict) and list(v) == sorted(v, key=lambda k: k.encode("utf-8")), "want an object in order")
        return {key(k): shape(x) for k, x in v.items()}
    return of


def ordered(shape, most, least=0):
    """A list of distinct strings in order, of a bounded length."""
    inner = listing(shape)

    def of(v):
        out = inner(v)
        demand(least <= len(out) <= most, f"want {least} to {most}")
        demand(all(a < b for a, b in zip(out, out[1:])), "want distinct ones in order")
        return out
    return of


class Optional:
    """A field that is left out when unset; unset is what its absence stands for."""

    def __init__(self, shape, unset=""):
        self.shape, self.unset = shape, unset


_NEVER = (None, "", 0, False, [], {}, "0001-01-01T00:00:00Z")


def struct(**fields):
    """An object with exactly these fields in this order, as attributes. Names end in _ where
    Python wants another."""
    names = [(n.rstrip("_") if n.endswith("_") and n != "_" else n, n, f) for n, f in fields.items()]
    return _struct(names)


def struct_of(*fields):
    """struct of (name in JSON, attribute, shape)."""
    return _struct(list(fields))


def _struct(fields):
    def of(v):
        demand(isinstance(v, dict), "want an object")
        keys, out, at = list(v), {}, 0
        for key, attribute, shape in fields:
            optional = isinstance(shape, Optional)
            if at < len(keys) and keys[at] == key:
                value = v[key]
                if optional:
                    demand(not any(value is x or type(value) is type(x) and value == x for x in _NEVER), f"{key} is there and unset")
                    shape = shape.shape
                try:
                    out[attribute] = shape(value)
                except Malformed as e:
                    raise Malformed(f"{key}: {e}") from None
                at += 1
            else:
                demand(optional, f"no {key} in its place")
                out[attribute] = shape.unset
        demand(at == len(keys), f"{keys[at][:40] if at < len(keys) else ''}: unknown, or out of its place")
        return SimpleNamespace(**out)
    of.fields = fields
    return of


# --- base64 and base58 -----------------------------------------------------------------

_B64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def b64(v):
    """Padded base64 in its one spelling."""
    demand(_B64.fullmatch(string(v)), "no base64")
    raw = base64.b64decode(v)
    demand(not v.endswith("=") or base64.b64encode(raw[-(len(raw) % 3):]).decode() == v[-4:], "no base64")
    return raw


_B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_B58_VALUE = {c: i for i, c in enumerate(_B58)}
PEER_PREFIX = bytes.fromhex("002408011220")


def peer(v):
    """The binary peer id of an Ed25519 key (docs/PROTOCOL.md §1), 38 bytes."""
    string(v)
    demand(len(v) < 64 and all(c in _B58_VALUE for c in v), "no peer id")
    n = 0
    for c in v:
        n = n * 58 + _B58_VALUE[c]
    zeros = len(v) - len(v.lstrip("1"))
    raw = bytes(zeros) + n.to_bytes((n.bit_length() + 7) // 8, "big")
    demand(len(raw) == 38 and raw.startswith(PEER_PREFIX), "no peer id of an Ed25519 key")
    return raw


def peer_text(raw):
    n, out = int.from_bytes(raw, "big"), ""
    while n:
        n, digit = divmod(n, 58)
        out = _B58[digit] + out
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + out
