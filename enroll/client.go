package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Prover makes evidence over a binder; attest.Quoter is one.
type Prover interface {
	Prove(ctx context.Context, bind [32]byte) (attest.Proof, error)
}

// Client is one boot of a node before its organisation's enroller. All fields are
// required but Roles and Activator. Its methods may be called from several goroutines. Each takes at
// most a minute (with an Activator, whose TPM may have to make keys, Credential takes three), connects anew, and returns errors that are *attest.Error: a refusal of
// the enroller with its reason, or unavailable, or wrong_peer where another server answers.
type Client struct {
	// URL is https://host:port.
	URL string
	// SPKI is the pin of the enroller's TLS key.
	SPKI string
	// InForce returns the organisation's enroll keys in force where the caller knows of changes;
	// nil, or no keys, stands for EnrollKeys.
	InForce func() []crypto.PublicKey
	// EnrollKeys are the organisation's enroll keys in genesis: whose signature and name
	// the client accepts.
	EnrollKeys  []crypto.PublicKey
	MeshID      identity.MeshID
	Incarnation identity.Incarnation
	Node        identity.NodeRef
	// Roles asked for, besides member.
	Roles []string
	// PeerKey and CosignerKey are those of this boot.
	PeerKey     ed25519.PrivateKey
	CosignerKey ed25519.PrivateKey
	// Activator is this machine's TPM, where its evidence needs the enroller's word.
	Activator Activator
}

// Check asks who answers at the enroller's address and compares it with what is pinned. It
// enrols nothing and changes nothing there.
func (c *Client) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	conn.close()
	return nil
}

// Credential enrols, or renews the Credential of the same boot, and returns its envelope,
// verified to be what was asked for.
func (c *Client) Credential(ctx context.Context, prover Prover) ([]byte, error) {
	limit := clientTimeout
	if c.Activator != nil {
		limit += activationTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	peer := identity.PeerIDFromKey(c.PeerKey.Public().(ed25519.PublicKey))
	cosigner := c.CosignerKey.Public().(ed25519.PublicKey)
	bind, err := conn.scope.binder(&conn.state, peer, cosigner, conn.nonce)
	if err != nil {
		return nil, c.fail(attest.CodeUnavailable, "connection", err)
	}
	activation, err := conn.activate(ctx)
	if err != nil {
		return nil, err
	}
	proof, err := prover.Prove(ctx, bind)
	if err != nil {
		return nil, c.fail(attest.CodeUnavailable, "evidence", fmt.Errorf("this machine's attester: %w", err))
	}
	evidence, err := proof.Evidence.Encode()
	if err != nil {
		return nil, c.fail(attest.CodeMalformed, "evidence", err)
	}
	var answer credentialAnswer
	err = conn.post(ctx, pathCredential, credentialRequest{
		Node: c.Node.Name, Peer: peer, Cosigner: envelope.PublicKey{PublicKey: cosigner}, Roles: c.Roles,
		MeshID: c.MeshID, Incarnation: c.Incarnation, Nonce: conn.nonce, Evidence: evidence,
		RuntimeHead: proof.RuntimeHead[:],
		Index:       proof.Inclusion.Index, Size: proof.Inclusion.Size, Path: proof.Inclusion.Path,
		PeerProof:     ed25519.Sign(c.PeerKey, possession(peerLabel, bind)),
		CosignerProof: ed25519.Sign(c.CosignerKey, possession(cosignerLabel, bind)),
		Activation:    activation,
	}, &answer)
	if err != nil {
		return nil, err
	}
	if err := c.checkCredential(answer.Credential, peer, cosigner); err != nil {
		return nil, c.fail(attest.CodeProtocol, "credential", err)
	}
	return answer.Credential, nil
}

// checkCredential decides whether the enroller gave what was asked for.
func (c *Client) checkCredential(raw []byte, peer identity.PeerID, cosigner ed25519.PublicKey) error {
	cred, err := consensus.ParseCredential(raw)
	if err != nil {
		return err
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return err
	}
	if _, err := env.Verify(c.keys()); err != nil {
		return err
	}
	if cred.MeshID != c.MeshID || cred.Incarnation != c.Incarnation || cred.Ref() != c.Node || cred.Peer != peer || !cred.CosignerKey().Equal(cosigner) {
		return fmt.Errorf("it is for %s, peer %s, want %s, peer %s, with this boot's cosigner key", cred.Ref(), cred.Peer.Short(), c.Node, peer.Short())
	}
	if want := consensus.NormaliseRoles(c.Roles); !slices.Equal(cred.Roles, want) {
		return fmt.Errorf("it grants the roles %v, want %v", cred.Roles, want)
	}
	return nil
}

// SignBootstrap asks the enroller to sign a Bootstrap payload in which this node is its
// organisation's seat. It returns an envelope with that one signature, verified.
func (c *Client) SignBootstrap(ctx context.Context, payload []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	var answer bootstrapAnswer
	proof := ed25519.Sign(c.PeerKey, conn.scope.request(bootstrapLabel, payload))
	if err := conn.post(ctx, pathBootstrap, bootstrapRequest{payload, proof}, &answer); err != nil {
		return nil, err
	}
	env, err := envelope.Parse(answer.Envelope)
	if err == nil && (!bytes.Equal(env.Payload, payload) || len(env.Signatures) != 1) {
		err = errors.New("it is not the payload that was sent with one signature")
	}
	if err == nil {
		_, err = env.Verify(c.keys())
	}
	if err != nil {
		return nil, c.fail(attest.CodeProtocol, "bootstrap", err)
	}
	return answer.Envelope, nil
}

// Started records with the enroller that this seat starts under an attempt. A seat starts
// only once this has returned nil; it may ask again.
func (c *Client) Started(ctx context.Context, attempt uint32) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	return conn.post(ctx, pathStarted, startedRequest{
		Attempt: attempt,
		Peer:    identity.PeerIDFromKey(c.PeerKey.Public().(ed25519.PublicKey)),
		Proof:   ed25519.Sign(c.PeerKey, conn.scope.request(startedLabel, attemptBytes(attempt))),
	}, &struct{}{})
}

func (c *Client) keys() []envelope.Key {
	var out []envelope.Key
	for _, k := range c.enrollKeys() {
		out = append(out, envelope.Key{Org: c.Node.Org, Public: k})
	}
	return out
}

// enrollKeys are the keys that the enroller may have.
func (c *Client) enrollKeys() []crypto.PublicKey {
	if c.InForce != nil {
		if keys := c.InForce(); len(keys) > 0 {
			return keys
		}
	}
	return c.EnrollKeys
}

// fail names the enroller and carries a reason.
func (c *Client) fail(code attest.Code, claim string, err error) error {
	return &attest.Error{Reason: attest.NewReason(code, claim, "", ""), Err: fmt.Errorf("enroller %s: %w", c.URL, err)}
}

// connection is one TLS connection to the enroller with its nonce.
type connection struct {
	client *Client
	http   *http.Client
	raw    net.Conn
	state  tls.ConnectionState
	scope  scope
	nonce  []byte
}

// connect makes a connection, checks that it leads to the pinned key, and asks who is
// there. The exporter belongs to this very connection, so the HTTP client gets no other.
func (c *Client) connect(ctx context.Context) (*connection, error) {
	if len(c.PeerKey) != ed25519.PrivateKeySize || len(c.CosignerKey) != ed25519.PrivateKeySize || len(c.EnrollKeys) == 0 || c.MeshID.IsZero() {
		return nil, c.fail(attest.CodeMalformed, "client", errors.New("mesh id, peer key, cosigner key and the organisation's enroll keys are all needed"))
	}
	config, err := clientTLS(c.SPKI)
	if err != nil {
		return nil, c.fail(attest.CodeMalformed, "spki", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Port() == "" {
		return nil, c.fail(attest.CodeMalformed, "url", errors.New("want https://host:port"))
	}
	dialer := &tls.Dialer{Config: config}
	raw, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		var pin *pinError
		if errors.As(err, &pin) {
			reason := attest.NewReason(attest.CodeWrongPeer, "spki", pin.got, pin.want)
			reason.Remedy = "if the enroller was installed anew, pin the spki of its ready line; otherwise another server answers at its address"
			return nil, &attest.Error{Reason: reason, Err: fmt.Errorf("enroller %s", c.URL)}
		}
		return nil, c.fail(attest.CodeUnavailable, "connection", err)
	}
	conn := &connection{client: c, raw: raw, state: raw.(*tls.Conn).ConnectionState()}
	next := raw
	conn.http = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				if next == nil {
					return nil, errors.New("the connection was lost")
				}
				dialled := next
				next = nil
				return dialled, nil
			},
			MaxConnsPerHost:    1,
			DisableCompression: true,
		},
	}
	if err := conn.hello(ctx); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

// hello asks for the nonce and checks that the enroller is the organisation's own.
func (conn *connection) hello(ctx context.Context) error {
	c := conn.client
	var answer nonceAnswer
	if err := conn.post(ctx, pathNonce, struct{}{}, &answer); err != nil {
		return err
	}
	if answer.MeshID != c.MeshID {
		return &attest.Error{Reason: attest.NewReason(attest.CodeWrongMesh, "mesh_id", answer.MeshID.Short(), c.MeshID.Short()), Err: fmt.Errorf("enroller %s", c.URL)}
	}
	if answer.Incarnation != c.Incarnation {
		return &attest.Error{Reason: attest.NewReason(attest.CodeWrongIncarnation, "incarnation", fmt.Sprint(answer.Incarnation), fmt.Sprint(c.Incarnation)), Err: fmt.Errorf("enroller %s", c.URL)}
	}
	if len(answer.Nonce) != nonceSize {
		return c.fail(attest.CodeProtocol, "nonce", fmt.Errorf("%d bytes, want %d", len(answer.Nonce), nonceSize))
	}
	if !slices.ContainsFunc(c.enrollKeys(), func(k crypto.PublicKey) bool {
		id, err := envelope.KeyID(k)
		return err == nil && id == answer.KeyID
	}) {
		return c.fail(attest.CodeWrongSigner, "key_id", fmt.Errorf("it signs with %.64q, which is no enroll key of %s", answer.KeyID, c.Node.Org))
	}
	conn.nonce = answer.Nonce
	conn.scope = scope{mesh: c.MeshID, incarnation: c.Incarnation, keyID: answer.KeyID}
	return nil
}

// post makes one request on the connection. A refusal is returned with the enroller's own
// reason.
func (conn *connection) post(ctx context.Context, path string, request, answer any) error {
	c := conn.client
	body, err := json.Marshal(request)
	if err != nil {
		return c.fail(attest.CodeMalformed, "request", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return c.fail(attest.CodeMalformed, "url", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := conn.http.Do(req)
	if err != nil {
		return c.fail(attest.CodeUnavailable, "connection", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.fail(attest.CodeUnavailable, "connection", err)
	}
	if len(raw) > maxAnswer {
		return c.fail(attest.CodeProtocol, "answer", fmt.Errorf("over the limit of %d bytes", maxAnswer))
	}
	if resp.StatusCode != http.StatusOK {
		return c.refusal(resp.Status, raw)
	}
	if err := decodeJSON(raw, answer); err != nil {
		return c.fail(attest.CodeProtocol, "answer", err)
	}
	return nil
}

// refusal turns an answer other than 200 into an error.
func (c *Client) refusal(status string, raw []byte) error {
	var answer refusalAnswer
	if err := decodeJSON(raw, &answer); err != nil || answer.Reason.Code == "" {
		return c.fail(attest.CodeProtocol, "answer", fmt.Errorf("status %s without a reason", status))
	}
	return &attest.Error{Reason: answer.Reason, Err: fmt.Errorf("enroller %s", c.URL)}
}

// close ends the connection.
func (conn *connection) close() {
	conn.http.CloseIdleConnections()
	conn.raw.Close()
}
