package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/redteam"
)

// redteamEnrol bounds one enrolment of the attacker.
const redteamEnrol = 20 * time.Second

// redteamRun is a target with what there is to attack it with.
type redteamRun struct {
	target  redteam.Target
	arsenal redteam.Arsenal
	node    string

	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (r *redteamRun) close() { r.cancel(); r.done.Wait() }

// prepareRedteam reads what the target announces and enrols the attacker, if it may.
func prepareRedteam(ctx context.Context, target string, attacks []redteam.Attack, f redteamFlags) (*redteamRun, error) {
	if err := checkTarget(target, f.config != ""); err != nil {
		return nil, err
	}
	var cfg node.Config
	if f.config != "" {
		var err error
		if cfg, err = node.LoadConfig(f.config); err != nil {
			return nil, configFailure(f.config, err)
		}
	}
	// A certificate of the endpoint vouches for nothing here: what is announced is checked, and
	// each address has to prove itself.
	directory := node.NewHTTPDirectory(&http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}) // #nosec
	a, err := directory.Announcement(ctx, target)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, unavailableError("unavailable", "name the node's public URL, which meshnode run prints", "%v", err)
	}
	c, err := consensus.ParseCredential(a.Credential)
	if err != nil || c.Peer != a.Peer {
		return nil, unavailableError("malformed", "name the public URL of a node", "%s announces no Credential of its own: %v", target, err)
	}
	r := &redteamRun{node: c.Ref().String(), target: redteam.Target{URL: target, Peer: c.Peer, MeshID: c.MeshID, Incarnation: c.Incarnation,
		Credential: a.Credential, Addresses: a.Addresses}}
	ctx, r.cancel = context.WithCancel(ctx)
	r.arsenal.Missing = "a stranger cannot try it: pass --config of a node of yours"
	if f.config == "" {
		return r, nil
	}
	if err := r.arm(ctx, cfg, c, attacks, f); err != nil {
		r.close()
		return nil, err
	}
	if doc, err := directory.Policy(ctx, target); err == nil {
		r.arsenal.Started = len(doc.Chain) > 1
	}
	return r, nil
}

// checkTarget wants http://HOST:PORT or https://HOST:PORT, on the loopback unless a configuration can show that
// the node behind it is one's own.
func checkTarget(target string, configured bool) error {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return usageError("meshnode redteam http://127.0.0.1:PORT", "%.100q is not http://HOST:PORT or https://HOST:PORT", target)
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if loopback := u.Hostname() == "localhost" || err == nil && ip.IsLoopback(); !loopback && !configured {
		return usageError("pass --config of a node of the same organisation, which shows that it is yours", "%s is not on this machine", u.Host)
	}
	return nil
}

// arm decides whether the target is one's own and enrols the attacker.
func (r *redteamRun) arm(ctx context.Context, cfg node.Config, c *consensus.Credential, attacks []redteam.Attack, f redteamFlags) error {
	cfg.Node, cfg.Roles = identity.NodeName(f.as), nil
	if err := cfg.Node.Validate(); err != nil {
		return usageError("choose another name with --as", "%v", err)
	}
	if c.Ref() == cfg.Ref() {
		return usageError("choose another name with --as, and list it under nodes in the enroller's releases file",
			"the target itself is called %s: enrolling under that name would retire it", c.Ref())
	}
	deps, err := node.SystemDeps(cfg)
	if err != nil {
		return configFailure(f.config, err)
	}
	if deps.Genesis.MeshID() != c.MeshID {
		return usageError("pass the configuration of a node of the target's mesh", "the target belongs to mesh %s, %s to %s", c.MeshID.Short(), f.config, deps.Genesis.MeshID().Short())
	}
	if _, err := deps.Genesis.VerifyCredential(c.Incarnation, r.target.Credential, time.Time{}); err != nil {
		return refusedError(string(consensus.ReasonOf(err).Code), "look who answers at that address", "the target's Credential: %v", err)
	}
	r.target.Own = c.Organisation == cfg.Organisation
	for _, p := range node.SeatProtocols(c.MeshID) {
		r.arsenal.SeatProtocols = append(r.arsenal.SeatProtocols, string(p))
	}
	r.arsenal.Fresh = func(ctx context.Context) (*redteam.Identity, error) { return r.enrol(ctx, deps) }
	r.arsenal.Genuine = func(ctx context.Context, ev attest.Evidence, data attest.ReportData) error {
		return genuine(ctx, deps.Schemes, ev, data)
	}
	// The older boot first: whoever enrols later under a name is its newer boot.
	if slices.ContainsFunc(attacks, func(a redteam.Attack) bool { return a.Needs&redteam.NeedOlder != 0 }) {
		r.arsenal.Older, _ = r.enrol(ctx, deps)
	}
	if r.arsenal.Self, err = r.enrol(ctx, deps); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.arsenal.Missing = "not enrolled as " + cfg.Ref().String() + ": " + err.Error() + enrolRemedy(err, f.as)
		return nil
	}
	r.arsenal.Other = &redteam.Identity{Key: freshKey(), Attester: deps.Attester}
	r.arsenal.Forge = func(p identity.PeerID) ([]byte, error) { return forgeCredential(c, cfg.Ref(), p) }
	return nil
}

// enrolRemedy says what to do about a refusal by the enroller.
func enrolRemedy(err error, as string) string {
	var refused *attest.Error
	switch {
	case !errors.As(err, &refused):
		return ""
	case refused.Reason.Code == attest.CodeUnknownEntry:
		return "; add {name: " + as + ", roles: []} under nodes in the enroller's releases file and restart the enroller"
	case refused.Reason.Code == attest.CodeMeasurementNotAllowed:
		return "; attack with an executable that the enroller lists and the mesh allows, as this one must pass for a node"
	}
	return "; " + refused.Reason.Remedy
}

// enrol makes a new boot of the attacker's node.
func (r *redteamRun) enrol(ctx context.Context, deps node.Deps) (*redteam.Identity, error) {
	within, cancel := context.WithTimeout(ctx, redteamEnrol)
	defer cancel()
	keys := node.Keys{Peer: freshKey(), Cosigner: freshKey()}
	id := &redteam.Identity{Key: keys.Peer, Attester: deps.Attester}
	quoter := attest.NewQuoter(deps.Attester, deps.Genesis.MeshID(), string(id.Peer()), func() [32]byte { return [32]byte{} })
	r.done.Go(func() { quoter.Run(within) })
	var err error
	if id.Credential, err = deps.Enroller(keys).Credential(within, quoter); err != nil {
		return nil, err
	}
	return id, nil
}

// genuine verifies evidence with the scheme of its kind.
func genuine(ctx context.Context, schemes []attest.Scheme, ev attest.Evidence, data attest.ReportData) error {
	for _, s := range schemes {
		if s.Kind() == ev.Kind {
			_, err := s.Verify(ctx, ev, &data, time.Now())
			return err
		}
	}
	return fmt.Errorf("no scheme for evidence of kind %.32q", ev.Kind)
}

// forgeCredential makes what looks like the organisation's Credential, by a key that
// genesis does not know.
func forgeCredential(like *consensus.Credential, ref identity.NodeRef, p identity.PeerID) ([]byte, error) {
	signer, err := envelope.NewSigner(freshKey())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return consensus.SignCredential(signer, consensus.Credential{MeshID: like.MeshID, Incarnation: like.Incarnation,
		Organisation: ref.Org, Node: ref.Name, Peer: p, Cosigner: envelope.PublicKey{PublicKey: freshKey().Public()},
		Roles: []string{consensus.RoleMember}, BootSeq: identity.BootSeq(now.UnixMilli()), Issued: now, Expires: now.Add(time.Hour)})
}

func freshKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}
