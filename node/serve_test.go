package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/service"
)

// raw opens a connection from a local address and says something on it.
func (h *host) raw(from, said string) net.Conn {
	h.t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: h.client.Transport.(*http.Transport).TLSClientConfig.Clone()}
	d.Config.NextProtos = []string{"http/1.1"}
	conn, err := d.DialContext(h.t.Context(), "tcp", strings.TrimPrefix(h.url, "https://"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte(said)); err != nil {
		h.t.Fatal(err)
	}
	return conn
}

// asks sends a request as it stands and returns its answer.
func (h *host) asks(from, request string) *http.Response {
	h.t.Helper()
	conn := h.raw(from, request)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (h *host) placesTaken() int {
	h.services.asked.mu.Lock()
	defer h.services.asked.mu.Unlock()
	return h.services.asked.taken
}

// eventually polls: what it waits for happens behind a socket.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.t.Fatalf("not in time: %s", what)
		}
	}
}

// A receipt names what the program was asked, letter by letter, or there is none.
func TestReceiptNamesTheTarget(t *testing.T) {
	h := newHost(t, false)
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	for target, want := range map[string]string{ // what the program sees; empty: nothing
		"/services/inference/echo?a":                     "/echo?a",
		"/services/inference/echo?a=;b%20%22":            "/echo?a=;b%20%22",
		"http://elsewhere/services/inference/echo?x":     "/echo?x",
		"/services/inference/echo?a#b":                   "",
		"/services/%69nference/echo":                     "",
		"/services/inferenc%65/services/inference/echo":  "",
		"/services/inference/echo?a\x7f":                 "",
		"/services/inference/../other/echo":              "",
		"/services/inference//echo":                      "",
		"/services/inference/services/%69nference/echo2": "/services/%69nference/echo2",
	} {
		resp := h.asks("127.0.0.1", fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", target))
		saw, named := resp.Header.Get("X-Request"), ""
		if resp.Header.Get("Meshnode-Receipt") != "" {
			named = receiptOf(t, resp.Header).Request.Path
		}
		if named != want || saw != "" && saw != fmt.Sprintf("POST %s [] []", want) {
			t.Errorf("%s: the program saw %q, the receipt names %q, want %q", target, saw, named, want)
		}
	}
}

// Requests of one remote that never end leave places for those of others.
func TestRequestsLeavePlacesForOthers(t *testing.T) {
	h := newHost(t, false)
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	for range maxAsked {
		h.raw("127.0.0.1", "POST /services/inference/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
	}
	h.eventually("the flood holds what it may", func() bool { return h.placesTaken() >= maxAsked/2 })
	const request = "POST /services/inference/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	if resp := h.asks("127.0.0.2", request); resp.StatusCode != http.StatusTeapot {
		t.Errorf("another remote: %s", resp.Status)
	}
	if resp := h.asks("127.0.0.1", request); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more of the same: %s", resp.Status)
	}
}

// Who reads nothing gives the place back in time; whose answer takes long gets it, on every
// version of HTTP.
func TestRequestsEndInTime(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			h := newHost(t, http2)
			if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
				t.Fatalf("%d %s", resp.StatusCode, raw)
			}
			h.services.requestRead = 100 * time.Millisecond
			if resp, raw := h.do("GET", "/services/inference/slow", nil); resp.StatusCode != 200 || string(raw) != "at last" {
				t.Errorf("%d %s, want an answer that takes longer than a request may", resp.StatusCode, raw)
			}
			h.services.requestWithin, h.services.answerStall = 300*time.Millisecond, 300*time.Millisecond
			req, err := http.NewRequestWithContext(t.Context(), "GET", h.url+"/services/inference/endless", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := h.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			h.eventually("the place of who does not read is free", func() bool { return h.placesTaken() == 0 })
		})
	}
}

// A length is no memory: a stranger can announce one on each of tens of thousands of streams.
func TestAnnouncedManifestTakesNoMemory(t *testing.T) {
	s, sl := &services{}, &slot{name: "inference"}
	var before, after runtime.MemStats
	const times = 64
	runtime.ReadMemStats(&before)
	for range times {
		body := bytes.NewReader(binary.BigEndian.AppendUint32(nil, envelope.MaxSize))
		if _, err := s.readManifest(body, 1<<20, sl); err == nil {
			t.Fatal("nothing passed for a manifest")
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / times; got > envelope.MaxSize/4 {
		t.Errorf("%d bytes for four that came", got)
	}
}

// One owner's deployments leave room in the runtime log for those of the others.
func TestRuntimeLogIsShared(t *testing.T) {
	h := newHost(t, false)
	sl := h.services.slots["inference"]
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 || sl.events() != 1 {
		t.Fatalf("%d %s, %d events", resp.StatusCode, raw, sl.events())
	}
	sl.mu.Lock()
	sl.starts = runtimelog.MaxEvents / len(h.services.slots)
	sl.mu.Unlock()
	if resp, raw := h.deploy(2, nil); resp.StatusCode != http.StatusInsufficientStorage || code(raw) != "limit" {
		t.Errorf("more than its share: %d %s", resp.StatusCode, raw)
	}
	if resp, _ := h.do("POST", "/services/inference/echo", nil); resp.StatusCode != http.StatusTeapot {
		t.Errorf("the program before it: %d", resp.StatusCode)
	}
	body := bytes.NewReader(h.deployment(1, func(m *service.Manifest) { m.Service = "other" }))
	if resp, raw := h.do("PUT", service.PathDeploy+"other", body); resp.StatusCode != 200 {
		t.Errorf("another service: %d %s", resp.StatusCode, raw)
	}
}
