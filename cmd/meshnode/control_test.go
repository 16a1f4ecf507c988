package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A stopped process still takes connections; a person must not be told that it is gone.
func TestControlTellsStoppedFromGone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	c, err := newControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		err := c.call(ctx, http.MethodGet, "/v1/status", nil, new(struct{}))
		var f *failure
		if !errors.As(err, &f) || f.exit != exitUnavailable {
			t.Fatalf("got %v, want exit %d", err, exitUnavailable)
		}
		return f.message + "; " + f.remedy
	}
	if got := ask(); !strings.Contains(got, "in time") || !strings.Contains(got, "stopped") {
		t.Errorf("silent: got %q", got)
	}
	l.Close()
	if got := ask(); !strings.Contains(got, "refused") || !strings.Contains(got, "no process serves this socket") {
		t.Errorf("gone: got %q", got)
	}
}
