package node

import (
	"context"
	"crypto"
	"fmt"
	"os"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/enroll"
)

// SystemDeps makes what a configured node needs from this machine: genesis, data, the
// attester and the schemes that genesis has roots for. It reads files and connects to
// nothing; its errors are *ConfigError.
func SystemDeps(cfg Config) (Deps, error) {
	raw, err := os.ReadFile(cfg.Genesis)
	if err != nil {
		return Deps{}, &ConfigError{Field: "genesis", Err: err, Remedy: "copy the mesh's signed genesis file here"}
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		return Deps{}, &ConfigError{File: cfg.Genesis, Err: err, Remedy: "every founding organisation must sign it: meshnode genesis sign"}
	}
	org, ok := g.Organisation(cfg.Organisation)
	if !ok {
		return Deps{}, &ConfigError{Field: "organisation", Err: fmt.Errorf("%q is not in genesis %s", cfg.Organisation, cfg.Genesis), Remedy: "use an organisation's id in genesis"}
	}
	schemes, err := systemSchemes(g)
	if err != nil {
		return Deps{}, err
	}
	data, err := loadTraining(cfg)
	if err != nil {
		return Deps{}, err
	}
	return Deps{
		Genesis: g, Schemes: schemes, Data: data, Directory: NewHTTPDirectory(),
		Attester: sim.NewAttester(cfg.Attester.Sim),
		Enroller: func(keys Keys) Enroller {
			return systemEnroller{enroll.Client{
				URL: cfg.Enroller.URL, SPKI: cfg.Enroller.SPKI, EnrollKeys: publicKeys(org, consensus.KeyEnroll),
				MeshID: g.MeshID(), Node: cfg.Ref(), Roles: cfg.Roles, PeerKey: keys.Peer, CosignerKey: keys.Cosigner,
			}}
		},
	}, nil
}

// systemSchemes returns a scheme for every kind that can be verified: the hardware ones
// with their vendors' compiled-in roots, and sim where genesis allows it.
func systemSchemes(g *consensus.Genesis) ([]attest.Scheme, error) {
	snp, err := sevsnp.New()
	if err != nil {
		return nil, err
	}
	td, err := tdx.New()
	if err != nil {
		return nil, err
	}
	schemes := []attest.Scheme{snp, td}
	if !g.AllowSim {
		return schemes, nil
	}
	s, err := sim.NewScheme(g.SimRoots()...)
	if err != nil {
		return nil, err
	}
	return append(schemes, s), nil
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

// Credential implements Enroller.
func (e systemEnroller) Credential(ctx context.Context, prover *attest.Quoter) ([]byte, error) {
	return e.Client.Credential(ctx, prover)
}

// SignBootstrap implements Enroller.
func (e systemEnroller) SignBootstrap(ctx context.Context, payload []byte) ([]byte, error) {
	return e.Client.SignBootstrap(ctx, payload)
}

// Started implements Enroller.
func (e systemEnroller) Started(ctx context.Context, attempt uint32) error {
	return e.Client.Started(ctx, attempt)
}
