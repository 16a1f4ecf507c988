package client_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/client"
)

// proxied starts a proxy in front of a node.
func proxied(t *testing.T, n *node, p client.Policy) (*httptest.Server, *[]error) {
	t.Helper()
	var refused []error
	tr := transport(t, n.mesh, p, nil)
	srv := httptest.NewServer(client.NewProxy(tr, &url.URL{Scheme: "https", Host: n.address}, func(err error) { refused = append(refused, err) }))
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.Close()
	})
	return srv, &refused
}

func TestProxy(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		n := serve(t, newMesh(t, "proxy", orgs...), bob, "one", protocol)
		srv, _ := proxied(t, n, client.Policy{})
		resp, err := srv.Client().Post(srv.URL+"/a/b?c=d", "text/plain", strings.NewReader("prompt"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "POST /a/b prompt" || resp.Trailer.Get("Sum") != "done" {
			t.Errorf("%s: got %q with trailer %v, %v", protocol, body, resp.Trailer, err)
		}
		if n.challenges.Load() != 1 || n.requests.Load() != 1 {
			t.Errorf("%s: %d challenges, %d requests", protocol, n.challenges.Load(), n.requests.Load())
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	n := serve(t, newMesh(t, "proxy", orgs...), bob, "one")
	srv, refused := proxied(t, n, client.Policy{Measurements: []string{attesttest.Measurement("two")}})
	for _, accept := range []string{"", "application/json"} {
		req, err := http.NewRequest(http.MethodPost, srv.URL, strings.NewReader("a secret"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "measurement_not_allowed") {
			t.Errorf("got %s %q, %v", resp.Status, body, err)
		}
		if accept == "" {
			continue
		}
		var v struct {
			Error struct {
				Code, Message, Remedy string
				Reasons               []attest.Reason
			}
		}
		if err := json.Unmarshal(body, &v); err != nil || v.Error.Code != string(attest.CodeMeasurementNotAllowed) || v.Error.Remedy == "" || len(v.Error.Reasons) == 0 {
			t.Errorf("got %+v, %v", v, err)
		}
	}
	if len(*refused) != 2 || n.requests.Load() != 0 {
		t.Errorf("told of %v; the node got %d requests", *refused, n.requests.Load())
	}
}

// Names that others point here, and pages of other sites, get nothing.
func TestProxyIsForThisMachine(t *testing.T) {
	n := serve(t, newMesh(t, "proxy", orgs...), bob, "one")
	srv, _ := proxied(t, n, client.Policy{})
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for name, tc := range map[string]struct {
		method string
		header map[string]string
		host   string
		want   int
	}{
		"address":                {host: "127.0.0.1:" + port, want: 200},
		"localhost":              {host: "localhost:" + port, want: 200},
		"rebound name":           {host: "evil.example:" + port, want: 403},
		"name without port":      {host: "127.0.0.1", want: 403},
		"other port":             {host: "127.0.0.1:1", want: 403},
		"other address":          {host: "127.0.0.2:" + port, want: 403},
		"localhost with dot":     {host: "localhost.:" + port, want: 403},
		"no host":                {host: "", want: 403},
		"page of another origin": {method: "POST", header: map[string]string{"Origin": "https://evil.example"}, host: "127.0.0.1:" + port, want: 403},
		"page of another site":   {method: "POST", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, host: "127.0.0.1:" + port, want: 403},
		"script of another site": {header: map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, host: "127.0.0.1:" + port, want: 403},
		"another local port":     {header: map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, host: "127.0.0.1:" + port, want: 403},
		"link on another site":   {header: map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, host: "127.0.0.1:" + port, want: 200},
		"own page":               {method: "POST", header: map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:" + port}, host: "127.0.0.1:" + port, want: 200},
		"offer of HTTP/2":        {header: map[string]string{"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}, host: "127.0.0.1:" + port, want: 200},
	} {
		if tc.method == "" {
			tc.method = "GET"
		}
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n", tc.method, tc.host)
		for k, v := range tc.header {
			fmt.Fprintf(conn, "%s: %s\r\n", k, v)
		}
		fmt.Fprint(conn, "\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.StatusCode != tc.want {
			t.Errorf("%s: %s, want %d", name, resp.Status, tc.want)
		}
		resp.Body.Close()
		conn.Close()
	}
}

// redirecting answers challenges as the node does, and everything else with a redirect.
func TestProxyKeepsRedirectsHome(t *testing.T) {
	for location, want := range map[string]struct {
		status   int
		location string
	}{
		"/there?x=1":             {302, "/there?x=1"},
		"https://NODE/there":     {302, "/there"},
		"https://evil.example/":  {502, ""},
		"http://NODE/there":      {502, ""},
		"//evil.example/":        {502, ""},
		"https://NODE@evil.com/": {502, ""},
	} {
		n := serve(t, newMesh(t, "proxy", orgs...), bob, "one")
		n.set(func(n *node) { n.redirect = strings.Replace(location, "NODE", n.address, 1) })
		srv, _ := proxied(t, n, client.Policy{})
		c := srv.Client()
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		resp, err := c.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want.status || resp.Header.Get("Location") != want.location || resp.Header.Get("Alt-Svc") != "" {
			t.Errorf("%s: got %s to %q, want %v", location, resp.Status, resp.Header.Get("Location"), want)
		}
	}
}

// Both directions are handed on while they are being made.
func TestProxyStreams(t *testing.T) {
	n := serve(t, newMesh(t, "proxy", orgs...), bob, "one")
	stream := make(chan string)
	n.set(func(n *node) { n.stream = stream })
	srv, _ := proxied(t, n, client.Policy{})
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := io.WriteString(w, "first")
		if got := <-stream; got != "first" {
			err = fmt.Errorf("the node read %q before the rest was sent", got)
		}
		w.Close()
		done <- err
	}()
	resp, err := srv.Client().Post(srv.URL, "text/plain", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len("got first"))
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "got first" {
		t.Fatalf("got %q, %v while the answer is still being made", first, err)
	}
	stream <- ""
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != " and the end" {
		t.Errorf("got %q, %v", rest, err)
	}
}
