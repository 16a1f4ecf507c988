package node

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

func TestDoctorComparesClocks(t *testing.T) {
	for _, tc := range []struct {
		name  string
		peers []string
		skews []time.Duration
		code  attest.Code
	}{
		{"nobody to compare with", nil, nil, ""},
		{"nobody answers", []string{"http://p"}, nil, attest.CodeUnavailable},
		{"agrees", []string{"http://p", "http://q"}, []time.Duration{-maxClockSkew, maxClockSkew}, ""},
		{"ahead", []string{"http://p"}, []time.Duration{maxClockSkew + time.Second}, attest.CodeStale},
		{"behind one of two", []string{"http://p", "http://q"}, []time.Duration{0, -time.Hour}, attest.CodeStale},
	} {
		d := &doctor{cfg: Config{Peers: tc.peers}, skews: tc.skews}
		d.clock()
		if got := d.out.Checks[0]; len(d.out.Checks) != 1 || got.Code != tc.code || got.OK != (tc.code == "") || !got.OK && got.Remedy == "" {
			t.Errorf("%s: %+v, want code %q", tc.name, d.out.Checks, tc.code)
		}
	}
}

func TestDoctorReadsThePeersClock(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	announcement := Announcement{Peer: identity.PeerIDFromKey(public)}
	for _, off := range []time.Duration{0, time.Hour, -time.Hour} {
		peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			writeJSON(w, http.StatusOK, announcement)
		}))
		a := ask(context.Background(), peer.URL)
		peer.Close()
		if a.err != nil || !a.dated || (a.skew+off).Abs() > maxClockSkew {
			t.Errorf("a peer whose clock is off by %s: skew %s, dated %t, %v", off, a.skew, a.dated, a.err)
		}
	}
}

// TestDoctorDistrustsStrangers: whatever answers at a peer's URL is judged as the node will.
func TestDoctorDistrustsStrangers(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"no announcement": func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"no JSON":         func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
	} {
		peer := httptest.NewServer(handler)
		if a := ask(context.Background(), peer.URL); a.err == nil {
			t.Errorf("%s: taken for a peer", name)
		}
		peer.Close()
	}
}
