package node

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/attestmesh/meshnode/transparency/tlogwitness"
)

// Outside witnesses see every published checkpoint, so that organisations which together could
// cosign two histories would be found out. The leader shows it to each, after it is published: what
// a witness does or does not do holds up nothing. Who has its cosignature says so in the checkpoint.

const (
	witnessWithin  = 5 * time.Second
	witnessSlowest = 10 * time.Second // between two attempts while it fails
	// witnessAhead is how long a witness may have cosigned more than this node has published: for a
	// moment, after leadership has changed, it may.
	witnessAhead = 30 * time.Second
	maxWitnesses = consensus.MaxWitnesses
)

// shown is how showing the log to one witness goes.
type shown struct {
	size  uint64
	at    time.Time
	err   error
	since time.Time // when err began
	// other is since when it says that it has cosigned another history; zero while it does not.
	other time.Time
}

// witnessed is the newest checkpoint that an outside witness is known to have cosigned.
type witnessed struct {
	size uint64
	at   time.Time
}

// noteWitnessed remembers what the outside witnesses have cosigned of this node's history: one that
// is slow never gets its line onto the newest checkpoint of a log that grows.
func (n *Node) noteWitnessed(v transparency.Verified) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, by := range v.Outside {
		if had := n.witnessed[by.Name]; v.Size > had.size || v.Size == had.size && by.At.After(had.at) {
			if n.witnessed == nil {
				n.witnessed = map[string]witnessed{}
			}
			if len(n.witnessed) < maxWitnesses || had.size > 0 {
				n.witnessed[by.Name] = witnessed{v.Size, by.At}
			}
		}
	}
}

// disagrees reports whether an error of showing the log says that the witness has cosigned another
// history: at once, or if it lasts.
func disagrees(err error) (now, ifLasting bool) {
	var refused *tlogwitness.Refused
	return errors.As(err, &refused) && refused.Disagrees(), errors.Is(err, tlogwitness.ErrAhead)
}

// witnessConflicts are the witnesses that say they have cosigned another history of this log: who has
// its key has shown them one. They cosign nothing here any more; that holds up nothing.
func (n *Node) witnessConflicts() (out []ConflictStatus) {
	if !n.leads() {
		return nil // another seat shows them the log now
	}
	newest, _ := n.lastPublished()
	for _, w := range n.cfg.Witnesses {
		s := n.shownTo(w.Name)
		if s.other.IsZero() {
			continue
		}
		if now, _ := disagrees(s.err); !now && n.now().Sub(s.other) < witnessAhead {
			continue
		}
		out = append(out, ConflictStatus{Code: attest.CodeLogKeyLeaked, Convicted: []string{}, Size: newest.Size, Root: newest.Root.String(), Since: s.other, Witness: w.Name})
	}
	return out
}

// checkWitnesses wants each witness once.
func (c *Config) checkWitnesses() error {
	if len(c.Witnesses) > maxWitnesses {
		return fmt.Errorf("%d witnesses, the limit is %d", len(c.Witnesses), maxWitnesses)
	}
	for i, w := range c.Witnesses {
		if w.Name == "" {
			return errors.New("a witness without a name")
		}
		if slices.ContainsFunc(c.Witnesses[:i], func(o WitnessConfig) bool { return o.Name == w.Name }) {
			return fmt.Errorf("witness %q is listed twice", w.Name)
		}
		u, err := url.Parse(w.URL)
		if err != nil {
			return fmt.Errorf("witness %s: url: %w", w.Name, err)
		}
		if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return fmt.Errorf("witness %s: url: %q is not http(s)://ADDRESS[:PORT][/PATH]", w.Name, w.URL)
		}
	}
	return nil
}

// outsideKeys are the witnesses of the policy. A key that cannot be one counts for nothing.
func (n *Node) outsideKeys() []transparency.Outside {
	var vkeys []string
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { vkeys = s.Witnesses() })
	return transparency.OutsideOf(vkeys)
}

// runOutside shows the log to every witness of the configuration, until ctx ends.
func (n *Node) runOutside(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for _, w := range n.cfg.Witnesses {
		tasks.Go(func() { n.showTo(ctx, w) })
	}
}

// showTo shows the log to one witness while this node leads: each published checkpoint, or the
// newest of those that came while the witness was busy, and one a minute while nothing grows.
func (n *Node) showTo(ctx context.Context, w WitnessConfig) {
	client := witnessClient{config: w, log: n.machine.tree}
	defer client.close()
	var pause time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := n.changed.wait()
		newest, _ := n.lastPublished()
		last := n.shownTo(w.Name)
		due := newest.note != nil && n.leads() && (newest.Size != last.size || n.now().Sub(last.at) >= republishEvery)
		if due {
			err := n.showNewest(ctx, &client, newest)
			if ctx.Err() != nil {
				return
			}
			n.recordShown(w.Name, newest.Size, err)
			if err != nil {
				pause = min(max(time.Second, 2*pause), witnessSlowest)
				timer.Reset(pause)
				changed = nil // what changed does not mend the witness
			} else {
				pause = 0
			}
		}
		if changed != nil {
			timer.Reset(republishEvery)
		}
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) showNewest(ctx context.Context, w *witnessClient, newest published) error {
	ctx, cancel := context.WithTimeout(ctx, witnessWithin)
	defer cancel()
	client, err := w.of(n.outsideKeys())
	if err != nil {
		return err
	}
	note, err := client.Cosign(ctx, newest.note)
	if err != nil {
		return err
	}
	if err := n.acceptCheckpoint(note); err != nil {
		return err
	}
	n.announceCheckpoint(ctx, note)
	return nil
}

// witnessClient is the client of one witness of the configuration, under the key that the policy
// names for it now.
type witnessClient struct {
	config  WitnessConfig
	log     tlogwitness.Log
	present *tlogwitness.Client // nil before the first
}

// of returns the client that believes the witness by its key among keys.
func (w *witnessClient) of(keys []transparency.Outside) (*tlogwitness.Client, error) {
	i := slices.IndexFunc(keys, func(k transparency.Outside) bool { return k.Name() == w.config.Name })
	if i < 0 {
		w.close()
		return nil, unknownWitness(w.config.Name)
	}
	if w.present != nil && w.present.Key() == keys[i].Key() {
		return w.present, nil
	}
	w.close()
	client, err := tlogwitness.New(keys[i], w.config.URL, w.log)
	if err != nil {
		return nil, err
	}
	w.present = client
	return client, nil
}

func (w *witnessClient) close() {
	if w.present != nil {
		w.present.Close()
	}
	w.present = nil
}

func unknownWitness(name string) error {
	return fmt.Errorf("the policy names no witness %q, so that its cosignature would count for nothing", name)
}

// outsideWarnings says which witnesses of the configuration are not shown anything.
func (n *Node) outsideWarnings() (out []string) {
	keys := n.outsideKeys()
	for _, w := range n.cfg.Witnesses {
		if !slices.ContainsFunc(keys, func(k transparency.Outside) bool { return k.Name() == w.Name }) {
			out = append(out, fmt.Sprintf("witnesses: %v; take it out of the configuration, or have the policy name it", unknownWitness(w.Name)))
		}
	}
	return out
}

func (n *Node) shownTo(name string) shown {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shown[name]
}

// recordShown keeps how it went, and tells the operator when that changes.
func (n *Node) recordShown(name string, size uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shown == nil {
		n.shown = map[string]shown{}
	}
	s := n.shown[name]
	switch {
	case err == nil:
		if s.err != nil {
			n.log.Info("the outside witness cosigns again", "witness", name)
		}
		s = shown{size: size, at: n.now()}
	case s.err == nil || s.err.Error() != err.Error():
		if now, lasting := disagrees(err); (now || lasting) && s.other.IsZero() { // until it cosigns again
			s.other = n.now()
			n.log.Error("an outside witness has cosigned another history of this log", "code", attest.CodeLogKeyLeaked, "witness", name, "error", err)
		}
		n.log.Warn("not cosigned by the outside witness", "witness", name, "error", err)
		if s.err == nil {
			s.since = n.now()
		}
		s.err = err
	}
	n.shown[name] = s
}

func (n *Node) outsideStatus() []OutsideStatus {
	newest, _ := n.lastPublished()
	out := []OutsideStatus{}
	for _, w := range n.outsideKeys() {
		o := OutsideStatus{Name: w.Name()}
		for _, by := range newest.Outside {
			if by.Name == w.Name() {
				o.At = &by.At
			}
		}
		n.mu.Lock()
		if last, ok := n.witnessed[w.Name()]; ok {
			o.Size, o.Last = last.size, &last.at
		}
		n.mu.Unlock()
		if s := n.shownTo(w.Name()); s.err != nil && n.leads() {
			o.Error, o.Since = s.err.Error(), &s.since
		}
		out = append(out, o)
	}
	return out
}
