package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/audit/audittest"
)

// proven is the file that is spoiled: SRC/result.proof, which "meshnode log prove" has made of the
// result at index inFull. It is c2sp.org/tlog-proof@v1 whose extra data are the leaf and others,
// as package audit/proof documents it.
type proven struct {
	extra      []byte
	index      int
	path       []string
	checkpoint string
}

func parseProof(raw []byte) proven {
	head, checkpoint, ok := strings.Cut(string(raw), "\n\n")
	lines := strings.Split(head, "\n")
	var p proven
	if _, err := fmt.Sscanf(lines[2], "index %d", &p.index); !ok || err != nil || p.index != inFull {
		panic(fmt.Sprintf("no proof of leaf %d", inFull))
	}
	p.extra = must(base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra ")))
	p.path, p.checkpoint = lines[3:], checkpoint
	return p
}

func (p proven) bytes() []byte {
	return fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n%s\n\n%s",
		base64.StdEncoding.EncodeToString(p.extra), p.index, strings.Join(p.path, "\n"), p.checkpoint)
}

// links are what follows the leaf in the extra data: index, leaf and path of each.
func (p proven) links() (subject []byte, links [][]byte) {
	const label = "meshnode-proof/v1\n"
	at := len(label)
	at += 2 + int(binary.BigEndian.Uint16(p.extra[at:]))
	subject = p.extra[:at]
	for rest := p.extra[at:]; len(rest) > 0; {
		n := 8 + 2 + int(binary.BigEndian.Uint16(rest[8:]))
		n += 1 + 32*int(rest[n])
		links, rest = append(links, rest[:n]), rest[n:]
	}
	return subject, links
}

func (p *proven) without(drop func(index int, leaf []byte) bool) {
	subject, links := p.links()
	before := len(links)
	links = slices.DeleteFunc(links, func(l []byte) bool {
		return drop(int(binary.BigEndian.Uint64(l)), l[10:10+int(binary.BigEndian.Uint16(l[8:]))])
	})
	if len(links) == before {
		panic("no such link in the proof")
	}
	p.extra = slices.Concat(append([][]byte{subject}, links...)...)
}

// about puts another leaf in place of the subject.
func (p *proven) about(leaf []byte) {
	_, links := p.links()
	p.extra = slices.Concat(append([][]byte{[]byte("meshnode-proof/v1\n"), bundleOf([][]byte{leaf})}, links...)...)
}

func (s *spoiled) pathOf(leaf int) []string {
	var out []string
	for _, h := range must(tlog.ProveRecord(int64(len(s.Leaves)), int64(leaf), storedOf(s.Leaves))) {
		out = append(out, base64.StdEncoding.EncodeToString(h[:]))
	}
	return out
}

// proofCases spoil a proof of one leaf, which is all that its reader has besides genesis.
func proofCases() []tamperCase {
	const refused, malformed, unlinked = 1, 2, 3
	var out []tamperCase
	for _, c := range []struct {
		name, what string
		do         func(s *spoiled, p *proven)
		code       string
		exit       int
	}{
		{"another-index", "the index is that of the next leaf", func(_ *spoiled, p *proven) { p.index++ }, "not_included", refused},
		{"index-beyond", "the index is beyond the checkpoint", func(_ *spoiled, p *proven) { p.index = size }, "not_included", refused},
		{"another-leaf", "the proof is right for the leaf before", func(s *spoiled, p *proven) { p.about(s.Leaves[inFull-1]) }, "not_included", refused},
		{"forged-leaf", "the leaf is one that its signer made anew", func(s *spoiled, p *proven) { p.about(s.other(inFull)) }, "not_included", refused},
		{"path-of-another", "leaf and index are right, the path is that of the next leaf", func(s *spoiled, p *proven) { p.path = s.pathOf(inFull + 1) }, "not_included", refused},
		{"path-cut", "the last hash of the path is gone", func(_ *spoiled, p *proven) { p.path = p.path[:len(p.path)-1] }, "not_included", refused},
		{"path-longer", "a hash more at the end of the path", func(_ *spoiled, p *proven) { p.path = append(p.path, p.path[0]) }, "not_included", refused},
		{"node-for-leaf", "the path begins one level up, with the node for the leaf", func(s *spoiled, p *proven) {
			l, r := tlog.RecordHash(s.Leaves[inFull]), tlog.RecordHash(s.Leaves[inFull+1])
			p.about(append(append([]byte{1}, l[:]...), r[:]...))
			p.index, p.path = inFull/2, p.path[1:]
		}, "not_included", refused},
		{"checkpoint-of-a-fork", "the checkpoint is that of another history, which all have cosigned", func(s *spoiled, p *proven) {
			s.Leaves[inFull-1] = s.other(inFull - 1)
			p.checkpoint = s.sealed()
		}, "not_included", refused},
		{"checkpoint-of-another-log", "the checkpoint is of another origin", func(_ *spoiled, p *proven) {
			p.checkpoint = strings.ReplaceAll(p.checkpoint, "/trial/", "/trail/")
		}, "checkpoint_invalid", refused},
		{"no-checkpoint", "there is no checkpoint", func(_ *spoiled, p *proven) { p.checkpoint = "" }, "malformed", malformed},
		{"checkpoint-unsigned", "the checkpoint has no signature", func(_ *spoiled, p *proven) {
			text, _, _ := strings.Cut(p.checkpoint, "\n\n")
			p.checkpoint = text + "\n\n"
		}, "malformed", malformed},
		{"log-key-alone", "the checkpoint is signed by the log key alone", func(_ *spoiled, p *proven) {
			text, lines, _ := strings.Cut(p.checkpoint, "\n\n")
			p.checkpoint = text + "\n\n" + strings.SplitAfter(lines, "\n")[0]
		}, "unpublished", refused},
		{"one-organisation", "one organisation alone has cosigned", func(_ *spoiled, p *proven) {
			text, lines, _ := strings.Cut(p.checkpoint, "\n\n")
			p.checkpoint = text + "\n\n" + strings.Join(strings.SplitAfter(lines, "\n")[:2], "")
		}, "unpublished", refused},
		{"policy-left-out", "a change of the policy is left out", func(_ *spoiled, p *proven) {
			p.without(func(_ int, leaf []byte) bool {
				l := parse(leaf)
				return l.kind() == "proposal" && strings.Contains(l.json(), audittest.Measurement("last"))
			})
		}, "policy_incomplete", refused},
		{"bootstrap-left-out", "the Bootstrap is left out", func(_ *spoiled, p *proven) { p.without(func(i int, _ []byte) bool { return i == 1 }) }, "policy_incomplete", refused},
		{"affirmations-left-out", "what affirms verifier and cosigners is left out", func(_ *spoiled, p *proven) {
			p.without(func(_ int, leaf []byte) bool { return parse(leaf).kind() == "attestation-result" })
		}, "unpublished", refused},
		{"plain", "a proof without what links it to genesis", func(*spoiled, *proven) {}, "not_linked", unlinked},
	} {
		out = append(out, tamperCase{"15-" + c.name, c.what, func(s *spoiled) verdict {
			p := parseProof(must(os.ReadFile(filepath.Join(s.src, "result.proof"))))
			c.do(s, &p)
			raw := p.bytes()
			if c.code == "not_linked" {
				raw = append(bytes.Split(raw, []byte("\n"))[0], raw[bytes.Index(raw, []byte("\nindex")):]...)
			}
			s.put(filepath.Join(filepath.Dir(s.dir), "result.proof"), raw)
			s.run = []string{"log", "verify", "--json", "--genesis", "SRC/genesis.json", "DST/result.proof"}
			return verdict{Code: c.code, Exit: c.exit}
		}})
	}
	return out
}
