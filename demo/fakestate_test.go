package demo

import (
	"net"
	"slices"
	"time"
)

// status is what one fake node says of itself.
func (w *world) status(c net.Conn, socket string) {
	n := w.of(socket)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pids[n.ref()] == 0 {
		w.end(c, object{"error": object{"code": "unavailable", "message": "no answer", "remedy": ""}}, 3)
		return
	}
	v := object{"node": n.ref(), "started": true, "phase": "member", "raft": object{"voters": w.voters(n)},
		"log": object{"size": 9, "published": object{"size": 9, "level": "strong"}}, "peers": w.peers(n)}
	if code := w.refused(n); code != "" {
		v["phase"], v["phase_reason"] = "refused", object{"code": code, "got": "m-" + n.release, "want": "another", "remedy": "do something"}
	}
	if w.revoked && n.ref() != w.p.evicted {
		w.departed[n.ref()] = true
		took := 40 * time.Millisecond
		if w.fault == "slow closing" {
			took = 6 * time.Second
		}
		at := time.Unix(1e9, 0).UTC()
		v["closed"] = []object{{"node": w.p.evicted, "code": "revoked", "decided": at, "closed": at.Add(took)}}
	}
	w.end(c, v, 0)
}

// refused returns the code with which a node is kept out, or "". mu is held.
func (w *world) refused(n node) string {
	switch {
	case n.ref() == w.p.newcomer.ref() && !w.admitted:
		if w.fault == "wrong code" {
			return "debug"
		}
		if w.fault == "open door" {
			return ""
		}
		return "measurement_not_allowed"
	case n.ref() == w.p.evicted && w.revoked:
		return "revoked"
	}
	return ""
}

func (w *world) voters(n node) []string {
	out := []string{}
	for _, f := range w.p.founders {
		if n.seat && f.seat && (!w.revoked || f.ref() != w.p.evicted) {
			out = append(out, f.ref())
		}
	}
	return out
}

func (w *world) peers(self node) []object {
	out := []object{}
	for _, n := range w.p.all() {
		if n.ref() == self.ref() {
			continue
		}
		p := object{"node": n.ref(), "state": "connected", "verdict": "affirming"}
		switch {
		case w.refused(n) != "":
			p["state"], p["verdict"] = "refused", "contraindicated"
		case w.gone[n.ref()]:
			p["state"], p["note"] = "unreachable", "no answer"
		case w.pids[n.ref()] == 0:
			continue
		}
		out = append(out, p)
	}
	return out
}

// train plays the job. One round goes on beside the vote; the next opens only after every
// surviving seat has been asked about the Raft configuration, however slow the machine is.
func (w *world) train() {
	w.change(func(j *jobView) { *j = jobView{ID: "j1", State: "running", Rounds: w.rounds, Phase: "idle"} })
	vote := newJobPlan(w.rounds, 1, 1).voteAfter
	for r := 1; r <= w.rounds; r++ {
		pace := 1
		if r > vote+1 || r == w.rounds {
			if !w.until(w.voted) {
				return
			}
			pace = 5 // a kill must have the time to arrive
		}
		if !w.rest(pace, func() bool { return false }) {
			return
		}
		w.change(func(j *jobView) {
			j.Round, j.Attempt, j.Phase, j.Participants = r, 1, "collecting", w.participants()
			j.Aggregator = w.aggregator(r)
		})
		if !w.rest(pace, func() bool { return w.gone[w.job.Aggregator] }) {
			return
		}
		w.change(w.commit)
	}
}

// commit ends a round; an aggregator that died meanwhile is replaced. mu is held.
func (w *world) commit(j *jobView) {
	r := j.Round
	if w.gone[j.Aggregator] && w.fault != "kill too late" {
		j.Attempt, j.Participants = 2, w.participants()
		j.Aggregator = w.aggregator(r)
	}
	accuracy := 0.9 + float64(r)/1000
	j.Phase = "committed"
	j.Committed = append(slices.Clone(j.Committed), committedView{Round: r, Attempt: j.Attempt, Aggregator: j.Aggregator,
		Participants: j.Participants, Accuracy: &accuracy})
	times := 1
	if j.Attempt > 1 && w.fault == "trains again" {
		times = 2
	}
	j.Trainings = append(slices.Clone(j.Trainings), trainingView{r, times})
	if r == w.rounds {
		j.State, j.ModelRoot = "done", "0123456789abcdef0123456789abcdef"
	}
}

// voted reports whether the director has seen the evicted seat leave. mu is held.
func (w *world) voted() bool {
	for _, n := range w.p.founders {
		if n.seat && n.ref() != w.p.evicted && !w.departed[n.ref()] {
			return false
		}
	}
	return true
}

// pace is the unit of a round.
const pace = 50 * time.Millisecond

// rest waits so many paces, or until early holds; it is false when the test is over.
func (w *world) rest(paces int, early func() bool) bool {
	end := time.Now().Add(time.Duration(paces) * pace)
	return w.until(func() bool { return early() || time.Now().After(end) })
}

// until polls until ok, asked with mu held, holds; it is false when the test is over.
func (w *world) until(ok func() bool) bool {
	tick := time.NewTicker(pace / 10)
	defer tick.Stop()
	for {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-tick.C:
		case <-w.stop:
			return false
		}
	}
}

func (w *world) change(f func(*jobView)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.job)
	close(w.tick)
	w.tick = make(chan struct{})
}

func (w *world) participants() []string {
	var out []string
	for _, n := range w.p.all() {
		if w.pids[n.ref()] != 0 && w.refused(n) == "" {
			out = append(out, n.ref())
		}
	}
	return out
}

func (w *world) aggregator(round int) string {
	var seats []string
	for _, n := range w.p.founders {
		if n.seat && w.pids[n.ref()] != 0 && w.refused(n) == "" {
			seats = append(seats, n.ref())
		}
	}
	if len(seats) == 0 {
		return ""
	}
	return seats[round%len(seats)]
}

// show plays job show, and its --follow until the node that was asked is gone.
func (w *world) show(c net.Conn, a []string, ended chan struct{}) {
	n := w.of(flag(a, "--node"))
	last := ""
	for {
		w.mu.Lock()
		v, tick, dead := w.job, w.tick, w.pids[n.ref()] == 0
		w.mu.Unlock()
		if w.fault == "another model" && n.ref() == w.p.newcomer.ref() && v.ModelRoot != "" {
			v.ModelRoot = "ffff"
		}
		follow := slices.Contains(a, "--follow")
		switch {
		case dead:
			w.end(c, object{"error": object{"code": "unavailable", "message": "no answer"}}, 3)
			return
		case !follow || v.State == "done":
			w.end(c, v, 0)
			return
		}
		if line := toLine(v); line != last {
			last = line
			w.send(c, fakeReply{Line: line})
		}
		poll := time.NewTimer(20 * time.Millisecond)
		select {
		case <-tick:
		case <-poll.C: // to see a death of the node that was asked
		case <-ended:
		case <-w.stop:
		}
		poll.Stop()
		select {
		case <-ended:
			return
		case <-w.stop:
			return
		default:
		}
	}
}
