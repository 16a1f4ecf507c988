package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/service/run"
	"golang.org/x/sys/unix"
)

// This file is the doctor: what this machine can give, and whether a node with this
// configuration could start and be let in. It enrols nothing (that would retire a boot
// that runs), writes nothing, holds no port and no lock longer than the look at it.

// Check is one thing the doctor looked at. Code is empty where it is well; "usage" is a
// mistake in the configuration or in a file that it names, "unavailable" something that
// did not answer, so that nothing is known of it; the others are those of package attest.
type Check struct {
	Check  string      `json:"check"`
	OK     bool        `json:"ok"`
	Code   attest.Code `json:"code,omitempty"`
	Got    string      `json:"got"`
	Want   string      `json:"want"`
	Remedy string      `json:"remedy,omitempty"`
}

// CodeUsage marks a check that failed because of what somebody wrote.
const CodeUsage attest.Code = "usage"

// Diagnosis is what the doctor found, in the order in which it looked.
type Diagnosis struct {
	Node   string  `json:"node"`
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// Limits of the doctor's patience.
const (
	lookWithin = 10 * time.Second
	// maxClockSkew is how far a clock may be off: Date has seconds, and a loaded machine
	// takes some to answer. Credentials are judged with minutes of tolerance.
	maxClockSkew = 5 * time.Second
)

// doctor gathers checks; it belongs to one call of Diagnose.
type doctor struct {
	cfg     Config
	deps    Deps
	running bool // a node with this data directory answers
	out     Diagnosis

	// What peers said, for the checks after theirs.
	policy *consensus.PolicyState // the longest signed history; at least genesis
	skews  []time.Duration        // our clock minus theirs
}

// Diagnose looks at the configuration file at path, at this machine and at whom the
// configuration names. It takes at most a minute.
func Diagnose(ctx context.Context, path string) Diagnosis {
	d := &doctor{out: Diagnosis{Checks: []Check{}}}
	if d.configuration(path) {
		d.node(ctx)
		d.directory()
		d.ports()
		d.services(ctx)
		d.enroller(ctx)
		claims, measured := d.platform(ctx)
		d.peers(ctx)
		d.clock()
		if measured {
			d.measurement(claims)
		}
	}
	d.devices(ctx)
	return d.concluded()
}

func (d *doctor) good(check, got, want string) {
	d.out.Checks = append(d.out.Checks, Check{Check: check, OK: true, Got: got, Want: want})
}

func (d *doctor) bad(check string, code attest.Code, got, want, remedy string) {
	if remedy == "" {
		remedy = attest.NewReason(code, "", "", "").Remedy
	}
	d.out.Checks = append(d.out.Checks, Check{Check: check, Code: code, Got: got, Want: want, Remedy: remedy})
}

// badError is bad for an error that may carry a reason of its own.
func (d *doctor) badError(check string, err error, want string) {
	var refused *attest.Error
	if errors.As(err, &refused) {
		d.bad(check, refused.Reason.Code, err.Error(), want, refused.Reason.Remedy)
		return
	}
	d.bad(check, attest.CodeUnavailable, err.Error(), want, "")
}

// configuration reads the file and everything it names; the other checks need it.
func (d *doctor) configuration(path string) bool {
	var err error
	if d.cfg, err = LoadConfig(path); err == nil {
		d.out.Node = d.cfg.Ref().String()
		d.deps, err = SystemDeps(d.cfg)
	}
	const want = "a well-formed configuration of readable files"
	var mistake *ConfigError
	switch {
	case err == nil:
		d.good("config", path+", node "+d.out.Node, want)
	case errors.As(err, &mistake) && mistake.Field == "genesis" && d.out.Node != "":
		d.good("config", path+", node "+d.out.Node, want)
		d.bad("genesis", CodeUsage, mistake.Err.Error(), "a genesis that every founding organisation signed", mistake.Remedy)
		return false
	case errors.As(err, &mistake):
		d.bad("config", CodeUsage, mistake.Error(), want, mistake.Remedy)
		return false
	default:
		d.bad("config", CodeUsage, err.Error(), want, "mend what it names")
		return false
	}
	g := d.deps.Genesis
	d.policy = d.deps.Policy
	d.good("genesis", fmt.Sprintf("mesh %s of %d organisations", g.MeshID().Short(), len(g.Organisations)), "signed by every founding organisation")
	if t := d.deps.Data; t != nil && t.Train != nil {
		d.good("training data", fmt.Sprintf("%d rows of %d features", t.Train.Rows(), t.Train.Features), "a table of numbers with the label last")
	}
	return true
}

// node asks whether this very node runs already.
func (d *doctor) node(ctx context.Context) {
	socket := d.cfg.SocketPath()
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		d.good("node", "not running", "not running, or answering")
		return
	}
	var s Status
	client := &http.Client{Timeout: publicTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	err := httpDirectory{client}.get(ctx, "http://meshnode/v1/status", maxPolicy, &s)
	switch {
	case err == nil:
		d.running = true
		d.good("node", fmt.Sprintf("running as %s, phase %s", s.Peer, s.Phase), "not running, or answering")
	case durable.Held(d.cfg.Data) != nil:
		d.running = true
		d.bad("node", attest.CodeUnavailable, err.Error(), "not running, or answering", "another process holds the directory and does not answer: look at its log, then stop it")
	default:
		d.good("node", "not running; it left its socket behind, which the next start replaces", "not running, or answering")
	}
}

// directory looks at the data directory as run will.
func (d *doctor) directory() {
	const check, want = "data directory", "one of this node alone, that nobody else can write"
	exists, err := checkDataDir(d.cfg.Data)
	var mistake *ConfigError
	switch {
	case errors.As(err, &mistake):
		d.bad(check, CodeUsage, mistake.Err.Error(), want, mistake.Remedy)
		return
	case err != nil:
		d.bad(check, CodeUsage, err.Error(), want, "name a directory that this user can write")
		return
	case d.running:
		d.good(check, d.cfg.Data+", held by the running node", want)
		return
	}
	where := d.cfg.Data
	for !exists && where != filepath.Dir(where) {
		where = filepath.Dir(where)
		_, err := os.Stat(where)
		exists = err == nil
	}
	if err := unix.Access(where, unix.W_OK|unix.X_OK); err != nil {
		d.bad(check, CodeUsage, where+": "+err.Error(), want, "name a directory that this user can write")
		return
	}
	if err := durable.Held(d.cfg.Data); err != nil {
		d.bad(check, CodeUsage, err.Error(), want, "stop the other process, or give this node a directory of its own")
		return
	}
	got := d.cfg.Data
	if where != d.cfg.Data {
		got += " (run will make it)"
	}
	d.good(check, got, want)
}

// ports tries to listen where run will.
func (d *doctor) ports() {
	const want, remedy = "an address of this machine with a free port", "choose a free address; another process may hold the port"
	try := func(check, addr string, listen func() error) {
		if d.running {
			d.good(check, addr+", held by the running node", want)
		} else if err := listen(); err != nil {
			d.bad(check, CodeUsage, err.Error(), want, remedy)
		} else {
			d.good(check, addr, want)
		}
	}
	tcp := func(addr string) func() error {
		return func() error {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			return l.Close()
		}
	}
	try("public port", d.cfg.Public, tcp(d.cfg.Public))
	if d.cfg.HTTPS != "" {
		try("https port", d.cfg.HTTPS, tcp(d.cfg.HTTPS))
	}
	for _, addr := range d.cfg.Listen {
		try("mesh port", addr, func() error { return probeListen(addr) })
	}
}

// enroller asks who answers at the enroller's address; it enrols nothing.
func (d *doctor) enroller(ctx context.Context) {
	const check, want = "enroller", "this organisation's enroller for this mesh, with the pinned key"
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	org, _ := d.deps.Policy.Organisation(d.cfg.Organisation)
	var keys Keys
	var err error
	if _, keys.Peer, err = ed25519.GenerateKey(rand.Reader); err == nil {
		_, keys.Cosigner, err = ed25519.GenerateKey(rand.Reader)
	}
	if err == nil {
		client := enrollClient(d.cfg, d.deps.Genesis, org, keys)
		err = client.Check(ctx)
	}
	if err != nil {
		why := enrolReason(err)
		d.bad(check, why.Code, err.Error(), want, why.Remedy)
		return
	}
	d.good(check, d.cfg.Enroller.URL, want)
}

// platform asks the configured source for evidence about this very machine or process and
// verifies it. A TPM's attestation key counts as activated: the enroller was not asked.
func (d *doctor) platform(ctx context.Context) (attest.Claims, bool) {
	check, want, measures := "sim platform", "evidence about this executable, under a root that genesis names", "measures this executable as "
	if d.cfg.Attester.Sim == "" {
		check, want, measures = "attester", "genuine evidence about this machine", "measures this machine as "
	}
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	var data attest.ReportData
	_, _ = rand.Read(data[:])
	if c, ok := d.deps.Attester.(io.Closer); ok {
		defer c.Close()
	}
	evidence, err := d.deps.Attester.Attest(ctx, data)
	if err != nil {
		remedy := "let this user use " + d.cfg.Attester.describe() + " and read its logs, or correct attester"
		if d.cfg.Attester.Sim != "" {
			remedy = "start it (meshnode sim-platform), or correct attester.sim"
		}
		d.bad(check, attest.CodeUnavailable, err.Error(), want, remedy)
		return attest.Claims{}, false
	}
	for _, scheme := range d.deps.Schemes {
		if scheme.Kind() != evidence.Kind {
			continue
		}
		claims, err := attest.Verify(ctx, scheme, evidence, &data, time.Now())
		if err != nil {
			d.badError(check, err, want)
			if c := &d.out.Checks[len(d.out.Checks)-1]; c.Code == attest.CodeNotGenuine {
				c.Remedy = "use the platform whose root genesis names; another platform has another root"
			}
			return attest.Claims{}, false
		}
		d.good(check, measures+claims.Measurement, want)
		d.collateral(evidence, time.Now())
		if claims.VTPM != nil {
			claims = claims.Activated(claims.VTPM.AKDigest)
		}
		return claims, true
	}
	d.bad(check, attest.CodeKindNotAllowed, evidence.Kind, want, "")
	return attest.Claims{}, false
}

// announced is what one peer's public listener says.
type announced struct {
	announcement Announcement
	policy       PolicyDocument
	skew         time.Duration
	dated        bool
	err          error
}

// peers asks every configured peer who it is, all at once.
func (d *doctor) peers(ctx context.Context) {
	const want = "a node of this mesh, by its organisation's Credential"
	answers := make([]announced, len(d.cfg.Peers))
	var wg sync.WaitGroup
	for i, url := range d.cfg.Peers {
		wg.Go(func() { answers[i] = ask(ctx, url) })
	}
	wg.Wait()
	for _, a := range answers { // keys may have changed: the newest policy says whose a Credential is
		if p, err := consensus.ReplayPolicy(d.deps.Genesis, a.policy.Chain); err == nil && p.Epoch() > d.policy.Epoch() {
			d.policy = p
		}
	}
	for i, url := range d.cfg.Peers {
		a := answers[i]
		check := "peer " + url
		if a.err != nil {
			d.bad(check, attest.CodeUnavailable, a.err.Error(), want, "start that node, correct the URL, or open the port on the way")
			continue
		}
		if a.dated {
			d.skews = append(d.skews, a.skew)
		}
		c, err := d.policy.VerifyCredential(a.announcement.Credential, time.Now())
		if err != nil {
			d.badError(check, err, want)
			continue
		}
		if c.Peer != a.announcement.Peer {
			d.bad(check, attest.CodeWrongPeer, a.announcement.Peer.String(), c.Peer.String(), "")
			continue
		}
		d.good(check, fmt.Sprintf("%s, peer %s", c.Ref(), c.Peer.Short()), want)
	}
}

// ask reads what the public listener at url announces and compares the clocks.
func ask(ctx context.Context, url string) (a announced) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	client := &http.Client{Timeout: publicTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+pathNode, nil)
	if err != nil {
		return announced{err: err}
	}
	before := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return announced{err: err}
	}
	defer resp.Body.Close()
	after := time.Now()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// The header names the second in which the peer wrote it.
		ours := before.Add(after.Sub(before) / 2)
		a.skew, a.dated = ours.Sub(date.Add(500*time.Millisecond)), true
	}
	if resp.StatusCode != http.StatusOK {
		return announced{err: fmt.Errorf("%s%s: %s", url, pathNode, resp.Status)}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnnouncement)).Decode(&a.announcement); err != nil {
		return announced{err: fmt.Errorf("%s%s: %w", url, pathNode, err)}
	}
	// Without its policy the peer is still a peer.
	a.policy, _ = httpDirectory{client}.Policy(ctx, url)
	return a
}

// clock compares this machine's clock with the peers'.
func (d *doctor) clock() {
	want := fmt.Sprintf("within %s of the peers' clocks", maxClockSkew)
	if len(d.cfg.Peers) == 0 {
		d.good("clock", "no peers configured to compare with", want)
		return
	}
	if len(d.skews) == 0 {
		d.bad("clock", attest.CodeUnavailable, "no peer answers", want, "start a peer, or compare the clock with a time server")
		return
	}
	var off []string
	for _, skew := range d.skews {
		if skew.Abs() > maxClockSkew {
			off = append(off, skew.Round(time.Second).String())
		}
	}
	if len(off) > 0 {
		d.bad("clock", attest.CodeStale, fmt.Sprintf("%s off for %d of %d peers", strings.Join(off, ", "), len(off), len(d.skews)), want,
			"set this machine's clock by a time server; if only one peer differs, it is the peer's clock")
		return
	}
	d.good("clock", fmt.Sprintf("agrees with %d peers", len(d.skews)), want)
}

// measurement judges this executable as peers would, under the newest policy that anybody
// showed.
func (d *doctor) measurement(claims attest.Claims) {
	from := "genesis"
	if e := d.policy.Epoch(); e > 0 {
		from = "the policy that a peer publishes"
	}
	want := fmt.Sprintf("allowed for %s by %s (epoch %d)", strings.Join(append([]string{RoleMember}, d.cfg.Roles...), ", "), from, d.policy.Epoch())
	result := attest.Appraise(claims, d.policy.AttestPolicy(d.cfg.Ref(), d.cfg.Roles...), time.Now())
	if result.Affirming() {
		d.good("measurement", claims.Measurement, want)
		return
	}
	why := attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", claims.Measurement, "")
	if len(result.Reasons) > 0 {
		why = result.Reasons[0]
	}
	d.bad("measurement", why.Code, claims.Measurement, want, why.Remedy)
}

// services looks at what programs of others need here.
func (d *doctor) services(ctx context.Context) {
	if len(d.cfg.Services) == 0 {
		return
	}
	const check, want = "sandbox", "bubblewrap that may confine programs"
	box, err := run.FindSandbox(ctx)
	if err == nil {
		err = box.Try(ctx)
	}
	if err != nil {
		d.bad(check, attest.CodeNoSandbox, err.Error(), want, "")
	} else {
		d.good(check, "bubblewrap works here", want)
	}
	if areas, err := run.Swap(); err != nil || len(areas) > 0 {
		d.bad("swap", attest.CodeSwap, strings.Join(areas, " "), "no swap on a machine that serves", "")
	} else {
		d.good("swap", "none", "no swap on a machine that serves")
	}
}
