package node

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/enroll"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/regular"
)

// SystemDeps makes what a configured node needs from this machine: genesis, data, the
// attester and the schemes that genesis has roots for. It reads files, looks for the device
// of a confidential guest and connects to nothing; its errors are *ConfigError.
func SystemDeps(cfg Config) (Deps, error) {
	g, err := readGenesis(cfg.Genesis)
	if err != nil {
		return Deps{}, err
	}
	policy, err := readChain(cfg.Chain, g)
	if err != nil {
		return Deps{}, err
	}
	org, ok := policy.Organisation(cfg.Organisation)
	if !ok {
		return Deps{}, unknownOrganisation(cfg, fmt.Errorf("%q is not in genesis %s", cfg.Organisation, cfg.Genesis))
	}
	recovery, err := readRecovery(cfg.Recovery, g)
	if err != nil {
		return Deps{}, err
	}
	attester, activator, err := cfg.Attester.source()
	if err != nil {
		return Deps{}, err
	}
	if err := checkKind(cfg, g, attester.Kind()); err != nil {
		return Deps{}, err
	}
	known, err := schemes.Under(schemes.Roots{Sim: g.SimRoots(), VTPMKeys: g.VTPMRoots()})
	if err != nil {
		return Deps{}, err
	}
	data, err := loadTraining(cfg)
	if err != nil {
		return Deps{}, err
	}
	return Deps{
		Genesis: g, Policy: policy, Recovery: recovery, Schemes: known, Data: data, Directory: NewHTTPDirectory(nil),
		Attester: attester,
		Enroller: func(keys Keys) Enroller {
			client := enrollClient(cfg, g, org, keys)
			client.InForce = keys.Enroll
			client.Activator = activator
			return systemEnroller{client}
		},
	}, nil
}

// enrollClient is the way to the enroller that the configuration pins.
func enrollClient(cfg Config, g *consensus.Genesis, org consensus.Organisation, keys Keys) enroll.Client {
	return enroll.Client{
		URL: cfg.Enroller.URL, SPKI: cfg.Enroller.SPKI, EnrollKeys: publicKeys(org, consensus.KeyEnroll),
		MeshID: g.MeshID(), Node: cfg.Ref(), Roles: cfg.Roles, PeerKey: keys.Peer, CosignerKey: keys.Cosigner,
	}
}

// readGenesis reads a genesis that every founding organisation has signed.
func readGenesis(path string) (*consensus.Genesis, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, &ConfigError{Field: "genesis", Err: err, Remedy: "copy the mesh's signed genesis file here"}
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, envelope.MaxSize+2))
	if err != nil {
		return nil, &ConfigError{Field: "genesis", Err: err, Remedy: "name the mesh's signed genesis file"}
	}
	g, err := consensus.ParseGenesis(bytes.TrimSuffix(raw, []byte("\n"))) // an editor may have added a newline
	if err != nil {
		remedy := "use the genesis file that all founding organisations signed; meshnode genesis show " + path + " says whose signature is missing"
		return nil, &ConfigError{Field: "genesis", Err: fmt.Errorf("%s: %w", path, err), Remedy: remedy}
	}
	return g, nil
}

// unknownOrganisation says that nobody knows the organisation that a configuration names.
func unknownOrganisation(cfg Config, err error) error {
	remedy := "use an organisation's id in genesis, or the genesis of the mesh you mean; one that came in later needs chain"
	if cfg.Chain != "" {
		remedy = "save the policy again (/.well-known/meshnode/policy of any node) once the organisation is in, or correct its id"
	}
	return &ConfigError{Field: "organisation", Err: err, Remedy: remedy}
}

// readChain reads and verifies the policy chain at path; without one it is genesis's policy.
func readChain(path string, g *consensus.Genesis) (*consensus.PolicyState, error) {
	if path == "" {
		return consensus.ReplayPolicy(g, nil)
	}
	f, err := regular.Open(path)
	if err != nil {
		return nil, &ConfigError{Field: "chain", Err: err, Remedy: "save what any node serves at /.well-known/meshnode/policy here, or leave chain out"}
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, consensus.MaxChainFile+1))
	if err != nil {
		return nil, &ConfigError{Field: "chain", Err: err, Remedy: "save what any node serves at /.well-known/meshnode/policy here"}
	}
	policy, err := consensus.ParseChainFile(g, raw)
	if err != nil {
		return nil, &ConfigError{Field: "chain", Err: fmt.Errorf("%s: %w", path, err), Remedy: "save what a node of this mesh serves at /.well-known/meshnode/policy here"}
	}
	return policy, nil
}

// readRecovery reads the recovery file at path; nil where none is configured.
func readRecovery(path string, g *consensus.Genesis) (*consensus.RecoveryFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := regular.Open(path)
	if err != nil {
		return nil, &ConfigError{Field: "recovery", Err: err, Remedy: "copy the recovery file that the organisations signed here, or leave recovery out"}
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, consensus.MaxRecoveryFile+2))
	if err != nil {
		return nil, &ConfigError{Field: "recovery", Err: err, Remedy: "name the recovery file that the organisations signed"}
	}
	out, err := consensus.ParseRecoveryFile(g, bytes.TrimSuffix(raw, []byte("\n")))
	if err != nil {
		return nil, &ConfigError{Field: "recovery", Err: fmt.Errorf("%s: %w", path, err), Remedy: "name the recovery file that the organisations signed, of this mesh"}
	}
	return out, nil
}

func publicKeys(org consensus.Organisation, role string) []crypto.PublicKey {
	var out []crypto.PublicKey
	for _, k := range org.Keys {
		if k.Role == role {
			out = append(out, k.Public.PublicKey)
		}
	}
	return out
}

// systemEnroller is the enroller over the network.
type systemEnroller struct{ enroll.Client }

// In implements Incarnated.
func (e systemEnroller) In(inc identity.Incarnation) Enroller {
	e.Client.Incarnation = inc
	return e
}

// Credential implements Enroller.
func (e systemEnroller) Credential(ctx context.Context, prover *attest.Quoter) ([]byte, error) {
	return e.Client.Credential(ctx, prover)
}

// SignBootstrap implements Enroller.
func (e systemEnroller) SignBootstrap(ctx context.Context, payload []byte) ([]byte, error) {
	return e.Client.SignBootstrap(ctx, payload)
}

// Probe implements Prober: whether the pinned enroller answers. A port that only takes
// connections may belong to a stopped process.
func (e systemEnroller) Probe(ctx context.Context) error { return e.Client.Check(ctx) }

// Started implements Enroller.
func (e systemEnroller) Started(ctx context.Context, attempt uint32) error {
	return e.Client.Started(ctx, attempt)
}
