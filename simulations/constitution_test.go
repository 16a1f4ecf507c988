package simulations

import (
	"context"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/node"
)

// amend has a change of the constitution ordered at a node.
func (a *actor) amend(at string, action consensus.Action, orgs ...string) {
	a.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	view, err := a.host(at).policy(ctx)
	if err != nil {
		a.Fatal(err)
	}
	a.p.world.nonces++
	raw, err := a.p.world.proposal("amend", view.Base, orgs, action)
	if err != nil {
		a.Fatal(err)
	}
	a.p.world.proposed = time.Now()
	out, err := a.host(at).propose(ctx, raw)
	if err != nil {
		a.Fatal(err)
	}
	if out.Class != string(consensus.ClassConstitution) {
		a.Errorf("class %s", out.Class)
	}
}

// An organisation is voted out: every node closes its links to all of its nodes, its voter
// leaves, and the others go on without it.
func TestOrganisationLeaves(t *testing.T) {
	stage(t, five+"start delta/n2 new\nstart alpha/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		a.amend("alpha/n1", consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "delta"}}, "alpha", "beta", "gamma", "epsilon")
		a.do(`
expect closed delta/n1 by rest -delta/n1 -delta/n2 within 5s
expect closed delta/n2 by rest -delta/n1 -delta/n2 within 5s
expect voters alpha/n1 beta/n1 gamma/n1 epsilon/n1 at alpha/n1
expect unlinked delta/n2 from alpha/n1
expect phase refused of delta/n1 delta/n2
propose add other signed alpha beta gamma at beta/n1
expect equal rest -delta/n1 -delta/n2
expect published alpha/n1
`)
		for _, c := range a.status("alpha/n1").Closed {
			if (c.Node == "delta/n1" || c.Node == "delta/n2") && c.Code != attest.CodeOrganisationRemoved {
				a.Errorf("%s was closed with %s", c.Node, c.Code)
			}
		}
	})
}

// An organisation comes in. Its node, which is given the policy's history, becomes a member, and
// its vote counts.
func TestOrganisationJoins(t *testing.T) {
	stage(t, three, nil, func(a *actor) {
		zeta := consensus.Organisation{ID: "zeta", Roles: []string{consensus.OrgMember}}
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll} {
			zeta.Keys = append(zeta.Keys, consensus.Key{Role: role, Public: envelope.PublicKey{PublicKey: key("zeta", role).Public()}})
		}
		a.amend("alpha/n1", consensus.Action{AddOrganisation: &consensus.AddOrganisation{Organisation: zeta}}, "alpha", "gamma", "zeta")
		a.do("expect equal rest\n") // beta has it too, which is asked next
		w := a.p.world
		ctx, cancel := context.WithTimeout(context.Background(), callWithin)
		defer cancel()
		doc, err := node.NewHTTPDirectory(w.client("stranger").Transport).Policy(ctx, "http://"+a.host("beta/n1").ip+":80")
		if err != nil {
			a.Fatal(err)
		}
		if w.policy, err = consensus.ReplayPolicy(w.genesis, doc.Chain); err != nil {
			a.Fatal(err)
		}
		s, err := envelope.NewSigner(key("zeta", consensus.KeyEnroll))
		if err != nil {
			a.Fatal(err)
		}
		w.enrollers["zeta"] = newEnroller(w.genesis, "zeta", s)
		a.do(`
start zeta/n1 new
expect linked rest
expect phase member of rest
expect proof proven of zeta/n1 at alpha/n1 within 10s
propose add other signed alpha beta at beta/n1 refused threshold
propose add other signed alpha beta zeta at zeta/n1
expect equal rest
`)
	})
}

// An enroll key is replaced. The organisation's nodes are out at once, ask their enroller anew
// and come back by themselves, the seat with its vote.
func TestEnrollKeyRotates(t *testing.T) {
	stage(t, five+"start beta/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		e := a.p.world.enrollers["beta"]
		old, err := envelope.KeyID(key("beta", consensus.KeyEnroll).Public())
		if err != nil {
			a.Fatal(err)
		}
		next := key("beta", "enroll next")
		a.amend("alpha/n1", consensus.Action{RotateKey: &consensus.RotateKey{Organisation: "beta", Role: consensus.KeyEnroll, Old: old,
			Public: envelope.PublicKey{PublicKey: next.Public()}}}, "alpha", "beta", "gamma")
		a.do("expect closed beta/n1 by rest -beta/n1 -beta/n2 within 5s\nexpect closed beta/n2 by rest -beta/n1 -beta/n2 within 5s\n")
		s, err := envelope.NewSigner(next)
		if err != nil {
			a.Fatal(err)
		}
		e.mu.Lock()
		e.signer = s
		e.mu.Unlock()
		a.do(`
expect linked rest
expect phase member of rest
expect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at beta/n1
expect equal rest
`)
		for _, c := range a.status("alpha/n1").Closed {
			if c.Node == "beta/n1" && c.Code != attest.CodeNoCredential {
				a.Errorf("%s was closed with %s", c.Node, c.Code)
			}
		}
	})
}
