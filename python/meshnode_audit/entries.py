"""What is allowed to run, and on which hardware: entries, floors, products, lists of chips
(docs/PROTOCOL.md §23.3)."""

from types import SimpleNamespace

from . import strict
from .envelope import sha256_hex
from .refused import demand
from .strict import Optional, ZERO_TIME, digest, hexadecimal, listing, mapping, matching, name, ordered, struct, struct_of, time, uint8

ROLES = ("aggregator", "member", "seat", "trainer")
KINDS = ("sevsnp", "sim", "tdx", "vtpm")
LINES = ("Genoa", "Milan", "Turin")
STATUSES = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
            "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded")
MAX_ENTRIES, MAX_REVOKED, MAX_SUPERSEDES, MAX_REGISTERS, MAX_IMA, MAX_REBUILDS, MAX_ADVISORIES = 200, 4096, 8, 32, 512, 16, 64
MAX_EVALUATION = 1 << 20
MAX_ACTION_CHIPS = 256

entry_id = hexadecimal(8)


def kinds(v):
    """One kind, or several distinct ones in order, joined by ','."""
    parts = strict.string(v).split(",")
    demand(all(p in KINDS for p in parts) and all(a < b for a, b in zip(parts, parts[1:])), "no kind of evidence")
    return v


def role(v):
    demand(v in ROLES, "no role of a node")
    return v


_roles = ordered(role, len(ROLES))


def roles(v):
    out = _roles(v)
    demand("member" in out, "every node is a member")
    return out


# --- hardware --------------------------------------------------------------------------

tcb = struct(fmc=Optional(uint8, 0), boot_loader=uint8, tee=uint8, snp=uint8, microcode=uint8)
COMPONENTS = ("fmc", "boot_loader", "tee", "snp", "microcode")


def line(v):
    demand(v in LINES, "no product line of SEV-SNP")
    return v


def tcb_of(product, t):
    demand(t.fmc == 0 or product == "Turin", "only Turin has an fmc")
    return t


def tcb_covers(a, b):
    """Whether whoever meets the floor a meets b."""
    return all(getattr(a, c) >= getattr(b, c) for c in COMPONENTS)


def _status(v):
    demand(v in STATUSES, "no status of Intel's")
    return v


_advisories = ordered(matching("INTEL-SA-[0-9]{5}"), MAX_ADVISORIES)
_tdx = struct(tcb_statuses=Optional(ordered(_status, MAX_ADVISORIES), ()), rejected_advisory_ids=Optional(_advisories, ()),
              minimum_tcb_evaluation_data_number=Optional(strict.integer(0, MAX_EVALUATION), 0), minimum_tcb_date=Optional(time, ZERO_TIME))


def tdx(v):
    demand(v != {}, "demands nothing")
    return _tdx(v)


def tdx_covers(a, b):
    """Whether whoever meets a meets b."""
    within = not b.tcb_statuses or a.tcb_statuses and set(a.tcb_statuses) <= set(b.tcb_statuses)
    return (within and set(b.rejected_advisory_ids) <= set(a.rejected_advisory_ids)
            and a.minimum_tcb_evaluation_data_number >= b.minimum_tcb_evaluation_data_number and a.minimum_tcb_date >= b.minimum_tcb_date)


_floor = struct_of(("product", "product", Optional(line)), ("sevsnp", "sevsnp", Optional(tcb, None)), ("tdx", "tdx", Optional(tdx, None)),
                   ("from", "since", Optional(time, ZERO_TIME)))


def floor(v):
    f = _floor(v)
    if f.sevsnp is not None:
        demand(f.tdx is None and f.product != "", "want product and sevsnp, or tdx")
        tcb_of(f.product, f.sevsnp)
        demand(any(getattr(f.sevsnp, c) for c in COMPONENTS), "demands nothing")
    else:
        demand(f.tdx is not None and f.product == "", "want product and sevsnp, or tdx")
    f.key = strict.encode(v).decode()
    return f


def floor_covers(a, b):
    """Whether whoever meets a meets b, at every time."""
    if a.product != b.product or a.since > b.since:
        return False
    if a.sevsnp is not None and b.sevsnp is not None:
        return tcb_covers(a.sevsnp, b.sevsnp)
    return a.tdx is not None and b.tdx is not None and bool(tdx_covers(a.tdx, b.tdx))


def covered(floors, f):
    return any(floor_covers(g, f) for g in floors)


def line_of(family, model):
    """The product line of a part by AMD 57230; None of one without SEV-SNP."""
    if family == 0x19 and model <= 0x0f:
        return "Milan"
    if family == 0x19 and (0x10 <= model <= 0x1f or 0xa0 <= model <= 0xaf):
        return "Genoa"
    if family == 0x1a and model <= 0x11:
        return "Turin"
    return None


_cpuid = struct(family=uint8, model=uint8, stepping=uint8)
_product = struct(product=Optional(line), cpuid=Optional(_cpuid, None), fmspc=Optional(hexadecimal(6)))


def product(v):
    """A class of hardware, by the name that is its key."""
    p = _product(v)
    demand(sum((p.product != "", p.cpuid is not None, p.fmspc != "")) == 1, "want exactly one of product, cpuid and fmspc")
    if p.fmspc:
        return "TDX platforms with FMSPC " + p.fmspc
    if p.product:
        return "SEV-SNP product " + p.product
    of = line_of(p.cpuid.family, p.cpuid.model)
    demand(of, "no part with SEV-SNP")
    return f"SEV-SNP part {p.cpuid.family}-{p.cpuid.model}-{p.cpuid.stepping} of {of}"


class Chips:
    """A list of chips: commitments. Where any is set only those removed count."""

    def __init__(self, any_=True, listed=frozenset(), removed=frozenset()):
        self.any, self.listed, self.removed = any_, frozenset(listed), frozenset(removed)

    def admits(self, chip):
        return chip not in self.removed and (self.any or chip in self.listed)

    def within(self, other):
        """Whether every chip that this list admits is admitted by other."""
        if self.any:
            return other.any and other.removed <= self.removed
        return all(other.admits(c) for c in self.listed if self.admits(c))


chips = ordered(digest, MAX_ACTION_CHIPS, least=1)


def scope(organisation, entry):
    """Whose nodes a list binds, by the name that is its key."""
    demand((organisation == "") != (entry == ""), "want exactly one of organisation and entry")
    return "entry " + entry if entry else "organisation " + organisation


# --- entries ---------------------------------------------------------------------------

def _registers(v):
    out = mapping(matching("[a-z0-9_]{1,32}"), hexadecimal(20, 32, 48, 64))(v)
    demand(1 <= len(out) <= MAX_REGISTERS, "want 1 to 32 registers")
    return out


_ima = ordered(matching("sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}"), MAX_IMA, least=1)
_rebuild = struct(organisation=name, statement=digest)


def _rebuilds(v):
    out = listing(_rebuild)(v)
    demand(1 <= len(out) <= MAX_REBUILDS, "want 1 to 16 rebuilds")
    keys = [(r.organisation, r.statement) for r in out]
    demand(all(a < b for a, b in zip(keys, keys[1:])), "want distinct rebuilds in order")
    return out


FIELDS = (("id", "id", entry_id), ("kind", "kind", kinds), ("measurement", "measurement", hexadecimal(32, 48, 64)),
          ("registers", "registers", Optional(_registers, {})), ("roles", "roles", roles), ("not_before", "not_before", Optional(time, ZERO_TIME)),
          ("not_after", "not_after", Optional(time, ZERO_TIME)), ("supersedes", "supersedes", Optional(ordered(entry_id, MAX_SUPERSEDES), ())),
          ("provenance", "provenance", Optional(digest)), ("ima", "ima", Optional(_ima, ())), ("supersede_at", "supersede_at", Optional(time, ZERO_TIME)),
          ("builder", "builder", Optional(matching("[!-~]{1,256}"))), ("rebuilds", "rebuilds", Optional(_rebuilds, ())),
          ("minimum_tcb", "minimum_tcb", Optional(mapping(line, tcb), {})), ("tdx", "tdx", Optional(tdx, None)))
_entry = struct_of(*FIELDS)
_added = struct_of(*FIELDS, ("readmit", "readmit", Optional(strict.boolean, False)))


def entry(v):
    return _check(_entry(v), v)


def added_entry(v):
    """An entry as an action has it, and whether it is to be allowed again."""
    e = _added(v)
    return SimpleNamespace(entry=_check(e, {k: x for k, x in v.items() if k != "readmit"}), readmit=e.readmit)


def _check(e, v):
    parts = e.kind.split(",")
    demand(len(e.measurement) == 96 or parts == ["vtpm"], "want a measurement of 48 bytes")
    demand(e.not_after == ZERO_TIME or e.not_after > e.not_before, "not_after is not later than not_before")
    demand(not e.ima or "vtpm" in parts, "only evidence of a TPM has an IMA list")
    demand(e.supersede_at == ZERO_TIME or e.supersedes, "nothing is superseded")
    demand(e.provenance or not (e.builder or e.rebuilds), "nothing that builder and rebuilds are about")
    demand(not e.minimum_tcb or "sevsnp" in parts, "minimum_tcb without SEV-SNP")
    for of, t in e.minimum_tcb.items():
        tcb_of(of, t)
    demand(e.tdx is None or "tdx" in parts, "tdx without TDX")
    demand(e.id == sha256_hex(strict.encode({k: x for k, x in v.items() if k != "id"}))[:16], "an id that is not that of the content")
    return e


def governs(e):
    """Whether an entry has a field that came with fsm_version 4."""
    return e.supersede_at != ZERO_TIME or bool(e.builder or e.rebuilds or e.minimum_tcb) or e.tdx is not None


def lists_all(e, other):
    """Whether a node that has shown only files of other has shown only files of e."""
    return not e.ima or bool(other.ima) and set(other.ima) <= set(e.ima)


_NOTHING = SimpleNamespace(tcb_statuses=(), rejected_advisory_ids=(), minimum_tcb_evaluation_data_number=0, minimum_tcb_date=ZERO_TIME)


def _demand(e):
    """What an entry demands of TDX platforms in full: without statuses of its own, UpToDate."""
    d = e.tdx or _NOTHING
    return SimpleNamespace(**{**vars(d), "tcb_statuses": d.tcb_statuses or ("UpToDate",)})


def covers_platform(e, other):
    """Whether hardware that was good enough for e is for other."""
    if other.minimum_tcb and not e.minimum_tcb:
        return False
    for of, t in e.minimum_tcb.items():
        if other.minimum_tcb and (of not in other.minimum_tcb or not tcb_covers(t, other.minimum_tcb[of])):
            return False
    return bool(tdx_covers(_demand(e), _demand(other)))
