package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/enroll"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/spf13/cobra"
)

func enrollCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "Say which nodes are an organisation's own",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(enrollServeCommand())
	return cmd
}

// enrollFlags are the files and addresses of one enroller.
type enrollFlags struct {
	genesis, chain, recovery, receipts, key, releases, dir, listen string
	asJSON                                                         bool
}

func enrollServeCommand() *cobra.Command {
	var f enrollFlags
	cmd := &cobra.Command{
		Use:   "serve --genesis FILE --key FILE --releases FILE --dir DIR --listen ADDR",
		Short: "Run an organisation's enroller, outside every TEE",
		Long: `Run an organisation's enroller, outside every TEE.

It signs a Credential for a node that shows genuine evidence of a release on the
organisation's own list, and the Bootstrap that the organisation's seat takes part in. Being
enrolled admits nobody to the mesh. The ready line gives the URL and the spki that the
organisation's nodes name in their configurations. The releases file lists

  releases:
    - {measurement: HEX, kind: sevsnp, roles: [seat, trainer, aggregator]}
  nodes:
    - {name: n1, roles: [seat, trainer]}

and is read at the start. DIR keeps what the enroller has promised: keep it as long as the
mesh lives. It runs until it gets SIGINT or SIGTERM.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serveEnroller(cmd, f) },
	}
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the genesis, signed by all organisations")
	cmd.Flags().StringVar(&f.chain, "chain", "", "file of the policy's signed history, where the key or the organisation came in after genesis")
	cmd.Flags().StringVar(&f.recovery, "recovery", "", "the recovery file, once the mesh was recovered: Credentials are then of its incarnation")
	cmd.Flags().StringVar(&f.receipts, "receipts", "", "with --recovery: file of receipts (meshnode recover inspect --receipts); no older log is gone on from")
	cmd.Flags().StringVar(&f.key, "key", "", "the organisation's enroll key")
	cmd.Flags().StringVar(&f.releases, "releases", "", "the organisation's own list of releases and nodes (YAML)")
	cmd.Flags().StringVar(&f.dir, "dir", "", "directory of the enroller's state, made if absent")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address and port to listen on")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object once it listens")
	return cmd
}

func serveEnroller(cmd *cobra.Command, f enrollFlags) error {
	cfg, err := enrollerConfig(f)
	if err != nil {
		return err
	}
	cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return usageError("choose another --listen ADDRESS:PORT", "%v", err)
	}
	s, err := newEnroller(cfg, f.dir)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	url := "https://" + ln.Addr().String()
	if f.asJSON {
		err = printJSON(cmd.OutOrStdout(), struct {
			URL   string `json:"url"`
			SPKI  string `json:"spki"`
			KeyID string `json:"key_id"`
		}{url, s.SPKI(), s.KeyID()})
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "enroller of %s for mesh %s\n  url     %s\n  spki    %s\n  key id  %s\n",
			s.Organisation(), cfg.Genesis.MeshID(), url, s.SPKI(), s.KeyID())
	}
	if err != nil {
		return errors.Join(err, ln.Close(), s.Close())
	}
	if err := s.Serve(cmd.Context(), ln); err != nil {
		return unavailableError("unavailable", "mend the cause and start it again; its state is safe", "%v", err)
	}
	return nil
}

// readChain reads a file of the policy's history; nil where none is named.
func readChain(path string, g *consensus.Genesis) (*consensus.PolicyState, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := readLimited(path, consensus.MaxChainFile)
	if err != nil {
		return nil, err
	}
	policy, err := consensus.ParseChainFile(g, raw)
	if err != nil {
		return nil, refusedError("bad_history", "save what a node of this mesh serves at /.well-known/meshnode/policy", "%s: %v", path, err)
	}
	return policy, nil
}

// enrollerConfig reads every file and writes nothing.
func enrollerConfig(f enrollFlags) (enroll.Config, error) {
	for _, required := range []struct{ flag, value string }{{"genesis", f.genesis}, {"key", f.key}, {"releases", f.releases}, {"dir", f.dir}, {"listen", f.listen}} {
		if required.value == "" {
			return enroll.Config{}, usageError("see meshnode enroll serve --help", "--%s is missing", required.flag)
		}
	}
	g, err := signedGenesis(f.genesis)
	if err != nil {
		return enroll.Config{}, err
	}
	var recovery *consensus.RecoveryFile
	var seen consensus.CheckpointSeen
	if f.recovery != "" {
		if recovery, err = readRecovery(f.recovery, g); err != nil {
			return enroll.Config{}, err
		}
		if seen, err = seenBefore(f.receipts, recovery); err != nil {
			return enroll.Config{}, err
		}
	} else if f.receipts != "" {
		return enroll.Config{}, usageError("give --recovery too, or leave --receipts out", "--receipts says what a recovery may not fall behind")
	}
	key, err := loadKey(f.key)
	if err != nil {
		return enroll.Config{}, err
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return enroll.Config{}, usageError("give the organisation's enroll key", "key %s: enroll keys are Ed25519", f.key)
	}
	releases, err := enroll.LoadReleases(f.releases)
	if err != nil {
		return enroll.Config{}, usageError("see meshnode enroll serve --help for the form", "releases: %v", err)
	}
	known, err := schemes.Under(schemes.Roots{Sim: g.SimRoots(), VTPMKeys: g.VTPMRoots()})
	if err != nil {
		return enroll.Config{}, usageError("make the genesis again", "%s: %v", f.genesis, err)
	}
	if len(g.VTPMRoots()) == 0 { // of a TPM beside a TEE its scheme asks no root
		known = slices.DeleteFunc(known, func(s attest.Scheme) bool { return s.Kind() == attest.KindVTPM })
	}
	activate, err := activation(g)
	if err != nil {
		return enroll.Config{}, usageError("make the genesis again", "%s: %v", f.genesis, err)
	}
	policy, err := readChain(f.chain, g)
	if err != nil {
		return enroll.Config{}, err
	}
	return enroll.Config{Genesis: g, Policy: policy, Recovery: recovery, Seen: seen, Key: ed, Releases: releases, Schemes: known, Activate: activate, Now: time.Now}, nil
}

// activation returns the attestation CA under the roots for TPMs of a genesis, nil where it
// names none or its Credentials cannot say what came of it.
func activation(g *consensus.Genesis) (enroll.Activate, error) {
	anchors, err := chains.Anchors(g.VTPMRoots()...)
	if err != nil || len(anchors) == 0 || !g.NamesAttestationKeys() {
		return nil, err
	}
	ca := vtpm.NewAttestationCA(anchors)
	return func(raw []byte, at time.Time) (*enroll.Activation, error) {
		endorsement, err := vtpm.DecodeEndorsement(raw)
		if err != nil {
			return nil, &attest.Error{Reason: attest.NewReason(attest.CodeMalformed, "endorsement", err.Error(), "its canonical encoding")}
		}
		challenge, pending, err := ca.Challenge(endorsement, at)
		if err != nil {
			return nil, err
		}
		encoded, err := challenge.Encode()
		if err != nil {
			return nil, err
		}
		return &enroll.Activation{Challenge: encoded, AK: pending.AKDigest, EK: pending.EKDigest, Confirm: pending.Confirm}, nil
	}, nil
}

func newEnroller(cfg enroll.Config, dir string) (*enroll.Server, error) {
	_, absent := os.Stat(dir)
	var err error
	if cfg.Dir, err = durable.Open(dir); err != nil {
		return nil, usageError("give --dir a directory of this enroller alone", "%v", err)
	}
	s, err := enroll.NewServer(cfg)
	if err != nil && errors.Is(absent, fs.ErrNotExist) {
		_ = os.Remove(dir) // made above; Remove keeps what is not empty
	}
	if errors.Is(err, durable.ErrInUse) {
		return nil, usageError("stop the enroller that runs there, or use another --dir", "%v", err)
	}
	if err != nil {
		return nil, usageError("compare key, releases and directory with the genesis", "%v", err)
	}
	return s, nil
}
