package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

const (
	admitDeadline = 40 * time.Second
	evictDeadline = 40 * time.Second
	// evictionLimit is what every node that hears the mesh promises (DESIGN §2, 4).
	evictionLimit = 5 * time.Second
)

type policyView struct {
	Thresholds struct {
		Narrow int `json:"narrow"`
		Widen  int `json:"widen"`
	} `json:"thresholds"`
}

type proposalView struct {
	ID            string   `json:"id"`
	Class         string   `json:"class"`
	Epoch         uint64   `json:"epoch"`
	Organisations []string `json:"organisations"`
}

// ballot is one change of the allowed set, from draft to order.
type ballot struct {
	name    string // of its files
	class   string
	action  map[string]any
	through node   // the node that orders it
	except  string // an organisation that is not asked
}

// vote drafts a change on the present base, has as many organisations sign it as the
// policy of the mesh demands, each offline with its own key, and has it ordered.
func (d *director) vote(b ballot) (proposalView, []string, error) {
	var out proposalView
	if err := os.MkdirAll(d.lay.policy(""), 0o700); err != nil {
		return out, nil, err
	}
	var policy policyView
	if err := d.run.runJSON(d.ctx, &policy, d.meshnode("policy", "show", "--node", d.lay.socket(b.through), "--json")...); err != nil {
		return out, nil, err
	}
	need := map[string]int{"widen": policy.Thresholds.Widen, "narrow": policy.Thresholds.Narrow}[b.class]
	approvers, err := d.plan.approvers(need, b.except)
	if err != nil {
		return out, nil, err
	}
	draft := d.meshnode("policy", "show", "--node", d.lay.socket(b.through), "--draft")
	frame, err := d.run.run(d.ctx, draft...)
	if err != nil {
		return out, nil, err
	}
	text, err := fillDraft(frame, b.action)
	if err != nil {
		return out, nil, fmt.Errorf("fill the frame that %s printed: %w", quoteCommand(draft), err)
	}
	from, to := d.lay.policy(b.name+".yaml"), d.lay.policy(b.name+".json")
	if err := os.WriteFile(from, text, 0o600); err != nil {
		return out, nil, err
	}
	hand := []string{quoteCommand(draft) + " > " + quote(from) + "   # then fill in its actions"}
	for _, org := range approvers {
		approve := d.meshnode("policy", "approve", from, "--key", d.lay.key(org, "govern"), "-o", to)
		if _, err := d.run.run(d.ctx, approve...); err != nil {
			return out, nil, err
		}
		hand = append(hand, quoteCommand(approve))
		from = to
	}
	propose := d.meshnode("policy", "propose", to, "--node", d.lay.socket(b.through), "--json")
	if err := d.run.runJSON(d.ctx, &out, propose...); err != nil {
		return out, nil, err
	}
	// A seat that forwarded the proposal to its leader says only that it was ordered.
	if out.Class == "" {
		out.Class, out.Organisations = b.class, approvers
	}
	if out.Class != b.class || len(out.Organisations) < need {
		return out, nil, fmt.Errorf("proposal %s: got class %s signed by %v, want %s signed by %d organisations", out.ID, out.Class, out.Organisations, b.class, need)
	}
	return out, append(hand, quoteCommand(propose)), nil
}

// fillDraft puts one action into the frame of a proposal and leaves the rest as it is.
func fillDraft(frame []byte, action map[string]any) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(frame, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is no mapping")
	}
	var actions yaml.Node
	if err := actions.Encode([]any{action}); err != nil {
		return nil, err
	}
	pairs := doc.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i].Value == "actions" {
			pairs[i+1] = &actions
			return yaml.Marshal(&doc)
		}
	}
	return nil, errors.New("it has no key actions")
}

// admit has the newcomer's measurement voted in; the very process that was denied enters.
func (d *director) admit() error {
	n := d.plan.newcomer
	pid := d.proc(n.ref()).pid
	ordered, hand, err := d.vote(ballot{name: "admit", class: "widen", through: d.plan.founders[0],
		action: map[string]any{"add_entry": entrySpec{"sim", d.measurements[n.release], d.plan.roles(n.release)}}})
	if err != nil {
		return err
	}
	if err := d.awaitNode(n, "its admission", admitDeadline, func(v nodeView) (bool, string) { return v.Phase == "member", "" }); err != nil {
		return err
	}
	p := d.proc(n.ref())
	if !p.alive() || p.pid != pid {
		return fmt.Errorf("%s: want the process that was denied (pid %d), it is %s", n.ref(), pid, p.fate())
	}
	verdict := ""
	for _, f := range d.plan.founders {
		if err := d.awaitNode(f, "its connection with "+n.ref(), admitDeadline, func(v nodeView) (bool, string) {
			peer, ok := v.peer(n.ref())
			verdict = peer.Verdict
			return ok && peer.State == "connected", fmt.Sprintf("%s is %q there", n.ref(), peer.State)
		}); err != nil {
			return err
		}
	}
	d.report.Admitted = append(d.report.Admitted, Fate{Node: n.ref(), Measurement: d.measurements[n.release], Code: verdict})
	d.say.step(fmt.Sprintf("proposed by vote (%s, signed by %s); the same process, pid %d, is admitted",
		ordered.Class, strings.Join(ordered.Organisations, " "), pid), hand...)
	return nil
}

// revoke has the older release voted out while rounds go on.
func (d *director) revoke() error {
	evicted, _ := d.find(d.plan.evicted)
	p := d.proc(evicted.ref())
	through := d.plan.founders[0]
	ordered, hand, err := d.vote(ballot{name: "revoke", class: "narrow", through: through, except: evicted.org,
		action: map[string]any{"remove_entry": map[string]string{"measurement": d.measurements[evicted.release]}}})
	if err != nil {
		return err
	}
	var why reason
	if err := d.awaitNode(evicted, "its refusal", evictDeadline, func(v nodeView) (bool, string) {
		r, ok := v.refusal()
		why = r
		return ok && v.Phase == "refused", ""
	}); err != nil {
		return err
	}
	if want := "revoked"; why.Code != want {
		return fmt.Errorf("%s must be refused with code %s, got %q (%s)", evicted.ref(), want, why.Code, why)
	}
	if !p.alive() {
		return fmt.Errorf("%s must stay alive, it is %s", evicted.ref(), p.fate())
	}
	d.report.Evicted = append(d.report.Evicted, Fate{evicted.ref(), d.measurements[evicted.release], why.Code, why.Got, why.Want, why.Remedy})
	if err := d.closings(evicted.ref()); err != nil {
		return err
	}
	d.say.step(fmt.Sprintf("release older revoked by vote (%s, signed by %s); %s is cut off, lives (pid %d) and is refused",
		ordered.Class, strings.Join(ordered.Organisations, " "), evicted.ref(), p.pid), hand...)
	d.say.detail("code   %s\nremedy %s", why.Code, why.Remedy)
	d.say.detail("from decision to closed, by each node's own record: %s", d.closingTimes())
	d.say.detail("%s", d.hand("status", "--node", d.lay.socket(evicted)))
	return d.departed(evicted.ref())
}

// closings reads, from every surviving node's own record, how long it took from the
// decision until the link to the evicted node was down. A node that hears of the decision
// late has a short record all the same, so the limit is held against the first decision
// that any node recorded; they share this machine's clock.
func (d *director) closings(evicted string) error {
	var decided time.Time
	closed := map[string]time.Time{}
	for _, n := range d.survivors() {
		if err := d.awaitNode(n, "its record of closing "+evicted, evictDeadline, func(v nodeView) (bool, string) {
			c, ok := v.closing(evicted)
			if ok {
				closed[n.ref()] = c.Closed
				d.report.EvictionMS[n.ref()] = milliseconds(c.Closed.Sub(c.Decided))
				if decided.IsZero() || c.Decided.Before(decided) {
					decided = c.Decided
				}
			}
			return ok, "no record"
		}); err != nil {
			return err
		}
	}
	for _, n := range d.survivors() {
		if took := closed[n.ref()].Sub(decided); took < 0 || took > evictionLimit || d.report.EvictionMS[n.ref()] < 0 {
			return fmt.Errorf("%s closed its link to %s %.1f ms after the first node's decision (%.1f ms after its own), want 0 to %d",
				n.ref(), evicted, milliseconds(took), d.report.EvictionMS[n.ref()], evictionLimit.Milliseconds())
		}
	}
	return nil
}

func milliseconds(t time.Duration) float64 { return round(float64(t.Microseconds())/1000, 3) }

func (d *director) closingTimes() string {
	worst := 0.0
	var out []string
	for _, n := range d.survivors() {
		ms := d.report.EvictionMS[n.ref()]
		worst = max(worst, ms)
		out = append(out, fmt.Sprintf("%s %.1f", n.ref(), ms))
	}
	return fmt.Sprintf("%s ms; longest %.1f ms", strings.Join(out, ", "), worst)
}

// departed waits until every surviving seat has a Raft configuration without the evicted.
func (d *director) departed(evicted string) error {
	for _, n := range d.survivors() {
		if !n.seat {
			continue
		}
		if err := d.awaitNode(n, "a Raft configuration without "+evicted, evictDeadline, func(v nodeView) (bool, string) {
			return len(v.Raft.Voters) > 0 && !slices.Contains(v.Raft.Voters, evicted), "voters " + strings.Join(v.Raft.Voters, " ")
		}); err != nil {
			return err
		}
	}
	d.say.step(evicted + " has left the Raft configuration on every surviving seat")
	return nil
}

// writeStatuses keeps what every node says of itself; a dead one says nothing, and that
// answer is kept for it.
func (d *director) writeStatuses(ctx context.Context) error {
	for _, n := range d.plan.all() {
		out, err := d.run.run(ctx, d.meshnode("status", "--node", d.lay.socket(n), "--json")...)
		if err != nil && (n.ref() != d.killed || len(bytes.TrimSpace(out)) == 0) {
			return err
		}
		if err := os.WriteFile(d.lay.status(n), out, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// keepEvidence keeps the nodes' statuses beside their logs after a failure, as far as
// they answer.
func (d *director) keepEvidence() {
	ctx, cancel := context.WithTimeout(d.parent, readyDeadline)
	defer cancel()
	for _, n := range d.plan.all() {
		if p := d.proc(n.ref()); p == nil || !p.alive() {
			continue
		}
		if out, err := d.run.run(ctx, d.meshnode("status", "--node", d.lay.socket(n), "--json")...); err == nil {
			_ = os.WriteFile(d.lay.status(n), out, 0o600) // what failed matters more
		}
	}
}

// round rounds to digits decimals.
func round(x float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(x*p) / p
}

// ask is status without a wait, for claims that must hold at once.
func (d *director) ask(n node) (nodeView, error) {
	ctx, cancel := context.WithTimeout(d.ctx, readyDeadline)
	defer cancel()
	return d.status(ctx, n)
}
