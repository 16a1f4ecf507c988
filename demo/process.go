package demo

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// stopGrace is what a process has between SIGTERM and SIGKILL.
	stopGrace = 5 * time.Second
	// reapGrace bounds the wait for a process that has been sent SIGKILL; only one that
	// hangs in the kernel takes longer, and the demo must still end.
	reapGrace = 5 * time.Second
	// pipeGrace bounds the wait for a dead process's output pipes.
	pipeGrace = time.Second
)

var errStopped = errors.New("the demo is stopping")

// supervisor owns every process of one demo. A process is its own process group, so that
// a Ctrl-C at the terminal reaches the director alone, which then stops them in order; and
// it carries a parent-death signal, so that none outlives a director that was killed.
//
// The kernel sends that signal when the *thread* that forked ends, not the process, so all
// are forked by one goroutine locked to one thread, which lives until stop.
type supervisor struct {
	requests chan spawnRequest
	quit     chan struct{}  // closed by the first stop
	ended    chan struct{}  // closed when the thread is gone
	onDeath  func(*process) // called once for each daemon that ended unasked

	mu    sync.Mutex
	procs []*process // guarded by mu: every process started, in order
	shut  bool       // guarded by mu: nothing is started any more
}

type spawnRequest struct {
	cmd   *exec.Cmd
	proc  *process
	reply chan error
}

// spec describes one process.
type spec struct {
	name   string // who it is, for messages: "alpha/n1"
	argv   []string
	stdout io.Writer
	stderr io.Writer
	log    string // where stderr goes, for messages; "" where it is not a file
	nice   int
	daemon bool // must not end before it is told to
}

// process is one child. Its fields are set before it is handed out, except those that say
// otherwise.
type process struct {
	spec
	pid      int
	stopping atomic.Bool   // somebody asked it to end: its end is no surprise
	done     chan struct{} // closed once it is reaped
	err      error         // how it ended; set before done is closed
	cmd      *exec.Cmd
}

// newSupervisor returns a supervisor whose thread runs until stop.
func newSupervisor(onDeath func(*process)) *supervisor {
	s := &supervisor{requests: make(chan spawnRequest), quit: make(chan struct{}), ended: make(chan struct{}), onDeath: onDeath}
	go s.fork()
	return s
}

// fork is the one thread that starts processes. It is never unlocked: when the goroutine
// returns, the thread ends and the kernel kills whatever stop could not.
func (s *supervisor) fork() {
	runtime.LockOSThread()
	defer close(s.ended)
	for {
		select {
		case r := <-s.requests:
			r.reply <- s.spawn(r.cmd, r.proc)
		case <-s.quit:
			return
		}
	}
}

func (s *supervisor) spawn(cmd *exec.Cmd, p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return errStopped
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	s.procs = append(s.procs, p)
	if p.nice != 0 {
		// By group: by process it would reach the first thread only. A failure costs
		// speed, nothing else.
		_ = syscall.Setpriority(syscall.PRIO_PGRP, p.pid, p.nice)
	}
	return nil
}

// start starts a process and returns once it runs.
func (s *supervisor) start(sp spec) (*process, error) {
	cmd := exec.Command(sp.argv[0], sp.argv[1:]...)
	cmd.Stdout, cmd.Stderr = sp.stdout, sp.stderr
	cmd.WaitDelay = pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{spec: sp, done: make(chan struct{}), cmd: cmd}
	r := spawnRequest{cmd, p, make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-s.ended:
		return nil, errStopped
	}
	if err := <-r.reply; err != nil {
		return nil, fmt.Errorf("start %s (%s): %w", sp.name, sp.argv[0], err)
	}
	go s.reap(p)
	return p, nil
}

func (s *supervisor) reap(p *process) {
	p.err = p.cmd.Wait()
	close(p.done)
	if p.daemon && !p.stopping.Load() && s.onDeath != nil {
		s.onDeath(p)
	}
}

// alive reports whether the process has not ended yet.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// fate says in words how the process ended.
func (p *process) fate() string {
	switch {
	case p.alive():
		return fmt.Sprintf("running (pid %d)", p.pid)
	case p.err == nil:
		return "exit status 0"
	default:
		return p.err.Error()
	}
}

// kill ends the process and its group at once with SIGKILL; its end is then no surprise.
func (p *process) kill() {
	p.stopping.Store(true)
	if p.alive() {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
}

func (p *process) terminate() {
	p.stopping.Store(true)
	if p.alive() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
}

// stop ends every process: SIGTERM to all, SIGKILL to the groups of those that are still
// there after the grace. It returns the processes that could not be reaped (none, unless
// the kernel holds one), and starts nothing afterwards. It may be called again.
func (s *supervisor) stop(grace time.Duration) []*process {
	s.mu.Lock()
	first := !s.shut
	s.shut = true
	procs := s.procs
	s.mu.Unlock()

	for _, p := range procs {
		p.terminate()
	}
	for _, p := range waitAll(procs, grace) {
		p.kill()
	}
	left := waitAll(procs, reapGrace)
	if first {
		close(s.quit)
		<-s.ended
	}
	return left
}

// waitAll waits until all have ended or the time is up and returns those that have not.
func waitAll(procs []*process, within time.Duration) []*process {
	timer := time.NewTimer(within)
	defer timer.Stop()
	var left []*process
	for _, p := range procs {
		select {
		case <-p.done:
			continue
		default:
		}
		select {
		case <-p.done:
		case <-timer.C:
			timer.Reset(0)
			left = append(left, p)
		}
	}
	return left
}
