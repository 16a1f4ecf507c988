package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// SecurityID is the private security protocol; no stock libp2p node speaks it.
const SecurityID protocol.ID = "/meshnode-atls/1.0.0"

// security is libp2p TLS 1.3 followed by the exchange, as one sec.SecureTransport.
type security struct {
	hub *hub
	tls *libp2ptls.Transport
}

var _ sec.SecureTransport = (*security)(nil)

// newSecurity has the shape that libp2p.Security wants. It refuses every key but the
// node's own: libp2p builds helper hosts with random keys (AutoNAT does), and an attester
// would vouch for them.
func (h *hub) newSecurity(id protocol.ID, key ic.PrivKey, muxers []upgrader.StreamMuxer) (*security, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("mesh: security transport: %w", err)
	}
	if id != SecurityID {
		return nil, fmt.Errorf("mesh: security transport: asked to be %s, is %s", id, SecurityID)
	}
	if identity.PeerID(self) != h.self {
		return nil, fmt.Errorf("mesh: security transport: got the key of %s, want this node's, %s", self, h.self)
	}
	t, err := libp2ptls.New(id, key, muxers)
	if err != nil {
		return nil, fmt.Errorf("mesh: security transport: %w", err)
	}
	return &security{hub: h, tls: t}, nil
}

// ID implements sec.SecureTransport.
func (t *security) ID() protocol.ID { return SecurityID }

// SecureInbound implements sec.SecureTransport; it returns only attested connections.
func (t *security) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	handshake, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	v, _ := insecure.(*visitor)
	v.negotiated()
	conn, err := t.tls.SecureInbound(handshake, insecure, p)
	if err != nil {
		return nil, err
	}
	v.exchanged()
	attested, err := t.attest(ctx, conn, false, v)
	if err == nil {
		v.attested()
	}
	return attested, err
}

// SecureOutbound implements sec.SecureTransport; it returns only attested connections.
func (t *security) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	handshake, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	conn, err := t.tls.SecureOutbound(handshake, insecure, p)
	var other sec.ErrPeerIDMismatch
	if errors.As(err, &other) {
		// The usual cause is a peer that has rebooted and with it changed its identity.
		reason := attest.NewReason(attest.CodeWrongPeer, "peer", other.Actual.String(), other.Expected.String())
		err = t.hub.report(identity.PeerID(p), &Refusal{Peer: identity.PeerID(p), Reasons: []attest.Reason{reason}})
	}
	if err != nil {
		return nil, err
	}
	return t.attest(ctx, conn, true, nil)
}

// attest runs the exchange on a TLS connection and closes it on every failure. A connection
// that the peer opened is v's.
func (t *security) attest(ctx context.Context, conn sec.SecureConn, initiator bool, v *visitor) (sec.SecureConn, error) {
	remote := identity.PeerID(conn.RemotePeer())
	export, err := exporter(conn)
	if err == nil {
		err = remote.Validate()
	}
	var s *Session
	if err == nil {
		params := t.hub.params(attest.PurposeChannel, remote, initiator, export)
		if !initiator {
			t.hub.guardInbound(&params, v)
		}
		s, err = exchange.Run(ctx, conn, params)
	}
	if err != nil {
		_ = conn.Close()
		return nil, t.hub.report(remote, err)
	}
	t.hub.counters.session(s)
	return &attestedConn{SecureConn: conn, channel: newChannel(s, export)}, nil
}

// exporter returns the keying-material exporter of libp2p's TLS connection, which embeds
// *tls.Conn without saying so in its type.
func exporter(conn sec.SecureConn) (exchange.Exporter, error) {
	c, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil, fmt.Errorf("mesh: a %T has no TLS state to bind evidence to", conn)
	}
	state := c.ConnectionState()
	if state.Version != tls.VersionTLS13 || state.DidResume || !state.HandshakeComplete {
		return nil, errors.New("mesh: want a full TLS 1.3 handshake")
	}
	if state.CurveID != tls.X25519MLKEM768 {
		// Both ends are this program: another key exchange is somebody's choice, or GODEBUG's.
		return nil, fmt.Errorf("mesh: key exchange %s, want %s", state.CurveID, tls.X25519MLKEM768)
	}
	return state.ExportKeyingMaterial, nil
}

// attestedConn is a connection that finished the exchange. Only security makes it.
type attestedConn struct {
	sec.SecureConn
	channel *channel
}

// muxerGuard lets a muxer start only on an attested connection and makes the verdict
// reachable from every layer above with conn.As(**Session).
type muxerGuard struct{ network.Multiplexer }

// NewConn implements network.Multiplexer.
func (g muxerGuard) NewConn(c net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	attested, ok := c.(*attestedConn)
	if !ok || attested.channel == nil {
		_ = c.Close()
		return nil, fmt.Errorf("mesh: a %T was never attested and gets no muxer", c)
	}
	muxed, err := g.Multiplexer.NewConn(c, isServer, scope)
	if err != nil {
		return nil, err
	}
	return &attestedMuxer{muxed, attested.channel}, nil
}

type attestedMuxer struct {
	network.MuxedConn
	channel *channel
}

// As implements network.MuxedConn.
func (m *attestedMuxer) As(target any) bool {
	switch t := target.(type) {
	case **Session:
		*t = m.channel.session()
		return true
	case **channel:
		*t = m.channel
		return true
	}
	return m.MuxedConn.As(target)
}
