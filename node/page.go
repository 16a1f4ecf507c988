package node

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"regexp"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
)

// The page at / is for people who open the endpoint in a browser. A browser cannot verify
// evidence, so the page proves nothing: it says what the node claims and with which command
// the reader finds out.

//go:embed page.html
var pageSource string

var plainHost = regexp.MustCompile(`^[A-Za-z0-9.:\[\]-]+$`)

// pageView is what the page shows; all of it is the node's own word.
type pageView struct {
	Host, Node, Organisation, Peer, MeshID, Kind, Measurement string
	Epoch                                                     uint64
	Simulated                                                 bool
	Withdrawn                                                 *attest.Reason
}

func (e *endpoint) page(w http.ResponseWriter, r *http.Request) {
	n := e.n
	host := r.Host
	if !plainHost.MatchString(host) {
		host = "HOST:PORT" // readers paste it into a shell
	}
	v := pageView{Host: host, Node: n.ref.String(), Organisation: string(n.ref.Org), Peer: n.self.String(), MeshID: n.genesis.MeshID().String(),
		Kind: n.kind, Simulated: n.kind == attest.KindSim, Withdrawn: n.unserved()}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		v.Epoch = uint64(s.Epoch())
		if own, ok := s.Node(n.self); ok {
			v.Measurement = own.Measurement
		}
	})
	page, err := template.New("page").Parse(pageSource)
	var out bytes.Buffer
	if err == nil {
		err = page.Execute(&out, v)
	}
	if err != nil {
		n.log.Error("page", "error", err)
		refuseClient(w, attest.NewReason(attest.CodeUnavailable, "page", err.Error(), ""))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(out.Bytes())
}
