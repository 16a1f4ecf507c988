package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/service"
)

const proxyHelp = `Speak plain HTTP to programs on this machine, and HTTPS to one node of a mesh, which is
verified before the first byte of each connection and again while it lasts.

--to is the https address of a node, --genesis the mesh's genesis file, from an organisation
of the mesh and not from the node. --policy says what you demand beyond the mesh:

  organisations: [beta]          # whose nodes; default: any of the mesh
  node: n1                       # one node of one organisation
  measurements: [HEX]            # of those that the mesh allows
  services:                      # what must run under which name
    inference: {programs: [SHA256], models: [SHA256]}
  exclusive: true                # and nothing else
  max_age: 5m                    # of the newest published checkpoint
  reattest: 5m                   # how long a proof is believed

Answers of services come with a receipt that names program, model and node; one without a
receipt that fits is held back. --receipts keeps them, with the evidence of that moment, for
meshnode service receipt verify.

A line is printed for every proof and for every refusal. A request that may not go out gets
502 with the reason, as JSON where Accept asks for that. Without an address in --listen only
this machine can use the proxy.

Exit codes: 0 stopped · 1 the node was refused at the start · 2 usage · 3 it cannot be reached,
or does not hear its mesh.`

type proxyFlags struct {
	to, listen, genesis, policy, receipts string
	json                                  bool
}

func proxyCommand() *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{
		Use:   "proxy --to HOST:PORT|URL --genesis FILE",
		Short: "Let curl or a browser use a node that is verified before the first byte",
		Long:  proxyHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runProxy(cmd, f) },
	}
	cmd.Flags().StringVar(&f.to, "to", "", "https address of the node, `HOST:PORT` or URL")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "`ADDRESS:PORT` to listen on")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis `FILE`, signed by all organisations")
	cmd.Flags().StringVar(&f.policy, "policy", "", "what is demanded beyond the mesh's policy, a YAML `FILE`")
	cmd.Flags().StringVar(&f.receipts, "receipts", "", "`DIR` to keep receipts of services in")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object a line")
	return cmd
}

func runProxy(cmd *cobra.Command, f proxyFlags) error {
	if f.to == "" {
		return usageError("name the https address of a node with --to HOST:PORT", "no node")
	}
	to, err := nodeURL(f.to)
	if err != nil {
		return err
	}
	if err := checkListenAddress(f.listen); err != nil {
		return err
	}
	say := &proxyLines{out: cmd.OutOrStdout(), json: f.json}
	receipts := receiptDir(f.receipts)
	keeper := &client.Receipts{Keep: receipts.keep}
	t, err := newTransport(f.genesis, f.policy, func(s client.Session) {
		keeper.Session(s)
		say.attested(s)
	})
	if err != nil {
		return err
	}
	defer t.Close()
	keeper.Mesh = t.Verifier().MeshID()
	if err := receipts.open(); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return usageError("choose another --listen ADDRESS:PORT", "%v", err)
	}
	defer ln.Close()
	// Whoever has started a proxy wants to know now that it will refuse.
	if _, err := t.Attest(cmd.Context(), to.Host); err != nil {
		return clientFailure(cmd.Context(), err)
	}
	say.ready("http://"+ln.Addr().String(), to.String())
	return serveProxy(cmd.Context(), ln, client.NewProxy(keeper.Over(t), to, say.refused), cmd.ErrOrStderr())
}

// newTransport reads what a client goes by.
func newTransport(genesis, policy string, onSession func(client.Session)) (*client.Transport, error) {
	if genesis == "" {
		return nil, usageError("get the genesis file from an organisation of the mesh and name it with --genesis FILE", "no genesis")
	}
	g, err := signedGenesis(genesis)
	if err != nil {
		return nil, err
	}
	var p client.Policy
	if policy != "" {
		if p, err = readClientPolicy(policy); err != nil {
			return nil, err
		}
	}
	t, err := client.New(client.Config{Genesis: g.Raw(), Policy: p, OnSession: onSession})
	if err != nil {
		return nil, usageError("compare policy and genesis", "%v", err)
	}
	return t, nil
}

// readClientPolicy reads what a client demands beyond the mesh.
func readClientPolicy(path string) (client.Policy, error) {
	p, err := client.ReadPolicy(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return client.Policy{}, usageError("check the path", "%v", err)
	case err != nil:
		return client.Policy{}, usageError("correct the file; meshnode proxy --help shows its form", "%v", err)
	}
	return p, nil
}

// nodeURL reads HOST:PORT or https://HOST[:PORT][/PATH].
func nodeURL(s string) (*url.URL, error) {
	text := s
	if text != "" && !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || s == "" || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, usageError("give the https address of a node, as its ready line shows", "%q is no HOST:PORT and no https URL", s)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "443")
	}
	return u, nil
}

// checkListenAddress demands that whoever opens the proxy to others says so.
func checkListenAddress(s string) error {
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return usageError("give ADDRESS:PORT", "--listen: %v", err)
	}
	if host == "localhost" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return usageError("write 127.0.0.1 for this machine alone, or the address that others may use", "--listen %q names no address", s)
	}
	return nil
}

// proxyGrace is how long requests under way may take after Ctrl-C.
const proxyGrace = 3 * time.Second

// serveProxy serves until ctx ends.
func serveProxy(ctx context.Context, ln net.Listener, h http.Handler, errOut io.Writer) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.NewTextHandler(errOut, nil), slog.LevelError)}
	down := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(down)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proxyGrace)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-down
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return unavailableError("unavailable", "start it again", "%v", err)
	}
	return nil
}

// clientFailure gives an error of package client its exit code: what was refused 1, what
// could not be decided 3.
func clientFailure(ctx context.Context, err error) error {
	var refusal *client.Refusal
	switch {
	case ctx.Err() != nil:
		return err
	case errors.As(err, new(tls.RecordHeaderError)):
		return unavailableError("unavailable", "give the address that the node's https names; its public one speaks plain HTTP", "%v", err)
	case !errors.As(err, &refusal):
		return unavailableError("unavailable", "see whether the node runs and can be reached", "%v", err)
	}
	why := refusal.Reasons[0]
	if undecided(refusal) {
		return unavailableError(string(why.Code), why.Remedy, "%v", refusal)
	}
	return refusedError(string(why.Code), why.Remedy, "%v", refusal)
}

// undecided reports whether a refusal says that nothing could be found out now: by the node
// itself, for want of collateral, or because nobody vouches that what it shows is new.
func undecided(r *client.Refusal) bool {
	switch r.Code() {
	case attest.CodeCollateralMissing, attest.CodeCollateralStale, attest.CodeUnsupported, attest.CodeStale, attest.CodeNotStarted:
		return true
	}
	return r.Node
}

// proxyLines prints what happens, one line each.
type proxyLines struct {
	out  io.Writer
	json bool
	mu   sync.Mutex
}

// attestedLine is the JSON of one proof.
type attestedLine struct {
	Event       string         `json:"event"`
	Again       bool           `json:"again"`
	Address     string         `json:"address"`
	Node        string         `json:"node"`
	Peer        string         `json:"peer"`
	Measurement string         `json:"measurement"`
	Kind        string         `json:"kind"`
	Simulated   bool           `json:"simulated"`
	MeshID      string         `json:"mesh_id"`
	Epoch       uint64         `json:"epoch"`
	RuntimeHead string         `json:"runtime_head"`
	Services    []serviceLine  `json:"services"`
	Heads       []string       `json:"heads"`
	Checkpoint  checkpointLine `json:"checkpoint"`
	Protocol    string         `json:"protocol"`
	At          time.Time      `json:"at"`
	NotAfter    time.Time      `json:"not_after"`
}

// serviceLine is one start. The log keeps those before it; Newest is what runs, if anything
// does.
type serviceLine struct {
	Service string `json:"service"`
	Program string `json:"program"`
	Model   string `json:"model"`
	Newest  bool   `json:"newest"`
}

type checkpointLine struct {
	Size  uint64 `json:"size"`
	Root  string `json:"root"`
	Level string `json:"level"`
}

func newAttestedLine(s client.Session) attestedLine {
	l := attestedLine{Event: "attested", Again: s.Again, Address: s.Address, Node: s.Node.String(), Peer: s.Peer.String(), Measurement: s.Claims.Measurement,
		Kind: s.Claims.Kind, Simulated: s.Simulated(), MeshID: s.MeshID.String(), Epoch: uint64(s.Epoch), RuntimeHead: hex.EncodeToString(s.RuntimeHead[:]),
		Services: []serviceLine{}, Heads: []string{}, Checkpoint: checkpointLine{s.Checkpoint.Size, s.Checkpoint.Root.String(), s.Checkpoint.Level.String()},
		Protocol: s.Protocol, At: s.AttestedAt.UTC(), NotAfter: s.NotAfter.UTC()}
	for _, org := range s.Heads {
		l.Heads = append(l.Heads, string(org))
	}
	for _, e := range s.Events {
		if e.Type != service.EventType {
			continue
		}
		program, _ := e.Find(service.RoleProgram)
		model, _ := e.Find(service.RoleModel)
		l.Services = append(l.Services, serviceLine{e.Name, hex.EncodeToString(program[:]), hex.EncodeToString(model[:]), true})
		for i := range l.Services[:len(l.Services)-1] {
			l.Services[i].Newest = l.Services[i].Newest && l.Services[i].Service != e.Name
		}
	}
	return l
}

func (p *proxyLines) attested(s client.Session) {
	l := newAttestedLine(s)
	word := "attested"
	if l.Again {
		word = "attested again"
	}
	if l.Simulated {
		word += " (SIMULATED evidence)"
	}
	text := fmt.Sprintf("%s: %s runs %s, epoch %d, vouched for by %s, until %s", word, l.Node, l.Measurement, l.Epoch,
		strings.Join(l.Heads, ", "), s.NotAfter.Format(time.TimeOnly))
	for _, e := range l.Services {
		if !e.Newest {
			text += fmt.Sprintf("\n  before, %s: program %s", e.Service, e.Program)
			continue
		}
		text += fmt.Sprintf("\n  service %s: program %s, model %s", e.Service, e.Program, e.Model)
	}
	p.print(l, text)
}

func (p *proxyLines) refused(err error) {
	why := attest.NewReason(attest.CodeUnavailable, "node", err.Error(), "an answer")
	var refusal *client.Refusal
	said := errors.As(err, &refusal)
	var receipt *client.ReceiptError
	switch {
	case said:
		why = refusal.Reasons[0]
	case errors.As(err, &receipt):
		why = receipt.Reason()
	}
	p.print(struct {
		Event   string        `json:"event"`
		Code    attest.Code   `json:"code"`
		Message string        `json:"message"`
		Reason  attest.Reason `json:"reason"`
		Node    bool          `json:"node"`
	}{"refused", why.Code, err.Error(), why, said && refusal.Node}, "refused: "+strings.TrimPrefix(err.Error(), "refused: ")+"\n  try: "+why.Remedy)
}

func (p *proxyLines) ready(listen, to string) {
	p.print(struct {
		Event  string `json:"event"`
		Listen string `json:"listen"`
		To     string `json:"to"`
	}{"ready", listen, to}, fmt.Sprintf("listening on %s for %s", listen, to))
}

func (p *proxyLines) print(v any, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		_ = printJSON(p.out, v)
		return
	}
	fmt.Fprintln(p.out, printable(text))
}
