package inference

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// canary is something that nobody but the parties may ever hold: whoever finds it where the
// host can look has found a leak.
type canary struct {
	name  string
	forms [][]byte
}

// newCanary returns a canary with the forms in which it could be written down: as it is, in
// hex, and in base64 at each of the three offsets within a larger text.
func newCanary(name string, secret []byte) canary {
	c := canary{name, [][]byte{secret, []byte(hex.EncodeToString(secret))}}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), secret...))
		from, to := (shift*8+5)/6, ((shift+len(secret))*8)/6 // whole characters of the secret alone
		c.forms = append(c.forms, []byte(text[from:to]))
	}
	return c
}

// word returns a random word.
func word(t *testing.T) string {
	t.Helper()
	raw := make([]byte, 12)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	return "canary" + hex.EncodeToString(raw)
}

// find returns the names of the canaries within data.
func find(data []byte, canaries []canary) []string {
	var out []string
	for _, c := range canaries {
		for _, f := range c.forms {
			if bytes.Contains(data, f) {
				out = append(out, c.name)
				break
			}
		}
	}
	return out
}

// searched is what was looked through.
type searched struct {
	files int
	bytes int64
	hits  []string // "canary in place"
}

func (s *searched) add(place string, data []byte, canaries []canary) {
	s.bytes += int64(len(data))
	for _, name := range find(data, canaries) {
		s.hits = append(s.hits, name+" in "+place)
	}
}

// searchTree searches every file below dir, and the names of all.
func (s *searched) searchTree(t *testing.T, dir string, canaries []canary, skip ...string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		for _, p := range skip {
			if path == p {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		s.add("the name "+path, []byte(path), canaries)
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		s.files++
		s.add(path, data, canaries)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tap is a forwarder on a TCP port that keeps every byte in both directions: what the host
// of a node sees of its network.
type tap struct {
	listener net.Listener
	to       string
	wg       sync.WaitGroup

	mu    sync.Mutex
	seen  [2]bytes.Buffer // guarded by mu; to the target and back
	conns []net.Conn      // guarded by mu
}

func newTap(t *testing.T, to string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{listener: l, to: to}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *tap) addr() string { return p.listener.Addr().String() }

func (p *tap) accept() {
	for {
		from, err := p.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", p.to)
		if err != nil {
			from.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, from, to)
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(to, from, 0) })
		p.wg.Go(func() { p.copy(from, to, 1) })
	}
}

func (p *tap) copy(to, from net.Conn, direction int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		p.seen[direction].Write(buf[:n])
		p.mu.Unlock()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return
		}
	}
}

func (p *tap) close() {
	p.listener.Close()
	p.mu.Lock()
	for _, c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *tap) search(s *searched, place string, canaries []canary) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.add(place+" (in)", p.seen[0].Bytes(), canaries)
	s.add(place+" (out)", p.seen[1].Bytes(), canaries)
}

// capture records every packet of the loopback interface, where tcpdump is there and allowed
// to: all sockets of all processes, whichever port they have.
type capture struct {
	cmd  *exec.Cmd
	file string
}

func startCapture(t *testing.T, file, except string) *capture {
	t.Helper()
	path, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Log("no tcpdump (apt-get install tcpdump): only the taps see the network")
		return nil
	}
	filter := "tcp"
	if _, port, err := net.SplitHostPort(except); err == nil {
		filter += " and not port " + port
	}
	cmd := exec.Command(path, "-i", "lo", "-s", "0", "-B", "65536", "-U", "--immediate-mode", "-w", file, "-Z", "root", filter)
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan bool, 1)
	go func() {
		s := bufio.NewScanner(errs)
		for s.Scan() {
			if strings.Contains(s.Text(), "listening on") {
				listening <- true
				_, _ = io.Copy(io.Discard, errs)
				return
			}
		}
		listening <- false
	}()
	c := &capture{cmd, file}
	select {
	case ok := <-listening:
		if !ok {
			_ = cmd.Wait()
			t.Log("tcpdump may not record here: only the taps see the network")
			return nil
		}
	case <-time.After(readyWithin):
		_ = cmd.Process.Kill()
		t.Fatal("tcpdump does not begin")
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return c
}

// stop ends the recording and searches it.
func (c *capture) search(t *testing.T, s *searched, canaries []canary) {
	t.Helper()
	if c == nil {
		return
	}
	_ = c.cmd.Process.Signal(os.Interrupt)
	_ = c.cmd.Wait()
	data, err := os.ReadFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	s.add("a packet on the loopback interface", data, canaries)
	t.Logf("tcpdump recorded %d bytes", len(data))
}

// The search finds what it is for, in every form.
func TestFind(t *testing.T) {
	secret := []byte("canary0123456789abcdef")
	c := []canary{newCanary("it", secret)}
	for name, data := range map[string][]byte{
		"as it is":  append([]byte("x"), secret...),
		"in hex":    []byte("x" + hex.EncodeToString(secret)),
		"base64":    []byte(base64.StdEncoding.EncodeToString(secret)),
		"base64 +1": []byte(base64.StdEncoding.EncodeToString(append([]byte("a"), append(secret, "tail"...)...))),
		"base64 +2": []byte(base64.StdEncoding.EncodeToString(append([]byte("ab"), append(secret, "tail"...)...))),
	} {
		if len(find(data, c)) != 1 {
			t.Errorf("%s: not found", name)
		}
	}
	if find([]byte("canary0123456789abcde"), c) != nil {
		t.Error("found what is not there")
	}
}
