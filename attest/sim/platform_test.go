package sim

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/durable"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a node: it attests at the named socket and prints its
// evidence; childWait makes it wait for its standard input, see waitMain.
const (
	childEnv  = "SIM_TEST_SOCKET"
	childWait = "SIM_TEST_WAIT"
)

func TestMain(m *testing.M) {
	if os.Getenv(childWait) != "" {
		os.Exit(waitMain())
	}
	if socket := os.Getenv(childEnv); socket != "" {
		os.Exit(childMain(socket))
	}
	goleak.VerifyTestMain(m)
}

// waitMain becomes the executable named by its first line of input, or ends with it.
func waitMain() int {
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return 0
	}
	path := strings.TrimSpace(line)
	fmt.Fprintln(os.Stderr, syscall.Exec(path, []string{path}, os.Environ()))
	return 1
}

func childMain(socket string) int {
	a := NewAttester(socket)
	defer a.Close()
	ev, err := a.Attest(context.Background(), attest.ReportData{7})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	raw, err := ev.Encode()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(hex.EncodeToString(raw))
	return 0
}

// startPlatform runs a platform in dir until the returned stop, or the test's end.
func startPlatform(t *testing.T, dir string) (*Platform, func()) {
	t.Helper()
	p, err := Listen(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("platform: %v", err)
		}
	}
	t.Cleanup(stop)
	return p, stop
}

func attester(t *testing.T, socket string) *Attester {
	t.Helper()
	a := NewAttester(socket)
	t.Cleanup(func() { a.Close() })
	return a
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func measureFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum384(data)
	return hex.EncodeToString(sum[:])
}

func TestPlatformMeasuresTheCaller(t *testing.T) {
	p, _ := startPlatform(t, t.TempDir())
	a := attester(t, p.Socket())
	scheme, err := NewScheme(p.Root())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // the same connection serves all
		data := attest.ReportData{byte(i)}
		ev, err := a.Attest(testContext(t), data)
		if err != nil {
			t.Fatal(err)
		}
		c, err := scheme.Verify(context.Background(), ev, &data, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if want := measureFile(t, "/proc/self/exe"); c.Measurement != want {
			t.Errorf("measurement %s, want %s", c.Measurement, want)
		}
	}
	// What genesis reads is the key that signs.
	raw, err := os.ReadFile(p.dir.Path(RootName))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil || !p.Root().Equal(pub.(ed25519.PublicKey)) {
		t.Errorf("root.pub holds %v, %v", pub, err)
	}
}

// A copy of an executable with other bytes still runs and has another measurement: its
// own, whatever its name or environment say.
func TestAnotherBinaryMeasuresDifferently(t *testing.T) {
	p, _ := startPlatform(t, t.TempDir())
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stamped := stampedCopy(t)
	scheme, _ := NewScheme(p.Root())
	seen := map[string]string{}
	for _, path := range []string{self, stamped} {
		cmd := exec.CommandContext(testContext(t), path)
		cmd.Env = append(os.Environ(), childEnv+"="+p.Socket())
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", path, err, stderr.String())
		}
		raw, err := hex.DecodeString(string(out))
		if err != nil {
			t.Fatal(err)
		}
		ev, err := attest.DecodeEvidence(raw)
		if err != nil {
			t.Fatal(err)
		}
		c, err := scheme.Verify(context.Background(), ev, &attest.ReportData{7}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if want := measureFile(t, path); c.Measurement != want {
			t.Errorf("%s: measurement %s, want %s", path, c.Measurement, want)
		}
		seen[c.Measurement] = path
	}
	if len(seen) != 2 {
		t.Errorf("two binaries share a measurement: %v", seen)
	}
}

func TestAttesterReconnects(t *testing.T) {
	dir := t.TempDir()
	p, stop := startPlatform(t, dir)
	a := attester(t, p.Socket())
	if _, err := a.Attest(testContext(t), attest.ReportData{1}); err != nil {
		t.Fatal(err)
	}
	root := p.Root()
	stop()
	_, err := a.Attest(testContext(t), attest.ReportData{2})
	if err == nil || !strings.Contains(err.Error(), p.Socket()) {
		t.Fatalf("platform down: got %v, want an error naming the socket", err)
	}
	p, _ = startPlatform(t, dir)
	if !p.Root().Equal(root) {
		t.Error("the restarted platform has another root")
	}
	if _, err := a.Attest(testContext(t), attest.ReportData{3}); err != nil {
		t.Fatal(err)
	}
}

// A restart between two requests is not even noticed by the caller.
func TestAttesterRetriesOnce(t *testing.T) {
	dir := t.TempDir()
	p, stop := startPlatform(t, dir)
	a := attester(t, p.Socket())
	if _, err := a.Attest(testContext(t), attest.ReportData{1}); err != nil {
		t.Fatal(err)
	}
	stop()
	startPlatform(t, dir)
	if _, err := a.Attest(testContext(t), attest.ReportData{2}); err != nil {
		t.Fatal(err)
	}
}

// A platform that accepts and never answers costs no more than the caller allows.
func TestAttesterGivesUp(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := attester(t, socket)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = a.Attest(ctx, attest.ReportData{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), socket) {
		t.Errorf("got %v, want a deadline naming the socket", err)
	}
}

// Probes come every few seconds for ever: they must not have the executable measured anew.
func TestProbeKeepsTheConnection(t *testing.T) {
	dir := t.TempDir()
	p, stop := startPlatform(t, dir)
	a := attester(t, p.Socket())
	if err := a.Probe(testContext(t)); err != nil {
		t.Fatal(err)
	}
	first := a.conn
	if err := a.Probe(testContext(t)); err != nil || a.conn != first {
		t.Errorf("second probe: %v, on another connection: %t", err, a.conn != first)
	}
	stop()
	if err := a.Probe(testContext(t)); err == nil || !strings.Contains(err.Error(), p.Socket()) {
		t.Errorf("platform down: got %v, want an error naming the socket", err)
	}
}

// A stopped process still takes connections, in its kernel's queue.
func TestProbeWantsAnAnswer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := attester(t, socket).Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
}

func TestPlatformRefusesBadFrames(t *testing.T) {
	p, _ := startPlatform(t, t.TempDir())
	for name, tc := range map[string]struct {
		send []byte
		text string // of the refusal; "" for a closed connection
	}{
		"over the limit": {[]byte{0, 0, 0, maxRequest + 1}, ""},
		"huge":           {[]byte{0xff, 0xff, 0xff, 0xff}, ""},
		"empty":          {[]byte{0, 0, 0, 0}, ""},
		"version":        {attest.LengthPrefixed(nil, append([]byte{2}, make([]byte, 64)...)), "version 2"},
		"short":          {attest.LengthPrefixed(nil, []byte{1, 2, 3}), "3 bytes"},
	} {
		conn, err := net.Dial("unix", p.Socket())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write(tc.send); err != nil {
			t.Fatal(err)
		}
		body, err := readFrame(conn, maxAnswer)
		if tc.text == "" {
			if err == nil {
				t.Errorf("%s: answered %q", name, body)
			}
		} else if _, err := parseAnswer(body, attest.ReportData{}); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v, want a refusal with %q", name, err, tc.text)
		}
		conn.Close()
	}
}

func TestPlatformBoundsConnections(t *testing.T) {
	p, _ := startPlatform(t, t.TempDir())
	for range maxConnections { // as if that many were served
		p.slots <- struct{}{}
	}
	_, err := attester(t, p.Socket()).Attest(testContext(t), attest.ReportData{})
	if err == nil || !strings.Contains(err.Error(), "connections") {
		t.Errorf("got %v, want a refusal", err)
	}
	for range maxConnections {
		<-p.slots
	}
}

// child starts a process that waits, and returns its pid and a pidfd.
func child(t *testing.T) (*exec.Cmd, io.Writer, int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childWait+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pidfd) })
	return cmd, in, pidfd
}

// stampedCopy is this executable with other bytes at its end.
func stampedCopy(t *testing.T) string {
	t.Helper()
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "stamped")
	if err := os.WriteFile(path, append(binary, "another build stamp"...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A process that becomes another executable while it is hashed is not measured.
func TestMeasureNoticesExec(t *testing.T) {
	cmd, in, pidfd := child(t)
	other := stampedCopy(t)
	_, err := measureProcess(cmd.Process.Pid, pidfd, func(f *os.File) ([MeasurementSize]byte, error) {
		m, err := hashExecutable(f)
		fmt.Fprintln(in, other)
		ctx := testContext(t)
		for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
			if now, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)); now == other || ctx.Err() != nil {
				tick.Stop()
				return m, errors.Join(err, ctx.Err())
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "changed its executable") {
		t.Errorf("got %v: a process was measured as what it no longer is", err)
	}
}

// A peer of another user is refused, even if it could reach the socket.
func TestPlatformServesItsUserOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to start a process of another user")
	}
	dir := t.TempDir()
	p, _ := startPlatform(t, dir)
	binary := stampedCopy(t)
	for _, path := range []string{filepath.Dir(dir), dir, filepath.Dir(filepath.Dir(binary)), filepath.Dir(binary)} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(p.Socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), binary)
	cmd.Env = append(os.Environ(), childEnv+"="+p.Socket())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "runs as user 65534") {
		t.Errorf("got %v: %s", err, out)
	}
}

// A process that ends while it is hashed is not measured: its pid may be another's now.
func TestMeasureNoticesTheEnd(t *testing.T) {
	cmd, _, pidfd := child(t)
	if _, err := measureProcess(cmd.Process.Pid, pidfd, hashExecutable); err != nil {
		t.Fatalf("alive: %v", err)
	}
	_, err := measureProcess(cmd.Process.Pid, pidfd, func(f *os.File) ([MeasurementSize]byte, error) {
		m, err := hashExecutable(f)
		cmd.Process.Kill()
		cmd.Wait()
		return m, err
	})
	if err == nil {
		t.Error("a process that had ended was measured")
	}
}

// The pid of a recycled process is readable, its pidfd shows that the peer has ended.
func TestMeasureNoticesRecycledPid(t *testing.T) {
	gone, _, pidfd := child(t)
	gone.Process.Kill()
	gone.Wait()
	if _, err := measureProcess(os.Getpid(), pidfd, hashExecutable); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("got %v: another process was measured for the peer", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	startPlatform(t, dir)
	if _, err := Listen(dir, nil); !errors.Is(err, durable.ErrInUse) {
		t.Errorf("second platform: got %v, want ErrInUse", err)
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(open, nil); err == nil || !strings.Contains(err.Error(), "mode 0777") {
		t.Errorf("writable directory: got %v", err)
	}
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if _, err := Listen(deep, nil); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("long path: got %v", err)
	}
}

func keyPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func ed25519PEM(t *testing.T) string { return keyPEM(t, ed25519.NewKeyFromSeed(make([]byte, 32))) }

func p256PEM(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return keyPEM(t, key)
}

func TestListenRefusesBadKey(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"readable by others": {"", 0o644, "mode 0644"},
		"no PEM":             {"hello", 0o600, "PEM"},
		"a certificate":      {strings.ReplaceAll(ed25519PEM(t), "PRIVATE KEY", "CERTIFICATE"), 0o600, "PEM"},
		"two keys":           {ed25519PEM(t) + ed25519PEM(t), 0o600, "PEM"},
		"another kind":       {p256PEM(t), 0o600, "want an Ed25519 key"},
		"not PKCS 8":         {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, keyName},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, keyName), []byte(tc.content), tc.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(dir, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tc.want)
		}
		if p, err := Listen(t.TempDir(), nil); err != nil {
			t.Errorf("%s: a fresh directory: %v", name, err)
		} else {
			p.Close()
		}
	}
}

// A socket that a killed platform left is no obstacle.
func TestListenAfterKill(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	p, _ := startPlatform(t, dir)
	if st, err := os.Stat(p.Socket()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
}
