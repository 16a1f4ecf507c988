package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/spf13/cobra"
)

// verifyOptions are the flags of job verify.
type verifyOptions struct {
	genesis, log string
}

// verifyReport is the output of job verify --json: the report on the job, and the files
// beside it that it rests on.
type verifyReport struct {
	*federated.Report
	// Genesis is the file that the organisations' keys are from.
	Genesis string       `json:"genesis,omitempty"`
	Log     *verifiedLog `json:"log,omitempty"`
}

// verifiedLog is the audited log that the rounds were looked for in.
type verifiedLog struct {
	Location string             `json:"location"`
	Origin   string             `json:"origin"`
	Entries  uint64             `json:"entries"`
	Root     transparency.Hash  `json:"root"`
	Level    transparency.Level `json:"level"`
}

func jobVerifyCommand() *cobra.Command {
	var o verifyOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [--genesis FILE] [--log DIR|URL] DIR|CERTIFICATE",
		Short: "Check a job's certificates offline, add every sum up again and find the rounds in the log",
		Long: `Check what a job's directory claims: every signature, every commitment, every root, the
chain of models from round to round, and every sum, which is computed again from the
updates. A single CERTIFICATE is checked with the files beside it.

With --genesis the organisations' signatures on the job are checked too. With --log that
log is audited (as meshnode log audit does), and every round must stand in it where its
certificate says, under a checkpoint that enough organisations cosigned. Without them
genesis.json and the log in the directory "log" are used where they stand beside DIR; who
gave you DIR may have given you those too, so compare the mesh id with what you know.

Exit 0: everything holds. 1: something does not; the findings say which round and why.
2: the input is no job or no log. 3: what a judgement needs is missing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := verifyJob(cmd, args[0], o)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				showReport(cmd.OutOrStdout(), report)
			}
			switch {
			case err != nil:
				return err
			case report.Undecided():
				return exitStatus(exitUnavailable)
			case !report.OK:
				return exitStatus(exitRefused)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.genesis, "genesis", "", "genesis file of the mesh, for the organisations' keys (default: genesis.json beside DIR, if there is one)")
	cmd.Flags().StringVar(&o.log, "log", "", "published log to find the rounds in (default: the directory log beside DIR, if it holds one)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func verifyJob(cmd *cobra.Command, path string, o verifyOptions) (*verifyReport, error) {
	certs, dir, whole, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	given := o.genesis != ""
	o = o.withDefaults(dir)
	out := &verifyReport{Genesis: o.genesis}
	var opts federated.VerifyOptions
	var g *consensus.Genesis
	if o.genesis != "" {
		if g, err = signedGenesis(o.genesis); err != nil {
			return nil, err
		}
		for _, org := range g.Organisations {
			opts.GovernKeys = append(opts.GovernKeys, g.OrgKeys(org.ID, consensus.KeyGovern)...)
		}
	}
	if o.log != "" {
		var governors []envelope.Key
		if out.Log, governors, opts.Inclusion, err = findRounds(cmd, o.log, g, certs); err != nil {
			return nil, err
		}
		if g != nil && len(governors) > 0 { // keys have come in since genesis
			opts.GovernKeys = governors
		}
	}
	if whole {
		out.Report = federated.VerifyAll(os.DirFS(dir), certs, opts)
	} else {
		out.Report = federated.VerifyOne(os.DirFS(dir), certs[0], opts)
	}
	switch {
	case g != nil && !given:
		out.DoesNotProve = append(out.DoesNotProve, "that this is the mesh you mean: its genesis was found beside the job; compare the mesh id, or give --genesis")
	case g == nil && o.log != "":
		out.DoesNotProve = append(out.DoesNotProve, "that this is the mesh you mean: its organisations are those that the log names; compare the mesh id, or give --genesis")
	}
	return out, nil
}

// readCertificates reads the certificates at path, which is a job's directory or one of them.
func readCertificates(path string) (certs []*federated.Certificate, dir string, whole bool, err error) {
	const remedy = "give the directory that meshnode job export wrote, or a certificate in it"
	st, err := os.Stat(path)
	if err != nil {
		return nil, "", false, usageError(remedy, "%v", err)
	}
	if st.IsDir() {
		if certs, err = federated.ReadCertificates(os.DirFS(path)); err != nil {
			return nil, "", false, usageError(remedy, "%s: %v", path, err)
		}
		return certs, path, true, nil
	}
	raw, err := readLimited(path, federated.MaxCertificate)
	if err != nil {
		return nil, "", false, err
	}
	c, err := federated.ParseCertificate(raw)
	if err != nil {
		return nil, "", false, usageError(remedy, "%s: %v", path, err)
	}
	return []*federated.Certificate{c}, filepath.Dir(path), false, nil
}

// withDefaults fills in what stands beside a job's directory.
func (o verifyOptions) withDefaults(dir string) verifyOptions {
	if beside := filepath.Join(dir, "..", "genesis.json"); o.genesis == "" && exists(beside) {
		o.genesis = beside
	}
	if beside := filepath.Join(dir, "..", "log"); o.log == "" && exists(filepath.Join(beside, "checkpoint")) {
		o.log = beside
	}
	return o
}

// exists reports whether something is at path, or may be.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// findRounds audits a log and returns what tells whether a certificate's round is in it.
func findRounds(cmd *cobra.Command, location string, g *consensus.Genesis, certs []*federated.Certificate) (*verifiedLog, []envelope.Key, func(*federated.Certificate) (string, error), error) {
	opts := audit.Options{Genesis: g, At: time.Now()}
	for _, c := range certs {
		opts.Claims = append(opts.Claims, audit.Claim{Leaf: c.Leaf, Log: c.Log})
	}
	report, err := auditLog(cmd, location, opts)
	if err != nil {
		return nil, nil, nil, err
	}
	claimed := map[*federated.Certificate]audit.Claimed{}
	for i, c := range certs {
		claimed[c] = report.Claims[i]
	}
	inclusion := func(c *federated.Certificate) (string, error) {
		v, ok := claimed[c]
		if !ok {
			return "", errors.New("this certificate was not looked for")
		}
		if v.Err != nil {
			return "", v.Err
		}
		return v.Level.String(), nil
	}
	return &verifiedLog{location, report.Origin, report.Entries, report.Root, report.Level}, report.GovernKeys, inclusion, nil
}

func showReport(w io.Writer, r *verifyReport) {
	fmt.Fprintf(w, "job      %s %s of mesh %s\n", r.Job, printable(r.Name), r.MeshID.Short())
	for _, x := range r.Rounds {
		sum := "sum not computed again"
		if x.ReExecuted {
			sum = "sum computed again, equal"
		}
		fmt.Fprintf(w, "round %-3d %s by %s, %d participants, attempt %d at %s: %.16s  %s\n", x.Round, printable(x.Rule), printable(x.Arithmetic),
			len(x.Participants), x.Attempt, x.Aggregator, x.ResultRoot.String(), sum)
	}
	if !r.Complete {
		fmt.Fprintln(w, "         these are not all rounds of the job")
	}
	if r.Simulated {
		fmt.Fprintln(w, "         SIMULATED evidence: it protects nothing from the hosts")
	}
	fmt.Fprintf(w, "job signed by organisations: %s   rounds in the log: %s\n", r.JobSignatures, r.Inclusion)
	if r.Log != nil {
		fmt.Fprintf(w, "log      %s: %d entries of %s\n", printable(r.Log.Location), r.Log.Entries, printable(r.Log.Origin))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "FINDING  round %d %s: %s\n", f.Round, f.Code, printable(f.Message))
	}
	switch {
	case r.OK:
		fmt.Fprintf(w, "verdict  everything holds; model %s\n", r.ModelRoot)
	case r.Undecided():
		fmt.Fprintln(w, "verdict  cannot decide")
	default:
		fmt.Fprintln(w, "verdict  does not hold")
	}
	fmt.Fprintf(w, "this does not prove\n  - %s\n", strings.Join(r.DoesNotProve, "\n  - "))
}
