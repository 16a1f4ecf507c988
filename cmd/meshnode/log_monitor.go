package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/monitor"
)

func logMonitorCommand() *cobra.Command {
	def := monitor.DefaultConfig()
	flags := def
	var config, hook string
	var once, asJSON bool
	cmd := &cobra.Command{
		Use:   "monitor (--config FILE | --state DIR LOG...) [--genesis FILE] [--once] [--json]",
		Short: "Follow a published log and tell what somebody should look at",
		Long: `Follow a published log: audit what is new, compare what several members and outside
witnesses show, and tell what is wrong, what changed the policy, and what rules name.

LOGs are copies of one mesh's log, by different members or web servers: directories or URLs.
The state directory remembers what was audited and told, so that no alert is lost when the
monitor is stopped or killed; one that may have been given before has the same id. All
settings may stand in the file of --config instead; what is given here overrules it.

It ends with 130 when it is stopped. With --once it makes one round: exit 0 nothing is wrong.
1: an alert of severity error was given, or what it said lasts. 2: usage, or the state
directory is of another mesh or in use. 3: stale, unavailable, or the hook did not take all.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := monitorConfig(cmd, config, flags, hook, args)
			if err != nil {
				return err
			}
			return runMonitor(cmd, cfg, once, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "read settings and rules from this file (YAML)")
	f.StringVar(&flags.Genesis, "genesis", "", "genesis file of the mesh that is meant (default: that of the log that is read first)")
	f.StringVar(&flags.State, "state", "", "directory of this monitor alone; made where there is none")
	f.StringArrayVar(&flags.Witnesses, "witness", nil, "URL below which an outside witness shows the checkpoint; may be repeated")
	f.StringArrayVar(&flags.Receipts, "receipt", nil, "file that proves a leaf which must be in the log: a proof, a certificate or the leaf; may be repeated")
	f.StringVar(&hook, "hook", "", "command that is given each alert as JSON on stdin, again until it exits 0")
	f.StringVar(&flags.Metrics, "metrics", "", "ADDRESS:PORT at which Prometheus finds /metrics")
	f.DurationVar(&flags.Interval, "interval", def.Interval, "time between rounds")
	f.DurationVar(&flags.Heartbeat, "heartbeat", def.Heartbeat, "time between lines that say that the monitor is alive; 0 for none")
	f.DurationVar(&flags.MaxAge, "max-age", def.MaxAge, "how old the quorum's cosignatures may be; 0 to judge no age")
	f.DurationVar(&flags.Silent, "silent", def.Silent, "how long a seat's cosignature may be missing")
	f.StringVar(&flags.Level, "level", def.Level, "least level that is expected: published or strong")
	f.Uint64Var(&flags.Start, "start", 0, "first entry that rules are told of; only with a new state directory")
	f.Uint64Var(&flags.End, "end", 0, "first entry that rules are not told of (default: none)")
	f.BoolVar(&once, "once", false, "make one round and end")
	f.BoolVar(&asJSON, "json", false, "print one JSON object per line")
	return cmd
}

// monitorConfig is the file's settings, overruled by what was given.
func monitorConfig(cmd *cobra.Command, file string, flags monitor.Config, hook string, logs []string) (monitor.Config, error) {
	cfg := monitor.DefaultConfig()
	if file != "" {
		var err error
		if cfg, err = monitor.LoadConfig(file); err != nil {
			return cfg, monitorFailure(cmd.Context(), err)
		}
	}
	for name, set := range map[string]func(){
		"genesis":   func() { cfg.Genesis = flags.Genesis },
		"state":     func() { cfg.State = flags.State },
		"witness":   func() { cfg.Witnesses = flags.Witnesses },
		"receipt":   func() { cfg.Receipts = flags.Receipts },
		"hook":      func() { cfg.Hook = []string{hook} },
		"metrics":   func() { cfg.Metrics = flags.Metrics },
		"interval":  func() { cfg.Interval = flags.Interval },
		"heartbeat": func() { cfg.Heartbeat = flags.Heartbeat },
		"max-age":   func() { cfg.MaxAge = flags.MaxAge },
		"silent":    func() { cfg.Silent = flags.Silent },
		"level":     func() { cfg.Level = flags.Level },
		"start":     func() { cfg.Start = flags.Start },
		"end":       func() { cfg.End = flags.End },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if len(logs) > 0 {
		cfg.Logs = logs
	}
	if err := cfg.Validate(); err != nil {
		return cfg, monitorFailure(cmd.Context(), err)
	}
	if st, err := os.Stat(cfg.State); err == nil && !st.IsDir() {
		return cfg, usageError("name a directory for this monitor alone", "%s: is no directory", cfg.State)
	}
	for _, l := range cfg.Logs {
		if isURL(l) {
			continue
		}
		if st, err := os.Stat(l); err != nil || !st.IsDir() {
			return cfg, usageError("name a directory with \"checkpoint\" and \"tile/\", or an http(s) URL", "%s: no such directory", l)
		}
	}
	return cfg, nil
}

func runMonitor(cmd *cobra.Command, cfg monitor.Config, once, asJSON bool) error {
	ctx := cmd.Context()
	deps := monitor.Deps{Now: time.Now, Open: openLog, Out: &monitorOutput{w: cmd.OutOrStdout(), asJSON: asJSON},
		Warn: func(s string) { fmt.Fprintf(cmd.ErrOrStderr(), "meshnode: %s\n", printable(s)) }}
	var err error
	if cfg.Genesis != "" {
		var g *consensus.Genesis
		if g, err = signedGenesis(cfg.Genesis); err != nil {
			return err
		}
		deps.Genesis = g
	}
	var receipts []monitor.Receipt
	for _, path := range cfg.Receipts {
		r, err := monitor.ReadReceipt(path)
		if err != nil {
			return usageError("give what log prove wrote, a certificate of a round, or a leaf as it was signed", "%v", err)
		}
		receipts = append(receipts, r)
	}
	m, err := monitor.New(cfg, receipts, deps)
	if err != nil {
		return monitorFailure(ctx, err)
	}
	defer m.Close()
	if once {
		outcome, err := m.Once(ctx)
		switch {
		case err != nil:
			return monitorFailure(ctx, err)
		case outcome.Failed:
			return exitStatus(exitRefused)
		case outcome.Undecided:
			return exitStatus(exitUnavailable)
		}
		return nil
	}
	var ln net.Listener
	if cfg.Metrics != "" {
		if ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Metrics); err != nil {
			return unavailableError("unavailable", "choose another address for --metrics", "%v", err)
		}
		deps.Warn(fmt.Sprintf("metrics at http://%s/metrics", ln.Addr()))
	}
	return monitorFailure(ctx, m.Run(ctx, ln))
}

// monitorFailure gives an error of a monitor its exit code.
func monitorFailure(ctx context.Context, err error) error {
	var mistake *monitor.ConfigError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &mistake):
		return usageError(mistake.Remedy, "%v", mistake)
	case errors.Is(err, durable.ErrInUse):
		return usageError("stop the other monitor, or give this one a directory of its own", "%v", err)
	case errors.Is(err, monitor.ErrOtherMesh):
		return usageError("give each mesh a state directory of its own", "%v", err)
	case errors.Is(err, monitor.ErrStart):
		return usageError("give the same --start and --end, or a new state directory", "%v", err)
	case errors.Is(err, monitor.ErrBroken):
		return usageError("keep its alerts.jsonl and evidence, and begin with a new state directory", "%v", err)
	}
	return unavailableError("unavailable", "see that the state directory can be written, and start the monitor again", "%v", err)
}

// monitorOutput prints alerts and heartbeats.
type monitorOutput struct {
	w      io.Writer
	asJSON bool
}

func (o *monitorOutput) Alert(line []byte) error {
	if o.asJSON {
		_, err := o.w.Write(line)
		return err
	}
	var a monitor.Alert
	if err := json.Unmarshal(line, &a); err != nil {
		return err
	}
	_, err := io.WriteString(o.w, printable(alertText(&a)))
	return err
}

// alertText is the one line of an alert for people.
func alertText(a *monitor.Alert) string {
	where := []string{}
	if a.Index != nil {
		where = append(where, fmt.Sprintf("entry %d", *a.Index))
	}
	if a.Rule != "" {
		where = append(where, "rule "+a.Rule)
	}
	if a.Subject != "" {
		where = append(where, a.Subject)
	}
	text := strings.ReplaceAll(a.Message, "\n", " ")
	if a.Evidence != "" {
		text += "; proof in " + a.Evidence
	}
	change := string(a.Change)
	if change != "" {
		change = " " + change
	}
	return fmt.Sprintf("%s %-7s %s%s: %s: %s [%s]\n", a.Time.Format(time.RFC3339), strings.ToUpper(string(a.Severity)), a.Code, change, strings.Join(where, ", "), text, a.ID)
}

func (o *monitorOutput) Heartbeat(h monitor.Heartbeat) error {
	if o.asJSON {
		return printJSON(o.w, h)
	}
	state := "all well"
	if h.Size == 0 {
		state = "nothing audited yet"
	}
	if len(h.Open) > 0 {
		state = "NOT well: " + strings.Join(h.Open, ", ")
	}
	cosigned := "never cosigned"
	if !h.Cosigned.IsZero() {
		cosigned = "cosigned " + h.Cosigned.Format(time.RFC3339)
	}
	_, err := io.WriteString(o.w, printable(fmt.Sprintf("%s alive   %d of %d entries audited, %s, %s\n", h.Time.Format(time.RFC3339), h.Size, h.Shown, cosigned, state)))
	return err
}

// Sync has what was printed on the disk, where it goes to one.
func (o *monitorOutput) Sync() error {
	f, ok := o.w.(*os.File)
	if !ok {
		return nil
	}
	err := f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil // a pipe or a terminal
	}
	return err
}
