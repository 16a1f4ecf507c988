package device

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New("/dev/slow")
		got, err := Do(t.Context(), d, "quote", time.Second, func(until time.Time) (int, error) {
			if left := time.Until(until); left != time.Second {
				t.Errorf("got %s to do it in, want 1s", left)
			}
			return 7, nil
		})
		if got != 7 || err != nil {
			t.Fatalf("got %d %v, want 7", got, err)
		}

		// A device that does not answer is named, and it stays taken until it does.
		release := make(chan struct{})
		start := time.Now()
		_, err = Do(t.Context(), d, "quote", time.Second, func(time.Time) (int, error) { <-release; return 0, nil })
		want := "device /dev/slow: quote: no answer within 1s: context deadline exceeded"
		if !errors.Is(err, context.DeadlineExceeded) || err.Error() != want || time.Since(start) != time.Second {
			t.Errorf("got %v after %s, want %s after 1s", err, time.Since(start), want)
		}
		ran := false
		_, err = Do(t.Context(), d, "extend", 3*time.Second, func(time.Time) (int, error) { ran = true; return 0, nil })
		want = "device /dev/slow: extend: taken for quote since 4s ago: no answer within 3s: context deadline exceeded"
		if err == nil || err.Error() != want || ran {
			t.Errorf("got %v, ran: %v, want %s", err, ran, want)
		}
		close(release)
		synctest.Wait()
		if got, err = Do(t.Context(), d, "quote", time.Second, func(time.Time) (int, error) { return 8, nil }); got != 8 || err != nil {
			t.Errorf("after it answered: got %d %v, want 8", got, err)
		}
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New("/dev/slow")
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		defer close(release)
		go func() { time.Sleep(time.Second); cancel() }()
		_, err := Do(ctx, d, "quote", time.Hour, func(time.Time) (int, error) { <-release; return 0, nil })
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "/dev/slow") {
			t.Errorf("got %v, want canceled, naming the device", err)
		}
		// A select would choose either, and the call run on.
		called := 0
		for range 50 {
			if _, err := Do(ctx, New("/dev/other"), "quote", time.Hour, func(time.Time) (int, error) { called++; return 0, nil }); !errors.Is(err, context.Canceled) {
				t.Errorf("with an ended context: got %v, want canceled", err)
			}
			synctest.Wait()
		}
		if called > 0 {
			t.Errorf("called %d times with an ended context", called)
		}
	})
}

func TestPresent(t *testing.T) {
	dir := t.TempDir()
	if err := Present(dir); err != nil {
		t.Error(err)
	}
	absent := filepath.Join(dir, "absent")
	var named *Error
	if err := Present(absent); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &named) || named.Device != absent {
		t.Errorf("got %v, want one that names %s", err, absent)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, content []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const limit = 64
	full := bytes.Repeat([]byte{1}, limit)
	if got, err := NewFile(path("full", full), limit, time.Second).Read(t.Context()); err != nil || !bytes.Equal(got, full) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, limit)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"absent":   {filepath.Join(dir, "absent"), fs.ErrNotExist},
		"empty":    {path("empty", nil), io.ErrUnexpectedEOF},
		"too long": {path("long", append(full, 1)), nil},
		"a FIFO":   {fifo, errNotRegular},
		"a folder": {dir, errNotRegular},
	} {
		got, err := NewFile(tc.path, limit, time.Second).Read(t.Context())
		var named *Error
		if !errors.As(err, &named) || named.Device != tc.path || tc.want != nil && !errors.Is(err, tc.want) || got != nil {
			t.Errorf("%s: got %v, want %v naming %s", name, err, tc.want, tc.path)
		}
	}
}
