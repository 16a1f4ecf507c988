package simulations

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/canary"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/transparency"
)

// manyData has a number of examples that no other number in a log looks like.
func manyData(name string) *node.TrainingData {
	d := &data.Dataset{Source: "canary-set-of-" + name, Features: 2}
	for i := range 100_003 + 1000*int(name[0]) {
		x := float64(i%2)*2 - 1
		d.X = append(d.X, x, 0.123456789+float64(i)/16)
		d.Labels = append(d.Labels, []string{"canary-label-a", "canary-label-b"}[i%2])
	}
	return &node.TrainingData{Train: d}
}

// page is what anybody gets of a node.
func (a *actor) page(at, path string) []byte {
	a.Helper()
	h := a.host(at)
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.ip+":80"+path, nil)
	if err != nil {
		a.Fatal(err)
	}
	resp, err := h.console.Do(req)
	if err != nil {
		a.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		a.Fatalf("%s: %s %v", path, resp.Status, err)
	}
	return body
}

// TestNothingOfAJobIsPublished: rounds are in the log, and what they were about is not: neither the job's texts,
// nor data sets, nor how many examples there were, nor salts, nor anything of updates but their digests.
func TestNothingOfAJobIsPublished(t *testing.T) {
	if underRace {
		t.Skip("hundreds of thousands of examples: the run without the race detector does it")
	}
	stage(t, strings.ReplaceAll(trainers, "old trainer", "new trainer"), func(w *world) { w.training = manyData }, func(a *actor) {
		const at = "alpha/n1"
		id := a.job(at, func(s *federated.Spec) {
			s.Name, s.Labels = "canary-job", []string{"canary-label-a", "canary-label-b"}
		})
		a.eventually("the job ends", func() bool { return a.jobStatus(at, id).State == "done" })
		var set canary.Set
		for _, name := range []string{"canary-job", "canary-label-a", "canary-label-b", "canary-set-of-", "10.0.0."} {
			set.AddText(name, name)
		}
		rounds := len(a.jobStatus(at, id).Committed)
		for round := range rounds {
			var c federated.Certificate
			a.eventually("a certificate", func() bool {
				for _, name := range []string{"alpha/n1", "beta/n1", "gamma/n1", "alpha/n2", "beta/n2", "gamma/n2", "gamma/n3"} { // who took part
					ctx, cancel := context.WithTimeout(context.Background(), callWithin)
					defer cancel()
					if a.host(name).call(ctx, http.MethodGet, fmt.Sprintf("/v1/jobs/%s/certificates/%d", id, round), nil, &c) == nil {
						return true
					}
				}
				return false
			})
			for _, m := range c.Members {
				if m.Examples < 100_000 {
					a.Fatalf("%s had %d examples", m.Member.Ref, m.Examples)
				}
				set.AddText(fmt.Sprintf("examples of %s", m.Member.Ref), fmt.Sprint(m.Examples))
				salt, err := json.Marshal(m.Salt)
				if err != nil {
					a.Fatal(err)
				}
				set.AddText(fmt.Sprintf("salt of %s in round %d", m.Member.Ref, round), strings.Trim(string(salt), `"`))
			}
		}
		head, size := []byte(nil), uint64(0)
		a.eventually("the last round is published", func() bool {
			head = a.page(at, "/log/checkpoint")
			c, err := transparency.ParseCheckpoint(head)
			size = c.Size
			s := a.status(at)
			return err == nil && s.Log.Size == size
		})
		files := map[string][]byte{"checkpoint": head}
		paths := []string{"/.well-known/meshnode/policy"}
		for n := uint64(0); n*256 < size; n++ {
			for _, kind := range []string{"entries", "0"} {
				path := fmt.Sprintf("/log/tile/%s/%03d", kind, n)
				if left := size - n*256; left < 256 {
					path += fmt.Sprintf(".p/%d", left)
				}
				paths = append(paths, path)
			}
		}
		for _, path := range paths {
			files[path] = a.page(at, path)
		}
		for name, file := range files {
			if got := set.Find(file); len(got) > 0 {
				a.Errorf("%s shows %v", name, got)
			}
		}
		if rounds < 3 || set.Len() < 100 {
			a.Errorf("%d rounds, %d forms of private values", rounds, set.Len())
		}
		var control canary.Set // rounds are there, and are read as deep as this
		control.AddText("round", "meshnode/round/v1")
		found := false
		for _, file := range files {
			found = found || len(control.Find(file)) > 0
		}
		if !found {
			a.Error("no round was found in the log")
		}
	})
}
