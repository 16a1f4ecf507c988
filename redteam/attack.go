package redteam

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/attestmesh/meshnode/attest"
)

// Status is what became of an attack.
type Status string

// The statuses.
const (
	Held    Status = "held"
	Broken  Status = "broken"
	Skipped Status = "skipped"
)

// Outcome is the report of one attack.
type Outcome struct {
	Attack   string        `json:"attack"`
	Status   Status        `json:"status"`
	Evidence string        `json:"evidence"`
	Codes    []attest.Code `json:"codes,omitempty"` // reason codes that the target sent, in order
	Took     Duration      `json:"seconds"`
}

// Duration is a time in seconds where it is encoded.
type Duration time.Duration

// MarshalJSON encodes seconds.
func (d Duration) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%.3f", time.Duration(d).Seconds()), nil
}

// Needs says what an attack presupposes.
type Needs uint8

// What an attack may need. Accepted stands for Self and an honest attempt that succeeded.
const (
	NeedSelf Needs = 1 << iota
	NeedAccepted
	NeedHTTP
	NeedHTTPS
	NeedSeat
	NeedOlder
	NeedOther
)

// Attack is one thing an outsider would try.
type Attack struct {
	Name  string
	Tries string // what it tries
	Flaw  string // what a flawed node would do
	Needs Needs

	run func(context.Context, *Campaign) Outcome
}

// Precondition says in words what the attack needs.
func (a Attack) Precondition() string {
	switch {
	case a.Needs&NeedHTTP != 0:
		return "a public listener on an address that is the target's"
	case a.Needs&NeedHTTPS != 0:
		return "the endpoint for clients as TARGET, https://HOST:PORT"
	case a.Needs&NeedOlder != 0:
		return "--config, an enroller that lists the red team's node, and a mesh that orders"
	case a.Needs != 0:
		return "--config, an enroller that lists the red team's node, and a target that accepts it"
	}
	return "nothing"
}

// Attacks returns the catalogue in the order in which it is run.
func Attacks() []Attack {
	var out []Attack
	for _, group := range [][]Attack{stockAttacks(), strangerAttacks(), tlsAttacks(), helloAttacks(), evidenceAttacks(),
		orderAttacks(), relayAttacks(), fastAttacks(), streamAttacks(), slowAttacks(), httpAttacks(), endpointAttacks()} {
		out = append(out, group...)
	}
	return out
}

// Campaign is a run of attacks against one target that has shown who it is.
type Campaign struct {
	target  Target
	arsenal Arsenal
	addrs   []string // may be attacked, and proved to be the target
	httpErr error    // why the public listener may not be attacked
	// patience is how long the target may keep a connection that makes no progress.
	patience time.Duration

	accepted  bool
	rejection string // why an honest attempt was refused
	spent     int    // attempts that Self has made
	fresh     int    // identities taken from Arsenal.Fresh
}

// NewCampaign finds out where the target answers and makes sure that it is the target. It
// sends nothing hostile. Errors: ErrNotOurs, ErrUnreachable, or a gap in the arguments.
func NewCampaign(ctx context.Context, t Target, a Arsenal) (*Campaign, error) {
	addrs, err := t.allowed()
	if err != nil {
		return nil, err
	}
	c := &Campaign{target: t, arsenal: a, patience: cutTimeout}
	var errs []error
	for _, addr := range addrs {
		conn, err := dialTLS(ctx, addr, t.Peer, newKey())
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		_ = conn.Close()
		c.addrs = append(c.addrs, addr)
	}
	if len(c.addrs) == 0 {
		return nil, fmt.Errorf("%w as peer %s: %w", ErrUnreachable, t.Peer, errors.Join(errs...))
	}
	c.httpErr = t.httpAllowed(c.addrs)
	return c, nil
}

// Addresses are those that the campaign attacks.
func (c *Campaign) Addresses() []string { return c.addrs }

// Run runs the attacks one after another and calls progress, if set, after each. It ends
// early only with ctx.
func (c *Campaign) Run(ctx context.Context, attacks []Attack, progress func(Outcome)) []Outcome {
	if c.arsenal.Self != nil {
		c.rejection = c.honest(ctx)
		c.accepted = c.rejection == ""
	}
	out := make([]Outcome, 0, len(attacks))
	for _, a := range attacks {
		if ctx.Err() != nil {
			break
		}
		o := c.one(ctx, a)
		if progress != nil {
			progress(o)
		}
		out = append(out, o)
	}
	return out
}

// one runs one attack and looks whether the target serves afterwards.
func (c *Campaign) one(ctx context.Context, a Attack) (o Outcome) {
	begun := time.Now()
	defer func() {
		o.Attack, o.Took, o.Evidence = a.Name, Duration(time.Since(begun)), printable(o.Evidence)
	}()
	if why := c.missing(a.Needs); why != "" {
		return skipped("%s", why)
	}
	attack, cancel := context.WithTimeout(ctx, AttackTimeout)
	defer cancel()
	if err := c.refresh(attack); err != nil {
		return skipped("no fresh identity: %v", err)
	}
	o = a.run(attack, c)
	if o.Status != Held || ctx.Err() != nil {
		return o
	}
	if err := c.alive(ctx); err != nil {
		return Outcome{Status: Broken, Codes: o.Codes, Evidence: "the target serves nobody after it: " + err.Error() + "; before: " + o.Evidence}
	}
	return o
}

// refresh takes a new identity when the old one has made many attempts, so that no attack is
// refused for being one too many.
func (c *Campaign) refresh(ctx context.Context) error {
	if c.spent < spentAt || c.arsenal.Fresh == nil || c.fresh >= maxFresh || !c.accepted {
		return nil
	}
	id, err := c.arsenal.Fresh(ctx)
	if err != nil {
		return err
	}
	c.arsenal.Self, c.spent = id, 0
	c.fresh++
	return nil
}

// missing says what an attack needs and does not have.
func (c *Campaign) missing(n Needs) string {
	a := c.arsenal
	switch {
	case n&(NeedHTTP|NeedHTTPS) != 0 && c.httpErr != nil:
		return "the public listener is not attacked: " + c.httpErr.Error()
	case n&NeedHTTPS != 0 && !c.secure():
		return "the target was named by its public listener: name its endpoint for clients, https://HOST:PORT"
	case n&^(NeedHTTP|NeedHTTPS) == 0:
		return ""
	case a.Self == nil:
		return orElse(a.Missing, "no enrolled identity: pass --config FILE")
	case n&NeedAccepted != 0 && !c.accepted:
		return "the honest attempt was refused too, so a lie would show nothing: " + c.rejection
	case n&NeedSeat != 0 && len(a.SeatProtocols) == 0:
		return "no seat protocols are known"
	case n&NeedOther != 0 && a.Other == nil:
		return "no second genuine identity"
	case n&NeedOlder != 0 && (a.Older == nil || !a.Started):
		return "the mesh orders nothing yet, so no boot is known to be older: run it once the target's mesh has started"
	}
	return ""
}

func held(format string, args ...any) Outcome {
	return Outcome{Status: Held, Evidence: fmt.Sprintf(format, args...)}
}

func broken(format string, args ...any) Outcome {
	return Outcome{Status: Broken, Evidence: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) Outcome {
	return Outcome{Status: Skipped, Evidence: fmt.Sprintf(format, args...)}
}

// worst joins the outcomes of several tries of one attack.
func worst(tries map[string]Outcome) Outcome {
	rank := map[Status]int{Held: 1, Skipped: 2, Broken: 3}
	var out Outcome
	var texts []string
	for _, name := range sortedKeys(tries) {
		o := tries[name]
		if rank[o.Status] > rank[out.Status] {
			out.Status = o.Status
		}
		out.Codes = append(out.Codes, o.Codes...)
		texts = append(texts, name+": "+o.Evidence)
	}
	out.Evidence = strings.Join(texts, "; ")
	return out
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// maxEvidence bounds the text of an outcome.
const maxEvidence = 2000

// printable makes a text from afar safe for a terminal and short.
func printable(s string) string {
	if len(s) > maxEvidence {
		s = strings.ToValidUTF8(s[:maxEvidence], "") + " …"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
