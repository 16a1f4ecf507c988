package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/service"
)

// Who names the public listener in place of the endpoint is told so.
func TestPlainHTTPIsNamed(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := client.Connect(t.Context(), strings.TrimPrefix(srv.URL, "http://"), nil)
	if err == nil {
		t.Fatal("connected")
	}
	if f := asFailure(t.Context(), clientFailure(t.Context(), err)); f.exit != exitUnavailable || !strings.Contains(f.remedy, "plain HTTP") {
		t.Errorf("exit %d, try: %s", f.exit, f.remedy)
	}
}

// Of several starts of a service only the newest is said to run.
func TestNewestServiceIsMarked(t *testing.T) {
	start := func(name string, program byte) runtimelog.Event {
		return runtimelog.Event{Type: service.EventType, Name: name, Digests: []runtimelog.Digest{{Role: service.RoleProgram, SHA256: [32]byte{program}}}}
	}
	l := newAttestedLine(client.Session{Events: []runtimelog.Event{start("a", 1), start("b", 2), start("a", 3)}})
	if len(l.Services) != 3 || l.Services[0].Newest || !l.Services[1].Newest || !l.Services[2].Newest {
		t.Errorf("got %+v", l.Services)
	}
}
