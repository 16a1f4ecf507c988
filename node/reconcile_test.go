package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/identity"
)

// planOf makes a plan from words: "a" is a voter that holds a's seat, "a'" the boot after it.
// Of a server: - no link, n non-voter, r retired, e evicted (neither wanted nor retired), c may
// take the seat, w waited for long. holders and candidates are all live unless marked -.
func planOf(servers, holders, candidates string) plan {
	p := plan{expected: map[identity.OrgID]bool{}}
	org := func(name string) identity.OrgID { return identity.OrgID(name[:1]) }
	split := func(word string) (string, string) {
		name, marks, _ := strings.Cut(word, ":")
		return name, marks
	}
	hold := strings.Fields(holders)
	for _, word := range strings.Fields(servers) {
		name, marks := split(word)
		has := func(m string) bool { return strings.Contains(marks, m) }
		p.servers = append(p.servers, server{Server: replica.Server{Peer: identity.PeerID(name), Voter: !has("n")}, org: org(name),
			holds:  slices.ContainsFunc(hold, func(h string) bool { n, _ := split(h); return n == name }),
			learns: has("c"), retired: has("r"), live: !has("-"), waited: has("w")})
	}
	list := func(words string) (out []wanted) {
		for _, word := range strings.Fields(words) {
			name, marks := split(word)
			out = append(out, wanted{peer: identity.PeerID(name), org: org(name), live: marks != "-"})
		}
		return out
	}
	p.holders, p.candidates = list(holders), list(candidates)
	return p
}

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		servers, holders, candidates string
		want                         string
	}{
		"nothing to do":                                {"a b c", "a b c", "", ""},
		"a candidate":                                  {"a b c:r-", "a b", "c'", "non-voter added c'"},
		"a candidate that is not linked":               {"a b c:r-", "a b", "c':-", ""},
		"a candidate that learns":                      {"a b c:r- c':nc", "a b", "c'", ""},
		"ready":                                        {"a b c:r- c':nc", "a b c'", "", "voter added c'"},
		"ready and not linked":                         {"a b c:r- c':nc-", "a b c':-", "", ""},
		"the older server":                             {"a b c:r- c'", "a b c'", "", "server removed c"},
		"ready and in no configuration":                {"a b c:r-", "a b c'", "", "non-voter added c'"},
		"ready while too few live":                     {"a b:- c:r- c':n", "a b c'", "", "server removed c"},
		"ready, and the configuration would be larger": {"a b:- c':n", "a b c'", "", "voter added c'"},
		"evicted":                                      {"a b c:e", "a b", "", "server removed c"},
		"evicted, with a candidate":                    {"a b c:e", "a b", "c'", "server removed c"},
		"retired, nobody comes":                        {"a b c:r-", "a b", "", "server removed c"},
		"retired, nobody has come for long":            {"a b c:rw-", "a b", "c'", "server removed c"},
		"retired of four, where it helps":              {"a b c d:r-", "a b c", "d'", "server removed d"},
		"retired of five, where it does not":           {"a b c d e:r-", "a b c d", "e'", "non-voter added e'"},
		"two retired of five":                          {"a b c d:r- e:r-", "a b c", "d' e'", "non-voter added d'"},
		"a learner that lost its claim":                {"a b c x:n", "a b c", "", "server removed x"},
		"another node of the organisation":             {"a b c:e c2:nc", "a b c2", "", "voter added c2"},
		"the first of two":                             {"a b:e", "a b'", "", "non-voter added b'"},
		"candidates of one organisation":               {"a b c1:nc c2:nc", "a b", "c1 c2 c3 d'", "non-voter added d'"},
		"a third candidate":                            {"a b c1:nc c2:nc", "a b", "c1 c2 c3", ""},
		"a third where one is not linked":              {"a b c1:nc- c2:nc", "a b", "c1:- c2 c3", "server removed c1"},
		"drained of two":                               {"a b:e", "a", "", "server removed b"},
		"back to two":                                  {"a b':nc", "a b'", "", "voter added b'"},
	} {
		t.Run(name, func(t *testing.T) {
			what, peer, ok := planOf(tc.servers, tc.holders, tc.candidates).next()
			got := ""
			if ok {
				got = fmt.Sprintf("%s %s", what, string(peer))
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	full := planOf("a b c:r-", "a b", "c'")
	for i := range maxLearners {
		full.servers = append(full.servers, server{Server: replica.Server{Peer: identity.PeerID(fmt.Sprint("l", i))}, learns: true})
	}
	if what, _, ok := full.next(); ok {
		t.Errorf("%s beyond the limit of non-voters", what)
	}
}

// From any configuration the plan leads to one voter per holder and nobody else, whoever
// leads and wherever the one before stopped; and never are two voters of one organisation
// listened to, since only one of them holds the seat.
func TestPlanConverges(t *testing.T) {
	for _, start := range []string{"a b c:r- c'", "a b c:r- c':n", "a b c:e c':n", "a b c x:n c'", "a:r- a' b c", "a:e b c a':n"} {
		p := planOf(start, "a' b' c'", "")
		for i := range p.holders { // unprimed where the start has no other
			if !strings.Contains(start, string(p.holders[i].peer)) {
				p.holders[i].peer = p.holders[i].peer[:1]
			}
		}
		for i := range p.servers {
			p.servers[i].holds = slices.ContainsFunc(p.holders, func(h wanted) bool { return h.peer == p.servers[i].Peer })
		}
		for steps := 0; ; steps++ {
			what, peer, ok := p.next()
			if !ok {
				break
			}
			i := slices.IndexFunc(p.servers, func(s server) bool { return s.Peer == peer })
			switch what {
			case addLearner:
				p.servers = append(p.servers, server{Server: replica.Server{Peer: peer}, org: identity.OrgID(peer[:1]), holds: true, live: true})
			case addVoter:
				p.servers[i].Voter = true
			case removeServer:
				p.servers = slices.Delete(p.servers, i, i+1)
			}
			if steps > 10 {
				t.Fatalf("%s: no end", start)
			}
		}
		if len(p.servers) != 3 || p.voters() != 3 || p.live() != 3 {
			t.Errorf("%s: ends in %+v", start, p.servers)
		}
	}
}
