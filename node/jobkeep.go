package node

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// What outlives this process, besides what it publishes: the log made durable, and the signed
// jobs. A job is no leaf, so that its terms stay among the members; in a mesh that was
// recovered every node submits again what it kept, and the job goes on after its last
// committed round. Of several submissions the first counts.

const (
	syncEvery = 5 * time.Second // what a power cut may take: rounds and results of so long
	jobSuffix = ".json"
)

// syncLog makes what is published durable until ctx ends, and at the end.
func (n *Node) syncLog(ctx context.Context) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	var synced transparency.Hash
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			done = true
		}
		p, _ := n.lastPublished()
		if p.note == nil || p.Root == synced {
			continue
		}
		if err := n.machine.tree.Sync(); err != nil {
			n.fail(err)
			return
		}
		synced = p.Root
	}
}

// keepJobs writes every job of the ledger to the data directory, and removes those that have
// failed: they would begin anew.
func (n *Node) keepJobs(ctx context.Context) {
	if n.jobDir == nil {
		return
	}
	kept := map[federated.JobID]bool{}
	for {
		changed := n.changed.wait()
		for _, j := range n.jobs() {
			name := string(j.Job.ID) + jobSuffix
			failed := j.State == federated.StateFailed
			var err error
			switch {
			case !failed && !kept[j.Job.ID]:
				err = n.jobDir.WriteFile(name, j.Job.Envelope, 0o600)
				kept[j.Job.ID] = true
			case failed && kept[j.Job.ID]:
				err = n.jobDir.Remove(name)
				kept[j.Job.ID] = false
			}
			if err != nil {
				n.log.Error("job not kept", "job", j.Job.ID, "error", err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// resubmitJobs submits the kept jobs again, once this incarnation, if it is one above 0, has
// begun and this node is fresh in it.
func (n *Node) resubmitJobs(ctx context.Context) {
	if n.waitFresh(ctx) != nil || n.jobDir == nil || n.incarnation() == 0 {
		return
	}
	entries, err := os.ReadDir(n.jobDir.Path())
	if err != nil {
		n.log.Error("kept jobs not read", "error", err)
		return
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), jobSuffix)
		if _, known := n.job(federated.JobID(id)); !ok || known || strings.HasPrefix(id, ".") {
			continue
		}
		if err := n.resubmitJob(ctx, e.Name()); err != nil && ctx.Err() == nil {
			n.log.Warn("kept job not submitted again", "job", id, "error", err)
		}
	}
}

// waitFresh waits until this node may serve data.
func (n *Node) waitFresh(ctx context.Context) error {
	for {
		changed := n.changed.wait()
		if n.stale() == nil {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(recoverEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Node) resubmitJob(ctx context.Context, name string) error {
	raw, err := n.jobDir.ReadFile(name, envelope.MaxSize)
	if err != nil {
		return err
	}
	job, err := federated.ParseJob(raw)
	if err != nil {
		return err
	}
	if job.MeshID != n.genesis.MeshID() {
		return n.jobDir.Remove(name)
	}
	body, err := federated.JobCommand(raw)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	_, err = n.submit(ctx, consensus.Command{V: consensus.CommandVersion, Kind: consensus.KindJob, Body: body})
	if isRefused(err) {
		if _, known := n.job(job.ID); known {
			return nil // another node was first
		}
	}
	return err
}
