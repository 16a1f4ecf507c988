package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
)

// An operator discloses evidence, and erases it. Nobody else can: there is no route to it but the
// control socket.

// Disclosure is the evidence behind one leaf.
type Disclosure struct {
	Leaf       uint64           `json:"leaf"`
	Commitment string           `json:"commitment"`
	Verifier   identity.NodeRef `json:"verifier"`
	Subject    identity.NodeRef `json:"subject"`
	Verdict    attest.Verdict   `json:"verdict"`
	At         time.Time        `json:"at"`
	// File is 32 bytes of salt and the encoded evidence, as audit.Evidence reads them.
	File []byte `json:"file,omitempty"`
}

// errNoEvidence is of a leaf that this node has no evidence behind.
var errNoEvidence = errors.New("no evidence of this node's")

// disclose returns the evidence behind a leaf of this node's.
func (n *Node) disclose(index uint64) (Disclosure, error) {
	if size := n.machine.tree.Size(); index >= size {
		return Disclosure{}, fmt.Errorf("%w: the log has %d entries here, no entry %d", errNoEvidence, size, index)
	}
	leaf, err := n.machine.tree.Leaf(index)
	if err != nil {
		return Disclosure{}, err
	}
	r, err := consensus.ParseResult(leaf)
	if err != nil {
		return Disclosure{}, fmt.Errorf("%w: entry %d is no attestation result, and only those have evidence behind them", errNoEvidence, index)
	}
	if r.Verifier.Node != n.ref {
		return Disclosure{}, fmt.Errorf("%w: entry %d is a result of %s, whose operator can disclose it", errNoEvidence, index, r.Verifier.Node)
	}
	d := Disclosure{Leaf: index, Commitment: r.Evidence, Verifier: r.Verifier.Node, Subject: r.Subject.Node, Verdict: r.Verdict, At: r.At}
	d.File, err = n.evidence.open(r, n.cfg.keepEvidence(), n.time())
	return d, err
}

// eraseEvidence erases what an order covers, on disk and in memory.
func (n *Node) eraseEvidence(order Erasure) (Erasure, error) {
	now := n.time()
	switch {
	case order.Subject == nil && order.Before.IsZero():
		return order, malformed(errors.New("name a node, a time, or both"))
	case order.Before.After(now):
		return order, malformed(fmt.Errorf("before %s: that is to come", order.Before.Format(time.RFC3339)))
	case order.Before.IsZero():
		order.Before = now
	}
	if order.Subject != nil {
		if err := order.Subject.Validate(); err != nil {
			return order, malformed(err)
		}
	}
	order.At = now
	n.edges.erase(order)
	return n.evidence.erase(order)
}

// sweepEvidence deletes evidence that is older than it is kept, until ctx ends.
func (n *Node) sweepEvidence(ctx context.Context) {
	if n.evidence == nil {
		return
	}
	for ; ctx.Err() == nil; n.rest(ctx, sweepEvery) {
		count, err := n.evidence.sweep(n.time().Add(-n.cfg.keepEvidence()))
		if err != nil {
			n.log.Warn("old evidence could not be deleted", "error", err)
		}
		if count > 0 {
			n.log.Info("old evidence deleted", "files", count, "kept for", n.cfg.keepEvidence())
		}
	}
}

// evidenceRoutes are those of the control socket about evidence.
func (n *Node) evidenceRoutes(mux *http.ServeMux) {
	if n.evidence == nil {
		return // simulations keep none
	}
	mux.HandleFunc("GET /v1/evidence", func(w http.ResponseWriter, _ *http.Request) {
		list, err := n.evidence.list()
		writeEvidence(w, list, err)
	})
	mux.HandleFunc("GET /v1/evidence/{commitment}", func(w http.ResponseWriter, r *http.Request) {
		raw, err := n.evidence.read(r.PathValue("commitment"))
		writeEvidence(w, map[string]any{"commitment": r.PathValue("commitment"), "file": raw}, err)
	})
	mux.HandleFunc("GET /v1/leaves/{index}/evidence", func(w http.ResponseWriter, r *http.Request) {
		index, err := strconv.ParseUint(r.PathValue("index"), 10, 63)
		if err != nil {
			writeEvidence(w, nil, malformed(err))
			return
		}
		d, err := n.disclose(index)
		writeEvidence(w, d, err)
	})
	mux.HandleFunc("POST /v1/erasures", func(w http.ResponseWriter, r *http.Request) {
		var order Erasure
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
		if err == nil {
			err = json.Unmarshal(raw, &order)
		}
		if err != nil {
			writeEvidence(w, nil, malformed(err))
			return
		}
		order, err = n.eraseEvidence(order)
		writeEvidence(w, order, err)
	})
}

func writeEvidence(w http.ResponseWriter, v any, err error) {
	switch {
	case err == nil:
		writeJSON(w, http.StatusOK, v)
	case errors.Is(err, errMalformed):
		writeControlError(w, http.StatusBadRequest, &ControlError{"usage", err.Error(), "see meshnode log disclose --help and meshnode log erase --help"})
	case errors.Is(err, errNoEvidence):
		writeControlError(w, http.StatusNotFound, &ControlError{"usage", err.Error(), "meshnode log show lists the entries"})
	case errors.Is(err, fs.ErrNotExist):
		writeControlError(w, http.StatusServiceUnavailable, &ControlError{string(attest.CodeUnavailable), "the evidence is not in the data directory",
			"look whether its boot-*/evidence was moved; what a link showed before it was erased is behind no later result either"})
	default:
		writeSubmitError(w, err)
	}
}
