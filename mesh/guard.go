package mesh

import (
	"context"
	"time"

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
	return attestedAs(c, c.RemotePeer()), 0
}

// attestedAs reports whether c carries an affirming verdict about exactly this peer that has
// not outlived its window.
func attestedAs(c interface{ As(any) bool }, p peer.ID) bool {
	var s *Session
	return c.As(&s) && s != nil && s.Peer == identity.PeerID(p) && s.Result.Affirming() && !s.Expired(time.Now())
}

// frontedUpgrader puts the front, and under it Config.WrapListener, under every listener,
// and takes bulk connections away above it. What it accepts may be either, what it dials is
// a link.
type frontedUpgrader struct {
	transport.Upgrader // accepts
	dial               transport.Upgrader
	mesh               *libp2pMesh
}

// Upgrade implements transport.Upgrader.
func (u frontedUpgrader) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	if dir == network.DirOutbound {
		return u.dial.Upgrade(ctx, t, c, dir, p, scope)
	}
	return u.Upgrader.Upgrade(ctx, t, c, dir, p, scope)
}

// GateMaListener implements transport.Upgrader.
func (u frontedUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	if wrap := u.mesh.cfg.WrapListener; wrap != nil {
		l = wrap(l)
	}
	return u.Upgrader.GateMaListener(newFront(l, u.mesh.intake))
}

// UpgradeGatedMaListener implements transport.Upgrader.
func (u frontedUpgrader) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return &bulkListener{u.Upgrader.UpgradeGatedMaListener(t, l), u.mesh.takeBulk}
}

// UpgradeListener implements transport.Upgrader.
func (u frontedUpgrader) UpgradeListener(t transport.Transport, l manet.Listener) transport.Listener {
	return u.UpgradeGatedMaListener(t, u.GateMaListener(l))
}
