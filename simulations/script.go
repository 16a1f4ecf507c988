package simulations

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/node"
)

// Limits of a script's expectations.
const (
	expectWithin = 30 * time.Second // where a line names no time
	pollEvery    = 50 * time.Millisecond
)

// Script is a parsed scenario.
type Script struct {
	name     string
	orgs     []string
	releases []string
	keep     uint64
	steps    []step
}

type step struct {
	line int
	text string
	run  func(*player) error
}

// Parse parses a scenario called name in errors. Everything that does not depend on the
// mesh's state is checked here.
func Parse(name, text string) (*Script, error) {
	s := &Script{name: name}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		run, err := s.parse(words[0], words[1:])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %s: %w", name, i+1, strings.Join(words, " "), err)
		}
		if run != nil {
			s.steps = append(s.steps, step{i + 1, strings.Join(words, " "), run})
		}
	}
	if len(s.orgs) == 0 || len(s.releases) == 0 {
		return nil, fmt.Errorf("%s: a scenario begins with mesh and allow", name)
	}
	return s, nil
}

// parse returns what a command does; nil for those that are read before the start.
func (s *Script) parse(command string, args []string) (func(*player) error, error) {
	if (command == "mesh" || command == "allow" || command == "keep") && len(s.steps) > 0 {
		return nil, fmt.Errorf("belongs before every other command")
	}
	switch command {
	case "mesh":
		s.orgs = args
		return nil, nil
	case "allow":
		s.releases = append(s.releases, args...)
		return nil, nil
	case "keep":
		if len(args) != 1 {
			return nil, fmt.Errorf("want a number")
		}
		n, err := strconv.ParseUint(args[0], 10, 32)
		s.keep = n
		return nil, err
	case "start":
		if len(args) < 2 {
			return nil, fmt.Errorf("want NODE RELEASE [ROLE...]")
		}
		return func(p *player) error { return p.world.start(args[0], args[1], args[2:]) }, nil
	case "reboot":
		if len(args) < 2 {
			return nil, fmt.Errorf("want NODE RELEASE [ROLE...]")
		}
		return func(p *player) error { return p.world.reboot(p.real(args[0]), args[1], args[2:]) }, nil
	case "name":
		if len(args) != 2 {
			return nil, fmt.Errorf("want WORD NODE")
		}
		return func(p *player) error { return p.name(args[0], args[1]) }, nil
	case "stop", "crash":
		if len(args) != 1 {
			return nil, fmt.Errorf("want NODE")
		}
		return func(p *player) error { return p.end(args[0], command == "crash") }, nil
	case "drain":
		refused, expectsRefusal := after(args, "refused")
		if len(args) == 0 || expectsRefusal != (len(refused) == 1) || !expectsRefusal && len(args) != 1 {
			return nil, fmt.Errorf("want NODE [refused CODE]")
		}
		return func(p *player) error { return p.drain(args[0], strings.Join(refused, "")) }, nil
	case "retire":
		if len(args) != 3 || args[1] != "at" {
			return nil, fmt.Errorf("want NODE at NODE")
		}
		return func(p *player) error { return p.retire(args[0], args[2]) }, nil
	case "wait":
		t, err := parseTime(args)
		return func(p *player) error { time.Sleep(t.draw(p.world.rnd)); return nil }, err
	case "silence", "cut":
		groups := split(args)
		if len(groups) < 2 {
			return nil, fmt.Errorf("want NODES | NODES")
		}
		return func(p *player) error { return p.part(command, groups) }, nil
	case "heal":
		return func(p *player) error { p.heal(); return nil }, none(args)
	case "propose":
		return parsePropose(args)
	case "suspend":
		return parseSuspend(args)
	case "lift":
		return parseLift(args)
	case "clients":
		if len(args) != 1 {
			return nil, fmt.Errorf("want a number")
		}
		n, err := strconv.Atoi(args[0])
		return func(p *player) error { return p.startClients(n) }, err
	case "quiet":
		return func(p *player) error { p.quiet(); return nil }, none(args)
	case "expect":
		return parseExpect(args)
	}
	return nil, fmt.Errorf("no such command")
}

func none(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("takes no arguments")
	}
	return nil
}

func split(args []string) [][]string {
	out := [][]string{nil}
	for _, a := range args {
		if a == "|" {
			out = append(out, nil)
			continue
		}
		out[len(out)-1] = append(out[len(out)-1], a)
	}
	return out
}

// after returns the words between keyword and the next of the others, and whether the
// keyword is there.
func after(args []string, keyword string, others ...string) ([]string, bool) {
	i := slices.Index(args, keyword)
	if i < 0 {
		return nil, false
	}
	rest := args[i+1:]
	for j, a := range rest {
		if slices.Contains(others, a) {
			return rest[:j], true
		}
	}
	return rest, true
}

// span is a duration to be drawn.
type span struct{ lo, hi time.Duration }

func (t span) draw(rnd interface{ Int64N(int64) int64 }) time.Duration {
	return t.lo + time.Duration(rnd.Int64N(int64(t.hi-t.lo)+1))
}

func parseTime(args []string) (span, error) {
	if len(args) != 1 {
		return span{}, fmt.Errorf("want one time, like 5s or 5s-15s")
	}
	from, to, two := strings.Cut(args[0], "-")
	lo, err := time.ParseDuration(from)
	hi := lo
	if err == nil && two {
		hi, err = time.ParseDuration(to)
	}
	if err == nil && (lo <= 0 || hi < lo) {
		err = fmt.Errorf("%s is no time to wait", args[0])
	}
	return span{lo, hi}, err
}

// parsePropose parses add|remove RELEASE signed ORG... at NODE [refused CODE].
func parsePropose(args []string) (func(*player) error, error) {
	orgs, _ := after(args, "signed", "at", "refused")
	at, _ := after(args, "at", "refused")
	refused, expectsRefusal := after(args, "refused")
	if len(args) < 2 || args[0] != "add" && args[0] != "remove" || len(orgs) == 0 || len(at) != 1 || expectsRefusal != (len(refused) == 1) {
		return nil, fmt.Errorf("want add|remove RELEASE signed ORG... at NODE [refused CODE]")
	}
	code := ""
	if expectsRefusal {
		code = refused[0]
	}
	return func(p *player) error { return p.propose(args[0], args[1], orgs, at[0], code) }, nil
}

// parseSuspend parses NODE|RELEASE for TIME by ORG at NODE [refused CODE].
func parseSuspend(args []string) (func(*player) error, error) {
	const want = "want NODE|RELEASE for TIME by ORG at NODE [refused CODE]"
	span, _ := after(args, "for", "by", "at", "refused")
	by, _ := after(args, "by", "at", "refused")
	at, _ := after(args, "at", "refused")
	refused, expectsRefusal := after(args, "refused")
	if len(args) < 7 || args[1] != "for" || len(by) != 1 || len(at) != 1 || expectsRefusal != (len(refused) == 1) {
		return nil, errors.New(want)
	}
	t, err := parseTime(span)
	if err != nil {
		return nil, err
	}
	return func(p *player) error {
		return p.suspend(args[0], t.draw(p.world.rnd), by[0], at[0], strings.Join(refused, ""))
	}, nil
}

// parseLift parses signed ORG... at NODE [refused CODE].
func parseLift(args []string) (func(*player) error, error) {
	orgs, _ := after(args, "signed", "at", "refused")
	at, _ := after(args, "at", "refused")
	refused, expectsRefusal := after(args, "refused")
	if len(args) < 4 || args[0] != "signed" || len(orgs) == 0 || len(at) != 1 || expectsRefusal != (len(refused) == 1) {
		return nil, errors.New("want signed ORG... at NODE [refused CODE]")
	}
	return func(p *player) error { return p.lift(orgs, at[0], strings.Join(refused, "")) }, nil
}

// parseExpect parses everything after expect.
func parseExpect(args []string) (func(*player) error, error) {
	limit := expectWithin
	if i := slices.Index(args, "within"); i >= 0 {
		t, err := parseTime(args[i+1:])
		if err != nil {
			return nil, err
		}
		limit, args = t.hi, args[:i]
	}
	if len(args) < 2 {
		return nil, fmt.Errorf("expect what of which?")
	}
	what, args := args[0], args[1:]
	check, err := parseCheck(what, args, limit)
	if err != nil {
		return nil, err
	}
	return func(p *player) error { return p.expect(check, limit) }, nil
}

// parseCheck returns a check that is repeated until it returns nil.
func parseCheck(what string, args []string, limit time.Duration) (func(*player) error, error) {
	switch what {
	case "leader":
		if nodes, ok := after(args, "among"); ok && len(nodes) > 0 {
			return func(p *player) error { return p.checkLeader(nodes) }, nil
		}
		return nil, fmt.Errorf("want among NODES")
	case "phase":
		nodes, _ := after(args, "of")
		code, withCode := after(args, "code", "of")
		if slices.Contains([]string{"of", "code"}, args[0]) || len(nodes) == 0 || withCode != (len(code) == 1) {
			return nil, fmt.Errorf("want PHASE [code CODE] of NODES")
		}
		return func(p *player) error { return p.checkPhase(args[0], strings.Join(code, ""), nodes) }, nil
	case "closed":
		if nodes, ok := after(args, "by"); ok && args[0] != "by" && len(nodes) > 0 {
			return func(p *player) error { return p.checkClosed(args[0], nodes, limit) }, nil
		}
		return nil, fmt.Errorf("want NODE by NODES within TIME")
	case "linked", "kept":
		return func(p *player) error { return p.checkLinked(args, what == "kept") }, nil
	case "proof":
		nodes, _ := after(args, "of", "at")
		at, _ := after(args, "at")
		if args[0] == "of" || len(nodes) == 0 || len(at) == 0 {
			return nil, fmt.Errorf("want PROOF of NODES at NODES")
		}
		return func(p *player) error { return p.checkProof(node.Proof(args[0]), nodes, at) }, nil
	case "unlinked":
		if nodes, ok := after(args, "from"); ok && args[0] != "from" && len(nodes) > 0 {
			return func(p *player) error { return p.checkUnlinked(args[0], nodes) }, nil
		}
		return nil, fmt.Errorf("want NODE from NODES")
	case "voters":
		i := slices.Index(args, "at")
		if i < 1 || i == len(args)-1 {
			return nil, fmt.Errorf("want NODES at NODES")
		}
		voters, at := args[:i], args[i+1:]
		return func(p *player) error { return p.checkVoters(voters, at) }, nil
	case "voting":
		return func(p *player) error { return p.checkVoting(args) }, nil
	case "copied":
		return func(p *player) error { return p.checkCopied(args) }, nil
	case "equal", "published":
		return func(p *player) error { return p.checkLogs(args, what == "published") }, nil
	}
	return nil, fmt.Errorf("cannot expect %q", what)
}
