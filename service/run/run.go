// Package run holds and runs the program of a service. Program and model live in anonymous,
// sealed memory and never in a file; the program runs in a sandbox that reaches nothing of
// the machine.
//
// # What a program gets
//
//	executable    a static ELF file, started as args of the manifest say; empty environment
//	descriptor 3  a listening unix stream socket, on which it serves HTTP/1.1
//	descriptor 4  the model, readable from its first byte; it may be mapped
//	/tmp          64 MiB of memory, empty at every start; nothing else is writable
//	output        standard output is discarded, of standard error only the size is kept
//
// It has no network, sees no file and no process but its own, has no capability and cannot
// make namespaces (bubblewrap 0.8 or newer; there is no way to run without). System calls are
// not filtered: a fault of the kernel is one of the sandbox. Its memory,
// processes, files and core dumps are limited before its first instruction (limits.go). It
// counts as ready once it answers any HTTP request, GET /healthz, in any way.
//
// A program that ends is started again, later and later, and given up after maxRestarts
// starts in a row. Stop kills it with everything it has started.
//
// # What stays in memory
//
// Requests and answers pass through this process and the program's over a socket that has
// no name. Memory can still reach a disk by swapping, hibernation or a core dump: a machine
// that serves should have no swap (Swap tells) and calls NoCores. That the memory itself is
// unreadable for the host is the TEE's part.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"
)

// Spec is what is run.
type Spec struct {
	Name           string
	Args           []string
	Program, Model *Blob
}

// Config is with what.
type Config struct {
	Sandbox Sandbox
	// Record is called before the program can run, and nothing runs if it fails. Required.
	Record func() error
	// Slot keeps services apart: no two that run have the same.
	Slot int
	Log  *slog.Logger
}

// State is where a program stands.
type State string

// The states.
const (
	Starting   State = "starting" // it has not answered yet
	Running    State = "running"
	Restarting State = "restarting" // it ended by itself and is started again
	Failed     State = "failed"     // it was given up
	Stopped    State = "stopped"
)

// Status describes a program's life so far.
type Status struct {
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	// Cause is how it last ended, in the words of the system, never in its own.
	Cause string `json:"cause,omitempty"`
	// StderrBytes is how much it has written to its standard error since its last start.
	StderrBytes int64 `json:"stderr_bytes"`
}

// Service is one program that is kept running. It owns its spec's memory.
type Service struct {
	spec   Spec
	cfg    Config
	socket *endpoint
	stop   context.CancelFunc
	done   chan struct{} // closed when the owner has ended and nothing of it runs

	mu      sync.Mutex
	closed  bool          // guarded by mu: socket is gone
	status  Status        // guarded by mu
	words   *meter        // guarded by mu: of the present run
	changed chan struct{} // guarded by mu: closed at the next change
}

// Start records and starts a program. It takes spec's memory, also when it fails.
func Start(ctx context.Context, cfg Config, spec Spec) (*Service, error) {
	s := &Service{spec: spec, cfg: cfg, done: make(chan struct{}), changed: make(chan struct{}), words: &meter{},
		status: Status{State: Starting, Since: time.Now()}}
	if err := s.begin(); err != nil {
		s.release()
		return nil, err
	}
	ctx, s.stop = context.WithCancel(ctx)
	go s.own(ctx)
	return s, nil
}

func (s *Service) begin() error {
	switch {
	case s.spec.Program == nil || !s.spec.Program.executable || s.spec.Model == nil || s.spec.Name == "":
		return errors.New("run: name, an executable program and model are required")
	case s.cfg.Record == nil || s.cfg.Log == nil:
		return errors.New("run: nothing runs without a record of it")
	case s.cfg.Sandbox.bwrap == "":
		return ErrNoSandbox
	}
	var err error
	if s.socket, err = newEndpoint(); err != nil {
		return err
	}
	return s.cfg.Record()
}

func (s *Service) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.socket != nil {
		s.socket.close()
	}
	s.spec.Program.Close()
	s.spec.Model.Close()
}

// own starts the program until it is told to stop or the program has ended too often. It
// never unlocks its thread, which ends with it (Sandbox.start).
func (s *Service) own(ctx context.Context) {
	runtime.LockOSThread()
	defer close(s.done)
	defer s.release()
	pause, starts := restartFirst, 0
	for {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			s.set(Stopped, "")
			return
		}
		if time.Since(began) >= restartForget {
			pause, starts = restartFirst, 0
		}
		if starts++; starts > maxRestarts || errors.Is(err, ErrNoSandbox) {
			s.cfg.Log.Error("service given up", "service", s.spec.Name, "error", err, "stderr_bytes", s.Status().StderrBytes)
			s.set(Failed, err.Error())
			return
		}
		s.cfg.Log.Warn("service ended", "service", s.spec.Name, "error", err, "stderr_bytes", s.Status().StderrBytes, "again_in", pause.String())
		s.set(Restarting, err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			s.set(Stopped, "")
			return
		}
		pause = min(2*pause, restartLast)
	}
}

// once runs the program once; it returns why it ended.
func (s *Service) once(ctx context.Context) error {
	c, err := s.cfg.Sandbox.start(&s.spec, s.socket.listener, s.cfg.Slot)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.words = c.words
	s.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- c.wait() }()
	probing, stopProbe := context.WithCancel(ctx)
	defer stopProbe()
	probed := make(chan bool, 1)
	go func() { probed <- s.probe(probing) }()
	for {
		select {
		case ok := <-probed:
			if ok {
				s.set(Running, "")
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			c.kill()
			<-ended
			return ctx.Err()
		}
	}
}

// probe asks until there is an answer of any kind.
func (s *Service) probe(ctx context.Context) bool {
	client := &http.Client{Timeout: probeWithin, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) }},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://service/healthz", nil)
		if err != nil {
			return false
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			return true
		}
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
		}
	}
	return false
}

// Dial connects to the program. It does not wait: a unix socket takes a connection at once
// or refuses it.
func (s *Service) Dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Once closed, the descriptor may be another file's. Who saw the last state sees the
	// service closed, although the socket is only released after it.
	if s.closed || s.status.State == Failed || s.status.State == Stopped {
		return nil, net.ErrClosed
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", s.socket.address())
}

// Status returns how the program fares.
func (s *Service) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	out.StderrBytes = s.words.bytes()
	return out
}

func (s *Service) set(state State, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == Restarting {
		s.status.Restarts++
	}
	s.status.State, s.status.Since = state, time.Now()
	if cause != "" {
		s.status.Cause = cause
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Ready waits until the program answers. That it was given up, or has ended for the first
// time, is an error: whoever waits for it should hear of that at once.
func (s *Service) Ready(ctx context.Context) error {
	for {
		s.mu.Lock()
		status, changed := s.status, s.changed
		s.mu.Unlock()
		switch status.State {
		case Running:
			return nil
		case Restarting, Failed:
			return fmt.Errorf("the program ended: %s", status.Cause)
		case Stopped:
			return errors.New("the program was stopped")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the program does not answer: %w", ctx.Err())
		}
	}
}

// Stop ends the program and waits until nothing of it runs; its memory is given back.
func (s *Service) Stop() {
	s.stop()
	<-s.done
}
