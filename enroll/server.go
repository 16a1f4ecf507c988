package enroll

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/throttle"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Config is what an enroller is made of. Every field but Recovery, Seen, Activate and Log is required.
type Config struct {
	Genesis *consensus.Genesis
	// Policy is the newest policy that is known here; nil for genesis's. An enroller whose key or
	// organisation came in after genesis needs one that names it.
	Policy *consensus.PolicyState
	// Key is an enroll key in force; it says which organisation this is.
	Key ed25519.PrivateKey
	// Recovery, if the mesh has been recovered, is the file with which its present incarnation
	// began: Credentials are of that one, and Bootstrap is. Nil in incarnation 0.
	Recovery *consensus.RecoveryFile
	// Seen is the newest checkpoint of the log before Recovery that the organisation has seen:
	// no Bootstrap is signed that goes on from less. The zero value demands nothing.
	Seen consensus.CheckpointSeen
	// Releases is the organisation's own list.
	Releases Releases
	// Schemes decide what evidence is genuine, one for each kind on the list.
	Schemes []attest.Scheme
	// Activate vouches for attestation keys of TPMs, under the roots that genesis names. Nil
	// where it names none: then evidence of a TPM needs another reason to be believed.
	Activate Activate
	// Dir holds the state; the enroller takes it for itself.
	Dir *durable.Dir
	// Now is the wall clock.
	Now func() time.Time
	Log *slog.Logger
}

// Server is an enroller.
type Server struct {
	cfg     Config
	org     identity.OrgID
	scope   scope
	keyEnds time.Time // of Key; zero is never
	signer  signature.Signer
	schemes map[string]attest.Scheme
	store   *store
	// founding is the state in which Bootstrap is signed.
	founding *consensus.PolicyState
	cert     tls.Certificate
	spki     string
	release  func()
	limiter  *throttle.Requests
	slots    chan struct{} // one token per appraisal
	failed   chan struct{} // closed once the store cannot write
	fail     func()
}

// NewServer checks cfg, takes the directory (the error wraps durable.ErrInUse where
// another enroller has it) and reads its state. Serve must follow, or Close.
func NewServer(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, schemes: map[string]attest.Scheme{}, slots: make(chan struct{}, maxAppraisals),
		limiter: &throttle.Requests{Rate: requestRate, Burst: requestBurst, Remotes: maxRemotes}, failed: make(chan struct{})}
	s.fail = sync.OnceFunc(func() { close(s.failed) })
	if cfg.Log == nil {
		s.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("enroller: %w", err)
	}
	release, err := cfg.Dir.Lock()
	if err != nil {
		return nil, fmt.Errorf("enroller: %w", err)
	}
	s.release = release
	if err := s.open(); err != nil {
		release()
		return nil, fmt.Errorf("enroller: %w", err)
	}
	return s, nil
}

func (s *Server) check() (err error) {
	cfg := s.cfg
	if cfg.Genesis == nil || cfg.Dir == nil || cfg.Now == nil || len(cfg.Key) != ed25519.PrivateKeySize {
		return errors.New("genesis, key, directory and clock are all needed")
	}
	policy := cfg.Policy
	if policy == nil {
		if policy, err = consensus.ReplayPolicy(cfg.Genesis, nil); err != nil {
			return err
		}
	}
	if policy.MeshID() != cfg.Genesis.MeshID() {
		return fmt.Errorf("the policy is of mesh %s, genesis of %s", policy.MeshID().Short(), cfg.Genesis.MeshID().Short())
	}
	org, role, ok := policy.KeyOwner(cfg.Key.Public())
	if !ok || role != consensus.KeyEnroll {
		return fmt.Errorf("the key is not an enroll key of any organisation of mesh %s (it has role %q): use the key that genesis names, or give the policy that names it", cfg.Genesis.MeshID().Short(), role)
	}
	s.org, s.keyEnds = org, policy.KeyEnds(cfg.Key.Public())
	if err := cfg.Releases.Validate(); err != nil {
		return err
	}
	if cfg.Activate != nil && !cfg.Genesis.NamesAttestationKeys() {
		return fmt.Errorf("this mesh has fsm_version %d, whose Credentials cannot name attestation keys", cfg.Genesis.FSMVersion)
	}
	for _, scheme := range cfg.Schemes {
		s.schemes[scheme.Kind()] = scheme
	}
	for i, r := range cfg.Releases.Releases {
		if s.schemes[r.Kind] == nil {
			return fmt.Errorf("releases[%d].kind: %s cannot be verified here: genesis names no root for it, or this release does not know it", i, r.Kind)
		}
	}
	if s.signer, err = envelope.NewSigner(cfg.Key); err != nil {
		return err
	}
	keyID, err := envelope.KeyID(cfg.Key.Public())
	if err != nil {
		return err
	}
	s.founding = consensus.NewPolicyState(cfg.Genesis)
	if cfg.Recovery != nil {
		// Its time is judged where a Bootstrap is signed: Credentials are needed long after.
		if s.founding, err = cfg.Recovery.Founding(time.Time{}); err != nil {
			return err
		}
	}
	s.scope = scope{mesh: cfg.Genesis.MeshID(), incarnation: s.founding.Incarnation(), keyID: keyID}
	return nil
}

func (s *Server) open() (err error) {
	if s.store, err = openStore(s.cfg.Dir, s.scope.mesh, s.org); err != nil {
		return err
	}
	var recovery string
	if r := s.founding.Recovery(); r != nil {
		recovery = r.ID().String()
	}
	if err := s.store.enter(s.scope.incarnation, recovery); err != nil {
		return err
	}
	key, err := loadTLSKey(s.cfg.Dir)
	if err != nil {
		return err
	}
	if s.cert, err = selfSigned(key); err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(s.cert.Certificate[0])
	if err != nil {
		return err
	}
	s.spki = spkiPin(leaf.RawSubjectPublicKeyInfo)
	return nil
}

// Organisation returns the organisation whose enroller this is.
func (s *Server) Organisation() identity.OrgID { return s.org }

// SPKI returns the pin by which configurations name this enroller.
func (s *Server) SPKI() string { return s.spki }

// KeyID returns the id of the enroll key.
func (s *Server) KeyID() string { return s.scope.keyID }

// Close ends an enroller that is not served: its directory is free.
func (s *Server) Close() error {
	s.release()
	return nil
}

// Serve answers on ln until ctx ends, and then returns nil. It returns an error if the
// listener fails or the state cannot be made durable any more; ln is closed and the
// directory free in every case.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer s.release()
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: handshakeTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      2 * requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, stateKey{}, &state{})
		},
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	ended := make(chan error, 1)
	go func() {
		ended <- srv.Serve(tls.NewListener(throttle.NewListener(ln, maxConnections, maxConnectionsPerRemote), serverTLS(s.cert)))
	}()
	var cause error
	select {
	case err := <-ended:
		return fmt.Errorf("enroller: %w", err)
	case <-s.failed:
		cause = fmt.Errorf("enroller: the state cannot be written, restart when the disk is mended: %w", s.store.failure())
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	<-ended
	return cause
}

// state is what one connection waits for: the request of a nonce, the answer to a challenge.
type state struct {
	mu      sync.Mutex
	open    [][nonceSize]byte // guarded by mu
	pending *Activation       // guarded by mu
}

type stateKey struct{}

// expect remembers a challenge.
func (n *state) expect(a *Activation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending = a
}

// expected returns the challenge, nil without one, and forgets it.
func (n *state) expected() *Activation {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.pending
	n.pending = nil
	return a
}

// make returns a fresh nonce; the oldest gives way to it.
func (n *state) make() ([]byte, error) {
	var fresh [nonceSize]byte
	if _, err := rand.Read(fresh[:]); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.open) == maxNonces {
		n.open = n.open[1:]
	}
	n.open = append(n.open, fresh)
	return fresh[:], nil
}

// take reports whether a nonce waits on this connection, and uses it up.
func (n *state) take(nonce []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, open := range n.open {
		if string(open[:]) == string(nonce) {
			n.open = append(n.open[:i], n.open[i+1:]...)
			return true
		}
	}
	return false
}
