package ima

import (
	"bytes"
	"encoding/hex"

	"github.com/attestmesh/meshnode/attest"
)

// bootAggregate is the name of the first entry: a hash over the registers before it.
const bootAggregate = "boot_aggregate"

// gathered are facts in the making.
type gathered struct {
	attest.IMAFacts
	bank   string
	quoted map[int][]byte
	text   []byte
}

// add takes an entry that the quote will turn out to cover.
func (g *gathered) add(e *Entry) {
	g.Entries++
	switch {
	case e.Violation:
		g.Violations++
		return
	case !e.Verified || e.PCR != Register || e.File == nil:
		// Another register was not compared with the quote, and a digest of an unknown
		// algorithm names no file.
		g.Unverified++
		return
	}
	if string(e.path) == bootAggregate && g.Entries == 1 {
		g.aggregate(e)
		return
	}
	// One string holds both, since there may be ten thousand.
	g.text = append(append(g.text[:0], e.Algorithm...), ':')
	g.text = hex.AppendEncode(g.text, e.File)
	n := len(g.text)
	both := string(append(g.text, e.path...))
	g.Files = append(g.Files, attest.IMAFile{Digest: both[:n], Path: both[n:], Signature: hex.EncodeToString(e.Signature)})
}

// aggregate compares the first entry with the quoted registers of the same bank: 0 to 7,
// since Linux 5.8 also 8 and 9 where it is not SHA-1.
func (g *gathered) aggregate(e *Entry) {
	hash, ok := banks[e.Algorithm]
	if !ok || e.Algorithm != g.bank {
		return
	}
	h := hash.New()
	for n := range 8 {
		v, quoted := g.quoted[n]
		if !quoted {
			return
		}
		h.Write(v)
	}
	g.BootAggregate = "differs"
	if bytes.Equal(h.Sum(nil), e.File) {
		g.BootAggregate = "matches"
		return
	}
	eight, ok8 := g.quoted[8]
	nine, ok9 := g.quoted[9]
	if !ok8 || !ok9 {
		g.BootAggregate = ""
		return
	}
	h.Write(eight)
	h.Write(nine)
	if bytes.Equal(h.Sum(nil), e.File) {
		g.BootAggregate = "matches"
	}
}
