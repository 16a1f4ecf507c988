package vtpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/legacy/tpm2"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
)

// serveTPM listens at a socket and has answer deal with each connection. It returns the
// socket and a count of connections.
func serveTPM(t *testing.T, answer func(net.Conn)) (string, *atomic.Int32) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var conns atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer conn.Close()
				answer(conn)
			}()
		}
	}()
	return path, &conns
}

// response is a TPM's with a code and a body.
func response(code uint32, body ...byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, 0x8001)
	out = binary.BigEndian.AppendUint32(out, uint32(tpmHeader+len(body)))
	return append(binary.BigEndian.AppendUint32(out, code), body...)
}

// command reads a whole one.
func command(conn net.Conn) error {
	header := make([]byte, tpmHeader)
	if _, err := io.ReadFull(conn, header); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(header[2:]))-tpmHeader)
	return err
}

// A response that comes byte by byte is one response.
func TestChannelPutsPiecesTogether(t *testing.T) {
	path, _ := serveTPM(t, func(conn net.Conn) {
		for command(conn) == nil {
			for _, b := range response(0, 0, 1, 0x5a) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		}
	})
	ch, err := openChannel(path, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	ch.until = time.Now().Add(time.Minute)
	for range 2 {
		if got, err := tpm2.GetRandom(ch, 1); err != nil || !bytes.Equal(got, []byte{0x5a}) {
			t.Errorf("got %x, %v, want 5a", got, err)
		}
	}
}

// What is no response ends the channel, and the next call makes a new one.
func TestChannelRefusesWhatIsNoResponse(t *testing.T) {
	long := response(0)
	binary.BigEndian.PutUint32(long[2:], 1<<20)
	short := response(0)
	binary.BigEndian.PutUint32(short[2:], tpmHeader-1)
	for name, tc := range map[string]struct {
		bytes []byte
		says  string
	}{
		"a size beyond every response": {long, "says it has 1048576"},
		"a size below the header":      {short, "says it has 9"},
		"more than its size":           {append(response(0), 0), "says it has 10"},
		"an end":                       {nil, "unexpected EOF"},
		"an end within":                {response(0)[:7], "unexpected EOF"},
	} {
		path, conns := serveTPM(t, func(conn net.Conn) {
			if command(conn) == nil {
				conn.Write(tc.bytes)
			}
		})
		a := NewAttester(Options{Device: path})
		for range 2 {
			var named *device.Error
			if err := a.Probe(t.Context()); !errors.As(err, &named) || named.Device != path || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: got %v, want one that names %s and says %q", name, err, path, tc.says)
			}
		}
		if n := conns.Load(); n != 2 {
			t.Errorf("%s: %d connections, want a new one for each call", name, n)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A TPM that does not answer is named, and its answer, should it come, is not taken for
// that to the next command.
func TestChannelTimesOut(t *testing.T) {
	release := make(chan struct{})
	path, conns := serveTPM(t, func(conn net.Conn) {
		if command(conn) == nil {
			<-release
			conn.Write(response(0, 0, 1, 0x5a))
		}
	})
	defer close(release)
	a := NewAttester(Options{Device: path})
	for want := int32(1); want <= 2; want++ {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := a.Attest(ctx, mesh.ReportData{})
		cancel()
		var named *device.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &named) || named.Device != path {
			t.Errorf("got %v, want a deadline exceeded that names %s", err, path)
		}
		// The call itself ends with its time, and so gives the device back.
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if n := conns.Load(); n != want {
			t.Errorf("%d connections after call %d", n, want)
		}
	}
}

func TestOpenChannelRefusesOtherFiles(t *testing.T) {
	until := time.Now().Add(time.Minute)
	if _, err := openChannel(filepath.Join(t.TempDir(), "absent"), until); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("absent: got %v", err)
	}
	if _, err := openChannel(t.TempDir(), until); err == nil || !strings.Contains(err.Error(), "neither a TPM device nor a socket") {
		t.Errorf("a directory: got %v", err)
	}
	path, _ := serveTPM(t, func(net.Conn) {})
	if _, err := openChannel(path, time.Now().Add(-time.Second)); err == nil {
		t.Error("a channel was opened when the time was up")
	}
}

// A character device is opened without blocking, and one that answers at once with an end
// of file, as /dev/null does, is no TPM.
func TestChannelToACharacterDevice(t *testing.T) {
	a := NewAttester(Options{Device: "/dev/null"})
	defer a.Close()
	if err := a.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "device /dev/null: probe: ") || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want one that names /dev/null", err)
	}
}

// Banks: SHA-256 first, SHA-384 else, SHA-1 never.
func TestChooseBank(t *testing.T) {
	bank := func(alg tpm2.Algorithm, pcrs ...byte) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(alg)), append([]byte{byte(len(pcrs))}, pcrs...)...)
	}
	for name, tc := range map[string]struct {
		banks [][]byte
		want  tpm2.Algorithm
	}{
		"all":          {[][]byte{bank(tpm2.AlgSHA1, 255, 255, 255), bank(tpm2.AlgSHA384, 255, 255, 255), bank(tpm2.AlgSHA256, 255, 255, 255)}, tpm2.AlgSHA256},
		"SHA-384 only": {[][]byte{bank(tpm2.AlgSHA1, 255, 255, 255), bank(tpm2.AlgSHA256, 0, 0, 0), bank(tpm2.AlgSHA384, 255, 255, 255)}, tpm2.AlgSHA384},
		"SHA-1 only":   {[][]byte{bank(tpm2.AlgSHA1, 255, 255, 255)}, 0},
		"half a bank":  {[][]byte{bank(tpm2.AlgSHA256, 255, 255, 1)}, 0},
		"nothing":      {nil, 0},
	} {
		body := []byte{0} // no more data
		body = binary.BigEndian.AppendUint32(body, uint32(tpm2.CapabilityPCRs))
		body = binary.BigEndian.AppendUint32(body, uint32(len(tc.banks)))
		for _, b := range tc.banks {
			body = append(body, b...)
		}
		got, err := chooseBank(&script{response(0, body...)})
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("%s: got %#x, %v, want %#x", name, got, err, tc.want)
		}
	}
}

// script answers every command with the same response.
type script struct{ answer []byte }

func (s *script) Write(p []byte) (int, error) { return len(p), nil }
func (s *script) Read(p []byte) (int, error)  { return copy(p, s.answer), nil }
