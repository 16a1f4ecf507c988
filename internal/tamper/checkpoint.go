package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

func checkpointCases() []tamperCase {
	// Line 0 is the origin, 1 the size, 2 the root.
	edited := func(number int, to func(s *spoiled, was string) string) func(*spoiled) {
		return func(s *spoiled) {
			was := strings.Split(s.head(), "\n")[number]
			s.write(s.edited(number, to(s, was)), s.lines...)
		}
	}
	becomes := func(number int, line string) func(*spoiled) {
		return edited(number, func(*spoiled, string) string { return line })
	}
	raw := func(f func(cp string) string) func(*spoiled) {
		return func(s *spoiled) {
			check(os.WriteFile(filepath.Join(s.dir, "checkpoint"), []byte(f(string(s.cp))), 0o644))
		}
	}
	var out []tamperCase
	for _, c := range []struct {
		name, what string
		do         func(*spoiled)
		want       verdict
	}{
		{"8-size-smaller", "the size is one less, and all signatures as before", becomes(1, "599"), found(size-1, "checkpoint_invalid")},
		{"8-size-larger", "the size is one more", becomes(1, "601"), found(size+1, "checkpoint_invalid")},
		{"8-size-enormous", "the size is 2^36", becomes(1, "68719476736"), found(1<<36, "checkpoint_invalid")},
		{"8-size-beyond-all", "the size is 2^62", becomes(1, "4611686018427387904"), found(0, "checkpoint_invalid")},
		{"8-size-before-the-recovery", "the size is that of a part that ends before the checkpoint's incarnation", becomes(1, "40"), found(40, "checkpoint_invalid")},
		{"8-size-zero", "the size is 0", becomes(1, "0"), found(0, "root_mismatch")},
		{"8-size-negative", "the size is -600", becomes(1, "-600"), found(0, "checkpoint_invalid")},
		{"8-size-spelt", "the size has a leading zero", becomes(1, "0600"), found(0, "checkpoint_invalid")},
		{"8-root", "another root, and all signatures as before", edited(2, func(s *spoiled, _ string) string {
			h := rootOf(s.Leaves[:size-1])
			return base64.StdEncoding.EncodeToString(h[:])
		}), found(size, "checkpoint_invalid")},
		{"8-root-spelt", "the root is in base64 with loose bits", edited(2, func(_ *spoiled, was string) string { return was[:42] + string(was[42]+1) + "=" }), found(0, "checkpoint_invalid")},
		{"8-origin", "the origin of another mesh", edited(0, func(_ *spoiled, was string) string { return strings.Replace(was, "trial", "trail", 1) }), found(size, "checkpoint_invalid")},
		{"8-incarnation-lower", "the origin of the incarnation before", edited(0, func(_ *spoiled, was string) string { return strings.TrimSuffix(was, "1") + "0" }), found(size, "checkpoint_invalid")},
		{"8-incarnation-higher", "the origin of an incarnation to come", edited(0, func(_ *spoiled, was string) string { return strings.TrimSuffix(was, "1") + "2" }), found(size, "checkpoint_invalid")},
		{"8-extension", "an extension line", edited(3, func(*spoiled, string) string { return "epoch 19\n" }), found(0, "checkpoint_invalid")},
		{"8-carriage-returns", "lines end in CR LF", raw(func(cp string) string { return strings.ReplaceAll(cp, "\n", "\r\n") }), found(0, "checkpoint_invalid")},
		{"8-no-signatures", "nothing but the text", raw(func(cp string) string { t, _, _ := strings.Cut(cp, "\n\n"); return t + "\n\n" }), found(0, "checkpoint_invalid")},
		{"8-cut", "the last signature line is cut", raw(func(cp string) string { return cp[:len(cp)-20] }), found(0, "checkpoint_invalid")},
		{"8-binary", "not UTF-8", raw(func(cp string) string { return cp[:40] + "\xff" + cp[41:] }), found(0, "checkpoint_invalid")},
		{"8-root-leaked", "the log key signs another root; the cosignatures stay", func(s *spoiled) {
			t := text(s.origin, size, rootOf(s.Leaves[:size-1]))
			s.write(t, append([]string{logLine(t, s.origin, s.LogKey())}, s.lines[1:]...)...)
		}, found(size, "root_mismatch")},
		{"8-root-all", "all seats cosign a root that the leaves do not give", func(s *spoiled) {
			t := text(s.origin, size, tlog.Hash{1})
			lines := []string{logLine(t, s.origin, s.LogKey())}
			for _, boot := range s.Cosigners() {
				lines = append(lines, s.cosign(t, boot, s.At))
			}
			s.write(t, lines...)
		}, found(size, "root_mismatch")},
		{"19-old-checkpoint", "nothing is changed, and who asks wants no older cosignatures than of a day", func(s *spoiled) { s.run = audits("DST/log", "--max-age", "24h") }, undecided(size, "stale")},
	} {
		out = append(out, tamperCase{c.name, c.what, func(s *spoiled) verdict { c.do(s); return c.want }})
	}
	return out
}

func cosignerCases() []tamperCase {
	// The log key's line and those of cosigners, all of them or those of some organisations.
	by := func(lines func(s *spoiled) []string) func(*spoiled) {
		return func(s *spoiled) { s.resign(append(s.lines[:1:1], lines(s)...)...) }
	}
	// beta's line is another; those of the others stay, which are a quorum.
	spoilt := func(line func(s *spoiled, name string, key ed25519.PrivateKey) string) func(*spoiled) {
		return func(s *spoiled) {
			s.resign(s.lines[0], s.cosign(s.head(), alpha, s.At), line(s, s.CosignerName(beta), audittest.Key(beta+" cosigner")), s.cosign(s.head(), gamma, s.At))
		}
	}
	at := func(t time.Time) func(*spoiled) {
		return spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return string(audittest.Cosign(s.head(), name, key, t))
		})
	}
	// A stranger's line under a name of this log.
	stranger := func(s *spoiled, node, label string, boot int) string {
		return string(audittest.Cosign(s.head(), fmt.Sprintf("%s/%s/%d", s.origin, node, boot), audittest.Key(label), s.At))
	}
	var out []tamperCase
	for _, c := range []struct {
		name, what string
		do         func(*spoiled)
		want       verdict
	}{
		{"12-one-organisation", "one organisation alone has cosigned", by(func(s *spoiled) []string { return []string{s.cosign(s.head(), alpha, s.At)} }), found(size, "unpublished")},
		{"12-log-key-alone", "nobody has cosigned", by(func(s *spoiled) []string { return nil }), found(size, "unpublished")},
		{"12-witness-alone", "an outside witness has cosigned, and one organisation", by(func(s *spoiled) []string { return []string{s.cosign(s.head(), alpha, s.At), s.lines[4]} }), found(size, "unpublished")},
		{"12-no-log-key", "all have cosigned, the log key has not", func(s *spoiled) { s.resign(s.lines[1:]...) }, found(size, "checkpoint_invalid")},
		{"12-former-log-key", "the log key is that of the incarnation before", func(s *spoiled) {
			s.resign(append([]string{logLine(s.head(), s.origin, audittest.Key("log"))}, s.lines[1:]...)...)
		}, found(size, "checkpoint_invalid")},
		{"12-former-seats", "seats of the incarnation before have cosigned", by(func(s *spoiled) []string {
			return []string{s.cosign(s.head(), alpha, s.At), stranger(s, "beta/n1", "beta/n1 cosigner", 1000), stranger(s, "gamma/n1", "gamma/n1 cosigner", 1000)}
		}), found(size, "unpublished")},
		{"12-removed-organisation", "an organisation that left has cosigned", by(func(s *spoiled) []string {
			return []string{s.cosign(s.head(), alpha, s.At), stranger(s, "delta/n1", "delta/n1 cosigner", 1020)}
		}), found(size, "unpublished")},
		{"12-same-organisation-twice", "one organisation has cosigned twice, at two times", by(func(s *spoiled) []string {
			return []string{s.cosign(s.head(), alpha, s.At), s.cosign(s.head(), alpha, s.At.Add(time.Second))}
		}), found(size, "unpublished")},
		{"12-second-node-of-an-organisation", "two nodes of one organisation have cosigned, one of them without a seat", func(s *spoiled) {
			s.join("alpha/n2")
			s.seal(alpha, "alpha/n2")
		}, found(size+3, "unpublished")},
		{"12-no-seat", "a member without a seat has cosigned in place of its organisation's seat", func(s *spoiled) {
			s.join("beta/n3")
			s.seal(alpha, "beta/n3")
		}, found(size+3, "unpublished")},
		{"12-before-they-are-affirmed", "founders have cosigned a size at which nobody has attested them yet", func(s *spoiled) {
			s.Leaves = s.Leaves[:s.first(0, "recovery")+2]
			s.sealAll()
		}, found(57, "unpublished")},
		{"12-after-contradiction", "a seat that two organisations no longer affirm has cosigned with one other", func(s *spoiled) {
			s.At = s.At.Add(time.Second)
			for _, verifier := range []string{alpha, gamma} {
				s.Force(s.Result(verifier, beta, "new", audittest.Refusing(attest.VerdictContraindicated, attest.CodeDebug)))
			}
			s.seal(alpha, beta)
		}, found(size+2, "unpublished")},
		{"13-key-type", "a plain Ed25519 signature by a cosigner's key stands for its cosignature", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return line(name, typeEd25519, key, ed25519.Sign(key, []byte(s.head())))
		}), found(size, "cosignature_key")},
		{"13-key-type-unknown", "a signature of a type that nobody knows", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return line(name, 9, key, make([]byte, 72))
		}), found(size, "cosignature_key")},
		{"13-another-key", "another organisation's key under a seat's name", spoilt(func(s *spoiled, name string, _ ed25519.PrivateKey) string {
			return string(audittest.Cosign(s.head(), name, audittest.Key(gamma+" cosigner"), s.At))
		}), found(size, "cosignature_key")},
		{"13-log-key", "the log key under a seat's name", spoilt(func(s *spoiled, name string, _ ed25519.PrivateKey) string {
			return string(audittest.Cosign(s.head(), name, s.LogKey(), s.At))
		}), found(size, "cosignature_key")},
		{"13-another-origin", "a cosignature of the same root under another origin", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return string(audittest.Cosign(s.edited(0, "sim.example.org/other/1"), name, key, s.At))
		}), found(size, "cosignature_invalid")},
		{"13-another-size", "a cosignature of an older checkpoint", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return string(audittest.Cosign(text(s.origin, 500, rootOf(s.Leaves[:500])), name, key, s.At))
		}), found(size, "cosignature_invalid")},
		{"13-zero-time", "a cosignature of the year 1970", at(time.Unix(0, 0)), found(size, "cosignature_time")},
		{"13-future-time", "a cosignature of the year 2200", at(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)), found(size, "cosignature_time")},
		{"13-time-edited", "the timestamp in a cosignature is edited", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return retimed(string(audittest.Cosign(s.head(), name, key, s.At)), uint64(s.At.Unix())+60)
		}), found(size, "cosignature_invalid")},
		{"13-cut", "a cosignature without its last byte", spoilt(func(s *spoiled, name string, key ed25519.PrivateKey) string {
			return line(name, typeCosignature, key, make([]byte, 71))
		}), found(size, "cosignature_invalid")},
		{"13-witness-key", "another key under the outside witness's name", func(s *spoiled) {
			s.resign(append(s.lines[:4:4], string(audittest.Cosign(s.head(), audittest.WitnessName, audittest.Key("stranger"), s.At)))...)
		}, found(size, "cosignature_key")},
		{"13-witness-replayed", "the outside witness's cosignature of an older checkpoint", func(s *spoiled) {
			older := text(s.origin, 500, rootOf(s.Leaves[:500]))
			s.resign(append(s.lines[:4:4], string(audittest.Cosign(older, audittest.WitnessName, audittest.Key(audittest.Witness), s.At)))...)
		}, found(size, "cosignature_invalid")},
	} {
		out = append(out, tamperCase{c.name, c.what, func(s *spoiled) verdict { c.do(s); return c.want }})
	}
	return out
}

// join appends the Credential of a node and two results that affirm it.
func (s *spoiled) join(node string) {
	s.Tick(0)
	s.Command(consensus.KindCredential, s.Credential(node))
	for _, verifier := range s.Cosigners() {
		if audittest.Ref(verifier).Org != audittest.Ref(node).Org {
			s.Force(s.Result(verifier, node, "new"))
		}
	}
}

// retimed is a cosignature line whose timestamp is another.
func retimed(line string, unix uint64) string {
	cut := strings.LastIndex(line, " ") + 1
	raw := must(base64.StdEncoding.DecodeString(strings.TrimSuffix(line[cut:], "\n")))
	binary.BigEndian.PutUint64(raw[4:], unix)
	return line[:cut] + base64.StdEncoding.EncodeToString(raw) + "\n"
}
