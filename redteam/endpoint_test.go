package redteam

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// clientEndpoint answers challenges as a node's endpoint does, less what its flaws name.
type clientEndpoint struct {
	w     *world
	flaws []string
	asked atomic.Int64

	mu     sync.Mutex
	proofs map[[ratls.NonceSize]byte][]byte // guarded by mu; what the flaw "caches" keeps
}

func (e *clientEndpoint) has(flaw string) bool { return slices.Contains(e.flaws, flaw) }

func (e *clientEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != ratls.Path {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if e.asked.Add(1) > 60 && !e.has("answers everybody") {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, ratls.MaxRequest))
	req, wrong := ratls.DecodeRequest(raw)
	if err != nil || wrong != nil {
		if e.has("quotes for anything") {
			return // 200
		}
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	proof, err := e.proof(r, req.Nonce)
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	body, err := ratls.Answer{Peer: e.w.victim.Peer, Credential: e.w.victim.Credential, Proof: proof}.Encode()
	if err == nil {
		_, _ = w.Write(body)
	}
}

func (e *clientEndpoint) proof(r *http.Request, nonce [ratls.NonceSize]byte) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if known := e.proofs[nonce]; known != nil && e.has("caches") {
		return known, nil
	}
	ekm, err := ratls.EKM(r.TLS.ExportKeyingMaterial, nonce)
	if err != nil {
		return nil, err
	}
	if e.has("binds the nonce alone") {
		ekm = [ratls.EKMSize]byte{}
	}
	bind := ratls.Claimant{MeshID: testMesh, Peer: e.w.victim.Peer}.ChallengeBinder(nonce, ekm)
	p, err := e.w.victim.Quoter.ProveClient(r.Context(), bind)
	if err != nil {
		return nil, err
	}
	raw, err := ratls.EncodeProof(p)
	if e.proofs == nil {
		e.proofs = map[[ratls.NonceSize]byte][]byte{}
	}
	e.proofs[nonce] = raw
	return raw, err
}

// serve starts the endpoint, beside whatever else answers below /log/.
func (e *clientEndpoint) serve(t *testing.T, other http.Handler) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(ratls.Path, e)
	if other != nil {
		mux.Handle("/", other)
	}
	s := httptest.NewUnstartedServer(mux)
	s.Config.ReadHeaderTimeout, s.Config.MaxHeaderBytes = 2*time.Second, 16<<10
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: !e.has("tickets")}
	if e.has("TLS 1.2") {
		s.TLS.MinVersion = tls.VersionTLS12
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// genuine judges evidence as the root of the world does.
func (w *world) genuine(ctx context.Context, ev attest.Evidence, data attest.ReportData) error {
	if _, result := w.victim.Judge.Appraise(ctx, exchange.Subject{}, ev, data); !result.Affirming() {
		return errors.New(result.Reasons[0].String())
	}
	return nil
}

// endpointControls are endpoints with one mistake each.
func endpointControls() map[string][]string {
	return map[string][]string{
		"https-tls12":         {"TLS 1.2"},
		"https-resumption":    {"tickets"},
		"challenge-malformed": {"quotes for anything"},
		"challenge-replay":    {"caches", "binds the nonce alone"},
		"challenge-flood":     {"answers everybody"},
	}
}

func TestEndpointAttacksSucceedOnFlawedEndpoints(t *testing.T) {
	for name, flaws := range endpointControls() {
		for _, flaw := range append(flaws, "") {
			t.Run(name+" "+flaw, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				target := w.target(w.sound(nil).Addrs()...)
				target.URL = (&clientEndpoint{w: w, flaws: []string{flaw}}).serve(t, nil)
				a := w.arsenal()
				a.Genuine = w.genuine
				c := w.campaign(t, target, a)
				want := Broken
				if flaw == "" {
					want = Held // without the flaw it is sound
				}
				if o := attackNamed(t, name).run(testContext(t), c); o.Status != want {
					t.Errorf("%s: %s", o.Status, o.Evidence)
				}
			})
		}
	}
}
