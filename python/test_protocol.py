"""Re-computes every value of the golden vectors with meshnode_protocol, which shares no code
with what wrote them. A file that lacks a purpose, or holds a value nobody here re-computes,
fails."""

import base64
import json
import pathlib
import re
import unittest

import meshnode_protocol as p
import meshnode_service as s

ROOT = pathlib.Path(__file__).resolve().parent.parent


def seq(n, start):
    return bytes((start + i) % 256 for i in range(n))


def load(path):
    return json.loads((ROOT / path).read_text("utf-8"))


def unhex(value):
    if isinstance(value, str):
        return bytes.fromhex(value)
    return value


class Checked(dict):
    """A vector that knows which of its values were looked at."""

    def __init__(self, values):
        super().__init__(values)
        self.seen = {"comment", "name"}

    def __getitem__(self, key):
        self.seen.add(key)
        return super().__getitem__(key)

    def hex(self, key):
        return bytes.fromhex(self[key])


class Vectors(unittest.TestCase):
    def done(self, vector):
        """Nothing in a vector may go unchecked."""
        self.assertEqual(set(vector) - vector.seen, set(), "values that nobody re-computed")

    def changed(self, vector, parts, fields, digest, good):
        """Every single change of a field gives the digest in the vector, and another than the right one."""
        told = set()
        for other in vector["other"]:
            i = fields.index(other["field"])
            if other["value"] is None:
                changed = parts[:i] + parts[i + 1:]
                told.add((other["field"], "left out"))
            else:
                changed = parts[:i] + [unhex(other["value"])] + parts[i + 1:]
                self.assertNotEqual(changed, parts)
                told.add((other["field"], "changed" if other["value"] else "empty"))
            self.assertEqual(digest(changed).hex(), other["sum"], other["field"])
            self.assertNotEqual(other["sum"], good)
        for i, name in enumerate(fields):
            wanted = {"left out", "changed"} | ({"empty"} if parts[i] else set())
            self.assertEqual({how for field, how in told if field == name}, wanted, name)
        borders = {(m["from"], m["to"]): m["sum"] for m in vector["moved"]}
        for i in range(len(fields) - 1):
            if not parts[i]:
                continue
            changed = parts[:i] + [parts[i][:-1], parts[i][-1:] + parts[i + 1]] + parts[i + 2:]
            self.assertEqual(digest(changed).hex(), borders.pop((fields[i], fields[i + 1])))
            self.assertNotEqual(digest(changed).hex(), good)
        self.assertEqual(borders, {})


class TestAttestVectors(Vectors):
    """attest/testdata/vectors.json"""

    @classmethod
    def setUpClass(cls):
        cls.file = load("attest/testdata/vectors.json")

    def test_nothing_unknown(self):
        self.assertEqual(set(self.file), {"comment", "binders", "report_data", "batches", "inclusion_refused", "evidence", "evidence_refused"})

    def test_every_purpose_is_there(self):
        self.assertEqual({v["purpose"] for v in self.file["binders"]}, {p.CHANNEL, p.REATTEST, p.RATLS, p.CLIENT_CHALLENGE, p.ENROLMENT})

    def test_binders(self):
        for raw in self.file["binders"]:
            with self.subTest(raw["name"]):
                v = Checked(raw)
                parts = [p.u8(v["purpose"]), p.u8(v["role"]), v.hex("mesh_id"), p.u64(v["incarnation"])]
                parts += [v.hex(f) for f in p.BINDER_FIELDS[4:]]
                named = dict(zip(p.BINDER_FIELDS[2:], parts[2:]))
                named["incarnation"] = v["incarnation"]
                self.assertEqual(p.binder(v["purpose"], v["role"], **named).hex(), v["bind"])
                self.changed(v, parts, p.BINDER_FIELDS, p.binder_of, v["bind"])
                self.rules(v, named)
                self.done(v)

    def rules(self, v, named):
        """Which fields a purpose leaves empty, and what the others are."""
        empty = {name for name, value in named.items() if value == b""}
        expected = set(p.EMPTY[v["purpose"]])
        if v["purpose"] == p.ENROLMENT and v["name"].endswith("by file"):
            expected.add("ekm")
        self.assertEqual(empty, expected)
        self.assertEqual(v["role"], p.SERVER if v["purpose"] in (p.RATLS, p.CLIENT_CHALLENGE) else p.CLIENT if v["purpose"] == p.ENROLMENT else v["role"])
        if named["ekm"]:
            self.assertEqual(p.exporter_context(named["hello_i"], named["hello_r"]).hex(), v["exporter_context"])
        else:
            self.assertEqual(v["exporter_context"], "")
        self.assertEqual(named["attester"], p.peer_id(named["attester"][6:]))
        if v["purpose"] == p.ENROLMENT:
            self.assertEqual(named["hello_r"], p.lp(named["attester"], named["hello_r"][-32:]))
            self.assertRegex(named["verifier"].decode(), "^[0-9a-f]{64}$")

    def test_report_data(self):
        kinds = set()
        for raw in self.file["report_data"]:
            v = Checked(raw)
            kinds |= set(v["kinds"].split(","))
            p.check_kinds(v["kinds"])
            parts = [v["kinds"].encode()] + [v.hex(f) for f in p.REPORT_FIELDS[1:]]
            data = p.report_data(v["kinds"], *parts[1:])
            self.assertEqual(data.hex(), v["report_data"])
            self.assertEqual(p.sha256(data).hex(), v["tpm_extra_data"])
            self.changed(v, parts, p.REPORT_FIELDS, p.report_data_of, v["report_data"])
            self.done(v)
        self.assertEqual(kinds, set(p.KINDS))

    def test_batches(self):
        self.assertEqual([len(b["binders"]) for b in self.file["batches"]], [1, 2, 3, 4, 5])
        for raw in self.file["batches"]:
            v = Checked(raw)
            binds = [unhex(b) for b in v["binders"]]
            root = p.batch_root(binds)
            self.assertEqual(root.hex(), v["root"])
            self.assertEqual(len(v["inclusions"]), len(binds))
            for i, inclusion in enumerate(v["inclusions"]):
                path = [unhex(h) for h in inclusion["path"]]
                self.assertEqual((inclusion["index"], inclusion["size"], inclusion["bind"]), (i, len(binds), binds[i].hex()))
                self.assertEqual(path, p.batch_path(binds, i))
                self.assertEqual(p.inclusion_root(binds[i], i, len(binds), path), root)
            self.done(v)

    def test_inclusions_that_prove_nothing(self):
        self.assertGreaterEqual(len(self.file["inclusion_refused"]), 10)
        for v in self.file["inclusion_refused"]:
            with self.subTest(v["name"]):
                try:
                    got = p.inclusion_root(unhex(v["bind"]), v["index"], v["size"], [unhex(h) for h in v["path"]])
                except p.Refused:
                    continue
                self.assertNotEqual(got.hex(), v["root"])

    def test_evidence(self):
        for v in self.file["evidence"]:
            kind, items = p.decode_evidence(unhex(v["encoded"]))
            self.assertEqual((kind, len(items)), (v["kind"], v["items"]))
            self.assertEqual(p.cbor_encode([kind, [list(i) for i in items]]).hex(), v["encoded"])
        self.assertGreaterEqual(len(self.file["evidence_refused"]), 15)
        for v in self.file["evidence_refused"]:
            with self.subTest(v["name"]), self.assertRaises(p.Refused):
                p.decode_evidence(unhex(v["encoded"]))
        with self.assertRaises(p.Refused):
            p.decode_evidence(bytes(p.MAX_EVIDENCE + 1))


class TestExchangeVectors(Vectors):
    """mesh/exchange/testdata/vectors.json: the full exchange"""

    def test_full(self):
        v = Checked(load("mesh/exchange/testdata/vectors.json"))
        mesh, peer_i, peer_r = seq(32, 0), p.peer_id(seq(32, 0x20)), p.peer_id(seq(32, 0x40))
        hello_i, hello_r = v.hex("hello_i"), v.hex("hello_r")
        for hello, nonce, epoch, credential in ((hello_i, 0xa0, 7, b"credential of I"), (hello_r, 0xc0, 300, b"credential of R")):
            got = p.decode_hello(hello)
            self.assertEqual(got, {"version": 1, "mesh_id": mesh, "incarnation": 2, "epoch": epoch, "nonce": seq(32, nonce),
                                   "kinds": "sevsnp,vtpm", "want": b"", "credential": credential})
            self.assertEqual(p.encode_hello(got), hello)
        self.assertEqual(p.exporter_context(hello_i, hello_r).hex(), v["exporter_context"])
        ekm = v.hex("ekm")
        self.assertEqual(ekm, seq(32, 0x60))
        bind_i = p.binder(p.CHANNEL, p.CLIENT, mesh, 2, peer_i, peer_r, hello_i, hello_r, b"", ekm)
        bind_r = p.binder(p.CHANNEL, p.SERVER, mesh, 2, peer_r, peer_i, hello_i, hello_r, b"", ekm)
        self.assertEqual((bind_i.hex(), bind_r.hex()), (v["binder_initiator"], v["binder_responder"]))
        self.assertEqual(p.transcript(ekm, hello_i, hello_r).hex(), v["transcript_att_i"])
        att = p.decode_attestation(v.hex("att_i"))
        self.assertEqual(att["transcript"].hex(), v["transcript_att_i"])
        self.assertEqual(att["runtime_head"], seq(32, 0x80))
        root = p.inclusion_root(bind_i, att["index"], att["size"], att["path"])
        kind, items = p.decode_evidence(att["evidence"])
        self.assertEqual((kind, items), ("sevsnp,vtpm", [("application/vnd.meshnode.tpm-attestation", seq(4, 1))]))
        self.assertEqual(p.report_data(kind, mesh, peer_i, att["runtime_head"], root).hex(), v["report_data_initiator"])
        self.assertEqual(p.transcript(ekm, hello_i, hello_r, v.hex("att_i")).hex(), v["transcript_att_r"])
        self.assertEqual(p.decode_reasons(v.hex("refusal")), [("revoked", "measurement", "cafe", "an allowed one")])
        self.assertEqual(p.decode_reasons(v.hex("refusal_generic")), [])
        self.done(v)


class TestFastVectors(Vectors):
    """mesh/exchange/testdata/fast.json: pair keys, the fast exchange, re-attestation"""

    mesh, peer_i, peer_r = seq(32, 0), p.peer_id(seq(32, 0x20)), p.peer_id(seq(32, 0x40))

    def binders(self, purpose, v):
        hello_i, hello_r, ekm = v.hex("hello_i"), v.hex("hello_r"), v.hex("ekm")
        self.assertEqual(p.exporter_context(hello_i, hello_r).hex(), v["exporter_context"])
        bind_i = p.binder(purpose, p.CLIENT, self.mesh, 2, self.peer_i, self.peer_r, hello_i, hello_r, b"", ekm)
        bind_r = p.binder(purpose, p.SERVER, self.mesh, 2, self.peer_r, self.peer_i, hello_i, hello_r, b"", ekm)
        self.assertEqual((bind_i.hex(), bind_r.hex()), (v["binder_initiator"], v["binder_responder"]))
        return bind_i, bind_r

    def test_fast(self):
        v, full = Checked(load("mesh/exchange/testdata/fast.json")), load("mesh/exchange/testdata/vectors.json")
        before = [unhex(full["hello_i"]), unhex(full["hello_r"])]
        self.assertEqual(p.pair_context(p.CLIENT, *before).hex(), v["pair_context_initiator"])
        self.assertEqual(p.pair_context(p.SERVER, *before).hex(), v["pair_context_responder"])
        key_i, key_r = v.hex("pair_key_initiator"), v.hex("pair_key_responder")
        self.assertEqual((key_i, key_r), (seq(32, 0x10), seq(32, 0x30)))
        self.assertEqual((p.pair_id(key_i).hex(), p.pair_id(key_r).hex()), (v["pair_id_initiator"], v["pair_id_responder"]))
        # Each names the key by which it has verified the other.
        self.assertEqual(p.decode_hello(v.hex("hello_i"))["want"], p.pair_id(key_r))
        self.assertEqual(p.decode_hello(v.hex("hello_r"))["want"], p.pair_id(key_i))
        bind_i, bind_r = self.binders(p.CHANNEL, v)
        head_i, head_r, ekm = v.hex("runtime_head_initiator"), v.hex("runtime_head_responder"), v.hex("ekm")
        self.assertEqual(head_r, p.runtime_head([]))
        bodies = [v.hex("hello_i"), v.hex("hello_r")]
        for side, key, bind, head in (("i", key_i, bind_i, head_i), ("r", key_r, bind_r, head_r)):
            fast = p.decode_fast(v.hex("fast_" + side))
            mac = v.hex("mac_" + {"i": "initiator", "r": "responder"}[side])
            self.assertEqual(fast, {"transcript": p.transcript(ekm, *bodies), "mac": mac, "runtime_head": head})
            self.assertEqual(fast["transcript"].hex(), v["transcript_fast_" + side])
            self.assertTrue(p.same(p.fast_mac(key, bind, head), mac))
            bodies.append(v.hex("fast_" + side))
        self.assertEqual(p.transcript(ekm, *bodies).hex(), v["ack"])
        again = Checked(v["reattest"])
        again_i, _ = self.binders(p.REATTEST, again)
        for side in "ir":
            self.assertEqual(p.decode_hello(again.hex("hello_" + side))["want"], b"", "a live connection is never renewed by a MAC")
        self.done(again)
        other_purpose = p.binder(p.REATTEST, p.CLIENT, self.mesh, 2, self.peer_i, self.peer_r, *bodies[:2], b"", ekm)
        wrong = {"key of the other direction": (key_r, bind_i, head_i), "binder of the other direction": (key_i, bind_r, head_i),
                 "binder of another purpose": (key_i, other_purpose, head_i), "binder of another connection": (key_i, again_i, head_i),
                 "another runtime head": (key_i, bind_i, head_r)}
        self.assertEqual({o["name"]: o["mac"] for o in v["other_macs"]}, {name: p.fast_mac(*parts).hex() for name, parts in wrong.items()})
        self.assertNotIn(v["mac_initiator"], {o["mac"] for o in v["other_macs"]})
        self.assertEqual(p.decode_epoch(v.hex("epoch")), 301)
        self.done(v)


class TestClientVectors(Vectors):
    """attest/ratls/testdata/vectors.json: purposes 3 and 4"""

    @classmethod
    def setUpClass(cls):
        cls.file = load("attest/ratls/testdata/vectors.json")
        cls.mesh, cls.attester = unhex(cls.file["mesh_id"]), unhex(cls.file["attester"])
        cls.incarnation = cls.file["incarnation"]

    def test_nothing_unknown(self):
        self.assertEqual(set(self.file), {"mesh_id", "incarnation", "peer", "attester", "purpose_3", "purpose_4", "sim"})
        self.assertEqual(p.base58(self.attester), self.file["peer"])

    def proof(self, raw, bind):
        """One proof, from its encoding to its report data."""
        v = Checked(raw)
        self.assertEqual(bind.hex(), v["binder"])
        got = p.decode_proof(v.hex("encoded"))
        self.assertEqual((got["runtime_head"].hex(), got["index"], got["size"], [h.hex() for h in got["path"]]),
                         (v["runtime_head"], v["index"], v["size"], v["path"]))
        kind, items = p.decode_evidence(got["evidence"])
        self.assertEqual(kind, v["kind"])
        self.assertTrue(items)
        root = p.inclusion_root(bind, got["index"], got["size"], got["path"])
        self.assertEqual(root.hex(), v["root"])
        self.assertEqual(p.report_data(kind, self.mesh, self.attester, got["runtime_head"], root).hex(), v["report_data"])
        self.done(v)
        for other in (bind[:-1] + bytes([bind[-1] ^ 1]), bytes(32)):
            try:
                self.assertNotEqual(p.inclusion_root(other, got["index"], got["size"], got["path"]), root)
            except p.Refused:
                pass

    def test_certificate(self):
        v = Checked(self.file["purpose_3"])
        c = p.decode_certificate(v.hex("der"))
        self.assertEqual((c["uri"], c["spki"].hex(), c["spki_hash"].hex(), c["extension"].hex()),
                         (v["uri"], v["spki"], v["spki_hash"], v["extension_value"]))
        self.assertEqual(c["uri"], p.certificate_uri(self.mesh, self.incarnation, self.attester))
        self.assertEqual(v["extension_oid"], p.CMW_OID)
        self.assertLessEqual(v["not_before"], v["not_after"])
        self.assertEqual(c["proof"].hex(), v["proof"]["encoded"])
        self.proof(v["proof"], p.binder(p.RATLS, p.SERVER, self.mesh, self.incarnation, self.attester, spki_hash=c["spki_hash"]))
        self.done(v)

    def test_challenge(self):
        v = Checked(self.file["purpose_4"])
        nonce = v.hex("nonce")
        self.assertEqual(p.challenge_request(nonce), v["request"])
        self.assertEqual(v["exporter_label"].encode(), p.EXPORTER_ATTEST)
        self.assertEqual(p.exporter_context(nonce, b"").hex(), v["exporter_context"])
        self.proof(v["proof"], p.binder(p.CLIENT_CHALLENGE, p.SERVER, self.mesh, self.incarnation, self.attester, hello_i=nonce, ekm=v.hex("ekm")))
        leaf = p.client_head_leaf(nonce)
        self.assertEqual(leaf.hex(), v["head_leaf"])
        self.assertEqual(p.batch_root([leaf, p.sha256(b"other")]).hex(), v["head_root"])
        answer = json.loads(v["answer"])
        self.assertEqual(json.dumps(answer, separators=(",", ":"), ensure_ascii=False), v["answer"])
        self.assertEqual(list(answer), ["peer", "credential", "proof", "runtime_log", "policy", "heads", "checkpoint", "certificate"])
        self.assertEqual(answer["peer"], self.file["peer"])
        self.assertEqual(base64.b64decode(answer["proof"], validate=True).hex(), v["proof"]["encoded"])
        self.assertEqual(base64.b64decode(answer["certificate"], validate=True).hex(), self.file["purpose_3"]["der"])
        inclusion = answer["heads"]["inclusion"]
        self.assertEqual(p.inclusion_root(leaf, inclusion["index"], inclusion["size"], [unhex(h) for h in inclusion["path"]]).hex(), v["head_root"])
        self.done(v)

    def test_refused(self):
        good = unhex(self.file["purpose_3"]["extension_value"])
        record = p.octet_string(good)
        media_type, proof, indicator = p.cbor_decode(record, 1 << 20)
        self.assertEqual(p.cbor_encode([media_type, proof, indicator]), record)
        for bad in (good + b"\x00", good[:-1], b"\x04\x81\x7f" + bytes(127), b"\x03" + good[1:]):
            with self.assertRaises(p.Refused):
                p.octet_string(bad)
        for bad in ([media_type, proof, 2], [media_type + "x", proof, 4], [media_type, proof], [media_type, proof, 4, b""], [media_type, "", 4]):
            with self.assertRaises(p.Refused):
                p.decode_cmw(p.cbor_encode(bad))
        for bad in (proof + b"\x00", proof[:-1], b"\x80", b"\x9f" + proof[1:] + b"\xff"):
            with self.assertRaises(p.Refused):
                p.decode_proof(bad)


class TestEnrolmentVectors(Vectors):
    """enroll/testdata/vectors.json: purpose 5 and what is signed with it"""

    def test_enrolment(self):
        v = Checked(load("enroll/testdata/vectors.json"))
        mesh, peer, cosigner, key_id = seq(32, 0), v.hex("peer"), v.hex("cosigner"), v["key_id"].encode()
        self.assertEqual(peer, p.peer_id(seq(32, 0x20)))
        nonce, hello_r = v.hex("nonce"), p.lp(peer, cosigner)
        self.assertEqual(hello_r.hex(), v["hello_r"])
        self.assertEqual(p.binder(p.ENROLMENT, p.CLIENT, mesh, 2, peer, key_id, nonce, hello_r).hex(), v["binder_by_file"])
        self.assertEqual(p.exporter_context(nonce, hello_r).hex(), v["exporter_context"])
        bind = p.binder(p.ENROLMENT, p.CLIENT, mesh, 2, peer, key_id, nonce, hello_r, b"", v.hex("ekm"))
        self.assertEqual(bind.hex(), v["binder"])
        self.assertEqual(p.lp(b"meshnode-enroll/v1 peer", bind).hex(), v["peer_message"])
        self.assertEqual(p.lp(b"meshnode-enroll/v1 cosigner", bind).hex(), v["cosigner_message"])
        scope = (mesh, p.u64(2), key_id)
        self.assertEqual(p.lp(b"meshnode-enroll/v1 bootstrap", *scope, v["payload"].encode()).hex(), v["bootstrap_message"])
        self.assertEqual(p.lp(b"meshnode-enroll/v1 started", *scope, p.u64(v["attempt"])).hex(), v["started_message"])
        self.done(v)


class TestDocument(unittest.TestCase):
    """docs/PROTOCOL.md: its example says what the vectors say"""

    text = (ROOT / "docs/PROTOCOL.md").read_text("utf-8")

    def blocks(self, language):
        return re.findall(rf"^```{language} ?(.*)\n((?:.*\n)*?)```$", self.text, re.M)

    def test_values(self):
        told = {}
        for path, body in self.blocks("vectors"):
            for line in body.splitlines():
                name, value = line.split(" ")
                vector = load(path)
                for part in name.split("."):
                    vector = vector[int(part) if part.isdecimal() else part]
                self.assertEqual(vector, value, name)
                told.setdefault(path, set()).add(name.split(".")[0])
        full, fast = "mesh/exchange/testdata/vectors.json", "mesh/exchange/testdata/fast.json"
        self.assertEqual(told[full], set(load(full)) - {"comment"})
        self.assertEqual(told[fast], set(load(fast)) - {"comment", "other_macs"})

    def test_binder(self):
        v = load("mesh/exchange/testdata/vectors.json")
        (_, body), = self.blocks("binder")
        raw = b""
        for line in body.splitlines():
            length, *value = line.split()
            value = "".join(value).replace("HELLO_I", v["hello_i"]).replace("HELLO_R", v["hello_r"])
            self.assertEqual(int(length, 16), len(value) // 2)
            raw += unhex(length + value)
        self.assertEqual(p.sha256(raw).hex(), v["binder_initiator"])

    def test_limits(self):
        for name, limit in (("HELLO_I, HELLO_R", p.MAX_HELLO), ("ATT_I, ATT_R", p.MAX_ATTESTATION), ("REFUSAL", p.MAX_REFUSAL), ("FAST_I, FAST_R", p.MAX_FAST)):
            row, = re.findall(rf"^\| [\d, ]+ \| {name} \|.*\| ([\d,]+)", self.text, re.M)
            self.assertEqual(int(row.replace(",", "")), limit, name)


class TestStatements(unittest.TestCase):
    """consensus/testdata/golden, by §20 of docs/PROTOCOL.md: the one spelling of each Statement,
    fields and actions as the page lists them, signatures by whoever it names"""

    GOLDEN = ROOT / "consensus/testdata/golden"
    BASE = "https://attestmesh.github.io/meshnode/"
    # Which of the page's types a golden is of, and how many of how many keys are known here.
    SIGNED = {"bootstrap": 2, "bootstrap-recovery": 2, "recovery": 2, "ready": 1, "drain": 1, "retirement": 1, "withdrawal": 1, "suspension": 1,
              "suspension-entry": 1, "suspension-lift": 1, "time-sample": 1, "state-digest": 1, "state": 0, "membership": 0, "membership-taken": 0,
              "proposal": 2, "proposal-ima": 2, "proposal-constitution": 2, "proposal-platforms": 2}

    @classmethod
    def setUpClass(cls):
        genesis = json.loads(base64.b64decode(load("consensus/testdata/golden/genesis.json")["payload"]))
        cls.keys = {}
        for org in genesis["predicate"]["organisations"]:
            for key in org["keys"]:
                der = base64.b64decode(key["public"])
                cls.keys[p.sha256(der).hex()] = der[-32:], key["role"]
        section = TestDocument.text.split("\n### 20.2")[1].split("\n### 20.4")[0]
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| `")]
        cls.types = {row[0].strip("`"): row for row in rows if row[1] in ("mesh", "node")}
        cls.actions = {row[0].strip("`"): row for row in rows if row[2] in ("narrow", "widen", "constitution")}

    def statement(self, name):
        raw = (self.GOLDEN / (name + ".json")).read_bytes()
        env = json.loads(raw)
        self.assertEqual(list(env), ["payloadType", "payload", "signatures"])
        self.assertEqual(s.canonical(env), raw, "another spelling")
        self.assertLessEqual(len(raw), 61440)
        payload = base64.b64decode(env["payload"], validate=True)
        st = json.loads(payload)
        self.assertEqual(s.canonical(st), payload, "another spelling")
        self.assertEqual(list(st), ["_type", "subject", "predicateType", "predicate"])
        self.assertEqual(st["_type"], "https://in-toto.io/Statement/v1")
        return env, payload, st

    def test_all(self):
        goldens = {f.stem for f in self.GOLDEN.glob("*.json")}
        self.assertEqual(goldens - set(self.SIGNED), {"genesis", "credential", "credential-ak", "attestation-result"})
        told = {st["predicateType"].removeprefix(self.BASE).removesuffix("/v1") for _, _, st in map(self.statement, self.SIGNED)}
        self.assertEqual(told, set(self.types) - {"head"} | {"proposal"})

    def test_signatures(self):
        for name, known in self.SIGNED.items():
            with self.subTest(name):
                env, payload, st = self.statement(name)
                kind = env["payloadType"].encode()
                pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
                ids = [sig["keyid"] for sig in env["signatures"]]
                self.assertEqual(len(set(ids)), len(ids))
                keys = {i: key for i, (key, _) in self.keys.items()}
                if known and "peer" in st["predicate"]:
                    own = s.peer_key(st["predicate"]["peer"])
                    keys[s.key_id(own)] = own
                checked = 0
                for sig in env["signatures"]:
                    if sig["keyid"] not in keys:
                        continue  # of an organisation, or a seat, of that golden's own mesh
                    signature = base64.b64decode(sig["sig"])
                    s.ed25519_verify(keys[sig["keyid"]], pae, signature)
                    with self.assertRaises(s.Refused):
                        s.ed25519_verify(keys[sig["keyid"]], pae + b" ", signature)
                    checked += 1
                self.assertEqual((checked, bool(ids)), (known, known > 0))
                roles = {self.keys[i][1] for i in ids if i in self.keys}
                self.assertLessEqual(len(roles), 1, "keys of two roles")
                for role in roles:
                    rule = self.types[self.kind(st)][3] if self.kind(st) in self.types else "govern keys"
                    self.assertRegex(rule, f"{role}( or govern)? key")

    def kind(self, st):
        self.assertTrue(st["predicateType"].startswith(self.BASE) and st["predicateType"].endswith("/v1"))
        return st["predicateType"].removeprefix(self.BASE).removesuffix("/v1")

    def test_predicates(self):
        for name in self.SIGNED:
            with self.subTest(name):
                _, _, st = self.statement(name)
                predicate, kind = st["predicate"], self.kind(st)
                self.assertEqual(list(predicate)[:2], ["mesh_id", "incarnation"])
                (subject,) = st["subject"]
                about = {"name": "mesh", "digest": {"sha256": predicate["mesh_id"]}}
                if "node" in predicate and kind not in ("suspension",):
                    id_ = p.peer_id(s.peer_key(predicate["peer"]))
                    about = {"name": predicate["node"], "digest": {"sha256": p.sha256(id_).hex()}}
                self.assertEqual(subject, about)
                if kind == "proposal":
                    continue
                row = self.types[kind]
                self.assertEqual(row[1], "mesh" if about["name"] == "mesh" else "node")
                fields = list(predicate)[2:]
                named = [f for f in re.findall(r"`([a-z_]+)`", row[2]) if f in fields]
                self.assertEqual(named, fields, "the page names other fields, or another order")

    def test_actions(self):
        self.assertEqual(len(self.actions), 16)
        found = set()
        for name in ("proposal", "proposal-ima", "proposal-constitution", "proposal-platforms"):
            _, _, st = self.statement(name)
            self.assertEqual(list(st["predicate"]), ["mesh_id", "incarnation", "base", "nonce", "created", "expires", "actions"])
            for action in st["predicate"]["actions"]:
                (kind, value), = action.items()
                found.add(kind)
                row = self.actions[kind]
                if kind == "add_entry":
                    continue  # an entry has fields of its own
                told = row[1].replace("a key", "`role`, `public`").replace("a scope", "`organisation`, `entry`")
                self.assertEqual([f for f in re.findall(r"`([a-z_]+)`", told) if f in value], list(value), kind)
        self.assertEqual(set(self.actions) - found, {"allow_product", "add_hardware", "unlimit_hardware"}, "actions without a golden")

    def test_recovery(self):
        """A Bootstrap above incarnation 0 names the Recovery by its payload, and where the log goes on."""
        _, payload, recovery = self.statement("recovery")
        _, _, bootstrap = self.statement("bootstrap-recovery")
        b, r = bootstrap["predicate"], recovery["predicate"]
        self.assertEqual((b["recovery"], b["incarnation"], b["mesh_id"]), (p.sha256(payload).hex(), r["incarnation"], r["mesh_id"]))
        self.assertGreaterEqual(b["continues"]["size"], r["checkpoint"]["size"])

    def test_command(self):
        raw = bytes.fromhex((self.GOLDEN / "command.hex").read_text().strip())
        version, kind, body = p.cbor_decode(raw, 1 << 20)
        (envelope,) = p.cbor_decode(body, 1 << 20)
        self.assertEqual((version, kind), (1, "credential"))
        self.assertEqual(p.cbor_encode([version, kind, p.cbor_encode([envelope])]), raw)
        payload = base64.b64decode(json.loads(envelope)["payload"])
        self.assertEqual(self.kind(json.loads(payload)), kind)

    def test_commitment(self):
        """The commitment to a chip that §6.4 works out."""
        chip = bytes.fromhex("c0ffee") * 4
        self.assertIn(p.sha256(p.lp(b"meshnode-hardware/v1", seq(32, 0), b"tdx", chip)).hex(), TestDocument.text)


class TestRefusals(unittest.TestCase):
    """What must be refused, whoever sends it."""

    def refused(self, code, function, *arguments):
        with self.assertRaises(p.Refused) as caught:
            function(*arguments)
        self.assertEqual(caught.exception.code, code, caught.exception)

    def hello(self, **changes):
        h = {"version": 1, "mesh_id": seq(32, 1), "incarnation": 0, "epoch": 0, "nonce": seq(32, 2), "kinds": "sim", "want": b"", "credential": b"c"}
        h.update(changes)
        return p.encode_hello(h)

    def test_hello(self):
        good = self.hello()
        self.assertEqual(p.decode_hello(good)["kinds"], "sim")
        self.assertEqual(p.decode_hello(self.hello(want=bytes(32)))["want"], bytes(32))
        for code, body in (
            ("wrong_version", self.hello(version=2)),
            ("wrong_version", self.hello(version=0)),
            ("wrong_version", bytes.fromhex("8102")),  # whatever comes after it
            ("malformed", good + b"\x00"),
            ("malformed", good[:-1]),
            ("malformed", b""),
            ("malformed", b"\xa0"),
            ("malformed", b"\x80"),
            ("malformed", b"\xc1" + good),
            ("malformed", b"\x9f" + good[1:] + b"\xff"),
            ("malformed", good[:1] + b"\x18\x01" + good[2:]),
            ("malformed", b"\x89" + good[1:] + b"\xf6"),
            ("malformed", self.hello(mesh_id=bytes(31))),
            ("malformed", self.hello(nonce=seq(33, 1))),
            ("malformed", self.hello(credential="c")),
            ("malformed", good.replace(b"csim\x40", b"csim\xf6")),
            ("protocol", self.hello(nonce=bytes(32))),
            ("protocol", self.hello(want=b"\x01")),
            ("protocol", self.hello(credential=bytes(p.MAX_HELLO))),
            ("kind_not_allowed", self.hello(kinds="")),
            ("kind_not_allowed", self.hello(kinds="vtpm,sevsnp")),
            ("kind_not_allowed", self.hello(kinds="sim,sim")),
        ):
            with self.subTest(body[:60].hex()):
                self.refused(code, p.decode_hello, body)

    def test_attestation(self):
        good = [bytes(32), b"e", bytes(32), [0, 1, []]]
        self.assertEqual(p.decode_attestation(p.cbor_encode(good))["size"], 1)
        for bad in (good[:3], good + [b""], [bytes(31)] + good[1:], [bytes(32), b""] + good[2:], good[:3] + [[0, 1]],
                    good[:3] + [[0, 1, [bytes(32)] * 17]], good[:3] + [[0, 1, ["text"]]], [bytes(32), "e"] + good[2:]):
            self.refused("malformed", p.decode_attestation, p.cbor_encode(bad))
        self.refused("protocol", p.decode_attestation, bytes(p.MAX_ATTESTATION + 1))

    def test_fast(self):
        good = [bytes(32), bytes(32), bytes(32)]
        self.assertEqual(len(p.cbor_encode(good)), p.MAX_FAST)
        self.assertEqual(p.decode_fast(p.cbor_encode(good))["mac"], bytes(32))
        for bad in ([bytes(32), bytes(16), bytes(32)], [bytes(32), b"", bytes(32)], good[:2], [bytes(31), bytes(32), bytes(32)]):
            self.refused("malformed", p.decode_fast, p.cbor_encode(bad))
        self.refused("protocol", p.decode_fast, p.cbor_encode(good + [b""]))
        self.refused("malformed", p.decode_fast, b"\x9f" + p.cbor_encode(good)[1:-1] + b"\xff")

    def test_reasons(self):
        self.assertEqual(p.decode_reasons(b"\x80"), [])
        for body in ("81847672657665" + "6f" + "6060", "8184614160" + "6060", "818460606060", "818361616060", "8000", "9fff", "9800", "6161",
                     "f6", "91" + "846161606060" * 17, "8184616161ff6060", "81" * 40 + "80", "818461616101" + "6060",
                     "81846161" + "7901" + "01" + "61" * 257 + "6060"):
            with self.subTest(body[:40]):
                self.refused("malformed", p.decode_reasons, bytes.fromhex(body))
        self.refused("protocol", p.decode_reasons, bytes(p.MAX_REFUSAL + 1))

    def test_epoch(self):
        self.assertEqual(p.decode_epoch(bytes.fromhex("19012c")), 300)
        self.assertEqual(p.decode_epoch(p.cbor_encode(2 ** 64 - 1)), 2 ** 64 - 1)
        for body in ("20", "40", "1801", "f6", "0000", "", "18", "1b", "fa00000000"):
            self.refused("malformed", p.decode_epoch, bytes.fromhex(body))

    def test_frames(self):
        body, rest = p.read_frame(p.frame(p.ACK, seq(32, 0)) + b"next", p.ACK, 32)
        self.assertEqual((body, rest), (seq(32, 0), b"next"))
        self.refused("protocol", p.read_frame, p.frame(p.ATT_I, b""), p.HELLO_I, p.MAX_HELLO)
        self.refused("protocol", p.read_frame, b"\x01\xff\xff\xff\xff", p.HELLO_I, p.MAX_HELLO)
        self.refused("protocol", p.read_frame, p.frame(p.HELLO_I, bytes(p.MAX_HELLO + 1)), p.HELLO_I, p.MAX_HELLO)
        self.refused("malformed", p.read_frame, p.frame(p.ACK, bytes(32))[:-1], p.ACK, 32)
        self.refused("malformed", p.read_frame, b"\x01\x00\x00", p.HELLO_I, p.MAX_HELLO)
        self.refused("no_credential", p.read_frame, p.frame(p.REFUSAL, b"\x80"), p.HELLO_R, p.MAX_HELLO)
        reasons = p.cbor_encode([["revoked", "measurement", "cafe", "an allowed one"]])
        self.refused("revoked", p.read_frame, p.frame(p.REFUSAL, reasons), p.ATT_R, p.MAX_ATTESTATION)
        self.refused("protocol", p.read_frame, p.frame(p.REFUSAL, bytes(p.MAX_REFUSAL + 1)), p.ATT_R, p.MAX_ATTESTATION)

    def test_cbor_is_canonical(self):
        for value in (0, 23, 24, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 64 - 1, b"", bytes(300), "", "ü", [], [1, [b"x", "y"]]):
            self.assertEqual(p.cbor_decode(p.cbor_encode(value), 1 << 20), value)
        for raw in ("1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "5800", "7800", "9800", "1c", "1f", "5f", "7f", "a0", "c000", "f4",
                    "f6", "f97e00", "00" * 2, "61ff", "41", "82" "00"):
            with self.subTest(raw):
                self.refused("malformed", p.cbor_decode, bytes.fromhex(raw), 1 << 20)


if __name__ == "__main__":
    unittest.main()
