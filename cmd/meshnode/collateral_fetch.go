package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/collateral/fetch"
	"github.com/attestmesh/meshnode/attest/collect"
)

const fetchHelp = `Fetch from AMD's and Intel's services what evidence needs, and put it into a store: for an
SEV-SNP report the certificate of the chip's key and the revocation list of its product line,
for a TDX quote TCB info, QE identity and revocation lists. FILE is evidence as for meshnode
appraise. Without a FILE, what the store has is renewed where it does not stay current for
another --min-valid; let a timer do that once a day.

Nothing is kept that does not verify under the vendor's root, is another platform's, is not
current, or is older than what the store has. A server that refuses or does not answer is
left alone as long as it says, else for doubling times; waits up to --max-wait are made, longer
ones are reported, and the store remembers them for the next call.

--update early takes Intel's early set, to see what will be refused once it is the standard
one (meshnode appraise --collateral): it needs a store of its own. --amd, --intel and
--intel-certificates name mirrors that answer the vendors' paths; --tls-roots whom to believe
about their names. What they give is verified all the same.

Exit 0 if the store has all that was wanted · 1 something got is not genuine or another's ·
2 usage, or no evidence in FILE · 3 something is missing, stale or not to be had now.`

type fetchFlags struct {
	dir, tlsRoots string
	json          bool
	fetch.Config
}

func collateralFetchCommand() *cobra.Command {
	var f fetchFlags
	cmd := &cobra.Command{
		Use:   "fetch --dir DIR [FILE...]",
		Short: "Fetch what evidence needs from AMD and Intel",
		Long:  fetchHelp,
		RunE:  func(cmd *cobra.Command, files []string) error { return f.run(cmd, files) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "the store, a folder `DIR`; made where it is absent")
	flags.StringVar(&f.Update, "update", fetch.Standard, "Intel's `SET`, standard or early")
	flags.IntVar(&f.Evaluation, "tcb-evaluation", 0, "ask Intel for this tcbEvaluationDataNumber `N`")
	flags.DurationVar(&f.MinValid, "min-valid", 7*24*time.Hour, "do not ask for what stays current for another `DURATION`")
	flags.DurationVar(&f.MaxWait, "max-wait", 2*time.Minute, "the longest wait for a server, a `DURATION`")
	flags.DurationVar(&f.Timeout, "timeout", 30*time.Second, "the time for one answer, a `DURATION`")
	flags.StringVar(&f.AMD, "amd", fetch.AMD, "base `URL` of AMD's service")
	flags.StringVar(&f.Intel, "intel", fetch.Intel, "base `URL` of Intel's service")
	flags.StringVar(&f.IntelCertificates, "intel-certificates", fetch.IntelCertificates, "base `URL` of the root's revocation list")
	flags.StringVar(&f.tlsRoots, "tls-roots", "", "PEM `FILE` with the roots of the servers' TLS certificates, default the system's")
	flags.BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

// fetched is the shape of --json.
type fetched struct {
	Dir     string            `json:"dir"`
	Objects []fetch.Outcome   `json:"objects"`
	Lacks   []collateral.Lack `json:"lacks"` // what the evidence given still needs
}

func (f *fetchFlags) run(cmd *cobra.Command, files []string) error {
	var inputs []collect.Input
	for _, file := range files {
		in, err := collect.Path(file)
		if err != nil {
			return usageError("give a report or quote, or its folder", "%v", err)
		}
		for _, i := range in {
			if p := collateral.PlatformOf(i.Evidence); p.Report == nil && p.FMSPC == "" {
				return usageError("give an SEV-SNP report or TDX quote", "%s: evidence of kind %s names no platform of AMD's or Intel's", i.File, i.Kind)
			}
		}
		inputs = append(inputs, in...)
	}
	if f.tlsRoots != "" {
		raw, err := os.ReadFile(f.tlsRoots)
		if f.TLSRoots = x509.NewCertPool(); err != nil || !f.TLSRoots.AppendCertsFromPEM(raw) {
			return usageError("give a PEM file with certificates", "--tls-roots %s: no certificates (%v)", f.tlsRoots, err)
		}
	}
	s, err := openStore(f.dir, true)
	if err != nil {
		return err
	}
	release, err := lockStore(s, f.dir)
	if err != nil {
		return err
	}
	defer release()
	end := f.showProgress(cmd)
	out, err := f.fetch(cmd.Context(), s, inputs)
	end()
	if err != nil {
		return err
	}
	if f.json {
		err = printJSON(cmd.OutOrStdout(), out)
	} else {
		_, err = fmt.Fprint(cmd.OutOrStdout(), printable(out.String()))
	}
	if err != nil {
		return err
	}
	if exit := out.exit(); exit != exitOK {
		return exitStatus(exit)
	}
	return nil
}

func (f *fetchFlags) fetch(ctx context.Context, s *collateral.Store, inputs []collect.Input) (fetched, error) {
	out := fetched{Dir: f.dir, Objects: []fetch.Outcome{}, Lacks: []collateral.Lack{}}
	verifier, err := collateral.NewVerifier()
	if err != nil {
		return out, err
	}
	fetcher, err := fetch.New(f.Config, s, verifier)
	if err != nil {
		return out, usageError("run meshnode collateral fetch --help", "%v", err)
	}
	defer fetcher.Close()
	if len(inputs) == 0 {
		renewed, err := fetcher.Renew(ctx)
		out.Objects = append(out.Objects, renewed...)
		return out, err
	}
	for _, in := range inputs {
		got, err := fetcher.Evidence(ctx, in.Evidence)
		out.Objects = append(out.Objects, got...)
		if err != nil {
			return out, err
		}
		index, err := s.Index()
		if err != nil {
			return out, err
		}
		_, lacks := index.Complete(in.Evidence, time.Now())
		out.Lacks = append(out.Lacks, lacks...)
	}
	return out, nil
}

// showProgress keeps one line on a terminal that says what is asked for or waited for.
func (f *fetchFlags) showProgress(cmd *cobra.Command) (end func()) {
	stderr := terminalOf(cmd)
	if stderr == nil {
		return func() {}
	}
	f.Progress = func(e fetch.Event) {
		line := "asking for " + e.Name
		if e.Wait > 0 {
			line = fmt.Sprintf("waiting %v for %s (%s)", e.Wait.Round(time.Second), e.Name, e.Why)
		}
		fmt.Fprintf(stderr, "\r\x1b[K%s", printable(line))
	}
	return func() { fmt.Fprint(stderr, "\r\x1b[K") }
}

func (out fetched) String() string {
	var b strings.Builder
	for _, o := range out.Objects {
		fmt.Fprintf(&b, "%-10s %s", o.Result, o.Name)
		if o.Error == nil {
			fmt.Fprintf(&b, ", expires %s%s", o.Expires.UTC().Format(time.RFC3339), evaluationText(o.Evaluation))
		} else {
			fmt.Fprintf(&b, "\n           %v\n           try: %s", o.Error, o.Error.Remedy)
		}
		b.WriteByte('\n')
	}
	for _, l := range out.Lacks {
		fmt.Fprintf(&b, "lacking    %s\n", l.Name)
	}
	if len(out.Objects) == 0 {
		b.WriteString("nothing to renew: give a report or quote to fetch for\n")
	}
	return b.String()
}

// exit is the worst outcome, by 1 > 3 > 0.
func (out fetched) exit() int {
	exit := exitOK
	for _, o := range out.Objects {
		if o.Error == nil {
			continue
		}
		switch o.Error.Code {
		case attest.CodeNotGenuine, attest.CodeCertificateMismatch, attest.CodeMalformed:
			exit = worseExit(exit, exitRefused)
		default:
			exit = worseExit(exit, exitUnavailable)
		}
	}
	if len(out.Lacks) > 0 {
		exit = worseExit(exit, exitUnavailable)
	}
	return exit
}
