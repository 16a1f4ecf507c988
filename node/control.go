package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// The control socket is how commands on the same machine reach a node: HTTP and JSON over
// a unix socket of mode 0600 in the data directory. It can ask and submit what is signed
// elsewhere, and have this node drained; no route changes what is trusted.
//
//	GET  /v1/status                          Status
//	GET  /v1/policy                          PolicyView
//	GET  /v1/history                         PolicyHistory
//	POST /v1/proposals        envelope       Submission
//	POST /v1/dry-run          envelope       DryRun; nothing is submitted
//	POST /v1/withdrawals      envelope       Submission
//	POST /v1/suspensions      envelope       Submission
//	POST /v1/lifts            envelope       Submission
//	GET  /v1/jobs                            [JobStatus]
//	POST /v1/jobs             envelope       Submission
//	GET  /v1/jobs/{id}[?follow=1]            JobStatus, or one a line at every change
//	GET  /v1/jobs/{id}/certificates/{round}  federated.Certificate
//	GET  /v1/blobs/{root}                    bytes
//	GET  /v1/services                        [Deployment]
//	GET  /v1/nodes/{org}/{name}              NodeView
//	POST /v1/nodes/{org}/{name}/drain        Drain: begins it, or tells how far it has come
//	POST /v1/retirements      envelope       Submission
//	GET  /v1/leaves/{index}/evidence         Disclosure
//	GET  /v1/evidence                        [KeptEvidence]
//	GET  /v1/evidence/{commitment}           {commitment, file} of Disclosure
//	POST /v1/erasures         Erasure        Erasure
//
// An error is {"error":{"code","message","remedy"}} with status 400 (malformed), 403
// (refused), 404, 429 (over a quota: again after the next tick) or 503 (cannot decide now).

// Submission is the outcome of an ordered command.
type Submission struct {
	ID            string   `json:"id"`
	Class         string   `json:"class,omitempty"`
	Epoch         uint64   `json:"epoch"`
	Organisations []string `json:"organisations,omitempty"`
	LeafIndex     uint64   `json:"leaf_index"`
}

// ControlError is the error body of the control socket.
type ControlError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// Error implements error.
func (e *ControlError) Error() string { return e.Message }

// submitTimeout bounds the wait for a submitted command to be ordered.
const submitTimeout = 20 * time.Second

// listenControl makes the socket; a stale one of a dead process is replaced (the data
// directory's lock says that it is dead).
func listenControl(path string) (net.Listener, error) {
	if err := checkSocket(path); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (n *Node) serveControl(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.Status())
	})
	mux.HandleFunc("GET /v1/policy", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.policyView())
	})
	mux.HandleFunc("GET /v1/history", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.policyHistory())
	})
	mux.HandleFunc("POST /v1/proposals", n.handleSubmit(n.propose))
	mux.HandleFunc("POST /v1/dry-run", n.handleDryRun)
	mux.HandleFunc("POST /v1/withdrawals", n.handleSubmit(n.withdraw))
	mux.HandleFunc("POST /v1/suspensions", n.handleSubmit(n.suspend))
	mux.HandleFunc("POST /v1/lifts", n.handleSubmit(n.lift))
	mux.HandleFunc("POST /v1/jobs", n.handleSubmit(n.submitJob))
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.jobStatuses())
	})
	mux.HandleFunc("GET /v1/jobs/{id}", n.handleJob)
	mux.HandleFunc("GET /v1/jobs/{id}/certificates/{round}", n.handleCertificate)
	mux.HandleFunc("GET /v1/blobs/{root}", n.handleBlob)
	mux.HandleFunc("GET /v1/nodes/{org}/{name}", n.handleNode)
	mux.HandleFunc("POST /v1/nodes/{org}/{name}/drain", n.handleDrain)
	mux.HandleFunc("POST /v1/retirements", n.handleSubmit(n.retire))
	n.evidenceRoutes(mux)
	mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.services.list())
	})
	return serveHTTP(ctx, l, mux, n.log)
}

// handleSubmit reads an envelope of at most maxCommand bytes and answers with its outcome.
func (n *Node) handleSubmit(submit func(context.Context, []byte) (Submission, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCommand))
		if err != nil {
			writeControlError(w, http.StatusBadRequest, &ControlError{"usage", err.Error(), ""})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), submitTimeout)
		defer cancel()
		out, err := submit(ctx, raw)
		if err != nil {
			writeSubmitError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func writeSubmitError(w http.ResponseWriter, err error) {
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		status := http.StatusForbidden
		if passes(err) {
			status = http.StatusTooManyRequests
		}
		writeControlError(w, status, &ControlError{string(refused.Reason.Code), refused.Reason.String(), refused.Reason.Remedy})
	case errors.Is(err, errMalformed):
		writeControlError(w, http.StatusBadRequest, &ControlError{"usage", err.Error(), "make the file with policy approve or job approve"})
	default:
		writeControlError(w, http.StatusServiceUnavailable, &ControlError{string(attest.CodeUnavailable), err.Error(),
			"meshnode status shows whether the seats have a leader; try again"})
	}
}

func writeControlError(w http.ResponseWriter, status int, e *ControlError) {
	writeJSON(w, status, map[string]*ControlError{"error": e})
}

func (n *Node) handleJob(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	changed := n.changed.wait()
	job, ok := n.jobStatus(id)
	if !ok {
		writeControlError(w, http.StatusNotFound, &ControlError{"usage", fmt.Sprintf("no job %q here", id), "meshnode job list names the jobs"})
		return
	}
	if r.URL.Query().Get("follow") == "" {
		writeJSON(w, http.StatusOK, job)
		return
	}
	// One line per change until the job ends or the reader goes away.
	w.Header().Set("Content-Type", "application/x-ndjson")
	var last []byte
	for {
		if line, err := json.Marshal(job); err == nil && string(line) != string(last) {
			if _, err := w.Write(append(line, '\n')); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			last = line
		}
		if job.ended() {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		changed = n.changed.wait()
		job, _ = n.jobStatus(id)
	}
}

func (n *Node) handleCertificate(w http.ResponseWriter, r *http.Request) {
	round, err := strconv.Atoi(r.PathValue("round"))
	if err != nil {
		writeControlError(w, http.StatusBadRequest, &ControlError{"usage", err.Error(), ""})
		return
	}
	certificate, err := n.certificate(r.Context(), r.PathValue("id"), round)
	if err != nil {
		writeControlError(w, http.StatusServiceUnavailable, &ControlError{string(attest.CodeUnavailable), err.Error(),
			"wait for the next published checkpoint, or ask another node"})
		return
	}
	raw, err := certificate.Marshal()
	if err != nil {
		writeControlError(w, http.StatusServiceUnavailable, &ControlError{string(attest.CodeUnavailable), err.Error(), ""})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(raw)
}

func (n *Node) handleBlob(w http.ResponseWriter, r *http.Request) {
	var root [32]byte
	if raw, err := hex.DecodeString(r.PathValue("root")); err != nil || len(raw) != len(root) {
		writeControlError(w, http.StatusBadRequest, &ControlError{"usage", "a root is 64 characters of hex", ""})
		return
	} else {
		copy(root[:], raw)
	}
	ctx, cancel := context.WithTimeout(r.Context(), submitTimeout)
	defer cancel()
	data, err := n.fetchBlob(ctx, root)
	if err != nil {
		writeControlError(w, http.StatusNotFound, &ControlError{string(attest.CodeUnavailable), err.Error(), "ask a node that took part in the round"})
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(data)
}
