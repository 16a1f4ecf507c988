package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
)

// enrol gets the first Credential; it tries for as long as the enroller does not answer
// and says why in status. A refusal is not final: the operator may list the release.
func (n *Node) enrol(ctx context.Context) error {
	pause := dialFirst
	for {
		raw, err := n.enroller.Credential(ctx, n.quoter)
		if err == nil {
			n.mu.Lock()
			n.cred, n.credAt, n.phase, n.phaseReason = raw, n.now(), PhaseJoining, nil
			n.mu.Unlock()
			return nil
		}
		why := enrolReason(err)
		if why.Code == attest.CodeWrongIncarnation && n.discover(ctx) {
			continue // the enroller knew before us that the mesh was recovered
		}
		n.log.Warn("not enrolled", "error", err)
		n.mu.Lock()
		n.phaseReason = &why
		n.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, dialSlowest)
	}
}

// enrolReason says why there is no Credential and what this node's operator does about it.
func enrolReason(err error) attest.Reason {
	var refused *attest.Error
	if !errors.As(err, &refused) {
		return attest.NewReason(attest.CodeUnavailable, "enroller", err.Error(), "a Credential")
	}
	why := *consensus.ReasonOf(err) // with the cause, where the reason itself has none
	if why.Want == "" {
		why.Want = "a Credential"
	}
	switch {
	case why.Code == attest.CodeUnavailable && why.Claim == "evidence":
		why.Remedy = "start the platform that attester names (meshnode sim-platform), or let this user use the device (meshnode doctor); the node waits for it"
	case why.Code == attest.CodeUnavailable:
		why.Remedy = "start the enroller (meshnode enroll serve) or correct enroller.url; the node waits for it"
	case why.Code == attest.CodeWrongSigner && why.Claim == "key_id":
		why.Remedy = "name the url and spki of your own organisation's enroller"
	}
	return why
}

// renew keeps the Credential fresh: at half its life, then at half of what is left.
func (n *Node) renew(ctx context.Context) {
	for {
		c, err := consensus.ParseCredential(n.credential())
		if err != nil {
			n.fail(fmt.Errorf("own credential: %w", err))
			return
		}
		if !n.waitRenewal(ctx, max(time.Minute, c.Expires.Sub(n.time())/2)) {
			return
		}
		raw, err := n.enroller.Credential(ctx, n.quoter)
		if err != nil {
			n.log.Warn("credential not renewed", "error", err)
			continue
		}
		n.mu.Lock()
		n.cred, n.credAt = raw, n.now()
		n.mu.Unlock()
		if command, err := consensus.NewCommand(consensus.KindCredential, raw); err == nil {
			ctx, cancel := context.WithTimeout(ctx, submitTimeout)
			_, err = n.submit(ctx, command)
			cancel()
			n.log.Info("credential renewed", "ordered", err == nil)
		}
	}
}

// renewVoid is how often a node whose Credential is void asks for another.
const renewVoid = 2 * time.Second

// waitRenewal waits until a new Credential is due: for as long as given, or until the key that
// signed the present one was removed. It reports false once ctx has ended.
func (n *Node) waitRenewal(ctx context.Context, life time.Duration) bool {
	due := time.NewTimer(life)
	defer due.Stop()
	for {
		changed := n.changed.wait()
		if why := n.dismissed(n.self, n.credential()); why != nil && why.Code == attest.CodeNoCredential {
			due.Reset(min(life, renewVoid))
			changed = nil
		}
		select {
		case <-due.C:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
