package simulations

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// enroller stands in for an organisation's enroller (package enroll): real keys and
// statements and the rules of attempts, but it believes whoever calls and sees no evidence.
type enroller struct {
	genesis *consensus.Genesis
	org     identity.OrgID
	signer  signature.Signer

	// signed, if set, is called after a Bootstrap is signed for good and before the seat hears
	// of it.
	signed func(ctx context.Context, org identity.OrgID, attempt uint32)

	mu      sync.Mutex
	boots   map[identity.NodeName]identity.BootSeq // guarded by mu; the newest boot
	attempt uint32                                 // guarded by mu; the last one signed
	started bool                                   // guarded by mu; under that attempt
}

func newEnroller(g *consensus.Genesis, org identity.OrgID, s signature.Signer) *enroller {
	return &enroller{genesis: g, org: org, signer: s, boots: map[identity.NodeName]identity.BootSeq{}}
}

// desk is the enroller as one boot of a node reaches it.
type desk struct {
	*enroller
	name  identity.NodeName
	roles []string
	keys  node.Keys

	once sync.Once
	seq  identity.BootSeq
}

var _ node.Enroller = (*desk)(nil)

// Credential implements node.Enroller.
func (d *desk) Credential(context.Context, *attest.Quoter) ([]byte, error) {
	now := time.Now()
	d.once.Do(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.seq = max(d.boots[d.name]+1, identity.BootSeq(now.UnixMilli()))
		d.boots[d.name] = d.seq
	})
	return consensus.SignCredential(d.signer, consensus.Credential{
		MeshID: d.genesis.MeshID(), Organisation: d.org, Node: d.name,
		Peer:     identity.PeerIDFromKey(d.keys.Peer.Public().(ed25519.PublicKey)),
		Cosigner: envelope.PublicKey{PublicKey: d.keys.Cosigner.Public()},
		Roles:    d.roles, BootSeq: d.seq, Issued: now, Expires: now.Add(consensus.MaxCredentialLifetime),
	})
}

// SignBootstrap implements node.Enroller.
func (d *desk) SignBootstrap(ctx context.Context, payload []byte) ([]byte, error) {
	b, err := d.sign(payload)
	if err != nil {
		return nil, err
	}
	if d.signed != nil {
		d.signed(ctx, d.org, b.Attempt)
	}
	return consensus.Sign(payload, d.signer)
}

// sign records an attempt.
func (d *desk) sign(payload []byte) (*consensus.Bootstrap, error) {
	b, err := consensus.NewPolicyState(d.genesis).CheckBootstrap(payload, time.Now())
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || b.Attempt <= d.attempt {
		return nil, fmt.Errorf("attempt %d, this enroller has signed %d (started: %t)", b.Attempt, d.attempt, d.started)
	}
	d.attempt = b.Attempt
	return b, nil
}

// Started implements node.Enroller.
func (d *desk) Started(_ context.Context, attempt uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if attempt != d.attempt {
		return fmt.Errorf("attempt %d, the last one signed is %d", attempt, d.attempt)
	}
	d.started = true
	return nil
}
