package mesh

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// The flood: a node, a member, joiners and a flooder, each a process of its own, in a
// network namespace that has no way out. All addresses are local there, and none is
// loopback's, which is exempt from the caps per source.
//
//	10.1.0.1    the node            10.3.0.1  a member with a link     10.4.0.1  a joiner that
//	10.2.0.0/16 the flooder         10.3.0.2  a joiner that is listed            is not listed
//	10.3.0.9    a flooder that is listed
const (
	floodRole = "MESHNODE_FLOOD_ROLE" // set in the processes of a flood
	floodRun  = "MESHNODE_FLOOD"      // set by who wants it: it takes most of a minute
	floodNode = "10.1.0.1"

	floodRate    = 1000
	floodTime    = 10 * time.Second
	floodRSS     = 256 << 20
	floodJoin    = 2 * time.Second
	floodRecover = 20 * time.Second
)

// A flood of connections that do not finish takes neither the node's memory nor its links,
// and keeps no listed member out.
func TestFlood(t *testing.T) {
	if os.Getenv(floodRun) == "" {
		t.Skipf("skipped: takes most of a minute and a processor; make flood, or %s=1, runs it", floodRun)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("skipped: no ip command to set up a network namespace with; install iproute2")
	}
	for _, mode := range []string{"silent", "one source", "multistream", "tls", "a member's tls"} {
		t.Run(mode, func(t *testing.T) {
			cmd := floodProcess("stage", mode)
			cmd.SysProcAttr = namespace(os.Getuid(), os.Getgid())
			out, err := cmd.Output()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Skipf("skipped: no network namespace can be made here: %v", err)
			}
			t.Logf("%s", out)
			if err != nil {
				t.Errorf("%v\n%s", err, exit.Stderr)
			}
		})
	}
}

// namespace is a user and a network namespace in which this user is root.
func namespace(uid, gid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
	}
}

// floodProcess is this test binary in another role.
func floodProcess(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), floodRole+"="+role)
	return cmd
}

// playFlood is main of the processes of a flood.
func playFlood(role string) int {
	var err error
	switch role {
	case "stage":
		err = floodStage(os.Args[1])
	case "node":
		err = floodServe()
	case "member":
		err = floodMember()
	case "join":
		err = floodJoiner(os.Args[1])
	case "flood":
		err = flood(os.Args[1])
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 1
	}
	return 0
}

// actor is a process that answers each line with one line of JSON, and ends when its input
// does.
type actor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startActor(role string, args ...string) (*actor, error) {
	a := &actor{cmd: floodProcess(role, args...)}
	a.cmd.Stderr = os.Stderr
	in, err := a.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.in, a.out = in, bufio.NewScanner(out)
	return a, a.cmd.Start()
}

// hear reads the next line into v.
func (a *actor) hear(v any) error {
	if !a.out.Scan() {
		return fmt.Errorf("a process ended: %w", errors.Join(a.out.Err(), a.cmd.Wait()))
	}
	return json.Unmarshal(a.out.Bytes(), v)
}

func (a *actor) ask(v any) error {
	if _, err := io.WriteString(a.in, "\n"); err != nil {
		return err
	}
	return a.hear(v)
}

func (a *actor) end() { _ = a.in.Close(); _ = a.cmd.Wait() }

// say writes v and, on each line of input, answer().
func say(v any, answer func() any) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(v); err != nil || answer == nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := out.Encode(answer()); err != nil {
			return err
		}
	}
	return nil
}

type floodState struct {
	Peer       []byte
	RSS, Peak  uint64
	Goroutines int
	Links      int
	Turned     map[turnedAway]uint64
}

type memberState struct {
	Lost     string // why the link went down
	Answers  int
	Slowest  time.Duration
	Failures int
}

type joinState struct {
	Took     time.Duration
	Attempts int
	Error    string
}

type flooderState struct{ Opened, Reset int64 }

// floodStage sets the namespace up, plays the flood and checks what it did.
func floodStage(mode string) error {
	for _, args := range []string{"link set lo up", "addr add " + floodNode + "/32 dev lo", "addr add 10.3.0.1/32 dev lo",
		"addr add 10.3.0.2/32 dev lo", "addr add 10.3.0.9/32 dev lo", "addr add 10.4.0.1/32 dev lo", "route add local 10.2.0.0/16 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	node, err := startActor("node")
	if err != nil {
		return err
	}
	defer node.end()
	var ready, base, state floodState
	if err := node.hear(&ready); err != nil {
		return err
	}
	member, err := startActor("member")
	if err != nil {
		return err
	}
	defer member.end()
	var linked memberState
	if err := errors.Join(member.hear(&linked), node.ask(&base)); err != nil {
		return err
	}
	flooder, err := startActor("flood", mode)
	if err != nil {
		return err
	}
	defer flooder.end()
	time.Sleep(floodTime / 2) // the flood is at its height
	var listed, unlisted joinState
	var sent flooderState
	if err := errors.Join(joinFrom("10.3.0.2", &listed), joinFrom("10.4.0.1", &unlisted), flooder.hear(&sent)); err != nil {
		return err
	}
	if err := errors.Join(node.ask(&state), member.ask(&linked)); err != nil {
		return err
	}
	peak, during := state.Peak, state.Goroutines
	begun := time.Now()
	for state.Goroutines > base.Goroutines && time.Since(begun) < floodRecover {
		time.Sleep(250 * time.Millisecond)
		if err := node.ask(&state); err != nil {
			return err
		}
	}
	fmt.Printf("%s: %d opened at %d a second, %d of them reset at once; node's RSS at most %d MiB; turned away %v\n", mode, sent.Opened+sent.Reset,
		floodRate, sent.Reset, peak>>20, sortedCounts(state.Turned))
	fmt.Printf("  member's link: %d answers, slowest %s, %d failures, lost %q\n", linked.Answers, linked.Slowest.Round(time.Millisecond), linked.Failures, linked.Lost)
	fmt.Printf("  joiner that is listed: %s in %d attempts %s; not listed: %s in %d attempts %s\n", listed.Took.Round(time.Millisecond), listed.Attempts,
		listed.Error, unlisted.Took.Round(time.Millisecond), unlisted.Attempts, unlisted.Error)
	fmt.Printf("  goroutines: %d before, %d at the end of the flood, %d after %s more\n", base.Goroutines, during, state.Goroutines, time.Since(begun).Round(time.Second))
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(sent.Opened+sent.Reset > int64(floodRate*floodTime.Seconds()*8/10), "the flooder opened only %d connections", sent.Opened+sent.Reset)
	check(peak <= floodRSS, "RSS of %d MiB, want at most %d", peak>>20, uint64(floodRSS)>>20)
	check(linked.Lost == "" && linked.Failures == 0 && linked.Answers > 0, "the member's link: %+v", linked)
	check(listed.Error == "" && listed.Took <= floodJoin && listed.Attempts == 1, "the listed joiner took %s and %d attempts, want %s and one: %s",
		listed.Took, listed.Attempts, floodJoin, listed.Error)
	check(state.Goroutines <= base.Goroutines, "%d goroutines, %d before", state.Goroutines, base.Goroutines)
	return errors.Join(errs...)
}

func sortedCounts(m map[turnedAway]uint64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(out, ", ")
}

func joinFrom(addr string, s *joinState) error {
	a, err := startActor("join", addr)
	if err != nil {
		return err
	}
	defer a.end()
	return a.hear(s)
}

// floodMesh starts a mesh of the flood's world whose connections come from addr.
func floodMesh(name, addr string, change func(*Config)) (Mesh, func(), error) {
	n := meshtest.RootFromSeed("flood").NewNode(identity.MeshID{7}, name)
	cfg := Config{
		Key: n.Key, MeshID: n.MeshID, Quoter: n.Quoter, Judge: n.Judge,
		Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 0 },
		Credential: func() []byte { return n.Credential },
		Transport: func(up transport.Upgrader, limits network.ResourceManager) (transport.Transport, error) {
			from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
			return tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport(),
				tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return from, nil }))
		},
	}
	if change != nil {
		change(&cfg)
	}
	m, err := NewLibp2p(cfg)
	if err != nil {
		n.Close()
		return nil, nil, err
	}
	return m, func() { _ = m.Close(); n.Close() }, nil
}

// floodServe is the node.
func floodServe() error {
	m, stop, err := floodMesh("alpha/n1", floodNode, func(c *Config) {
		c.Listen = []string{"/ip4/" + floodNode + "/tcp/4001"}
		c.Allow = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")} }
	})
	if err != nil {
		return err
	}
	defer stop()
	m.Handle(echo, func(_ Link, s Stream) {
		defer s.Close()
		_, _ = io.Copy(s, s)
	})
	// Who joins has to know whom to dial.
	if err := os.WriteFile(floodFile(os.Getppid()), []byte(m.Self()), 0o600); err != nil {
		return err
	}
	defer os.Remove(floodFile(os.Getppid()))
	return say(floodState{}, func() any {
		runtime.GC() // what is garbage is nobody's
		s := floodState{Goroutines: runtime.NumGoroutine(), Links: len(m.Links()), Turned: m.(*libp2pMesh).intake.counts()}
		s.RSS, s.Peak = memoryOf("VmRSS"), memoryOf("VmHWM")
		return s
	})
}

func floodFile(stage int) string { return fmt.Sprintf("%s/meshnode-flood-%d", os.TempDir(), stage) }

// memoryOf reads a line of /proc/self/status, in bytes.
func memoryOf(name string) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
			kb, _ := strconv.ParseUint(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func floodTarget() (identity.PeerID, []string, error) {
	raw, err := os.ReadFile(floodFile(os.Getppid()))
	return identity.PeerID(raw), []string{"/ip4/" + floodNode + "/tcp/4001"}, err
}

// floodMember holds a link and asks for an answer on it again and again.
func floodMember() error {
	m, stop, err := floodMesh("beta/n1", "10.3.0.1", nil)
	if err != nil {
		return err
	}
	defer stop()
	to, addrs, err := floodTarget()
	if err != nil {
		return err
	}
	l, err := m.Dial(context.Background(), to, addrs)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var state memberState
	done := make(chan struct{})
	defer close(done)
	go func() {
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			begun := time.Now()
			err := roundTrip(l)
			mu.Lock()
			if err != nil {
				state.Failures++
			} else {
				state.Answers++
				state.Slowest = max(state.Slowest, time.Since(begun))
			}
			mu.Unlock()
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return say(memberState{}, func() any {
		mu.Lock()
		defer mu.Unlock()
		if c := l.Cause(); c != (attest.Reason{}) {
			state.Lost = c.String()
		}
		return state
	})
}

func roundTrip(l Link) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := l.Open(ctx, echo)
	if err != nil {
		return err
	}
	defer s.Close()
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline)
	if _, err := s.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(s, make([]byte, 1))
	return err
}

// floodJoiner dials from addr until it has a link.
func floodJoiner(addr string) error {
	m, stop, err := floodMesh("gamma/"+strings.ReplaceAll(addr, ".", "-"), addr, nil)
	if err != nil {
		return err
	}
	defer stop()
	to, addrs, err := floodTarget()
	if err != nil {
		return err
	}
	begun := time.Now()
	var s joinState
	for time.Since(begun) < floodRecover {
		s.Attempts++
		var l Link
		if l, err = m.Dial(context.Background(), to, addrs); err == nil {
			err = roundTrip(l)
		}
		if err == nil {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	s.Took = time.Since(begun)
	if err != nil {
		s.Error = err.Error()
	}
	return say(s, nil)
}

// flood opens floodRate connections a second and never finishes one.
func flood(mode string) error {
	key, _, err := ic.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return err
	}
	client, err := libp2ptls.New(SecurityID, key, []upgrader.StreamMuxer{})
	if err != nil {
		return err
	}
	to, _, err := floodTarget()
	if err != nil {
		return err
	}
	var opened, reset atomic.Int64
	var open sync.WaitGroup
	one := func(i int) {
		from := net.IPv4(10, 2, byte(i>>8), byte(i))
		switch mode {
		case "one source":
			from = net.IPv4(10, 2, 0, 1)
		case "a member's tls":
			from = net.IPv4(10, 3, 0, 9)
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", floodNode+":4001")
		if err != nil {
			reset.Add(1) // between the two ends' halves of the handshake
			return
		}
		opened.Add(1)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		switch mode {
		case "multistream":
			_, _ = c.Write([]byte("\x13/multistream/1.0.0\n"))
		case "tls", "a member's tls":
			if mss.SelectProtoOrFail(SecurityID, c) == nil {
				if s, err := client.SecureOutbound(context.Background(), c, peer.ID(to)); err == nil {
					_, _ = io.Copy(io.Discard, s)
				}
			}
		}
		_, _ = io.Copy(io.Discard, c) // until the node has had enough
	}
	begun := time.Now()
	for i := 0; time.Since(begun) < floodTime; {
		for due := int(time.Since(begun).Seconds() * floodRate); i < due; i++ {
			open.Go(func() { one(i) })
		}
		time.Sleep(time.Millisecond)
	}
	return say(flooderState{opened.Load(), reset.Load()}, nil)
}
