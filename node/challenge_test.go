package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/attestmesh/meshnode/attest/ratls"
)

// Challenges that arrive while seats are being asked share the next question, and each gets
// the inclusion of its own nonce.
func TestClientsShareHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 50
		var roots [][32]byte
		asked, release := make(chan struct{}), make(chan struct{})
		b := newHeadBatches(func(_ context.Context, root [32]byte) ([][]byte, [][]byte, error) {
			roots = append(roots, root)
			asked <- struct{}{}
			<-release
			return [][]byte{root[:]}, [][]byte{[]byte("chain")}, nil
		})
		ctx, stop := context.WithCancel(t.Context())
		var tasks, waiting sync.WaitGroup
		tasks.Go(func() { b.run(ctx) })
		challenge := func(i int) {
			waiting.Go(func() {
				nonce := sha256.Sum256(fmt.Append(nil, i))
				got, err := b.get(ctx, ratls.HeadLeaf(nonce))
				if err != nil {
					t.Error(err)
					return
				}
				root, err := got.Inclusion.Root(ratls.HeadLeaf(nonce))
				if err != nil || string(got.Statements[0]) != string(root[:]) || string(got.chain[0]) != "chain" {
					t.Errorf("challenge %d: root %x, heads over %x, %v", i, root, got.Statements[0], err)
				}
			})
		}
		challenge(0)
		<-asked
		for i := 1; i < clients; i++ {
			challenge(i)
		}
		synctest.Wait()
		close(release)
		<-asked
		waiting.Wait()
		if len(roots) != 2 {
			t.Errorf("seats were asked %d times for %d clients, want 2", len(roots), clients)
		}
		stop()
		tasks.Wait()
	})
}

// Whoever waits when there is no answer, no room or no node any more is told.
func TestClientsWithoutHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("too few organisations")
		b := newHeadBatches(func(context.Context, [32]byte) ([][]byte, [][]byte, error) { return nil, nil, broken })
		ctx, stop := context.WithCancel(t.Context())
		var tasks sync.WaitGroup
		run := func() { tasks.Go(func() { b.run(ctx) }) }
		run()
		if _, err := b.get(ctx, [32]byte{1}); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		stop()
		tasks.Wait()
		gone, hangUp := context.WithCancel(context.Background())
		hangUp()
		for range maxWaitingHeads {
			if _, err := b.get(gone, [32]byte{1}); !errors.Is(err, context.Canceled) {
				t.Fatalf("a client that hung up: %v", err)
			}
		}
		if _, err := b.get(context.Background(), [32]byte{1}); !errors.Is(err, errClientsBusy) {
			t.Errorf("got %v from a full lane", err)
		}
		run() // with ctx ended: fails what waits, and returns
		tasks.Wait()
		if len(b.waiting) != 0 {
			t.Errorf("%d still wait", len(b.waiting))
		}
	})
}
