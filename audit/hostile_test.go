package audit

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

var (
	hostileSeed  = flag.Uint64("hostile.seed", 0, "begins the random histories of TestHostilePublisher; 0 for one from the clock")
	hostileTries = flag.Int("hostile.tries", 60, "how many random histories TestHostilePublisher makes")
)

// hostile makes false histories of a log out of its own leaves, with every key there is.
type hostile struct {
	*rand.Rand
	m      *mesh
	labels map[string]string // of keys, by their id
	values map[string][]string
	others [][]byte // leaves of another mesh of the same organisations
}

// newHostile begins with Complete, or with its first incarnation: a Recovery would show every
// change before it.
func newHostile(t *testing.T, seed uint64, recovered bool) *hostile {
	h := &hostile{Rand: rand.New(rand.NewPCG(seed, 0)), m: &mesh{*audittest.Complete(), t}, labels: map[string]string{}, values: map[string][]string{}}
	h.m.Grow(len(h.m.Leaves) + 10)
	if !recovered {
		h.m.Leaves = slices.Clip(h.m.Leaves[:h.m.Find(envelope.TypeRecovery)[0]])
		h.m.State = h.m.Replayed(h.m.Leaves)
	}
	for _, org := range []string{"alpha", "beta", "gamma", "delta"} {
		for _, label := range []string{"govern", "enroll", "emergency", "enroll 2", "n1 peer", "n1 again peer", "n1 reborn peer", "n2 peer"} {
			sep := " "
			if strings.HasPrefix(label, "n") {
				sep = "/"
			}
			label = org + sep + label
			h.labels[audittest.KeyID(label)] = label
		}
	}
	for _, leaf := range h.m.Leaves {
		for _, m := range jsonString.FindAllStringSubmatch(string(payloadOf(h.m, leaf)), -1) {
			if !slices.Contains(h.values[m[1]], m[2]) {
				h.values[m[1]] = append(h.values[m[1]], m[2])
			}
		}
	}
	h.others = audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) { g.Name = "another" }}).Start().Leaves
	return h
}

var (
	jsonString = regexp.MustCompile(`"([a-z_]+)":"([^"\\]*)"`)
	jsonNumber = regexp.MustCompile(`"([a-z_]+)":([0-9]+)[,}]`)
)

// history returns a copy of the leaves in which one to three things were changed, and which.
func (h *hostile) history() ([][]byte, string) {
	leaves, all := slices.Clone(h.m.Leaves), []string{}
	for range 1 + h.IntN(3)/2*(1+h.IntN(2)) {
		var what string
		leaves, what = h.changed(leaves)
		all = append(all, what)
	}
	return leaves, strings.Join(all, ", ")
}

func (h *hostile) changed(leaves [][]byte) ([][]byte, string) {
	n := len(leaves)
	i, j := h.IntN(n), h.IntN(n)
	switch h.IntN(10) {
	case 0:
		leaves[i], leaves[j] = leaves[j], leaves[i]
		return leaves, fmt.Sprintf("leaves %d and %d are exchanged", i, j)
	case 1:
		i = min(i, n-2)
		leaves[i], leaves[i+1] = leaves[i+1], leaves[i]
		return leaves, fmt.Sprintf("leaves %d and %d are exchanged", i, i+1)
	case 2:
		return slices.Delete(leaves, i, i+1), fmt.Sprintf("leaf %d is gone", i)
	case 3:
		return slices.Insert(leaves, j, leaves[i]), fmt.Sprintf("leaf %d stands before leaf %d too", i, j)
	case 4:
		leaf := leaves[i]
		leaves = slices.Delete(leaves, i, i+1)
		return slices.Insert(leaves, min(j, n-1), leaf), fmt.Sprintf("leaf %d moves to %d", i, j)
	case 5:
		k := h.IntN(len(h.others))
		return slices.Insert(leaves, j, h.others[k]), fmt.Sprintf("leaf %d of another mesh stands before leaf %d", k, j)
	case 6:
		label := h.anyLabel()
		e := h.parse(leaves[i])
		leaves[i] = audittest.Sign(e.Payload, label)
		return leaves, fmt.Sprintf("leaf %d is signed by %s alone", i, label)
	case 7:
		e := h.parse(leaves[i])
		if len(e.Signatures) > 0 {
			k := h.IntN(len(e.Signatures))
			e.Signatures = slices.Delete(e.Signatures, k, k+1)
		}
		leaves[i] = e.Marshal()
		return leaves, fmt.Sprintf("leaf %d lacks a signature", i)
	case 8:
		return h.edited(leaves, i, jsonNumber, func(_, was string) string {
			v, _ := strconv.Atoi(was)
			return strconv.Itoa(max(0, v+[]int{-1, 1, 1000}[h.IntN(3)]))
		})
	}
	return h.edited(leaves, i, jsonString, func(name, _ string) string { return h.values[name][h.IntN(len(h.values[name]))] })
}

func (h *hostile) anyLabel() string {
	var all []string
	for _, l := range h.labels {
		all = append(all, l)
	}
	slices.Sort(all)
	return all[h.IntN(len(all))]
}

func (h *hostile) parse(leaf []byte) *envelope.Envelope {
	e, err := envelope.Parse(leaf)
	h.m.check(err)
	return e
}

// edited changes one value in a leaf's statement and signs it again by all who had signed it.
func (h *hostile) edited(leaves [][]byte, i int, field *regexp.Regexp, to func(name, was string) string) ([][]byte, string) {
	e := h.parse(leaves[i])
	all := field.FindAllSubmatchIndex(e.Payload, -1)
	if len(all) == 0 {
		return leaves, "nothing is changed"
	}
	at := all[h.IntN(len(all))]
	name, was := string(e.Payload[at[2]:at[3]]), string(e.Payload[at[4]:at[5]])
	value := to(name, was)
	payload := slices.Concat(e.Payload[:at[4]], []byte(value), e.Payload[at[5]:])
	if len(e.Signatures) == 0 {
		leaves[i] = (&envelope.Envelope{Payload: payload}).Marshal()
		return leaves, fmt.Sprintf("leaf %d says %s %s", i, name, value)
	}
	var labels []string
	for _, s := range e.Signatures {
		label, ok := h.labels[s.KeyID]
		if !ok {
			h.m.t.Fatalf("leaf %d is signed by a key without a label", i)
		}
		labels = append(labels, label)
	}
	leaves[i] = audittest.Sign(payload, labels...)
	return leaves, fmt.Sprintf("leaf %d says %s %s, signed by %v", i, name, value, labels)
}

// ordered is what seats say of a history: they order each of its leaves by the rules of Apply, which
// have a clock. It returns the first leaf that they would not have written, or -1. Rounds are left to
// the auditor: they follow from commands of jobs that are no leaves.
func (h *hostile) ordered(leaves [][]byte) (at int, why string) {
	defer func() {
		if r := recover(); r != nil { // of audittest: no tick can be ordered
			why = fmt.Sprint(r)
		}
	}()
	m := h.m.Mesh
	m.State, m.Leaves = consensus.NewState(m.Genesis), nil
	m.At = audittest.CompleteAt.Add(5 * time.Minute) // no leaf is further than ClockSkew from it, or expires before
	apply := func(kind consensus.Kind, raw ...[]byte) (consensus.Outcome, string) {
		c, err := consensus.NewCommand(kind, raw...)
		if err != nil {
			return consensus.Outcome{}, err.Error()
		}
		if err := consensus.CheckResults(c); err != nil { // as every follower does before it stores them
			return consensus.Outcome{}, err.Error()
		}
		out := m.State.Apply(c)
		if out.Reason != nil {
			return out, out.Reason.String()
		}
		return out, ""
	}
	if len(leaves) < 2 || !bytes.Equal(leaves[0], m.Genesis.Raw()) {
		return 0, "not the genesis"
	}
	if _, why := apply(consensus.KindBootstrap, leaves[0], leaves[1]); why != "" {
		return 1, why
	}
	kinds := map[string]consensus.Kind{envelope.TypeCredential: consensus.KindCredential, envelope.TypeAttestationResult: consensus.KindResults,
		envelope.TypeProposal: consensus.KindProposal, envelope.TypeSuspension: consensus.KindSuspension, envelope.TypeSuspensionLift: consensus.KindLift,
		envelope.TypeWithdrawal: consensus.KindWithdrawal, envelope.TypeReady: consensus.KindReady, envelope.TypeDrain: consensus.KindDrain, envelope.TypeRetirement: consensus.KindRetirement}
	var derived [][]byte
	m.Tick(0)
	for at = 2; at < len(leaves); at++ {
		leaf := leaves[at]
		if len(derived) > 0 {
			if !bytes.Equal(leaf, derived[0]) {
				return at, "not what follows"
			}
			derived = derived[1:]
			continue
		}
		kind := consensus.ParseLeaf(leaf).Kind()
		switch kind {
		case envelope.TypeRound:
			continue
		case envelope.TypeState:
			if _, err := m.State.Replay(leaf); err != nil { // of its digest no leaf tells
				return at, err.Error()
			}
			continue
		case envelope.TypeRecovery:
			if at+1 == len(leaves) {
				return at, "no Bootstrap"
			}
			if err := m.State.Recover(leaf, audittest.Place(leaves[:at]), m.At); err != nil {
				return at, err.Error()
			}
			if _, why := apply(consensus.KindRecovery, leaf, leaves[at+1]); why != "" {
				return at + 1, why
			}
			at++
			m.Tick(0)
			continue
		}
		command, ok := kinds[kind]
		if !ok {
			return at, "no command makes a leaf of kind " + kind
		}
		m.Tick(0) // a new window of quotas
		out, why := apply(command, leaf)
		if why != "" {
			return at, why
		}
		if len(out.Leaves) == 0 || !bytes.Equal(out.Leaves[0], leaf) {
			return at, "nothing new"
		}
		derived = out.Leaves[1:]
	}
	return -1, ""
}

// Whatever a majority that has every key makes of a log: an auditor finds it, at the leaf that seats
// would not have ordered, or it is a history that honest seats could have written, and then an
// auditor finds nothing.
func TestHostilePublisher(t *testing.T) {
	seed := *hostileSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for _, recovered := range []bool{false, true} {
		newHostile(t, seed, recovered).try(seed, *hostileTries/2)
	}
}

func (h *hostile) try(seed uint64, tries int) {
	t := h.m.t
	if at, why := h.ordered(h.m.Leaves); at >= 0 {
		t.Fatalf("the honest log: leaf %d: %s", at, why)
	}
	lies, honest := 0, 0
	for try := range tries {
		leaves, what := h.history()
		at, why := h.ordered(leaves)
		m := *h.m
		m.Leaves = leaves
		r := m.audit(m.publish(m.Cosigners()...))
		first := -1
		for _, f := range r.Findings {
			if f.Index < r.Size && (consensus.ParseLeaf(leaves[f.Index]).Kind() != envelope.TypeRound || f.Code == CodeDerivedMissing) {
				first = int(f.Index)
				break
			}
		}
		switch {
		case at < 0:
			honest++
			if first >= 0 {
				t.Errorf("-hostile.seed %d, try %d: %s: seats would have written it; found %s", seed, try, what, codes(r))
			}
		case r.OK:
			t.Errorf("-hostile.seed %d, try %d: %s: nothing found; seats refuse leaf %d: %s", seed, try, what, at, why)
		case first != at && first >= 0:
			t.Errorf("-hostile.seed %d, try %d: %s: found %s; seats refuse leaf %d: %s", seed, try, what, codes(r), at, why)
		default:
			lies++
		}
	}
	t.Logf("%d lies found, %d histories that could have been", lies, honest)
	if lies < tries/3 {
		t.Errorf("%d lies in %d tries", lies, tries)
	}
}
