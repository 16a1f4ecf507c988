package monitor

import (
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// condition is something that lasts: it is told when it begins and when it ends.
type condition struct {
	Scope    string    `json:"scope"` // what has to be looked at to know whether it lasts
	Code     string    `json:"code"`
	Subject  string    `json:"subject,omitempty"`
	Severity Severity  `json:"severity"`
	Message  string    `json:"message"`
	Evidence string    `json:"evidence,omitempty"`
	Since    time.Time `json:"since"`
	// Told is set once it has lasted for its grace and was told.
	Told bool `json:"told"`
	// Gone is since when it does not hold; it ends once that has lasted, so that one that comes and
	// goes is told once.
	Gone time.Time `json:"gone,omitzero"`
	// grace is how long it has to last before it is told.
	grace time.Duration
	// At tells one occasion from the next where the subject is the same; empty: Since does.
	At string `json:"at,omitempty"`
}

func (c *condition) key() string { return c.Scope + "\x00" + c.Code + "\x00" + c.Subject }

// conditions are those that last, by key.
type conditions map[string]*condition

// settle compares what holds in one scope with what held there before, and returns what has
// begun and what has ended, which is what has not held for that long. A scope that could not be
// looked at is not settled: what held there goes on.
func (cs conditions) settle(mesh identity.MeshID, origin string, now time.Time, scope string, present []condition, away time.Duration) []Alert {
	out := cs.add(mesh, origin, now, scope, present)
	seen := map[string]bool{}
	for _, c := range present {
		c.Scope = scope
		seen[c.key()] = true
	}
	var ended []string
	for key, c := range cs {
		if c.Scope == scope && !seen[key] {
			ended = append(ended, key)
		}
	}
	slices.Sort(ended)
	for _, key := range ended {
		c := cs[key]
		if c.Gone.IsZero() {
			c.Gone = now
		}
		if c.Told && now.Sub(c.Gone) < away {
			continue
		}
		delete(cs, key)
		if c.Told {
			out = append(out, c.alert(mesh, origin, Cleared))
		}
	}
	return out
}

// add is settle where what held before may hold still.
func (cs conditions) add(mesh identity.MeshID, origin string, now time.Time, scope string, present []condition) []Alert {
	var out []Alert
	seen := map[string]bool{}
	for _, c := range present {
		c.Scope = scope
		if seen[c.key()] {
			continue // of one code and subject, the first counts
		}
		seen[c.key()] = true
		old := cs[c.key()]
		if old == nil {
			c.Since = now
			old = &c
			cs[c.key()] = old
		}
		old.Gone = time.Time{}
		old.Message, old.Severity, old.grace, old.At = c.Message, c.Severity, c.grace, c.At
		if old.Evidence == "" {
			old.Evidence = c.Evidence
		}
		if !old.Told && now.Sub(old.Since) >= old.grace {
			old.Told = true
			out = append(out, old.alert(mesh, origin, Raised))
		}
	}
	return out
}

func (c *condition) alert(mesh identity.MeshID, origin string, change Change) Alert {
	occasion := c.At
	if occasion == "" {
		occasion = c.Since.UTC().Format(time.RFC3339Nano)
	}
	a := Alert{ID: alertID(mesh, c.Code, c.Scope, c.Subject, occasion, string(change)), Severity: c.Severity, Code: c.Code, Change: change,
		Origin: origin, Subject: c.Subject, Message: c.Message, Evidence: c.Evidence}
	if change == Cleared {
		a.Severity, a.Message = Notice, "no longer: "+c.Message
	}
	return a
}

// open returns those that were told and hold, the worst first.
func (cs conditions) open() []condition {
	var out []condition
	for _, c := range cs {
		if c.Told && c.Gone.IsZero() {
			out = append(out, *c)
		}
	}
	rank := map[Severity]int{Error: 0, Warning: 1, Notice: 2}
	slices.SortFunc(out, func(a, b condition) int {
		if d := rank[a.Severity] - rank[b.Severity]; d != 0 {
			return d
		}
		return strings.Compare(a.key(), b.key())
	})
	return out
}

// list and fromList are the form in which they are kept.
func (cs conditions) list() []condition {
	out := []condition{}
	for _, c := range cs {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b condition) int { return strings.Compare(a.key(), b.key()) })
	return out
}

func fromList(list []condition) conditions {
	out := conditions{}
	for _, c := range list {
		out[c.key()] = &c
	}
	return out
}
