package mesh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/internal/identity"
)

// selfTestTimeout bounds the test of one address.
const selfTestTimeout = 5 * time.Second

// ErrUnguarded is returned by SelfTest when an unattested peer got a connection.
var ErrUnguarded = errors.New("mesh: an unattested peer got a connection")

// SelfTest dials every address of the node self with a stock libp2p host, all default
// transports and security protocols on, and fails if a connection comes to be. A node runs
// it before it serves. An address where nobody answers fails too: a test that reached
// nothing has shown nothing.
func SelfTest(ctx context.Context, self identity.PeerID, addrs []string) error {
	if len(addrs) == 0 {
		return errors.New("mesh: self-test: no address to dial")
	}
	stock, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(), libp2p.UserAgent("meshnode self-test"))
	if err != nil {
		return fmt.Errorf("mesh: self-test: %w", err)
	}
	defer stock.Close()
	for _, a := range addrs {
		addr, err := ma.NewMultiaddr(a)
		if err != nil {
			return fmt.Errorf("mesh: self-test: address %q: %w", a, err)
		}
		one, cancel := context.WithTimeout(ctx, selfTestTimeout)
		err = selfTestAddr(one, stock.Network(), peer.ID(self), addr)
		cancel()
		if err != nil {
			return fmt.Errorf("mesh: self-test of %s: %w", a, err)
		}
	}
	return nil
}

func selfTestAddr(ctx context.Context, stock network.Network, self peer.ID, addr ma.Multiaddr) error {
	bare, _ := peer.SplitAddr(addr)
	var d manet.Dialer
	raw, err := d.DialContext(ctx, bare)
	if err != nil {
		return fmt.Errorf("nobody answers, so nothing was tested: %w", err)
	}
	_ = raw.Close()
	stock.Peerstore().ClearAddrs(self)
	stock.Peerstore().AddAddr(self, bare, selfTestTimeout)
	conn, err := stock.DialPeer(network.WithForceDirectDial(ctx, "self-test"), self)
	if err != nil {
		return nil
	}
	_ = conn.Close()
	return fmt.Errorf("%w by %s", ErrUnguarded, conn.ConnState().Security)
}
