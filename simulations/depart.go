package simulations

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// drain drains a node and waits until it can be stopped.
func (p *player) drain(name, refused string) error {
	hosts, err := p.nodes([]string{name})
	if err != nil {
		return err
	}
	h := hosts[0]
	for end := time.Now().Add(expectWithin); ; time.Sleep(pollEvery) {
		ctx, cancel := context.WithTimeout(context.Background(), callWithin)
		var d node.Drain
		err := h.call(ctx, http.MethodPost, "/v1/nodes/"+h.name+"/drain", nil, &d)
		cancel()
		if err != nil || d.State == node.DrainDone {
			return wantRefused(err, refused)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not drained: it waits for %s", h.name, d.Waiting)
		}
	}
}

// retire has a node's organisation void its present boot, as another node knows it.
func (p *player) retire(name, at string) error {
	hosts, err := p.nodes([]string{at})
	if err != nil {
		return err
	}
	ref, err := identity.ParseNodeRef(p.real(name))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	var v node.NodeView
	if err := hosts[0].call(ctx, http.MethodGet, "/v1/nodes/"+ref.String(), nil, &v); err != nil {
		return err
	}
	peer, err := identity.ParsePeerID(v.Peer)
	if err != nil {
		return err
	}
	s, err := envelope.NewSigner(key(string(ref.Org), consensus.KeyGovern))
	if err != nil {
		return err
	}
	raw, err := consensus.SignRetirement(s, consensus.Retirement{MeshID: p.world.genesis.MeshID(), Node: ref, Peer: peer})
	if err != nil {
		return err
	}
	_, err = hosts[0].submit(ctx, "/v1/retirements", raw)
	return err
}
