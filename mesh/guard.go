package mesh

import (
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/internal/identity"
)

// gater is the last guard before libp2p announces a connection: whatever transport made it,
// it carries a verdict about exactly this peer or it is closed.
type gater struct{}

var _ connmgr.ConnectionGater = gater{}

// InterceptPeerDial implements connmgr.ConnectionGater.
func (gater) InterceptPeerDial(p peer.ID) bool { return identity.PeerID(p).Validate() == nil }

// InterceptAddrDial implements connmgr.ConnectionGater; relayed addresses are not dialled.
func (gater) InterceptAddrDial(_ peer.ID, addr ma.Multiaddr) bool {
	_, err := addr.ValueForProtocol(ma.P_CIRCUIT)
	return err != nil
}

// InterceptAccept implements connmgr.ConnectionGater.
func (gater) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured implements connmgr.ConnectionGater.
func (gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return identity.PeerID(p).Validate() == nil
}

// InterceptUpgraded implements connmgr.ConnectionGater.
func (gater) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	var s *Session
	return c.As(&s) && s != nil && s.Peer == identity.PeerID(c.RemotePeer()) && s.Result.Affirming(), 0
}

// frontedUpgrader puts the front, and under it Config.WrapListener, under every listener.
type frontedUpgrader struct {
	transport.Upgrader
	intake *intake
	wrap   func(manet.Listener) manet.Listener // nil: none
}

// GateMaListener implements transport.Upgrader.
func (u frontedUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	if u.wrap != nil {
		l = u.wrap(l)
	}
	return u.Upgrader.GateMaListener(newFront(l, u.intake))
}

// UpgradeListener implements transport.Upgrader.
func (u frontedUpgrader) UpgradeListener(t transport.Transport, l manet.Listener) transport.Listener {
	return u.UpgradeGatedMaListener(t, u.GateMaListener(l))
}
