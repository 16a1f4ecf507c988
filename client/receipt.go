package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

// Receipts verifies what services sign about their answers and keeps it together with what
// proves who signed. It wraps a Transport, whose Config.OnSession is Session:
//
//	keeper := &client.Receipts{Mesh: mesh, Keep: func(k client.Kept) error { … }}
//	t, err := client.New(client.Config{…, OnSession: keeper.Session})
//	http.Client{Transport: keeper.Over(t)}
//
// A short answer is held back until its receipt is verified; a stream ends with an error in
// place of its end where the receipt behind it is missing or wrong. What a node says without
// a receipt comes through only as an error, status 400 or above. Requests to services are
// held in memory, so that they can be sent again.
type Receipts struct {
	Mesh identity.MeshID
	// Keep is given each verified receipt; an error of it fails the request.
	Keep func(Kept) error

	mu    sync.Mutex
	shown map[shownBy]Session // guarded by mu; the newest of each
	order []shownBy           // guarded by mu; the oldest first
}

// ReceiptError is why an answer was held back: its receipt is missing, or is not for what was
// asked and got, or not by who has proved itself; or it is in order and could not be kept.
type ReceiptError struct {
	Err  error
	Lost bool // in order, not kept
}

// Error implements error.
func (e *ReceiptError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ReceiptError) Unwrap() error { return e.Err }

// Reason is the error as a finding.
func (e *ReceiptError) Reason() attest.Reason {
	if e.Lost {
		why := attest.NewReason(attest.CodeUnavailable, "receipt", e.Error(), "one that is kept")
		why.Remedy = "look at the directory for receipts and its disk, then ask again"
		return why
	}
	return attest.NewReason(attest.CodeBadSignature, "receipt", e.Error(), "one for what was asked and got, by the node that was verified")
}

// shownBy names what a receipt refers to: who signs, and what ran there.
type shownBy struct {
	peer identity.PeerID
	head service.Digest
}

// maxShown bounds the sightings that wait for receipts.
const maxShown = 64

// Session notes what a connection has proved.
func (k *Receipts) Session(s Session) {
	key := shownBy{s.Peer, s.RuntimeHead}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shown == nil {
		k.shown = map[shownBy]Session{}
	}
	if _, ok := k.shown[key]; !ok {
		if len(k.order) >= maxShown {
			delete(k.shown, k.order[0])
			k.order = k.order[1:]
		}
		k.order = append(k.order, key)
	}
	k.shown[key] = s
}

// Over returns a RoundTripper that asks t and verifies the receipts of services.
func (k *Receipts) Over(t http.RoundTripper) http.RoundTripper { return receiptTripper{k, t} }

type receiptTripper struct {
	k *Receipts
	t http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (r receiptTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	name, path, ok := serviceOf(req)
	if !ok {
		return r.t.RoundTrip(req)
	}
	out := req.Clone(req.Context())
	if out.Header.Get(service.HeaderNonce) == "" {
		nonce := make([]byte, service.NonceSize)
		_, _ = rand.Read(nonce)
		out.Header.Set(service.HeaderNonce, hex.EncodeToString(nonce))
	}
	body, err := wholeBody(req)
	if err != nil {
		return nil, err
	}
	if out.Body = http.NoBody; len(body) > 0 || req.ContentLength > 0 {
		out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		// A node that has started something since its proof may be asked once more.
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	x := &asked{k: r.k, service: name, path: path, method: req.Method, nonce: out.Header.Get(service.HeaderNonce), body: sha256.Sum256(body)}
	resp, err := r.t.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	return x.judge(resp)
}

// serviceOf returns the service of a request and the path below it.
func serviceOf(req *http.Request) (name, path string, ok bool) {
	rest, ok := strings.CutPrefix(req.URL.EscapedPath(), service.PathServices)
	name, path, slash := strings.Cut(rest, "/")
	if !ok || !slash || service.CheckName(name) != nil {
		return "", "", false
	}
	if path = "/" + path; req.URL.RawQuery != "" {
		path += "?" + req.URL.RawQuery
	}
	return name, path, true
}

// wholeBody reads a request's body, which no service takes above service.MaxRequest.
func wholeBody(req *http.Request) ([]byte, error) {
	if req.Body == nil {
		return nil, nil
	}
	defer req.Body.Close()
	body, err := io.ReadAll(io.LimitReader(req.Body, service.MaxRequest+1))
	if err == nil && len(body) > service.MaxRequest {
		r := refuse(attest.CodeLimit, "request", "a longer body", fmt.Sprintf("at most %d bytes", service.MaxRequest))
		r.Reasons[0].Remedy = "send a smaller request"
		err = r
	}
	return body, err
}

// asked is one request whose answer needs a receipt.
type asked struct {
	k                            *Receipts
	service, path, method, nonce string
	body                         service.Digest // of the request
}

// judge holds a short answer until its receipt is verified and watches over a long one.
func (x *asked) judge(resp *http.Response) (*http.Response, error) {
	header := resp.Header.Get(service.HeaderReceipt)
	if header == "" && resp.StatusCode >= http.StatusBadRequest && resp.ContentLength >= 0 {
		return resp, nil // the node's own word: there is no answer
	}
	if header == "" {
		resp.Body = &watched{ReadCloser: resp.Body, x: x, resp: resp, sum: sha256.New()}
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, service.MaxBuffered+1))
	if err == nil && len(body) > service.MaxBuffered {
		err = &ReceiptError{Err: fmt.Errorf("receipt: before an answer of more than %d bytes", service.MaxBuffered)}
	}
	if err == nil {
		err = x.verify(header, resp.StatusCode, sha256.Sum256(body))
	}
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.Trailer.Del(service.HeaderReceipt) // the same once more
	return resp, nil
}

// watched is an answer with its receipt behind it.
type watched struct {
	io.ReadCloser
	x    *asked
	resp *http.Response
	sum  hash.Hash
	end  error
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	if w.end != nil {
		return 0, w.end
	}
	n, err := w.ReadCloser.Read(p)
	w.sum.Write(p[:n])
	if errors.Is(err, io.EOF) {
		header := w.resp.Trailer.Get(service.HeaderReceipt)
		if header != "" || w.resp.StatusCode < http.StatusBadRequest {
			if bad := w.x.verify(header, w.resp.StatusCode, service.Digest(w.sum.Sum(nil))); bad != nil {
				err = bad
			}
		}
	}
	w.end = err
	return n, err
}

// verify judges a receipt and keeps it; errors are *ReceiptError.
func (x *asked) verify(header string, status int, body service.Digest) error {
	k, err := x.check(header, status, body)
	if err != nil {
		return &ReceiptError{Err: err}
	}
	if err := x.k.Keep(k); err != nil {
		return &ReceiptError{Err: fmt.Errorf("receipt: keep it: %w", err), Lost: true}
	}
	return nil
}

func (x *asked) check(header string, status int, body service.Digest) (Kept, error) {
	if header == "" {
		return Kept{}, fmt.Errorf("receipt: service %s answered %d without one", x.service, status)
	}
	raw, err := service.DecodeHeader(header)
	if err != nil {
		return Kept{}, err
	}
	r, err := service.ParseReceipt(raw)
	if err != nil {
		return Kept{}, err
	}
	x.k.mu.Lock()
	s, ok := x.k.shown[shownBy{r.Peer, r.RuntimeHead}]
	x.k.mu.Unlock()
	if !ok {
		return Kept{}, fmt.Errorf("receipt: signed by %s with the runtime head %s, which has proved itself on no connection", r.Peer, r.RuntimeHead)
	}
	if err := r.Matches(service.Answered{MeshID: x.k.Mesh, Peer: r.Peer, RuntimeHead: r.RuntimeHead, Service: x.service,
		Method: x.method, Path: x.path, RequestBody: x.body, Status: status, Body: body, Nonce: x.nonce}); err != nil {
		return Kept{}, err
	}
	if err := r.Runs(s.Events); err != nil {
		return Kept{}, err
	}
	return Kept{Receipt: raw, Sighting: s.Sighting}, nil
}

// Kept is a receipt with what proves who signed it, for somebody who was not there.
type Kept struct {
	Receipt  []byte // envelope
	Sighting Sighting
}

// MaxKept bounds a kept receipt's file.
const MaxKept = 2*ratls.MaxAnswer + 128<<10

// keptFile is the JSON of a Kept, compact and in this order. ekm is the exporter value that
// the evidence is bound to; it says nothing about the keys of the traffic.
type keptFile struct {
	Receipt []byte         `json:"receipt"`
	Nonce   service.Digest `json:"nonce"`
	EKM     service.Digest `json:"ekm"`
	At      time.Time      `json:"at"`
	Answer  []byte         `json:"answer"`
}

// Encode returns the bytes of a file.
func (k Kept) Encode() ([]byte, error) {
	answer, err := k.Sighting.Answer.Encode()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(keptFile{k.Receipt, k.Sighting.Nonce, k.Sighting.EKM, k.Sighting.At.UTC().Truncate(time.Second), answer})
	if err != nil {
		return nil, err
	}
	return append(raw, '\n'), nil
}

// DecodeKept reads a file strictly.
func DecodeKept(raw []byte) (Kept, error) {
	if len(raw) > MaxKept {
		return Kept{}, fmt.Errorf("receipt file: %d bytes, the limit is %d", len(raw), MaxKept)
	}
	var f keptFile
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return Kept{}, fmt.Errorf("receipt file: %w", err)
	}
	k := Kept{Receipt: f.Receipt, Sighting: Sighting{Nonce: f.Nonce, EKM: f.EKM, At: f.At}}
	var err error
	if k.Sighting.Answer, err = ratls.DecodeAnswer(f.Answer); err != nil {
		return Kept{}, fmt.Errorf("receipt file: %w", err)
	}
	if k.Sighting.Leaf, err = x509.ParseCertificate(k.Sighting.Answer.Certificate); err != nil {
		return Kept{}, fmt.Errorf("receipt file: certificate: %w", err)
	}
	back, err := k.Encode()
	if err != nil || !bytes.Equal(back, raw) {
		return Kept{}, fmt.Errorf("receipt file: not in canonical form")
	}
	return k, nil
}

// receiptSkew is what the clocks of a node and its client may differ by.
const receiptSkew = 5 * time.Minute

// VerifyKept judges a kept receipt without any network: that the sighting passes genesis and
// policy, as it did when it was made, and that the receipt is by whoever it shows, under the
// program that it shows. It says nothing about today.
func (v *Verifier) VerifyKept(ctx context.Context, k Kept) (*service.Receipt, Session, error) {
	r, err := service.ParseReceipt(k.Receipt)
	if err != nil {
		return nil, Session{}, err
	}
	s, err := v.Judge(ctx, k.Sighting)
	if err != nil {
		return nil, Session{}, err
	}
	switch {
	case r.MeshID != s.MeshID || r.Incarnation != s.Incarnation:
		return nil, s, fmt.Errorf("receipt: of mesh %s, incarnation %d, want %s, %d", r.MeshID, r.Incarnation, s.MeshID, s.Incarnation)
	case r.Peer != s.Peer || r.Node != s.Node:
		return nil, s, fmt.Errorf("receipt: by %s as %s, the evidence is of %s as %s", r.Node, r.Peer, s.Node, s.Peer)
	case r.RuntimeHead != service.Digest(s.RuntimeHead):
		return nil, s, fmt.Errorf("receipt: runtime head %s, the evidence has %x", r.RuntimeHead, s.RuntimeHead)
	case r.Time.Before(s.AttestedAt.Add(-receiptSkew)) || r.Time.After(s.NotAfter.Add(receiptSkew)):
		return nil, s, fmt.Errorf("receipt: of %s, the evidence is believed from %s to %s", r.Time.Format(time.RFC3339), s.AttestedAt.Format(time.RFC3339), s.NotAfter.Format(time.RFC3339))
	}
	if err := r.Runs(s.Events); err != nil {
		return nil, s, err
	}
	return r, s, nil
}
