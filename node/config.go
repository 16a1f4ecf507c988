package node

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/attestmesh/meshnode/service"
	"github.com/multiformats/go-multiaddr"
)

// Roles a node can have. Its enroller grants them, genesis says which kinds of evidence
// each demands, and the allowed set says which measurement may hold them.
const (
	RoleMember     = "member" // every node
	RoleSeat       = "seat"
	RoleTrainer    = "trainer"
	RoleAggregator = "aggregator"
)

// Config is what an operator writes for one node: addresses and paths, nothing that
// decides what is trusted. Every security-relevant choice is in genesis, in the ordered
// policy or in the measured executable.
type Config struct {
	// Genesis is the path of the signed genesis file.
	Genesis string `yaml:"genesis"`
	// Chain is the path of the signed history of the policy, as a node serves it at
	// /.well-known/meshnode/policy; optional. A node of an organisation that came in after
	// genesis, or whose enroll keys have changed since, needs one that has the change.
	Chain string `yaml:"chain"`
	// Recovery is the path of the recovery file by which this node founds, or joins, a mesh that
	// was recovered; optional. Without it a node hears of the incarnation from its peers.
	Recovery string `yaml:"recovery"`
	// Organisation and Node are the stable name of this node.
	Organisation identity.OrgID    `yaml:"organisation"`
	Node         identity.NodeName `yaml:"node"`
	// Roles asked of the enroller: seat, trainer, aggregator. Every node is a member.
	Roles []string `yaml:"roles"`
	// Data is the data directory; the control socket meshnode.sock appears in it.
	Data string `yaml:"data"`
	// Listen holds the multiaddrs of the mesh port, TCP only.
	Listen []string `yaml:"listen"`
	// Public is the host:port of the public HTTP listener (addresses, policy, log).
	Public string `yaml:"public"`
	// HTTPS is the host:port of the endpoint for clients outside the mesh; optional.
	HTTPS string `yaml:"https"`
	// Peers holds the public URLs of other nodes.
	Peers []string `yaml:"peers"`
	// Enroller is this organisation's own enroller.
	Enroller EnrollerConfig `yaml:"enroller"`
	// Attester says where evidence comes from on this machine.
	Attester AttesterConfig `yaml:"attester"`
	// Training is this node's own data; a trainer needs it.
	Training TrainingConfig `yaml:"training"`
	// Witnesses says where the outside witnesses that the policy names are reached. Their keys
	// are in the policy; a seat without this shows its checkpoints to none.
	Witnesses []WitnessConfig `yaml:"witnesses"`
	// KeepEvidence is how long the evidence behind this node's results is kept, with its salt, from when
	// a result was made; zero is 8760h, a year. After that it cannot be disclosed any more.
	KeepEvidence time.Duration `yaml:"keep_evidence"`
	// Services says for whom this node runs programs. What runs is decided by those owners,
	// recorded in the runtime log and judged by clients.
	Services []ServiceConfig `yaml:"services"`
}

// ServiceConfig lets one owner deploy under one name.
type ServiceConfig struct {
	Name string `yaml:"name"`
	// Owner is an Ed25519 public key as meshnode keygen --role service prints it.
	Owner string `yaml:"owner"`
}

// WitnessConfig is where one outside witness takes checkpoints (c2sp.org/tlog-witness).
type WitnessConfig struct {
	// Name is that of its verifier key.
	Name string `yaml:"name"`
	// URL is its submission prefix, to which /add-checkpoint is added.
	URL string `yaml:"url"`
}

// EnrollerConfig names an enroller by address and pinned key.
type EnrollerConfig struct {
	URL string `yaml:"url"`
	// SPKI is the SHA-256 of the enroller's TLS public key, in hex.
	SPKI string `yaml:"spki"`
}

// TrainingConfig names the node's own data files.
type TrainingConfig struct {
	Data    string `yaml:"data"`
	Holdout string `yaml:"holdout"`
}

// ConfigError is a mistake in a file or on the machine that the operator can mend.
type ConfigError struct {
	File   string
	Field  string
	Err    error
	Remedy string
}

// Error names file, field and cause.
func (e *ConfigError) Error() string {
	s := ""
	if e.File != "" {
		s = e.File + ": "
	}
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// LoadConfig reads, decodes and checks the file at path. Relative paths in it are
// relative to the file. Nothing is opened or written.
func LoadConfig(path string) (Config, error) {
	var c Config
	if err := strictyaml.ReadFile(path, &c); err != nil {
		var missing *fs.PathError
		if errors.As(err, &missing) {
			return Config{}, &ConfigError{Err: err, Remedy: "name the node's configuration file with --config FILE"}
		}
		return Config{}, &ConfigError{Err: err, Remedy: "mend the file; meshnode config check FILE checks it without starting"}
	}
	base := filepath.Dir(path)
	for _, p := range append(c.Attester.paths(), &c.Genesis, &c.Chain, &c.Recovery, &c.Data, &c.Training.Data, &c.Training.Holdout) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	if err := c.Validate(); err != nil {
		err.File = path
		return Config{}, err
	}
	return c, nil
}

// Validate checks every field by itself.
func (c *Config) Validate() *ConfigError {
	for _, check := range []struct {
		field string
		err   error
		fix   string
	}{
		{"genesis", required(c.Genesis), "name the signed genesis file"},
		{"organisation", c.Organisation.Validate(), "use the organisation's id in genesis"},
		{"node", c.Node.Validate(), "use the name that the enroller lists"},
		{"roles", checkRoles(c.Roles), "list seat, trainer, aggregator as the enroller grants them"},
		{"data", c.checkData(), "name a directory for this node alone, with a short path"},
		{"listen", checkListen(c.Listen), "use /ip4/ADDRESS/tcp/PORT"},
		{"public", checkHostPort(c.Public), "use ADDRESS:PORT"},
		{"https", c.checkHTTPS(), "use ADDRESS:PORT, or leave it out"},
		{"peers", c.checkPeers(), "list the other nodes' public URLs, each once, as http://ADDRESS:PORT"},
		{"enroller.url", checkURL(c.Enroller.URL, "https"), "copy url from enroll serve's ready line"},
		{"enroller.spki", checkSPKI(c.Enroller.SPKI), "copy spki from enroll serve's ready line"},
		{"attester", c.Attester.check(), "name one of sevsnp: true, tdx: true, tpm: {}, or for trials sim: SOCKET of sim-platform's ready line"},
		{"training.data", c.checkTraining(), "a trainer needs its own CSV file"},
		{"witnesses", c.checkWitnesses(), "list each witness that the policy names once, with its submission prefix"},
		{"keep_evidence", c.checkKeepEvidence(), "use a duration such as 8760h, an hour or more, or leave it out"},
		{"services", c.checkServices(), "list each service once, with the public key that meshnode keygen --role service printed"},
	} {
		if check.err != nil {
			return &ConfigError{Field: check.field, Err: check.err, Remedy: check.fix}
		}
	}
	return nil
}

// Ref is the node's stable name.
func (c *Config) Ref() identity.NodeRef { return identity.NodeRef{Org: c.Organisation, Name: c.Node} }

// HasRole reports whether the configuration asks for role.
func (c *Config) HasRole(role string) bool {
	return role == RoleMember || slices.Contains(c.Roles, role)
}

// SocketPath is where the control socket appears.
func (c *Config) SocketPath() string { return filepath.Join(c.Data, SocketName) }

// SocketName is the file name of the control socket within the data directory.
const SocketName = "meshnode.sock"

func required(s string) error {
	if s == "" {
		return fmt.Errorf("is missing")
	}
	return nil
}

func checkRoles(roles []string) error {
	for i, r := range roles {
		switch r {
		case RoleSeat, RoleTrainer, RoleAggregator:
		default:
			return fmt.Errorf("unknown role %q", r)
		}
		if slices.Contains(roles[:i], r) {
			return fmt.Errorf("role %q is listed twice", r)
		}
	}
	return nil
}

func checkListen(addrs []string) error {
	if len(addrs) == 0 {
		return fmt.Errorf("is missing")
	}
	for _, a := range addrs {
		m, err := multiaddr.NewMultiaddr(a)
		if err != nil {
			return fmt.Errorf("%q: %w", a, err)
		}
		if _, err := m.ValueForProtocol(multiaddr.P_TCP); err != nil || len(m) != 2 {
			return fmt.Errorf("%q is not an address with a TCP port", a)
		}
	}
	return nil
}

func checkHostPort(s string) error {
	if s == "" {
		return fmt.Errorf("is missing")
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q: %w", s, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number up to 65535", s, port)
	}
	return nil
}

// checkHTTPS wants an address of its own, where there is one.
func (c *Config) checkHTTPS() error {
	if c.HTTPS == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(c.HTTPS); err == nil && c.HTTPS == c.Public && port != "0" {
		return fmt.Errorf("%q is the public listener's address", c.HTTPS)
	}
	return checkHostPort(c.HTTPS)
}

// checkURL wants SCHEME://HOST:PORT and nothing after it: paths are the protocol's own.
func checkURL(s string, schemes ...string) error {
	if s == "" {
		return fmt.Errorf("is missing")
	}
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("%q is not a URL of scheme %s", s, strings.Join(schemes, " or "))
	}
	if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("%q has more than an address and a port", s)
	}
	return nil
}

// checkPeers wants other nodes, each once.
func (c *Config) checkPeers() error {
	for i, s := range c.Peers {
		if err := checkURL(s, "http", "https"); err != nil {
			return err
		}
		if s == "http://"+c.Public {
			return fmt.Errorf("%q is this node's own public address", s)
		}
		if slices.Contains(c.Peers[:i], s) {
			return fmt.Errorf("%q is listed twice", s)
		}
	}
	return nil
}

func checkSPKI(s string) error {
	if raw, err := hex.DecodeString(s); err != nil || len(raw) != sha256.Size || s != strings.ToLower(s) {
		return fmt.Errorf("%.70q is no SHA-256: want 64 characters of lower-case hex", s)
	}
	return nil
}

// maxSocketPath is what sockaddr_un holds, less the final zero.
const maxSocketPath = 107

func checkSocket(path string) error {
	if path == "" {
		return fmt.Errorf("is missing")
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("%s: %d bytes, a unix socket's path has at most %d", path, len(path), maxSocketPath)
	}
	return nil
}

// checkData wants a path at which the control socket can be made, and in which files are found by
// filepath.Glob.
func (c *Config) checkData() error {
	if c.Data == "" {
		return fmt.Errorf("is missing")
	}
	if i := strings.IndexAny(c.Data, `*?[\`); i >= 0 {
		return fmt.Errorf("%q has a %q in it, and is a pattern then", c.Data, c.Data[i])
	}
	return checkSocket(c.SocketPath())
}

// checkKeepEvidence wants what a result outlives at least.
func (c *Config) checkKeepEvidence() error {
	if c.KeepEvidence != 0 && c.KeepEvidence < consensus.MaxResultLifetime {
		return fmt.Errorf("%s is less than a result lives, %s", c.KeepEvidence, consensus.MaxResultLifetime)
	}
	return nil
}

// keepEvidence is KeepEvidence, or its default.
func (c *Config) keepEvidence() time.Duration {
	if c.KeepEvidence == 0 {
		return defaultKeepEvidence
	}
	return c.KeepEvidence
}

// maxServices bounds the services of one node.
const maxServices = 16

func (c *Config) checkServices() error {
	if len(c.Services) > 0 && c.HTTPS == "" {
		return fmt.Errorf("clients reach services by https, which is missing")
	}
	if len(c.Services) > maxServices {
		return fmt.Errorf("%d services, the limit is %d", len(c.Services), maxServices)
	}
	for i, s := range c.Services {
		if err := service.CheckName(s.Name); err != nil {
			return err
		}
		if slices.ContainsFunc(c.Services[:i], func(o ServiceConfig) bool { return o.Name == s.Name }) {
			return fmt.Errorf("service %q is listed twice", s.Name)
		}
		if _, err := s.owner(); err != nil {
			return fmt.Errorf("service %s: owner: %w", s.Name, err)
		}
	}
	return nil
}

// owner is the key that signs this service's manifests.
func (s ServiceConfig) owner() (ed25519.PublicKey, error) {
	var key envelope.PublicKey
	if err := key.UnmarshalText([]byte(s.Owner)); err != nil {
		return nil, err
	}
	public, ok := key.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("is no Ed25519 key")
	}
	return public, nil
}

func (c *Config) checkTraining() error {
	if c.HasRole(RoleTrainer) && c.Training.Data == "" {
		return fmt.Errorf("is missing")
	}
	return nil
}
