package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

// policySource says where a command reads the signed history of the policy: from a running
// node, from a published log, or from files on a machine that has neither. Whatever it is, the
// history is verified from genesis on.
type policySource struct{ node, log, chain, genesis string }

// maxChainFile bounds a policy document: its envelopes in base64.
const maxChainFile = consensus.MaxChainBytes * 3 / 2

// policyFlags adds the flags that name a source; node too, unless the command works offline.
func policyFlags(cmd *cobra.Command, online bool) *policySource {
	f := &policySource{}
	if online {
		cmd.Flags().StringVar(&f.node, "node", "", "data directory of the node, or the control socket in it ("+node.SocketName+")")
	}
	cmd.Flags().StringVar(&f.log, "log", "", "published log to read the policy's history from, a directory or URL; it is audited")
	cmd.Flags().StringVar(&f.chain, "chain", "", "file of the policy's signed history, as a node's /.well-known/meshnode/policy serves it")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "genesis file of the mesh that is meant")
	cmd.MarkFlagsMutuallyExclusive("log", "chain")
	if online {
		cmd.MarkFlagsMutuallyExclusive("node", "log")
		cmd.MarkFlagsMutuallyExclusive("node", "chain")
	}
	return f
}

// told is a verified history of the policy.
type told struct {
	genesis *consensus.Genesis
	chain   [][]byte
	steps   []audit.Change
	// placed says that the steps' leaves are known.
	placed bool
	// report is that of the log it was read from, if it was.
	report *audit.Report
}

// read reads and verifies the history. What is wrong with a log is in the report.
func (f *policySource) read(cmd *cobra.Command) (*told, error) {
	var g *consensus.Genesis
	var err error
	if f.genesis != "" {
		if g, err = signedGenesis(f.genesis); err != nil {
			return nil, err
		}
	}
	switch {
	case f.log != "":
		return f.readLog(cmd, g)
	case f.chain != "":
		return f.readChain(g)
	}
	return f.readNode(cmd, g)
}

// sound is read where nothing may be wrong with the log.
func (f *policySource) sound(cmd *cobra.Command) (*told, error) {
	t, err := f.read(cmd)
	if err != nil || t.report == nil || t.report.OK {
		return t, err
	}
	first := t.report.Findings[0]
	message := fmt.Sprintf("log %s: entry %d: %s: %s", f.log, first.Index, first.Code, first.Message)
	if t.report.Undecided() {
		return nil, unavailableError(first.Code, "get the log again from a member that is up to date", "%s", message)
	}
	return nil, refusedError("tampered", "run meshnode log audit "+f.log, "%s", message)
}

func (f *policySource) readLog(cmd *cobra.Command, g *consensus.Genesis) (*told, error) {
	ctx := cmd.Context()
	opts := audit.Options{Genesis: g, At: time.Now()}
	if isURL(f.log) {
		opts.MaxAge = defaultURLAge
	}
	reader, err := openLog(ctx, f.log)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	done := showProgress(cmd, "audited", "entries", &opts.Progress)
	report, steps, chain, err := audit.Changes(ctx, reader, opts)
	done()
	if err != nil {
		return nil, logFailure(ctx, f.log, err)
	}
	t := &told{genesis: g, chain: chain, steps: steps, placed: true, report: &report}
	if len(chain) > 0 {
		if t.genesis, err = consensus.ParseGenesis(chain[0]); err != nil {
			return nil, usageError("", "%v", err)
		}
	}
	return t, nil
}

func (f *policySource) readChain(g *consensus.Genesis) (*told, error) {
	raw, err := readLimited(f.chain, maxChainFile)
	if err != nil {
		return nil, err
	}
	var doc node.PolicyDocument
	err = json.Unmarshal(raw, &doc)
	if err == nil && doc.Chain == nil {
		err = errors.New("no \"chain\" in it")
	}
	if err != nil {
		return nil, usageError("save what a node serves at /.well-known/meshnode/policy", "%s: %v", f.chain, err)
	}
	return verifyHistory(f.chain, g, node.PolicyHistory{PolicyDocument: doc})
}

func (f *policySource) readNode(cmd *cobra.Command, g *consensus.Genesis) (*told, error) {
	c, err := newControl(f.node)
	if err != nil {
		return nil, err
	}
	var h node.PolicyHistory
	if err := c.call(cmd.Context(), http.MethodGet, "/v1/history", nil, &h); err != nil {
		return nil, err
	}
	return verifyHistory(c.socket, g, h)
}

// verifyHistory verifies a history that somebody says is that of g, or of any mesh.
func verifyHistory(from string, g *consensus.Genesis, h node.PolicyHistory) (*told, error) {
	if len(h.Chain) == 0 {
		return nil, unavailableError(string(attest.CodeNotStarted), "wait until the mesh has started", "%s: the mesh has no history yet", from)
	}
	own, err := consensus.ParseGenesis(h.Chain[0])
	if err != nil {
		return nil, refusedError("bad_history", "get the history from another node", "%s: %v", from, err)
	}
	if g != nil && own.MeshID() != g.MeshID() {
		return nil, refusedError(string(attest.CodeWrongMesh), "give the genesis of that mesh, or ask a node of yours",
			"%s: it is the history of mesh %s, the genesis is of %s", from, own.MeshID().Short(), g.MeshID().Short())
	}
	steps, err := consensus.History(own, h.Chain, nil)
	if err != nil {
		return nil, refusedError("bad_history", "get the history from another node", "%s: %v", from, err)
	}
	t := &told{genesis: own, chain: h.Chain, steps: []audit.Change{}, placed: len(h.Leaves) == len(h.Chain)}
	for _, s := range steps {
		change := audit.Change{Step: s}
		if t.placed {
			change.Leaf = h.Leaves[s.Links[len(s.Links)-1]]
		}
		t.steps = append(t.steps, change)
	}
	return t, nil
}

// newest returns the policy that the history leads to.
func (t *told) newest() (*consensus.PolicyState, error) {
	return consensus.ReplayPolicy(t.genesis, t.chain)
}
