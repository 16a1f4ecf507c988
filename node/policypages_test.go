package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
)

// longChain has more bytes than one answer may have.
func longChain(steps, size int) [][]byte {
	var out [][]byte
	for i := range steps {
		out = append(out, bytes.Repeat([]byte{byte(i)}, size))
	}
	return out
}

func servedPolicy(t *testing.T, chain func() [][]byte) (url string, asked *atomic.Int32, pages *policyPages) {
	t.Helper()
	pages, asked = newPolicyPages(chain, time.Now), &atomic.Int32{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathPolicy, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		pages.ServeHTTP(w, r)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL, asked, pages
}

// A chain of more than 8 MiB is pulled page by page, though it grows meanwhile.
func TestLongPolicyIsPulledInPages(t *testing.T) {
	chain := longChain(100, 100<<10) // 10 MB
	var calls int
	url, asked, _ := servedPolicy(t, func() [][]byte {
		calls++
		return chain[:min(len(chain), 80+10*calls)]
	})
	got, err := NewHTTPDirectory(nil).Policy(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Chain) != len(chain) || !bytes.Equal(bytes.Join(got.Chain, nil), bytes.Join(chain, nil)) {
		t.Errorf("%d steps of %d", len(got.Chain), len(chain))
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("%d questions, want 3", n)
	}
}

// What is served whole is the file that policy show --chain and the configuration take.
func TestPolicyServedWhole(t *testing.T) {
	for name, chain := range map[string][][]byte{"small": longChain(3, 10), "none": nil, "larger than what is kept": longChain(90, 100<<10)} {
		url, _, pages := servedPolicy(t, func() [][]byte { return chain })
		resp, err := http.Get(url + pathPolicy)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body)
		dec.DisallowUnknownFields() // as consensus.ParseChainFile does
		var got PolicyDocument
		if err := dec.Decode(&got); err != nil || !bytes.Equal(bytes.Join(got.Chain, nil), bytes.Join(chain, nil)) || len(got.Chain) != len(chain) {
			t.Errorf("%s: %d steps, %v", name, len(got.Chain), err)
		}
		if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: headers %v", name, resp.Header)
		}
		if pages.held > maxCachedPolicy {
			t.Errorf("%s: %d bytes are kept", name, pages.held)
		}
	}
}

// An answer is encoded once for each chain, and not sent again to who has it.
func TestPolicyIsEncodedOnce(t *testing.T) {
	chain := longChain(3, 1000)
	url, _, pages := servedPolicy(t, func() [][]byte { return chain })
	ask := func(query, tag string) (status int, body, newTag string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+pathPolicy+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-None-Match", tag)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw), resp.Header.Get("ETag")
	}
	_, whole, tag := ask("", "")
	first := pages.cached["-1"]
	if status, body, _ := ask("", tag); status != http.StatusNotModified || body != "" {
		t.Errorf("the same again: %d, %d bytes", status, len(body))
	}
	if &first[0] != &pages.cached["-1"][0] {
		t.Error("it was encoded twice")
	}
	if _, page, other := ask("?from=1", tag); page == whole || other == tag || !strings.Contains(page, `"steps":3`) {
		t.Errorf("a page is the whole: %s", other)
	}
	chain = longChain(4, 1000)
	if status, body, newer := ask("", tag); status != http.StatusOK || newer == tag || body == whole {
		t.Errorf("after a step: %d %s", status, newer)
	}
	for query, want := range map[string]int{"?from=-1": 400, "?from=x": 400, "?from=": 400, "?from=99999999999999999999": 400, "?from=4": 200, "?from=5": 200} {
		if status, _, _ := ask(query, ""); status != want {
			t.Errorf("%s: %d, want %d", query, status, want)
		}
	}
}

func TestPolicyIsRateLimited(t *testing.T) {
	pages := newPolicyPages(func() [][]byte { return nil }, func() time.Time { return time.Unix(1000, 0) })
	ask := func(from string) int {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, pathPolicy, nil)
		r.RemoteAddr = from
		pages.ServeHTTP(w, r)
		return w.Code
	}
	for range policyBurst {
		if got := ask("192.0.2.1:1"); got != http.StatusOK {
			t.Fatal(got)
		}
	}
	if got := ask("192.0.2.1:2"); got != http.StatusTooManyRequests {
		t.Errorf("one more: %d", got)
	}
	if got := ask("192.0.2.2:1"); got != http.StatusOK {
		t.Errorf("another address: %d", got)
	}
}

// Peers that serve no end, nothing, or too much cost a bounded part of memory and time.
func TestHostilePolicyPages(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(from string) any
		want   string
	}{
		"an older release": {func(string) any { return PolicyDocument{longChain(3, 10)} }, ""},
		"no steps":         {func(string) any { return PolicyPage{nil, 3} }, "no step 0 of 3"},
		"a step at a time, and one more every time": {func(from string) any {
			return map[string]any{"chain": longChain(1, 10), "steps": json.Number("9" + from)}
		}, "over the limits"},
		"more steps than any chain": {func(string) any { return PolicyPage{longChain(1, 10), consensus.MaxChain + 1} }, "over the limits"},
		"no JSON":                   {func(string) any { return "x" }, "cannot unmarshal"},
		"a page without an end":     {func(string) any { return PolicyPage{longChain(1, 9<<20), 1} }, "over the limit of"},
		"more bytes than any chain": {func(string) any { return PolicyPage{longChain(1, 5<<20), consensus.MaxChain} }, "over the limits"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				writeJSON(w, http.StatusOK, c.answer(r.URL.Query().Get("from")))
			}))
			defer s.Close()
			got, err := NewHTTPDirectory(nil).Policy(t.Context(), s.URL)
			if c.want == "" && (err != nil || len(got.Chain) != 3) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%d steps, %v; want %q", len(got.Chain), fmt.Sprint(err), c.want)
			}
		})
	}
}

// A peer that asks a seat for heads without end is refused after a while, and nobody else is.
func TestHeadsAreRateLimitedByPeer(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs)+2, func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	seat, greedy, other := c.nodes[0], c.nodes[len(crowdOrgs)], c.nodes[len(crowdOrgs)+1]
	now := time.Now()
	c.link(0)
	ask := func(n *Node) error {
		link, ok := n.linkTo(seat.self)
		if !ok {
			t.Fatalf("%s has no link to the seat", n.ref)
		}
		_, err := n.askHead(t.Context(), link, bytes.Repeat([]byte{7}, nonceSize))
		return err
	}
	refused := 0
	for asked := 1; refused == 0; asked++ {
		if ask(greedy) != nil {
			refused = asked
		}
		if allowed := peerHeadBurst + peerHeadRate*time.Since(now).Seconds(); refused == 0 && float64(asked) > 2*allowed {
			t.Fatalf("%d heads were signed for one peer", asked)
		}
	}
	if refused <= peerHeadBurst {
		t.Errorf("refused after %d", refused)
	}
	if err := ask(other); err != nil {
		t.Errorf("another peer: %v", err)
	}
}
