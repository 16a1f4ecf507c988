package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/service"
	"github.com/sigstore/sigstore/pkg/signature"
)

// This file hands requests to services and signs what they answer; see service.go. It is no
// httputil.ReverseProxy: that one logs, retries and adds headers of its own, and a receipt
// needs both bodies.

// handleAsk answers one request with what a program says and a receipt.
func (s *services) handleAsk(w http.ResponseWriter, r *http.Request) {
	leave, err := s.asked.enter(remote(r))
	if err != nil {
		writeDeclined(w, err)
		return
	}
	defer leave()
	// The endpoint's own limit would break off HTTP/2 while the program thinks.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.requestWithin + s.answerStall))
	ctx, cancel := context.WithTimeout(r.Context(), s.requestWithin)
	defer cancel()
	ctx, release := s.n.whileServing(ctx)
	defer release()
	x, err := s.accept(w, r)
	if err == nil {
		err = x.ask(ctx, r)
	}
	if err != nil {
		if why := s.n.withdrawn(); why != nil {
			err = &declined{http.StatusServiceUnavailable, *why}
		}
		writeDeclined(w, err)
		return
	}
	defer x.resp.Body.Close()
	if err := x.answer(w); err != nil {
		// Half an answer is out: only breaking it off tells the client that it is one.
		panic(http.ErrAbortHandler)
	}
}

// places are those of requests: max in all, of which one remote may hold half.
type places struct {
	max int

	mu      sync.Mutex
	taken   int            // guarded by mu
	remotes map[string]int // guarded by mu
}

// busy returns how many requests programs answer at this moment.
func (s *services) busy() int {
	s.asked.mu.Lock()
	defer s.asked.mu.Unlock()
	return s.asked.taken
}

// enter takes a place for a request of remote; leave gives it back.
func (p *places) enter(remote string) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.max || p.remotes[remote] >= p.max/2 {
		return nil, decline(http.StatusServiceUnavailable, attest.CodeBusy, "requests", fmt.Sprintf("%d, %d of them yours", p.taken, p.remotes[remote]), "fewer at the same time")
	}
	p.taken++
	p.remotes[remote]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.remotes[remote]--; p.remotes[remote] == 0 {
			delete(p.remotes, remote)
		}
	}, nil
}

// exchange is one request and its answer.
type exchange struct {
	n       *Node
	program *deployed
	body    []byte
	receipt service.Receipt
	resp    *http.Response
	stall   time.Duration // between two writes of the answer
}

// accept reads a request and decides who answers it.
func (s *services) accept(w http.ResponseWriter, r *http.Request) (*exchange, error) {
	sl, err := s.slotOf(r)
	if err != nil {
		return nil, err
	}
	target, spelled := strings.CutPrefix(r.URL.EscapedPath(), service.PathServices+sl.name)
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	malformed := func(claim, got, want string) error {
		return decline(http.StatusBadRequest, attest.CodeMalformed, claim, got, want)
	}
	nonces, heads := r.Header.Values(service.HeaderNonce), r.Header.Values(service.HeaderRuntimeHead)
	switch nonce := strings.Join(nonces, ","); {
	case len(nonces) > 1 || service.CheckNonce(nonce) != nil:
		return nil, malformed(service.HeaderNonce, fmt.Sprintf("%.80q", nonce), "one nonce of 64 characters of lower-case hex")
	case len(heads) > 1:
		return nil, malformed(service.HeaderRuntimeHead, fmt.Sprint(len(heads)), "one")
	case !service.Method(r.Method):
		return nil, malformed("method", fmt.Sprintf("%.20q", r.Method), "a method of HTTP that carries requests")
	case !spelled:
		return nil, malformed("path", fmt.Sprintf("%.80q", r.URL.EscapedPath()), "the service's name without escapes")
	case len(target) > service.MaxTarget:
		return nil, malformed("path", fmt.Sprintf("%d bytes", len(target)), fmt.Sprintf("at most %d", service.MaxTarget))
	}
	reading := http.NewResponseController(w)
	_ = reading.SetReadDeadline(time.Now().Add(s.requestRead))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, service.MaxRequest))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, decline(http.StatusRequestEntityTooLarge, attest.CodeLimit, "body", "more", fmt.Sprintf("at most %d bytes", service.MaxRequest)).
				try("send a smaller request")
		}
		return nil, malformed("body", err.Error(), "a whole body")
	}
	_ = reading.SetReadDeadline(time.Time{}) // or an answer that takes longer is broken off
	d, head, err := s.choose(sl, heads)
	if err != nil {
		return nil, err
	}
	m := d.manifest
	return &exchange{n: s.n, program: d, body: body, stall: s.answerStall, receipt: service.Receipt{
		MeshID: s.n.genesis.MeshID(), Incarnation: s.n.incarnation(), Node: s.n.ref, Peer: s.n.self,
		Service: sl.name, Version: m.Version, Manifest: m.Digest(), Program: m.Program.SHA256, Model: m.Model.SHA256,
		RuntimeHead: head, Nonce: r.Header.Get(service.HeaderNonce),
		Request: service.Request{Method: r.Method, Path: target, SHA256: sha256.Sum256(body)},
	}}, nil
}

// choose returns the program that answers now with the head that names it. A client that
// says which head it has appraised is served under that one or not at all.
func (s *services) choose(sl *slot, heads []string) (*deployed, service.Digest, error) {
	sl.mu.Lock()
	d, head := sl.current, service.Digest(s.n.runtime.Head()) // a new event comes after current was cleared
	sl.mu.Unlock()
	if len(heads) == 1 && heads[0] != head.String() {
		return nil, head, decline(http.StatusPreconditionFailed, attest.CodeRuntimeChanged, "runtime head", head.String(), fmt.Sprintf("%.64q", heads[0]))
	}
	if d == nil {
		return nil, head, decline(http.StatusServiceUnavailable, attest.CodeUnavailable, "service "+sl.name, "no program", "one that its owner has deployed").
			try("have the owner deploy it; a restarted node has none until then")
	}
	return d, head, nil
}

// ask hands the request to the program.
func (x *exchange) ask(ctx context.Context, r *http.Request) error {
	out, err := http.NewRequestWithContext(ctx, r.Method, "http://service"+x.receipt.Request.Path, bytes.NewReader(x.body))
	if err != nil {
		return decline(http.StatusBadRequest, attest.CodeMalformed, "path", err.Error(), "a path of a URL")
	}
	if asked := out.URL.RequestURI(); asked != x.receipt.Request.Path { // a fragment, above all
		return decline(http.StatusBadRequest, attest.CodeMalformed, "path", fmt.Sprintf("%.80q", x.receipt.Request.Path), fmt.Sprintf("what the program would be asked, %.80q", asked))
	}
	copyHeader(out.Header, r.Header)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // or the transport names itself
	}
	if x.resp, err = x.program.transport.RoundTrip(out); err != nil {
		return decline(http.StatusBadGateway, attest.CodeUnavailable, "service "+x.receipt.Service, "no answer", "a program that answers")
	}
	if x.resp.StatusCode < http.StatusOK || x.resp.StatusCode > 599 {
		x.resp.Body.Close()
		return decline(http.StatusBadGateway, attest.CodeMalformed, "status", strconv.Itoa(x.resp.StatusCode), "200 to 599")
	}
	x.receipt.Response.Status = x.resp.StatusCode
	return nil
}

// answer sends the program's answer with the receipt: in the trailer, and before the body
// too where it is short enough to be held back.
func (x *exchange) answer(w http.ResponseWriter) error {
	copyHeader(w.Header(), x.resp.Header)
	sum := sha256.New()
	if short := x.resp.ContentLength >= 0 && x.resp.ContentLength <= service.MaxBuffered; short || x.receipt.Request.Method == http.MethodHead {
		return x.answerShort(w, sum)
	}
	control := http.NewResponseController(w)
	// A client that stops reading holds one of few places: it loses it.
	stall := func() { _ = control.SetWriteDeadline(time.Now().Add(x.stall)) }
	stall()
	w.WriteHeader(x.resp.StatusCode)
	buf := make([]byte, 32<<10)
	for {
		n, err := x.resp.Body.Read(buf)
		sum.Write(buf[:n])
		if n > 0 {
			stall()
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if err := control.Flush(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return x.sign(w, http.TrailerPrefix, sum)
		}
		if err != nil {
			return err
		}
	}
}

func (x *exchange) answerShort(w http.ResponseWriter, sum hash.Hash) error {
	var body []byte
	if x.receipt.Request.Method != http.MethodHead {
		var err error
		if body, err = io.ReadAll(io.LimitReader(x.resp.Body, service.MaxBuffered+1)); err != nil {
			clear(w.Header())
			writeDeclined(w, decline(http.StatusBadGateway, attest.CodeUnavailable, "service "+x.receipt.Service, "half an answer", "a whole one"))
			return nil
		}
	}
	sum.Write(body)
	if err := x.sign(w, "", sum); err != nil {
		return err
	}
	w.Header().Set(http.TrailerPrefix+service.HeaderReceipt, w.Header().Get(service.HeaderReceipt))
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(x.stall))
	w.WriteHeader(x.resp.StatusCode)
	if len(body) == 0 {
		return nil
	}
	if _, err := w.Write(body); err != nil {
		return err
	}
	return control.Flush() // chunked: with a length there is no trailer
}

// sign puts the receipt into a header or a trailer.
func (x *exchange) sign(w http.ResponseWriter, prefix string, sum hash.Hash) error {
	x.receipt.Response.SHA256, x.receipt.Time = service.Digest(sum.Sum(nil)), x.n.time()
	signer, err := x.n.signer()
	if err != nil {
		return err
	}
	raw, err := service.SignReceipt(signer, x.receipt)
	if err != nil {
		return err
	}
	w.Header().Set(prefix+service.HeaderReceipt, service.EncodeHeader(raw))
	return nil
}

// signer signs with the peer key.
func (n *Node) signer() (signature.Signer, error) { return envelope.NewSigner(n.key) }

// copyHeader copies what is meant for the other end: nothing of this connection (RFC 9110
// §7.6.1), no length, which the copy has of its own, and nothing that only nodes say.
func copyHeader(to, from http.Header) {
	skip := map[string]bool{"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
		"Transfer-Encoding": true, "Upgrade": true, "Content-Length": true, "Expect": true}
	for _, list := range from.Values("Connection") {
		for _, name := range strings.Split(list, ",") {
			skip[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	for name, values := range from {
		if skip[name] || strings.HasPrefix(name, "Meshnode-") || strings.HasPrefix(name, "Proxy-") {
			continue
		}
		for _, v := range values {
			to.Add(name, v)
		}
	}
}
