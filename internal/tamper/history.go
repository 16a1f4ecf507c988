package main

import (
	"os"
	"path/filepath"
	"slices"
)

// historyCases are those that one directory alone cannot show: each of these logs is one that
// could have been. Who has audited the untouched one before remembers it.
func historyCases() []tamperCase {
	remembered := func(s *spoiled) {
		s.before = [][]string{audits("SRC/log", "--state", "DST/state")}
		s.run = audits("DST/log", "--state", "DST/state")
	}
	// The tree of the leaves, cosigned by some seats, and an honest one to whoever sees it alone.
	history := func(name, what string, do func(s *spoiled), want verdict) []tamperCase {
		return []tamperCase{
			{name, what, func(s *spoiled) verdict {
				do(s)
				remembered(s)
				return want
			}},
		}
	}
	return slices.Concat(
		history("9-rolled-back", "an older checkpoint, signed by all, over all the files of the newer one", func(s *spoiled) {
			s.Leaves = s.Leaves[:400]
			s.put(filepath.Join(s.dir, "checkpoint"), []byte(s.sealed()))
		}, found(400, "rolled_back")),
		history("9-rolled-back-whole", "the log as it was before, files and all", func(s *spoiled) {
			s.Leaves = s.Leaves[:400]
			s.sealAll()
		}, found(400, "rolled_back")),
		history("9-rolled-back-incarnation", "the log as it was before the Recovery, by the seats of then", func(s *spoiled) {
			s.former()
		}, found(55, "rolled_back")),
		history("10-split-view", "another last leaf, and a root that other two of three seats have cosigned", func(s *spoiled) {
			s.Leaves[size-1] = s.other(size - 1)
			s.seal(beta, gamma)
		}, found(size, "forked")),
		history("10-split-view-all", "another leaf in the past, which all seats have cosigned", func(s *spoiled) {
			s.Leaves[inFull] = s.other(inFull)
			s.sealAll()
		}, found(size, "forked")),
		history("11-fork", "another leaf in the past, and three leaves more than the log that was audited", func(s *spoiled) {
			s.Leaves[inFull] = s.other(inFull)
			s.join("beta/n3")
			s.sealAll()
		}, found(size, "forked")),
		history("11-fork-at-the-end", "the last leaf is another, and others follow it", func(s *spoiled) {
			s.Leaves[size-1] = s.other(size - 1)
			s.join("beta/n3")
			s.sealAll()
		}, found(size, "forked")),
		history("11-fork-in-another-incarnation", "the mesh is recovered a second time, from before the end of what was audited", func(s *spoiled) {
			s.Recover(2, "third", 500, 500)
			s.Grow(size + 10)
			s.sealAll()
		}, found(size, "forked")),
	)
}

// omissionCases are logs that lack a leaf of which somebody holds a receipt: the proof of inclusion
// that a member gave. (Nothing else is given for a leaf that was handed in: there is no signed promise.)
// A monitor that is given it says so.
func omissionCases() []tamperCase {
	omitted := func(name, what string, do func(s *spoiled)) tamperCase {
		return tamperCase{name, what, func(s *spoiled) verdict {
			do(s)
			s.sealAll()
			s.run = []string{"log", "monitor", "--once", "--json", "--max-age", "0", "--genesis", "SRC/genesis.json", "--state", "DST/monitor",
				"--receipt", "SRC/result.proof", "DST/log"}
			return verdict{Code: "omission", Exit: 1}
		}}
	}
	return []tamperCase{
		omitted("20-omission", "another leaf stands where a receipt says that one is, which all seats have cosigned", func(s *spoiled) {
			s.Leaves[inFull] = s.other(inFull)
		}),
		omitted("20-omission-longer", "the same in a log that has grown since", func(s *spoiled) {
			s.Leaves[inFull] = s.other(inFull)
			s.join("beta/n3")
		}),
	}
}

// evidenceCases are about evidence that was disclosed behind results whose log is as it should be. In the
// log that is spoiled the evidence of each is the letter e, behind a salt.
func evidenceCases() []tamperCase {
	const first = 2 // the first result
	disclosed := func(name, what, content string, more []string, want verdict) tamperCase {
		return tamperCase{name, what, func(s *spoiled) verdict {
			dir := filepath.Join(filepath.Dir(s.dir), "evidence")
			check(os.Mkdir(dir, 0o755))
			if content != "" {
				salt := make([]byte, 32)
				salt[0] = 1
				s.put(filepath.Join(dir, parse(s.Leaves[first]).field("evidence")), append(salt, content...))
			}
			s.run = audits("DST/log", append([]string{"--disclosed", "DST/evidence"}, more...)...)
			return want
		}}
	}
	return []tamperCase{
		disclosed("18-digest-mismatch", "the evidence that is disclosed is not what the result commits to", "f", nil, found(first, "evidence_mismatch")),
		disclosed("18-not-evidence", "what an affirming result commits to is no evidence", "e", nil, found(first, "false_result")),
		disclosed("18-withheld", "evidence is withheld, and who asks wants it all", "", []string{"--require-disclosed"}, undecided(first, "evidence_withheld")),
	}
}

// former is the log of the incarnation before, to its end.
func (s *spoiled) former() {
	s.Leaves = s.Leaves[:s.first(0, "recovery")]
	s.State = s.Replayed(s.Leaves)
	s.seal("alpha/n1", "beta/n1 again")
}
