package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/throttle"
)

// Announcement is what /.well-known/meshnode/node serves: how to reach this node and the
// Credential that says whose it is. It holds no secret and decides nothing: whoever dials
// checks the Credential first and then demands that the peer proves itself.
type Announcement struct {
	Peer       identity.PeerID `json:"peer"`
	Addresses  []string        `json:"addresses"`
	Credential []byte          `json:"credential"`
}

// PolicyDocument is what /.well-known/meshnode/policy serves (policypages.go): the signed history of the
// policy (genesis, Bootstrap, proposals in order), which verifies itself.
type PolicyDocument struct {
	Chain [][]byte `json:"chain"`
}

// Directory finds what peers announce on their public listeners.
type Directory interface {
	Announcement(ctx context.Context, url string) (Announcement, error)
	Policy(ctx context.Context, url string) (PolicyDocument, error)
}

// Paths of the public listener.
const (
	pathNode   = "/.well-known/meshnode/node"
	pathPolicy = "/.well-known/meshnode/policy"
	pathHead   = "/.well-known/meshnode/head"
	pathLog    = "/log/"
)

// Limits of the public listener and of reading others'.
const (
	publicTimeout   = 5 * time.Second
	publicWrite     = time.Minute // of one answer: who reads slower than 8 MiB a minute comes again
	maxAnnouncement = 64 << 10
	maxPolicy       = 8 << 20     // of one page
	policyWithin    = time.Minute // of all pages
	// maxVisitors and maxVisitorsPerRemote bound the connections of others, and of one address
	// among them, behind which there may be all nodes of a mesh.
	maxVisitors          = 512
	maxVisitorsPerRemote = 256
)

// servePublic serves addresses, policy and log tiles until ctx ends.
func (n *Node) servePublic(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	n.publicRoutes(mux)
	s := newServer(ctx, mux, n.log)
	s.WriteTimeout = publicWrite
	return serveUntil(ctx, s, throttle.NewListener(l, maxVisitors, maxVisitorsPerRemote))
}

// publicRoutes are what anybody may read.
func (n *Node) publicRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathNode, func(w http.ResponseWriter, _ *http.Request) {
		if !n.meshUp.Load() {
			http.Error(w, "this node is not in its mesh yet", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, http.StatusOK, n.announcement())
	})
	mux.Handle("GET "+pathPolicy, newPolicyPages(n.machine.PolicyChain, n.now))
	mux.HandleFunc("GET "+pathHead, n.handlePublicHead)
	mux.Handle("GET "+pathLog, http.StripPrefix(pathLog, n.machine.tree))
}

// Limits of heads that anybody may ask for: each costs a digest of the policy and a signature.
const (
	headRate  = 5 // a second, of one address
	headBurst = 20
)

// handlePublicHead serves /.well-known/meshnode/head?nonce=HEX (32 bytes): this seat's signed
// consensus.Head over the nonce, while it hears the mesh. Founders of a recovery ask, to
// learn whether what they would recover from is alive.
func (n *Node) handlePublicHead(w http.ResponseWriter, r *http.Request) {
	nonce, err := hex.DecodeString(r.URL.Query().Get("nonce"))
	switch {
	case err != nil || len(nonce) != nonceSize:
		http.Error(w, "nonce: want 64 characters of hex", http.StatusBadRequest)
		return
	case !n.headLimiter.Allow(throttle.RemoteHost(r.RemoteAddr), n.now()):
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	case !n.signsHeads():
		http.Error(w, "this node is no seat that hears the mesh", http.StatusServiceUnavailable)
		return
	}
	_, raw, err := n.signHead(nonce)
	if err != nil {
		http.Error(w, "no head", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(raw)
}

// announcement is what this node says of itself in public.
func (n *Node) announcement() Announcement {
	return Announcement{Peer: n.self, Addresses: n.mesh.Addrs(), Credential: n.credential()}
}

// serveHTTP serves until ctx ends, then stops within publicTimeout; it returns when no
// handler runs any more.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serveUntil(ctx, newServer(ctx, h, log), l)
}

func newServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: publicTimeout, ReadTimeout: time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelError), // a handler's panic, above all
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
}

func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	down := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(down)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publicTimeout)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-down // Serve returns while Shutdown still waits for the handlers
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// httpDirectory reads announcements over HTTP.
type httpDirectory struct{ client *http.Client }

// NewHTTPDirectory returns the Directory that asks peers' public listeners through rt; nil
// is http.DefaultTransport.
func NewHTTPDirectory(rt http.RoundTripper) Directory {
	return httpDirectory{&http.Client{Transport: rt, Timeout: publicTimeout}}
}

// Announcement implements Directory.
func (d httpDirectory) Announcement(ctx context.Context, url string) (Announcement, error) {
	var a Announcement
	err := d.get(ctx, url+pathNode, maxAnnouncement, &a)
	return a, err
}

// Policy implements Directory: it reads page after page.
func (d httpDirectory) Policy(ctx context.Context, url string) (PolicyDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, policyWithin)
	defer cancel()
	var out PolicyDocument
	for size := 0; ; {
		var p PolicyPage
		if err := d.get(ctx, fmt.Sprintf("%s%s?from=%d", url, pathPolicy, len(out.Chain)), maxPolicy, &p); err != nil {
			return PolicyDocument{}, err
		}
		for _, step := range p.Chain {
			size += len(step)
		}
		out.Chain = append(out.Chain, p.Chain...)
		switch {
		case p.Steps > consensus.MaxChain || len(out.Chain) > consensus.MaxChain || size > consensus.MaxChainBytes:
			return PolicyDocument{}, fmt.Errorf("%s: a policy of %d steps, %d of them of %d bytes: over the limits", url, p.Steps, len(out.Chain), size)
		case len(out.Chain) >= p.Steps: // of releases that know no pages there is one, without a number
			return out, nil
		case len(p.Chain) == 0:
			return PolicyDocument{}, fmt.Errorf("%s: no step %d of %d", url, len(out.Chain), p.Steps)
		}
	}
}

// HeadDirectory is implemented by directories that can ask a seat for its head.
type HeadDirectory interface {
	// Head returns the head that the seat behind url signs over nonce, in hex.
	Head(ctx context.Context, url, nonce string) ([]byte, error)
}

// Head implements HeadDirectory.
func (d httpDirectory) Head(ctx context.Context, url, nonce string) ([]byte, error) {
	var raw json.RawMessage
	err := d.get(ctx, url+pathHead+"?nonce="+nonce, consensus.MaxHead, &raw)
	return raw, err
}

func (d httpDirectory) get(ctx context.Context, url string, limit int64, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > limit {
		return fmt.Errorf("%s: over the limit of %d bytes", url, limit)
	}
	return json.Unmarshal(data, v)
}
