package redteam

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// tlsAttacks try the handshake under the exchange.
func tlsAttacks() []Attack {
	return []Attack{
		{Name: "tls12", Tries: "finish a TLS 1.2 handshake, which has no exporter bound to the whole handshake",
			Flaw: "negotiate TLS down", run: tls12},
		{Name: "resumption", Tries: "keep a session ticket and resume with it", Flaw: "issue tickets, so that a handshake is skipped later", run: resumption},
		{Name: "no-certificate", Tries: "finish TLS without a peer certificate", Flaw: "speak to somebody without an identity", run: noCertificate},
	}
}

// rawTLS makes the handshake by hand with a changed configuration.
func (c *Campaign) rawTLS(ctx context.Context, change func(*tls.Config)) (*tls.Conn, error) {
	key, err := ic.UnmarshalEd25519PrivateKey(newKey())
	if err != nil {
		return nil, err
	}
	id, err := libp2ptls.NewIdentity(key)
	if err != nil {
		return nil, err
	}
	raw, err := dialSelected(ctx, c.addrs[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoConnection, err)
	}
	config, _ := id.ConfigForPeer(peer.ID(c.target.Peer))
	change(config)
	conn := tls.Client(raw, config)
	handshake, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(handshake); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func tls12(ctx context.Context, c *Campaign) Outcome {
	conn, err := c.rawTLS(ctx, func(config *tls.Config) { config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	if err != nil {
		return held("no handshake: %v", err)
	}
	defer conn.Close()
	return broken("a handshake of version %s", tls.VersionName(conn.ConnectionState().Version))
}

func resumption(ctx context.Context, c *Campaign) Outcome {
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		conn, err := c.rawTLS(ctx, func(config *tls.Config) {
			config.ClientSessionCache, config.SessionTicketsDisabled, config.ServerName = cache, false, "redteam"
		})
		if err != nil {
			return held("no second handshake: %v", err)
		}
		// Tickets arrive after the handshake: read until the target gives up on us.
		_ = conn.SetReadDeadline(time.Now().Add(dialTimeout))
		_, _ = conn.Read(make([]byte, 1024))
		resumed := conn.ConnectionState().DidResume
		_ = conn.Close()
		if resumed {
			return broken("the second handshake resumed the first")
		}
	}
	return held("two full handshakes, no ticket")
}

func noCertificate(ctx context.Context, c *Campaign) Outcome {
	conn, err := c.rawTLS(ctx, func(config *tls.Config) { config.Certificates = nil; config.GetClientCertificate = nil })
	if err != nil {
		return held("no handshake: %v", err)
	}
	defer conn.Close()
	// In TLS 1.3 the server judges the certificate after the client has finished.
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := conn.Write([]byte{1, 0, 0, 0, 0}); err != nil {
		return held("closed: %v", err)
	}
	n, err := conn.Read(make([]byte, 64))
	if n > 0 {
		return broken("the target answered %d bytes to nobody", n)
	}
	return held("no answer: %v", err)
}
