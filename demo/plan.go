package demo

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
)

// The three executables of the story. All are this program; what differs is a build stamp
// behind the last byte, hence the measurement.
const (
	releaseCurrent = "current"
	releaseOlder   = "older"
	releaseNext    = "next"
)

// Bounds of the options.
const (
	minNodes  = 5
	maxNodes  = 7
	minRounds = 3
	// maxRounds keeps a slip of the finger from becoming a day of training.
	maxRounds = 500
	// maxSocketPath is what fits into sockaddr_un with its final zero byte.
	maxSocketPath = 107
)

// seed makes data, partition and training the same in every run.
const seed = 1

// organisations in the order of their founding.
var organisations = [...]string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"}

// node is one node of the story, as planned before anything starts.
type node struct {
	org, name string
	roles     []string
	release   string
	seat      bool
	part      int // its part of the training data
}

// ref is the stable name "org/name".
func (n node) ref() string { return n.org + "/" + n.name }

// plan says who takes part in the story. It is a function of --nodes alone.
type plan struct {
	orgs     []string
	founders []node // all start together; one seat for each organisation first, in order
	newcomer node   // runs an executable nobody approved
	evicted  string // ref of the founder that runs the older release
}

// newPlan plans the story for five to seven founding nodes. Seats are one for each
// organisation, and five and seven are the seat counts with a real majority to spare, so
// six nodes are five organisations of which the first also runs a trainer without a seat.
func newPlan(nodes int) plan {
	orgs := organisations[:nodes]
	if nodes == 6 {
		orgs = organisations[:5]
	}
	p := plan{orgs: orgs}
	for _, org := range orgs {
		p.founders = append(p.founders, node{org: org, name: "n1", roles: []string{"seat", "trainer", "aggregator"},
			release: releaseCurrent, seat: true, part: len(p.founders)})
	}
	for len(p.founders) < nodes {
		p.founders = append(p.founders, node{org: orgs[0], name: "n2", roles: []string{"trainer"},
			release: releaseCurrent, part: len(p.founders)})
	}
	p.founders[3].release = releaseOlder
	p.evicted = p.founders[3].ref()
	p.newcomer = node{org: orgs[1], name: "n2", roles: []string{"trainer"}, release: releaseNext, part: nodes}
	return p
}

// all returns the founders and then the newcomer.
func (p plan) all() []node { return append(slices.Clone(p.founders), p.newcomer) }

// seats counts the founding seats.
func (p plan) seats() int { return len(p.orgs) }

// of returns the nodes of one organisation.
func (p plan) of(org string) []node {
	var out []node
	for _, n := range p.all() {
		if n.org == org {
			out = append(out, n)
		}
	}
	return out
}

// releases returns the releases that organisation's enroller vouches for.
func (p plan) releases(org string) []string {
	var out []string
	for _, n := range p.of(org) {
		if !slices.Contains(out, n.release) {
			out = append(out, n.release)
		}
	}
	return out
}

// roles returns what nodes that run a release may be.
func (p plan) roles(release string) []string {
	out := []string{"member"}
	for _, n := range p.all() {
		for _, r := range n.roles {
			if n.release == release && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// approvers returns count organisations, in order, none of them except.
func (p plan) approvers(count int, except string) ([]string, error) {
	var out []string
	for _, org := range p.orgs {
		if org != except && len(out) < count {
			out = append(out, org)
		}
	}
	if len(out) < count {
		return nil, fmt.Errorf("the policy wants approvals of %d organisations, there are %d that may give one", count, len(out))
	}
	return out, nil
}

// The pace of a job.
const (
	// votingSeconds is what the mesh is given, after the round at which the vote is
	// prepared, for the vote, the eviction and the change of the Raft configuration,
	// while rounds keep opening; at least one more round must follow.
	votingSeconds = 12
	// samplesPerRound is about how many samples each node trains on in a round: enough
	// to take a visible part of a second, so that a round can be seen open.
	samplesPerRound = 6000
	maxEpochs       = 20
)

// jobPlan is what the size of the data and the number of rounds decide.
type jobPlan struct {
	voteAfter int // the round whose commit starts the vote
	interval  int // least seconds from a commit to the next opening
	epochs    int
}

func newJobPlan(rounds, rows, parts int) jobPlan {
	j := jobPlan{voteAfter: max(1, rounds/3)}
	j.interval = max(1, int(math.Ceil(votingSeconds/float64(rounds-j.voteAfter))))
	j.epochs = min(maxEpochs, max(1, samplesPerRound*parts/max(1, rows)))
	return j
}

// layout names the files of one demo directory (DESIGN §13 "Demo directory").
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l layout) genesis() string                { return l.path("genesis.json") }
func (l layout) genesisSpec() string            { return l.path("genesis.yaml") }
func (l layout) log() string                    { return l.path("log") }
func (l layout) job() string                    { return l.path("job") }
func (l layout) jobSpec() string                { return l.path("job.yaml") }
func (l layout) jobApproved() string            { return l.path("job.json") }
func (l layout) commands() string               { return l.path("demo.log") }
func (l layout) data() string                   { return l.path("data") }
func (l layout) holdout() string                { return l.path("data", "holdout.csv") }
func (l layout) sim() string                    { return l.path("sim") }
func (l layout) simLog() string                 { return l.path("sim", "sim.log") }
func (l layout) policy(name string) string      { return l.path("policy", name) }
func (l layout) enroller(org string) string     { return l.path("enrollers", org) }
func (l layout) key(org, role string) string    { return l.path("keys", org+"-"+role+".pem") }
func (l layout) public(org, role string) string { return l.path("keys", org+"-"+role+".pub") }
func (l layout) releases(org string) string     { return filepath.Join(l.enroller(org), "releases.yaml") }
func (l layout) part(i int) string              { return l.path("data", "node-"+strconv.Itoa(i)+".csv") }
func (l layout) node(n node) string             { return l.path("nodes", n.org+"-"+n.name) }
func (l layout) config(n node) string           { return filepath.Join(l.node(n), "config.yaml") }
func (l layout) socket(n node) string           { return filepath.Join(l.node(n), "meshnode.sock") }
func (l layout) nodeLog(n node) string          { return filepath.Join(l.node(n), "node.log") }
func (l layout) status(n node) string           { return filepath.Join(l.node(n), "status.json") }

// The executables have one name in different directories: a program may look at the name
// it was called by.
func (l layout) exe(release string) string { return l.path("bin", release, "meshnode") }

// longestSocket returns the longest path of a unix socket that the story makes.
func (l layout) longestSocket(p plan) string {
	longest := l.path("sim", "sim.sock")
	for _, n := range p.all() {
		if s := l.socket(n); len(s) > len(longest) {
			longest = s
		}
	}
	return longest
}
