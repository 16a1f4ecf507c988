package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/internal/throttle"
)

// The policy chain may have consensus.MaxChainBytes, more than anybody wants in one answer:
//
//	GET /.well-known/meshnode/policy          {"chain":[…]}, all of it: a file to save
//	GET /.well-known/meshnode/policy?from=N   {"chain":[…],"steps":S}: steps from N on, as many as
//	                                          fit policyPage and one at least; S is how many there are
//
// Steps are base64. Who reads page after page has the chain once it has as many steps as the newest
// page says; what is added meanwhile comes in a further page. Answers have an entity tag, and
// those that are not large are encoded once for each chain.

const (
	policyPage      = 4 << 20 // bytes of envelopes in a page; in base64 less than maxPolicy
	maxCachedPolicy = 8 << 20 // of all encodings that are kept
	policyRate      = 20      // a second, of one address
	policyBurst     = 256     // there may be all nodes of a mesh behind one
)

// PolicyPage is one answer to a question for steps from some on.
type PolicyPage struct {
	Chain [][]byte `json:"chain"`
	Steps int      `json:"steps"`
}

// policyPages serves the policy chain.
type policyPages struct {
	chain func() [][]byte
	now   func() time.Time
	limit *throttle.Requests

	mu     sync.Mutex
	tag    string            // guarded by mu; of the chain that cached is of
	cached map[string][]byte // guarded by mu; by the query
	held   int               // guarded by mu; bytes in cached
}

func newPolicyPages(chain func() [][]byte, now func() time.Time) *policyPages {
	return &policyPages{chain: chain, now: now, limit: &throttle.Requests{Rate: policyRate, Burst: policyBurst, Remotes: maxVisitors}}
}

// ServeHTTP implements http.Handler.
func (p *policyPages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !p.limit.Allow(remote(r), p.now()) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}
	chain, from := p.chain(), -1
	if q := r.URL.Query(); q.Has("from") {
		var err error
		if from, err = strconv.Atoi(q.Get("from")); err != nil || from < 0 {
			http.Error(w, "from: want the number of a step, from 0", http.StatusBadRequest)
			return
		}
		from = min(from, len(chain))
	}
	tag := chainTag(chain)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", fmt.Sprintf(`"%s.%d"`, tag, from))
	if from < 0 && encodedSize(chain) > maxCachedPolicy {
		_ = writeChain(w, chain)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.encoded(tag, chain, from)))
}

// chainTag names a chain: it only grows, and no step is in it twice.
func chainTag(chain [][]byte) string {
	if len(chain) == 0 {
		return "0"
	}
	sum := sha256.Sum256(chain[len(chain)-1])
	return fmt.Sprintf("%d-%s", len(chain), hex.EncodeToString(sum[:8]))
}

func encodedSize(chain [][]byte) (size int) {
	for _, step := range chain {
		size += base64.StdEncoding.EncodedLen(len(step)) + 3
	}
	return size
}

// encoded returns the answer to a question, all of the chain for from < 0.
func (p *policyPages) encoded(tag string, chain [][]byte, from int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tag != tag {
		p.tag, p.cached, p.held = tag, map[string][]byte{}, 0
	}
	key := strconv.Itoa(from)
	if body, ok := p.cached[key]; ok {
		return body
	}
	var b bytes.Buffer
	if from < 0 {
		_ = writeChain(&b, chain)
	} else {
		_ = json.NewEncoder(&b).Encode(PolicyPage{pageOf(chain, from), len(chain)})
	}
	if p.held+b.Len() <= maxCachedPolicy {
		p.cached[key], p.held = b.Bytes(), p.held+b.Len()
	}
	return b.Bytes()
}

// pageOf returns the steps from one on that make a page.
func pageOf(chain [][]byte, from int) [][]byte {
	out, size := [][]byte{}, 0
	for _, step := range chain[from:] {
		if size += len(step); size > policyPage && len(out) > 0 {
			break
		}
		out = append(out, step)
	}
	return out
}

// writeChain writes {"chain":[…]} and a line feed, without another copy of it.
func writeChain(w io.Writer, chain [][]byte) error {
	if _, err := io.WriteString(w, `{"chain":[`); err != nil {
		return err
	}
	for i, step := range chain {
		quoted := make([]byte, 0, base64.StdEncoding.EncodedLen(len(step))+3)
		if i > 0 {
			quoted = append(quoted, ',')
		}
		quoted = append(base64.StdEncoding.AppendEncode(append(quoted, '"'), step), '"')
		if _, err := w.Write(quoted); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}
