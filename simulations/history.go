package simulations

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
)

const (
	// callWithin is a little more than a node may take to say that it has no answer.
	callWithin = 25 * time.Second
	// thinkAtMost bounds a client's pause between two operations.
	thinkAtMost = 600 * time.Millisecond
	// beyond is a base that no mesh reaches.
	beyond = 1 << 40
	// checkWithin bounds the search for a linearization.
	checkWithin = time.Minute
)

// access is one operation of a client on the base of the ordered policy.
type access struct {
	swap    bool
	base    uint64 // that a swap binds
	release string // that a swap allows
}

// answer is its outcome.
type answer struct {
	accepted bool   // a swap that took effect
	unknown  bool   // a swap of which nobody knows
	base     uint64 // what a refused swap or a read found
}

// base is the sequential behaviour that histories are held against.
func base() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return uint64(0) },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(uint64), input.(access), output.(answer)
			switch {
			case out.unknown && now != in.base:
				return true, now
			case out.unknown || out.accepted:
				return now == in.base, now + 1
			}
			return out.base == now && !(in.swap && in.base == now), now
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
	}
}

// History is what clients saw.
type History struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation // guarded by mu
	acked []string              // guarded by mu; releases of accepted swaps
	open  int                   // guarded by mu; swaps without an outcome
}

func newHistory(start time.Time) *History { return &History{start: start} }

// Len returns how many operations there are, and how many of them have no outcome.
func (h *History) Len() (ops, open int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops), h.open
}

// Check says whether the history is linearizable; nil means that it is. It must not run in
// a bubble: the clock of its time-out would stand still while it computes.
func (h *History) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if got := porcupine.CheckOperationsTimeout(base(), h.ops, checkWithin); got != porcupine.Ok {
		return fmt.Errorf("a history of %d operations, %d without outcome, is %s, want %s", len(h.ops), h.open, got, porcupine.Ok)
	}
	return nil
}

func (h *History) acknowledged() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.acked...)
}

func (h *History) add(client int, a access, out answer, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: a, Output: out,
		Call: from.Sub(h.start).Nanoseconds(), Return: to.Sub(h.start).Nanoseconds()}
	if out.unknown {
		op.Return = math.MaxInt64 // it may take effect at any later time
		h.open++
	}
	if out.accepted {
		h.acked = append(h.acked, a.release)
	}
	h.ops = append(h.ops, op)
}

// clients are the users of one mesh.
type clients struct {
	world   *world
	hosts   []*host // those that ran when the clients came
	orgs    []string
	history *History
	done    chan struct{}
	all     sync.WaitGroup
}

func startClients(w *world, h *History, n int) *clients {
	c := &clients{world: w, hosts: w.running(), history: h, done: make(chan struct{})}
	for _, o := range w.genesis.Organisations {
		c.orgs = append(c.orgs, string(o.ID))
	}
	seed := w.rnd.Uint64()
	for id := range n {
		rnd := rand.New(rand.NewPCG(seed, uint64(id)))
		c.all.Go(func() { c.work(id, rnd) })
	}
	return c
}

// stop lets every client finish what it does.
func (c *clients) stop() {
	close(c.done)
	c.all.Wait()
}

// work does one operation after another at random nodes.
func (c *clients) work(id int, rnd *rand.Rand) {
	var seen uint64 // the newest base this client saw
	mine := ""      // the release that it allowed last
	for n := 0; ; n++ {
		select {
		case <-c.done:
			return
		case <-time.After(time.Duration(1 + rnd.Int64N(int64(thinkAtMost)))):
		}
		h := c.hosts[rnd.IntN(len(c.hosts))]
		if !h.up() {
			continue
		}
		a := access{swap: rnd.IntN(2) == 0, base: seen, release: fmt.Sprintf("client %d release %d", id, n)}
		if !a.swap {
			a.base = beyond
		}
		from := time.Now()
		out, ok := c.do(h, a, mine)
		if !ok {
			continue
		}
		c.history.add(id, a, out, from, time.Now())
		switch {
		case out.accepted:
			seen, mine = a.base+1, a.release
		case !out.unknown:
			seen = out.base
		}
	}
}

// do runs one access at a node; false if it is no part of the history.
func (c *clients) do(h *host, a access, mine string) (answer, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	if !a.swap && c.world.opts.StaleReads {
		v, err := h.policy(ctx)
		return answer{base: v.Base}, err == nil
	}
	raw, err := c.request(a, mine)
	if err != nil {
		return answer{}, false
	}
	_, err = h.propose(ctx, raw)
	var no *refusedError
	switch {
	case err == nil && a.swap:
		return answer{accepted: true}, true
	case errors.As(err, &no):
		found, ok := baseIn(no)
		return answer{base: found}, ok
	}
	return answer{unknown: true}, a.swap
}

// request is the proposal of an access: a new release comes, the client's last one goes,
// so that the policy does not grow.
func (c *clients) request(a access, mine string) ([]byte, error) {
	action, err := add(a.release)
	if err != nil {
		return nil, err
	}
	actions := []consensus.Action{action}
	if mine != "" {
		actions = append(actions, remove(mine))
	}
	return c.world.proposal(a.release, a.base, c.orgs, actions...)
}

// lastNumber is the base that a refusal wants.
var lastNumber = regexp.MustCompile(`(\d+)$`)

// baseIn returns the base that a refusal tells.
func baseIn(no *refusedError) (uint64, bool) {
	switch attest.Code(no.code) {
	case attest.CodeStaleBase, attest.CodeBehind:
		n, err := strconv.ParseUint(lastNumber.FindString(no.message), 10, 64)
		return n, err == nil
	}
	return 0, false
}
