"""Reads what the Go code has signed (service/testdata, client/testdata) by docs/SERVICES.md alone."""

import base64
import json
import pathlib
import unittest

import meshnode_service as s
from meshnode_protocol import sha256
from meshnode_service import Refused

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEED = bytes([7]) * 32


def load(name):
    return (ROOT / name).read_bytes()


class TestEd25519(unittest.TestCase):
    def test_rfc8032(self):
        # RFC 8032 §7.1, test 1 and test 3.
        for seed, public, message, signature in (
            ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
             "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
             "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
            ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
             "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
             "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
        ):
            key, text, sig = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
            self.assertEqual(s.ed25519_public(bytes.fromhex(seed)), key)
            s.ed25519_verify(key, text, sig)
            for bad in (key, text + b"x", sig), (key, text, sig[:63] + b"\xff"), (key[::-1], text, sig):
                with self.assertRaises(Refused):
                    s.ed25519_verify(*bad)


class TestVectors(unittest.TestCase):
    def test_manifest(self):
        raw = load("service/testdata/manifest.json")
        m, digest = s.read_manifest(raw, s.ed25519_public(SEED))
        self.assertEqual((m["service"], m["version"], m["args"]), ("inference", 3, ["-v", "<&>"]))
        self.assertEqual(m["program"], {"sha256": sha256(b"program").hex(), "size": 7})
        self.assertEqual(len(digest), 64)
        with self.assertRaises(Refused):
            s.read_manifest(raw, s.ed25519_public(bytes(32)))
        with self.assertRaises(Refused):
            s.read_receipt(raw)

    def test_receipt(self):
        r = s.read_receipt(load("service/testdata/receipt.json"))
        self.assertEqual((r["node"], r["request"]["path"], r["response"]["status"]), ("bob/n1", "/classify?top=1", 200))
        self.assertEqual(s.peer_key(r["peer"]), s.ed25519_public(SEED))

    def test_kept(self):
        """The receipt of a real node: its answer names the runtime log that the receipt does."""
        kept = json.loads(load("client/testdata/kept/receipt.json"))
        r = s.read_receipt(base64.b64decode(kept["receipt"]))
        answer = json.loads(base64.b64decode(kept["answer"]))
        self.assertEqual((r["service"], r["peer"], r["mesh_id"]), ("triage", answer["peer"], sha256(payload("client/testdata/kept/genesis.json")).hex()))

    def test_changed(self):
        for name, read in ("manifest.json", lambda raw: s.read_manifest(raw, s.ed25519_public(SEED))), ("receipt.json", s.read_receipt):
            raw = load("service/testdata/" + name)
            for at in range(0, len(raw), 7):
                bad = bytearray(raw)
                bad[at] ^= 1
                with self.assertRaises(Refused, msg=f"{name} {at}"):
                    read(bytes(bad))
            for bad in raw + b"\n", b" " + raw, raw[:-1], b"", b"null", raw.replace(b'"keyid"', b'"x":1,"keyid"'):
                with self.assertRaises(Refused):
                    read(bad)


def payload(name):
    return base64.b64decode(json.loads(load(name))["payload"])


if __name__ == "__main__":
    unittest.main()
