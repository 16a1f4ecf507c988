package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/attestmesh/meshnode/transparency"
)

// Config is what an operator decides about a monitor. Paths in a file are relative to the file.
type Config struct {
	// Genesis is the path of the mesh's signed genesis file; without it the first log that is read
	// says which mesh is meant, once and for all.
	Genesis string `yaml:"genesis"`
	// State is the directory of this monitor alone.
	State string `yaml:"state"`
	// Logs are copies of one mesh's log: directories, or URLs of nodes or web servers.
	Logs []string `yaml:"logs"`
	// Witnesses are URLs below which outside witnesses show the checkpoint that they cosigned last,
	// as <submission prefix>/<hex SHA-256 of the origin> is (c2sp.org/tlog-witness).
	Witnesses []string `yaml:"witnesses"`
	// Receipts are files that prove leaves which must be in the log; see ReadReceipt.
	Receipts []string `yaml:"receipts"`
	// Start and End are the leaves that rules are told of: Start, and all before End. What is wrong
	// with the log is told wherever it is. An End of 0 is none.
	Start uint64 `yaml:"start"`
	End   uint64 `yaml:"end"`
	// Interval is how long a round waits for the next.
	Interval time.Duration `yaml:"interval"`
	// MaxAge is how old the quorum's newest cosignatures may be; 0 does not judge age.
	MaxAge time.Duration `yaml:"max_age"`
	// Silent is how long a seat or outside witness may be behind the quorum's newest cosignature.
	Silent time.Duration `yaml:"silent"`
	// Skew is how far clocks of verifiers and cosigners may differ.
	Skew time.Duration `yaml:"skew"`
	// ReceiptWithin is how long after a receipt was given here its leaf may be missing.
	ReceiptWithin time.Duration `yaml:"receipt_within"`
	// Level is the least that is expected of checkpoints: published or strong.
	Level string `yaml:"level"`
	// MaxGrowth is how many leaves an hour are expected at most; 0 computes it from the membership.
	MaxGrowth uint64 `yaml:"max_growth"`
	// Metrics is the host:port of /metrics; optional.
	Metrics string `yaml:"metrics"`
	// Hook is a command and its arguments that is given each alert on stdin; optional.
	Hook []string `yaml:"hook"`
	// Heartbeat is how often a line says that the monitor is alive; 0 for never.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// Rules are the leaves that somebody wants to hear of.
	Rules []Rule `yaml:"rules"`
}

// DefaultConfig returns what holds where nothing else is said.
func DefaultConfig() Config {
	return Config{Interval: 10 * time.Second, MaxAge: 5 * time.Minute, Silent: 5 * time.Minute, Skew: 2 * time.Minute,
		ReceiptWithin: 10 * time.Second, Level: transparency.Published.String(), Heartbeat: time.Minute}
}

// ConfigError is a mistake that the operator can mend.
type ConfigError struct {
	Field  string
	Err    error
	Remedy string
}

// Error names field and cause.
func (e *ConfigError) Error() string {
	if e.Field == "" {
		return e.Err.Error()
	}
	return e.Field + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// LoadConfig reads a file over the defaults. It is not checked yet: see Validate.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	if err := strictyaml.ReadFile(path, &c); err != nil {
		var missing *fs.PathError
		if errors.As(err, &missing) {
			return Config{}, &ConfigError{Err: err, Remedy: "name the monitor's configuration file with --config FILE"}
		}
		return Config{}, &ConfigError{Err: err, Remedy: "mend the file"}
	}
	base := filepath.Dir(path)
	below := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	below(&c.Genesis)
	below(&c.State)
	for i := range c.Receipts {
		below(&c.Receipts[i])
	}
	for i := range c.Logs {
		if !isURL(c.Logs[i]) {
			below(&c.Logs[i])
		}
	}
	if len(c.Hook) > 0 && strings.Contains(c.Hook[0], "/") {
		below(&c.Hook[0])
	}
	return c, nil
}

func isURL(location string) bool {
	return strings.HasPrefix(location, "http://") || strings.HasPrefix(location, "https://")
}

// Limits of a configuration: what is asked of each round, and what is kept, stays small.
const (
	maxCopies   = 32
	maxReceipts = 1000
	maxRules    = 1000
	minInterval = time.Second
)

// Validate checks every field by itself.
func (c *Config) Validate() error {
	_, rules := compileRules(c.Rules)
	for _, check := range []struct {
		field string
		err   error
		fix   string
	}{
		{"state", missing(c.State), "name a directory for this monitor alone"},
		{"logs", c.checkLogs(), "name each copy of the log once: a directory, or an http(s) URL"},
		{"witnesses", checkURLs(c.Witnesses), "list each witness once, as https://HOST/PREFIX/HASH"},
		{"receipts", atMost(len(c.Receipts), maxReceipts), "take out receipts that were found in the log"},
		{"start", c.checkRange(), "end is the first entry that is not told; leave it out for none"},
		{"interval", positive(c.Interval, minInterval), "give a time such as 10s"},
		{"max_age", positive(c.MaxAge, 0), "give a time such as 5m, or 0 to judge no age"},
		{"silent", positive(c.Silent, time.Second), "give a time such as 5m"},
		{"skew", positive(c.Skew, time.Second), "give a time such as 2m"},
		{"receipt_within", positive(c.ReceiptWithin, 0), "give a time such as 10s"},
		{"heartbeat", positive(c.Heartbeat, 0), "give a time such as 1m, or 0 for none"},
		{"level", c.checkLevel(), "say published or strong"},
		{"metrics", c.checkMetrics(), "use ADDRESS:PORT, or leave it out"},
		{"hook", c.checkHook(), "list the command and its arguments one by one"},
		{"rules", errors.Join(atMost(len(c.Rules), maxRules), rules), "give each rule a name and at least one of kind, organisation, node, measurement, verifier, verdict"},
	} {
		if check.err != nil {
			return &ConfigError{check.field, check.err, check.fix}
		}
	}
	return nil
}

func missing(s string) error {
	if s == "" {
		return errors.New("is missing")
	}
	return nil
}

func atMost(n, limit int) error {
	if n > limit {
		return fmt.Errorf("%d, the limit is %d", n, limit)
	}
	return nil
}

func positive(d, least time.Duration) error {
	if d < least {
		return fmt.Errorf("%s: want at least %s", d, least)
	}
	return nil
}

func (c *Config) checkLogs() error {
	if len(c.Logs) == 0 {
		return errors.New("none given")
	}
	if err := atMost(len(c.Logs)+len(c.Witnesses), maxCopies); err != nil {
		return err
	}
	var urls []string
	seen := map[string]bool{}
	for _, l := range c.Logs {
		if isURL(l) {
			urls = append(urls, l)
			continue
		}
		if l == "" || seen[filepath.Clean(l)] {
			return fmt.Errorf("%.200q is empty or there twice", l)
		}
		seen[filepath.Clean(l)] = true
	}
	return checkURLs(urls)
}

func checkURLs(list []string) error {
	seen := map[string]bool{}
	for _, l := range list {
		u, err := url.Parse(l)
		if err != nil {
			return err
		}
		key := strings.TrimSuffix(l, "/")
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%.200q: want http(s)://host[:port][/path]", l)
		}
		if seen[key] {
			return fmt.Errorf("%.200q is there twice", l)
		}
		seen[key] = true
	}
	return nil
}

func (c *Config) checkRange() error {
	if c.End != 0 && c.End <= c.Start {
		return fmt.Errorf("%d with end %d", c.Start, c.End)
	}
	return nil
}

// end is the first leaf that is not told.
func (c *Config) end() uint64 {
	if c.End == 0 {
		return math.MaxUint64
	}
	return c.End
}

func (c *Config) level() (transparency.Level, error) {
	var l transparency.Level
	err := l.UnmarshalText([]byte(c.Level))
	if err == nil && l == transparency.Unpublished {
		err = errors.New("unpublished: the log key alone proves nothing")
	}
	return l, err
}

func (c *Config) checkLevel() error {
	_, err := c.level()
	return err
}

func (c *Config) checkMetrics() error {
	if c.Metrics == "" {
		return nil
	}
	_, _, err := net.SplitHostPort(c.Metrics)
	return err
}

func (c *Config) checkHook() error {
	for _, a := range c.Hook {
		if strings.ContainsRune(a, 0) {
			return errors.New("an argument with a zero byte")
		}
	}
	if len(c.Hook) > 0 {
		return missing(c.Hook[0])
	}
	return nil
}
