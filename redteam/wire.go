package redteam

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// channel is a secured connection before any attestation.
type channel struct {
	sec.SecureConn
	raw    net.Conn
	export exchange.Exporter
}

// dialRaw opens a TCP connection that ends with ctx.
func dialRaw(ctx context.Context, addr string) (net.Conn, error) {
	to, err := hostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(AttackTimeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	return conn, conn.SetDeadline(deadline)
}

// dialSelected opens a connection on which the mesh's security protocol is agreed.
func dialSelected(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := dialRaw(ctx, addr)
	if err != nil {
		return nil, err
	}
	if err := mss.SelectProtoOrFail(protocol.ID(mesh.SecurityID), raw); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("select %s: %w", mesh.SecurityID, err)
	}
	return raw, nil
}

// dialTLS opens a TLS connection to the target as the holder of key.
func dialTLS(ctx context.Context, addr string, target identity.PeerID, key ed25519.PrivateKey) (*channel, error) {
	t, err := newTLS(key)
	if err != nil {
		return nil, err
	}
	raw, err := dialSelected(ctx, addr)
	if err != nil {
		return nil, err
	}
	handshake, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := t.SecureOutbound(handshake, raw, peer.ID(target))
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return newChannel(conn, raw)
}

func newTLS(key ed25519.PrivateKey) (*libp2ptls.Transport, error) {
	k, err := ic.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return libp2ptls.New(mesh.SecurityID, k, []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}})
}

func newChannel(conn sec.SecureConn, raw net.Conn) (*channel, error) {
	c, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		_ = conn.Close()
		return nil, errors.New("no TLS state")
	}
	state := c.ConnectionState()
	return &channel{conn, raw, state.ExportKeyingMaterial}, nil
}

func newKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}
