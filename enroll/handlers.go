package enroll

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/throttle"
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+pathNonce, handle(s, maxRequest, s.nonce))
	mux.Handle("POST "+pathActivation, handle(s, maxRequest, s.activation))
	mux.Handle("POST "+pathCredential, handle(s, maxCredentialRequest, s.credential))
	mux.Handle("POST "+pathBootstrap, handle(s, maxRequest, s.bootstrap))
	mux.Handle("POST "+pathStarted, handle(s, maxRequest, s.started))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, refusal(attest.CodeMalformed, "request", fmt.Sprintf("%s %.60q", r.Method, r.URL.Path), "POST to a path of the enroller's API"))
	})
	return mux
}

// handle decodes a request of at most limit bytes, asks decide, and encodes.
func handle[Request, Answer any](s *Server, limit int64, decide func(*http.Request, *Request) (*Answer, *attest.Reason)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.limiter.Allow(throttle.RemoteHost(r.RemoteAddr), s.cfg.Now()) {
			s.refuse(w, r, refusal(attest.CodeBusy, "requests", "too many", fmt.Sprintf("%.0f a second", requestRate)))
			return
		}
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if err != nil {
			s.refuse(w, r, refusal(attest.CodeMalformed, "request", err.Error(), fmt.Sprintf("at most %d bytes, in time", limit)))
			return
		}
		var req Request
		if err := decodeJSON(raw, &req); err != nil {
			s.refuse(w, r, refusal(attest.CodeMalformed, "request", err.Error(), "one JSON object of the known fields"))
			return
		}
		answer, reason := decide(r, &req)
		if s.store.failure() != nil {
			s.fail()
		}
		if reason != nil {
			s.refuse(w, r, reason)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the client asks again
	})
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, reason *attest.Reason) {
	level := slog.LevelWarn
	if reason.Code == attest.CodeBusy {
		level = slog.LevelDebug // a flood of requests must not become one of log lines
	}
	s.cfg.Log.Log(r.Context(), level, "refused", "path", r.URL.Path, "remote", r.RemoteAddr, "reason", reason.String())
	status := http.StatusForbidden
	switch reason.Code {
	case attest.CodeMalformed:
		status = http.StatusBadRequest
	case attest.CodeBusy:
		status = http.StatusTooManyRequests
	case attest.CodeUnavailable:
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(refusalAnswer{*reason})
}

func (s *Server) nonce(r *http.Request, _ *struct{}) (*nonceAnswer, *attest.Reason) {
	nonce, err := connectionState(r.Context()).make()
	if err != nil {
		return nil, refusal(attest.CodeUnavailable, "nonce", err.Error(), "random bytes")
	}
	return &nonceAnswer{Nonce: nonce, KeyID: s.scope.keyID, MeshID: s.scope.mesh, Incarnation: s.scope.incarnation}, nil
}

// credential checks from cheap to dear: the request against the connection, the keys'
// proofs, then the evidence; only what passed all of it changes the state.
func (s *Server) credential(r *http.Request, req *credentialRequest) (*credentialAnswer, *attest.Reason) {
	if reason := s.checkScope(req); reason != nil {
		return nil, reason
	}
	if !connectionState(r.Context()).take(req.Nonce) {
		return nil, refusal(attest.CodeNotBound, "nonce", "a nonce not given on this connection, or used", "the nonce of this connection")
	}
	if _, reason := s.cfg.Releases.node(req.Node); reason != nil {
		return nil, reason
	}
	bind, reason := s.checkPossession(r.TLS, req)
	if reason != nil {
		return nil, reason
	}
	claims, reason := s.verify(r.Context(), req, bind)
	if reason != nil {
		return nil, reason
	}
	claims, ak, reason := vouch(claims, connectionState(r.Context()).expected(), req.Activation)
	if reason != nil {
		return nil, reason
	}
	roles, reason := s.cfg.Releases.grant(req.Node, claims, req.Roles)
	if reason != nil {
		return nil, reason
	}
	now := s.cfg.Now()
	expires := now.Add(CredentialLifetime)
	if ends := s.keyEnds; !ends.IsZero() && ends.Before(expires) { // a key signs nothing that outlives it
		expires = ends
	}
	if !now.Before(expires) {
		return nil, refusal(attest.CodeUnavailable, "enroll key", "ended "+s.keyEnds.Format(time.RFC3339), "a key in force: have it replaced by a proposal (rotate_key)")
	}
	seq, reason := s.store.enrol(req.Node, req.Peer, req.Cosigner.PublicKey.(ed25519.PublicKey), now)
	if reason != nil {
		return nil, reason
	}
	raw, err := consensus.SignCredential(s.signer, consensus.Credential{
		MeshID: s.scope.mesh, Incarnation: s.scope.incarnation, Organisation: s.org, Node: req.Node,
		Peer: req.Peer, Cosigner: req.Cosigner, Roles: roles, BootSeq: seq,
		Issued: now, Expires: expires, AK: ak,
	})
	if err != nil {
		return nil, refusal(attest.CodeUnavailable, "credential", err.Error(), "a signature by the enroll key")
	}
	s.cfg.Log.Info("credential", "node", req.Node, "peer", req.Peer.String(), "boot_seq", uint64(seq), "roles", roles,
		"kind", claims.Kind, "measurement", claims.Measurement, "ak", ak)
	return &credentialAnswer{raw}, nil
}

// checkScope decides what needs no connection and no cryptography.
func (s *Server) checkScope(req *credentialRequest) *attest.Reason {
	if req.MeshID != s.scope.mesh {
		return refusal(attest.CodeWrongMesh, "mesh_id", req.MeshID.Short(), s.scope.mesh.Short())
	}
	if req.Incarnation != s.scope.incarnation {
		return refusal(attest.CodeWrongIncarnation, "incarnation", fmt.Sprint(req.Incarnation), fmt.Sprint(s.scope.incarnation))
	}
	if err := req.Node.Validate(); err != nil {
		return refusal(attest.CodeMalformed, "node", fmt.Sprintf("%.40q", string(req.Node)), err.Error())
	}
	if err := req.Peer.Validate(); err != nil {
		return refusal(attest.CodeMalformed, "peer", "", err.Error())
	}
	if err := checkRoles(req.Roles); err != nil {
		return refusal(attest.CodeMalformed, "roles", "", err.Error())
	}
	cosigner, ok := req.Cosigner.PublicKey.(ed25519.PublicKey)
	if !ok {
		return refusal(attest.CodeMalformed, "cosigner", "", "an Ed25519 public key")
	}
	if peerKey, err := req.Peer.PublicKey(); err != nil || peerKey.Equal(cosigner) {
		return refusal(attest.CodeMalformed, "cosigner", "the peer key", "a key of its own")
	}
	if len(req.RuntimeHead) != sha256.Size {
		return refusal(attest.CodeMalformed, "runtime_head", fmt.Sprintf("%d bytes", len(req.RuntimeHead)), "32 bytes")
	}
	return nil
}

// checkPossession returns the binder of this connection if both keys have signed it.
func (s *Server) checkPossession(cs *tls.ConnectionState, req *credentialRequest) ([32]byte, *attest.Reason) {
	peerKey, err := req.Peer.PublicKey()
	if err != nil {
		return [32]byte{}, refusal(attest.CodeMalformed, "peer", "", err.Error())
	}
	cosigner := req.Cosigner.PublicKey.(ed25519.PublicKey) // checkScope
	bind, err := s.scope.binder(cs, req.Peer, cosigner, req.Nonce)
	if err != nil {
		return [32]byte{}, refusal(attest.CodeUnavailable, "connection", err.Error(), "a TLS exporter")
	}
	if !ed25519.Verify(peerKey, possession(peerLabel, bind), req.PeerProof) {
		return bind, wrongProof("peer_proof", "the key of peer "+req.Peer.String())
	}
	if !ed25519.Verify(cosigner, possession(cosignerLabel, bind), req.CosignerProof) {
		return bind, wrongProof("cosigner_proof", "the cosigner key")
	}
	return bind, nil
}

// verify opens the first two doors: well-formed evidence, genuine and bound to bind.
func (s *Server) verify(ctx context.Context, req *credentialRequest, bind [32]byte) (attest.Claims, *attest.Reason) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	leave, reason := s.enter(ctx)
	if reason != nil {
		return attest.Claims{}, reason
	}
	defer leave()
	ev, err := attest.DecodeEvidence(req.Evidence)
	if err != nil {
		return attest.Claims{}, refusal(attest.CodeMalformed, "evidence", err.Error(), "evidence in canonical form")
	}
	scheme := s.schemes[ev.Kind]
	if scheme == nil {
		return attest.Claims{}, refusal(attest.CodeKindNotAllowed, "kind", ev.Kind, "a kind on the organisation's own list")
	}
	proof := attest.Proof{Evidence: ev, RuntimeHead: [32]byte(req.RuntimeHead),
		Inclusion: attest.Inclusion{Index: req.Index, Size: req.Size, Path: req.Path}}
	data, err := proof.ReportData(bind, s.scope.mesh, string(req.Peer))
	if err != nil {
		return attest.Claims{}, refusal(attest.CodeMalformed, "inclusion", err.Error(), "a path to the quoted root")
	}
	claims, err := attest.Verify(ctx, scheme, ev, &data, s.cfg.Now())
	if err != nil {
		return attest.Claims{}, consensus.ReasonOf(err)
	}
	if !claims.Genuine || !claims.Bound {
		return attest.Claims{}, refusal(attest.CodeNotBound, "evidence", "unbound claims", "genuine evidence over this connection")
	}
	return claims, nil
}

// bootstrap signs for the organisation's own seat.
func (s *Server) bootstrap(_ *http.Request, req *bootstrapRequest) (*bootstrapAnswer, *attest.Reason) {
	b, err := s.founding.CheckBootstrap(req.Payload, s.cfg.Now())
	if err != nil {
		return nil, consensus.ReasonOf(err)
	}
	own := ownSeat(b, s)
	if own == nil {
		return nil, refusal(attest.CodeNoCredential, "bootstrap", "no seat of "+string(s.org), "one Credential of each organisation")
	}
	if !s.signedBy(own, bootstrapLabel, req.Payload, req.Proof) {
		return nil, wrongProof("proof", "the seat "+own.Ref().String())
	}
	if seen := s.cfg.Seen; b.Continues.Size < seen.Size || b.Continues.Size == seen.Size && b.Continues.Root != seen.Root {
		return nil, refusal(attest.CodeRolledBack, "bootstrap continues", fmt.Sprintf("size %d, root %.16s", b.Continues.Size, b.Continues.Root),
			fmt.Sprintf("size %d, root %.16s, or later: this organisation has seen it", seen.Size, seen.Root))
	}
	digest := sha256.Sum256(req.Payload)
	reason := s.store.sign(attempt{Incarnation: b.Incarnation, Attempt: b.Attempt, Payload: digest[:], Node: own.Node, Peer: own.Peer})
	if reason != nil {
		return nil, reason
	}
	raw, err := consensus.Sign(req.Payload, s.signer)
	if err != nil {
		return nil, refusal(attest.CodeUnavailable, "bootstrap", err.Error(), "a signature by the enroll key")
	}
	s.cfg.Log.Info("bootstrap signed", "attempt", b.Attempt, "seat", own.Ref().String(), "peer", own.Peer.String())
	return &bootstrapAnswer{raw}, nil
}

// ownSeat returns the Credential of the enroller's organisation.
func ownSeat(b *consensus.Bootstrap, s *Server) *consensus.Credential {
	for _, c := range b.Seats() {
		if c.Organisation == s.org {
			return c
		}
	}
	return nil
}

// signedBy reports whether a seat itself asks.
func (s *Server) signedBy(seat *consensus.Credential, label string, what, proof []byte) bool {
	key, err := seat.Peer.PublicKey()
	return err == nil && ed25519.Verify(key, s.scope.request(label, what), proof)
}

func (s *Server) started(_ *http.Request, req *startedRequest) (*struct{}, *attest.Reason) {
	key, err := req.Peer.PublicKey()
	if err != nil {
		return nil, refusal(attest.CodeMalformed, "peer", "", err.Error())
	}
	if !ed25519.Verify(key, s.scope.request(startedLabel, attemptBytes(req.Attempt)), req.Proof) {
		return nil, wrongProof("proof", "the key of peer "+req.Peer.String())
	}
	if reason := s.store.start(s.scope.incarnation, req.Attempt, req.Peer); reason != nil {
		return nil, reason
	}
	s.cfg.Log.Info("seat started", "attempt", req.Attempt, "peer", req.Peer.String())
	return &struct{}{}, nil
}

func connectionState(ctx context.Context) *state {
	return ctx.Value(stateKey{}).(*state) // ConnContext gives every connection its own
}

func wrongProof(claim, want string) *attest.Reason {
	reason := refusal(attest.CodeWrongSigner, claim, "an invalid signature", "a signature by "+want)
	reason.Remedy = "sign for this connection with the key itself"
	return reason
}
