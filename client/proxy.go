package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// NewProxy returns the handler of a local HTTP proxy in front of one node: programs that
// know nothing of attestation speak plain HTTP to it on their own machine, and t, a
// Transport or Receipts over one, verifies the node before anything goes out. refused is
// called with every reason for which a request was not sent or its answer held back; it may
// be nil.
//
// A request that may not go out gets 502 with the reason: JSON of the shape
// {"error":{"code","message","remedy","reasons":[…]}} where Accept asks for it, else text.
//
// Only programs of this machine, and pages that the proxy itself served, get an answer. Host
// must be the address that was connected to, or localhost: a name that somebody else points
// here is refused (DNS rebinding), and so is what a browser sends for another site's page. A
// redirect may not lead away from the node, where nothing would be verified.
func NewProxy(t http.RoundTripper, to *url.URL, refused func(error)) http.Handler {
	p := &proxy{to: to, refused: refused}
	p.reverse = httputil.ReverseProxy{
		Transport: t,
		// Bodies are handed on as they come: answers may take minutes to be complete.
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = to.Host
		},
		ModifyResponse: p.stay,
		ErrorHandler:   p.fail,
		ErrorLog:       log.New(discard{}, "", 0), // what matters is told through refused
	}
	return http.NewCrossOriginProtection().Handler(p)
}

type proxy struct {
	to      *url.URL
	refused func(error)
	reverse httputil.ReverseProxy
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !localHost(r) {
		http.Error(w, fmt.Sprintf("meshnode proxy: host %.100q is not this proxy's address", r.Host), http.StatusForbidden)
		return
	}
	if site := r.Header.Get("Sec-Fetch-Site"); (site == "cross-site" || site == "same-site") && r.Header.Get("Sec-Fetch-Mode") != "navigate" {
		http.Error(w, "meshnode proxy: another site's page may not use this proxy", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodConnect || r.URL.Host != "" && r.URL.Host != r.Host {
		http.Error(w, "meshnode proxy: this is a proxy for one node; ask it for a path", http.StatusBadRequest)
		return
	}
	r.Header.Del("Upgrade") // an offer that a server may ignore
	p.reverse.ServeHTTP(w, r)
}

// localHost reports whether a request names the address that it came in on.
func localHost(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return false
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil { // the default port is left out
		host, port = strings.Trim(r.Host, "[]"), "80"
	}
	if port != fmt.Sprint(at.Port()) {
		return false
	}
	if host == "localhost" {
		return at.Addr().Unmap().IsLoopback()
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().WithZone("") == at.Addr().Unmap().WithZone("")
}

// stay keeps an answer from sending its reader elsewhere, and its trailers with it: HTTP/2 has
// them also where the length is told beforehand, HTTP/1.1 only where it is not.
func (p *proxy) stay(resp *http.Response) error {
	resp.Header.Del("Alt-Svc")
	if len(resp.Trailer) > 0 {
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
	}
	location := resp.Header.Get("Location")
	if location == "" {
		return nil
	}
	u, err := p.to.Parse(location)
	if err != nil || u.Scheme != p.to.Scheme || u.Host != p.to.Host {
		return refuse(attest.CodeWrongPeer, "redirect", fmt.Sprintf("%.100q", location), "a path on the node that was verified")
	}
	u.Scheme, u.Host = "", ""
	resp.Header.Set("Location", u.String())
	return nil
}

// fail answers for a request that was not sent, or not answered.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client has gone
	}
	if p.refused != nil {
		p.refused(err)
	}
	code, remedy := string(attest.CodeUnavailable), "see whether the node runs and can be reached"
	happened, reasons := "nothing was sent", []attest.Reason{}
	var refusal *Refusal
	var receipt *ReceiptError
	switch {
	case errors.As(err, &refusal):
		code, remedy, reasons = string(refusal.Code()), refusal.Reasons[0].Remedy, refusal.Reasons
	case errors.As(err, &receipt):
		why := receipt.Reason()
		happened, code, remedy, reasons = "the answer is held back", string(why.Code), why.Remedy, []attest.Reason{why}
	}
	w.Header().Set("Cache-Control", "no-store")
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadGateway)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": err.Error(), "remedy": remedy, "reasons": reasons}})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusBadGateway)
	fmt.Fprintf(w, "meshnode proxy: %s: %v\n  try: %s\n", happened, err, remedy)
}
