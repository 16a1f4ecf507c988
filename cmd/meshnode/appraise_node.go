package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/consensus"
)

// nodeWithin bounds everything that is asked of one node.
const nodeWithin = 30 * time.Second

// nodeConnection says over which connection a node's evidence came, and whose it claims to
// be. Verified reports that genesis bears that out; without it all of it is the node's word.
type nodeConnection struct {
	Protocol    string          `json:"protocol"`
	TLS         string          `json:"tls"`
	KeyExchange string          `json:"key_exchange"`
	SPKI        string          `json:"spki"`
	Verified    bool            `json:"verified"`
	Node        string          `json:"node"`
	Peer        string          `json:"peer"`
	MeshID      string          `json:"mesh_id"`
	Certificate certificateLook `json:"certificate"`
}

// certificateLook is what the RA-TLS certificate alone shows: evidence that names its key.
type certificateLook struct {
	Verdict  attest.Verdict  `json:"verdict"`
	Genuine  bool            `json:"genuine"`
	Bound    bool            `json:"bound"`
	NotAfter time.Time       `json:"not_after"`
	Reasons  []attest.Reason `json:"reasons"`
}

func (c *nodeConnection) print(b *strings.Builder) {
	if c == nil {
		return
	}
	word := "claims to be"
	if c.Verified {
		word = "is"
	}
	fmt.Fprintf(b, "  the node %s %s of mesh %s\n", word, c.Node, c.MeshID)
	fmt.Fprintf(b, "  connection  %s, %s, %s\n", c.TLS, c.KeyExchange, c.Protocol)
	fmt.Fprintf(b, "  certificate %s (key %.16s)\n", c.Certificate.Verdict, c.SPKI)
	for _, r := range c.Certificate.Reasons {
		fmt.Fprintf(b, "    %s\n", r)
	}
}

// appraiseNode asks the node at an https address. What it answers comes to a verdict, even
// a bad one; an error is that there was no answer.
func (a *appraiser) appraiseNode(ctx context.Context, address string) (appraised, error) {
	if a.flags.at != "" || a.flags.reportData != "" {
		return appraised{}, usageError("leave --at and --report-data out for an https address", "%s: evidence of a live connection is fresh and carries that connection's report data", address)
	}
	if a.flags.forecast != "" {
		return appraised{}, usageError("run meshnode attest -o FILE on the machine and forecast FILE", "%s: --forecast is for files", address)
	}
	to, err := nodeURL(address)
	if err != nil {
		return appraised{}, err
	}
	var verifier *client.Verifier
	if a.flags.genesis != "" {
		g, err := signedGenesis(a.flags.genesis)
		if err != nil {
			return appraised{}, err
		}
		if verifier, err = a.verifierOf(g); err != nil {
			return appraised{}, err
		}
	}
	within, cancel := context.WithTimeout(ctx, a.within)
	defer cancel()
	conn, err := client.Connect(within, to.Host, nil)
	if err != nil { // whose ctx has ended was interrupted; a node that took too long was not there
		return appraised{}, clientFailure(ctx, err)
	}
	defer conn.Close()
	s, err := conn.Challenge(within, time.Now())
	if err != nil {
		return appraised{}, clientFailure(ctx, err)
	}
	state := conn.TLS()
	spki := ratls.SPKIHash(s.Leaf)
	out := appraised{File: address, Kind: "", Claims: map[string]string{}, Reasons: []attest.Reason{}}
	out.Connection = &nodeConnection{Protocol: conn.Protocol(), TLS: tls.VersionName(state.Version), KeyExchange: state.CurveID.String(),
		SPKI: hex.EncodeToString(spki[:]), Peer: s.Answer.Peer.String()}
	if c, err := consensus.ParseCredential(s.Answer.Credential); err == nil {
		out.Connection.Node, out.Connection.MeshID = c.Ref().String(), c.MeshID.String()
	}
	claims, policy, result := a.judgeNode(within, s, verifier)
	out.Connection.Certificate = a.lookAt(within, s, policy)
	out.Connection.Verified = verifier != nil && result.Affirming()
	out.complete(claims, result)
	return out, nil
}

// verifierOf returns what judges nodes under a genesis, and lets this appraiser believe the
// roots in it.
func (a *appraiser) verifierOf(g *consensus.Genesis) (*client.Verifier, error) {
	known, err := schemes.Under(schemes.Roots{Sim: g.SimRoots(), VTPM: a.roots, VTPMKeys: g.VTPMRoots()})
	if err != nil {
		return nil, usageError("make the genesis again", "%v", err)
	}
	for _, s := range known {
		a.schemes[s.Kind()] = s
	}
	return client.NewVerifier(g.Raw(), client.Policy{}, known...)
}

// judgeNode comes to the verdict on a challenge's answer, and returns the policy that it was
// judged under: nil where it was refused before.
func (a *appraiser) judgeNode(ctx context.Context, s client.Sighting, verifier *client.Verifier) (attest.Claims, *attest.Policy, attest.Result) {
	if verifier == nil {
		claims, result := a.judgeUnknown(ctx, s)
		return claims, &a.policy, result
	}
	session, err := verifier.Judge(ctx, s)
	var refusal *client.Refusal
	switch {
	case errors.As(err, &refusal):
		var kind string
		if proof, err := ratls.DecodeProof(s.Answer.Proof); err == nil {
			kind = proof.Evidence.Kind
		}
		r := refused(kind, refusal.Reasons[0], s.At)
		r.Reasons = refusal.Reasons
		if undecided(refusal) {
			r.Verdict = attest.VerdictNone
		}
		return attest.Claims{}, nil, r
	case err != nil:
		return attest.Claims{}, nil, attest.Refuse(s.At, attest.NewReason(attest.CodeMalformed, "answer", err.Error(), ""))
	}
	if a.flags.policy != "" { // then both must be content
		if own := attest.Appraise(session.Claims, a.policy, s.At); !own.Affirming() {
			return session.Claims, &session.Policy, own
		}
	}
	return session.Claims, &session.Policy, session.Result
}

// judgeUnknown judges evidence of a node of whose mesh nothing is known: is it genuine and
// of this connection? Whose it is nobody vouches for, so the best verdict is a warning.
func (a *appraiser) judgeUnknown(ctx context.Context, s client.Sighting) (attest.Claims, attest.Result) {
	refuse := func(code attest.Code, claim, got, want string) (attest.Claims, attest.Result) {
		return attest.Claims{}, attest.Refuse(s.At, attest.NewReason(code, claim, got, want))
	}
	c, err := consensus.ParseCredential(s.Answer.Credential)
	if err != nil {
		return refuse(attest.CodeNoCredential, "credential", err.Error(), "one that names the node")
	}
	proof, err := ratls.DecodeProof(s.Answer.Proof)
	if err != nil {
		return refuse(attest.CodeMalformed, "evidence", err.Error(), "a canonical proof")
	}
	claimant := ratls.Claimant{MeshID: c.MeshID, Incarnation: c.Incarnation, Peer: s.Answer.Peer}
	data, err := proof.ReportData(claimant.ChallengeBinder(s.Nonce, s.EKM), c.MeshID, string(s.Answer.Peer))
	if err != nil {
		return refuse(attest.CodeNotBound, "inclusion", err.Error(), "a proof of this connection's binder")
	}
	claims, result := a.open(ctx, proof.Evidence, data, a.policy, s.At)
	if result.Affirming() {
		result.Verdict = attest.VerdictWarning
	}
	if claims.Genuine {
		why := attest.NewReason(attest.CodeNoCredential, "credential", "not verified", "the mesh's genesis")
		why.Remedy = "name the mesh's genesis file with --genesis to find out whose node this is"
		result.Reasons = append(result.Reasons, why)
	}
	return claims, result
}

// open takes evidence that must carry data through the second and third door.
func (a *appraiser) open(ctx context.Context, ev attest.Evidence, data attest.ReportData, policy attest.Policy, at time.Time) (attest.Claims, attest.Result) {
	scheme, ok := a.schemes[ev.Kind]
	if !ok {
		why := attest.NewReason(attest.CodeUnsupported, "kind", ev.Kind, "a kind whose roots are known")
		if ev.Kind == attest.KindSim {
			why.Remedy = "name the mesh's genesis file with --genesis: only it names the root of simulated evidence"
		}
		return attest.Claims{}, refused(ev.Kind, why, at)
	}
	claims, err := attest.Verify(ctx, scheme, ev, &data, at)
	var refusal *attest.Error
	switch {
	case err == nil:
		return claims, attest.Appraise(claims, policy, at)
	case errors.As(err, &refusal):
		return attest.Claims{}, refused(ev.Kind, refusal.Reason, at)
	}
	return attest.Claims{}, attest.Refuse(at, attest.NewReason(attest.CodeNotGenuine, "evidence", err.Error(), "authentic evidence"))
}

// lookAt judges the certificate by itself; without a policy, only whether it is genuine.
func (a *appraiser) lookAt(ctx context.Context, s client.Sighting, policy *attest.Policy) certificateLook {
	out := certificateLook{Verdict: attest.VerdictContraindicated, NotAfter: s.Leaf.NotAfter.UTC(), Reasons: []attest.Reason{}}
	var data attest.ReportData
	c, err := ratls.ParseCertificate(s.Leaf, s.At)
	if err == nil {
		data, err = c.ReportData()
	}
	if err != nil {
		out.Reasons = append(out.Reasons, *consensus.ReasonOf(err))
		return out
	}
	under := a.policy
	if policy != nil {
		under = *policy
	}
	claims, result := a.open(ctx, c.Proof.Evidence, data, under, s.At)
	if policy != nil && claims.Genuine { // then the Credential was verified: what it vouches for counts
		if credential, err := consensus.ParseCredential(s.Answer.Credential); err == nil {
			if vouched, why := credential.Vouch(claims); why != nil {
				result = attest.Refuse(s.At, *why)
			} else {
				result = attest.Appraise(vouched, under, s.At)
			}
		}
	}
	out.Verdict, out.Genuine, out.Bound = result.Verdict, claims.Genuine, claims.Bound
	if policy == nil && claims.Genuine {
		out.Verdict = attest.VerdictNone
		return out
	}
	out.Reasons = append(out.Reasons, result.Reasons...)
	return out
}

// complete fills in what follows from a verdict, as for a file.
func (out *appraised) complete(claims attest.Claims, result attest.Result) {
	out.claims, out.result = claims, result
	if claims.Kind != "" {
		out.Claims, out.Bound, out.Kind = claims, claims.Bound, claims.Kind
	} else {
		out.Kind = result.Kind
	}
	// Of a node that was refused for another reason it is not said whether it is genuine.
	if genuine := claims.Genuine; claims.Kind != "" || result.Code() == attest.CodeNotGenuine {
		out.Genuine = &genuine
	}
	out.Verdict = result.Verdict
	out.Reasons = append(out.Reasons, result.Reasons...)
	ear := result.EAR("meshnode " + version)
	out.EAR = &ear
	out.exit = map[attest.Verdict]int{attest.VerdictContraindicated: exitRefused, attest.VerdictNone: exitUnavailable}[result.Verdict]
	if result.Code() == attest.CodeMalformed {
		out.exit = exitUsage
	}
}
