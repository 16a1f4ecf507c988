package redteam

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// relayAttacks end TLS on both sides between the target and a genuine node that Self
// plays, honest in every word, and forward the frames.
func relayAttacks() []Attack {
	const needs = NeedSelf | NeedAccepted
	return []Attack{
		{Name: "relay", Tries: "stand between a genuine node and the target with a key of one's own and forward their frames",
			Flaw: "believe that evidence comes from whoever sends it", Needs: needs, run: func(ctx context.Context, c *Campaign) Outcome {
				return c.relay(ctx, newKey(), "", attest.CodeNotBound)
			}},
		{Name: "relay-stolen-key", Tries: "stand there with the genuine node's identity key in hand, as if stolen; the node takes the attacker for the target",
			Flaw: "bind evidence to identities and nonces, but not to the TLS connection", Needs: needs, run: func(ctx context.Context, c *Campaign) Outcome {
				return c.relay(ctx, c.arsenal.Self.Key, c.target.Peer, attest.CodeNotBound)
			}},
		{Name: "diversion", Tries: "stand there with the stolen key, while the genuine node means to speak to somebody else",
			Flaw: "accept evidence that was made for another verifier over another connection", Needs: needs, run: func(ctx context.Context, c *Campaign) Outcome {
				return c.relay(ctx, c.arsenal.Self.Key, identity.PeerIDFromKey(newKey().Public().(ed25519.PublicKey)), attest.CodeNotBound)
			}},
	}
}

// relay runs one relay. right is the attacker's key towards the target; believed is whom
// the genuine node takes the attacker for, "" being whom it really is.
func (c *Campaign) relay(ctx context.Context, right ed25519.PrivateKey, believed identity.PeerID, want attest.Code) Outcome {
	toTarget, err := dialTLS(ctx, c.addrs[0], c.target.Peer, right)
	if err != nil {
		return skipped("could not be tried: %v", err)
	}
	defer toTarget.Close()
	leftKey := newKey()
	toNode, atNode, err := pipeTLS(ctx, c.arsenal.Self.Key, leftKey)
	if err != nil {
		return skipped("TLS to the genuine node: %v", err)
	}
	defer toNode.Close()
	defer atNode.Close()
	if believed == "" {
		believed = identity.PeerIDFromKey(leftKey.Public().(ed25519.PublicKey))
	}
	verifier := c.target
	verifier.Peer = believed
	node := &speaker{conn: atNode, export: atNode.export, id: c.arsenal.Self, target: &verifier}
	for _, conn := range []*channel{toTarget, toNode, atNode} {
		_ = conn.SetDeadline(time.Now().Add(answerTimeout))
	}
	done := make(chan error, 1)
	go func() { done <- node.play(ctx) }()
	begun := time.Now()
	err = forward(toNode, toTarget)
	a := answer{speaker: &speaker{}, channel: nil, err: err, took: time.Since(begun)}
	var refused *exchange.RefusedError
	if errors.As(err, &refused) {
		a.refused = true
		for _, r := range refused.Reasons {
			a.codes = append(a.codes, r.Code)
		}
	}
	_ = toNode.Close()
	_ = atNode.Close()
	<-done
	return a.outcome("", want)
}

// forward carries the frames of the exchange from the genuine node to the target and back
// up to ATT_R, and makes the transcript right, which needs no secret but the exporter of
// the connection to the target.
func forward(node, target *channel) error {
	helloI, err := pass(node, target, exchange.FrameHelloI, nil)
	if err != nil {
		return err
	}
	helloR, err := pass(target, node, exchange.FrameHelloR, nil)
	if err != nil {
		return err
	}
	ekm, err := exchange.EKM(target.export, helloI, helloR)
	if err != nil {
		return err
	}
	if _, err := pass(node, target, exchange.FrameAttI, func(body []byte) ([]byte, error) {
		att, err := exchange.DecodeAttestation(body)
		if err != nil {
			return nil, err
		}
		att.Transcript = exchange.Transcript(ekm, helloI, helloR)
		return att.Encode()
	}); err != nil {
		return err
	}
	_, err = exchange.ReadFrame(target, exchange.FrameAttR, exchange.MaxAttestation)
	return err
}

func pass(from, to *channel, kind exchange.FrameType, change func([]byte) ([]byte, error)) ([]byte, error) {
	body, err := exchange.ReadFrame(from, kind, exchange.MaxAttestation)
	if err == nil && change != nil {
		body, err = change(body)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return body, exchange.WriteFrame(to, kind, body)
}

// pipeTLS makes a TLS connection in memory between a node and an attacker's server end.
func pipeTLS(ctx context.Context, nodeKey, attackerKey ed25519.PrivateKey) (attacker, node *channel, err error) {
	server, err := newTLS(attackerKey)
	if err != nil {
		return nil, nil, err
	}
	client, err := newTLS(nodeKey)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	a, b := net.Pipe()
	type result struct {
		ch  *channel
		err error
	}
	inbound := make(chan result, 1)
	go func() {
		conn, err := server.SecureInbound(ctx, a, "")
		if err != nil {
			_ = a.Close()
			inbound <- result{nil, err}
			return
		}
		ch, err := newChannel(conn, a)
		inbound <- result{ch, err}
	}()
	conn, err := client.SecureOutbound(ctx, b, peer.ID(identity.PeerIDFromKey(attackerKey.Public().(ed25519.PublicKey))))
	if err != nil {
		_ = b.Close()
	}
	in := <-inbound
	if err := errors.Join(err, in.err); err != nil {
		return nil, nil, err
	}
	node, err = newChannel(conn, b)
	return in.ch, node, err
}
