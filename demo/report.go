package demo

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Report is what demo --json prints at the end (DESIGN §10, §13 "JSON").
type Report struct {
	OK               bool               `json:"ok"`
	Nodes            int                `json:"nodes"`
	Rounds           int                `json:"rounds"`
	Accuracy         []float64          `json:"accuracy"`
	AccuracyLocal    float64            `json:"accuracy_local"`
	AccuracyShuffled float64            `json:"accuracy_shuffled"`
	Admitted         []Fate             `json:"admitted"`
	Evicted          []Fate             `json:"evicted"`
	Denied           []Fate             `json:"denied"`
	Log              Log                `json:"log"`
	CertificateOK    bool               `json:"certificate_ok"`
	EvictionMS       map[string]float64 `json:"eviction_ms"`
	ModelRoot        string             `json:"model_root"`
	Killed           *Killed            `json:"killed"`
	Seconds          float64            `json:"seconds"`
	// Directory is where everything can still be looked at; absent once it is removed.
	Directory string `json:"directory,omitempty"`
	// Error says why OK is false.
	Error *Failure `json:"error,omitempty"`

	table []row
}

// Fate is what befell one node: admitted, denied or evicted, and the reason it was given.
type Fate struct {
	Node        string `json:"node"`
	Measurement string `json:"measurement"`
	Code        string `json:"code"`
	Got         string `json:"got,omitempty"`
	Want        string `json:"want,omitempty"`
	Remedy      string `json:"remedy,omitempty"`
}

// Log is the published log as the audit, a process of its own, found it.
type Log struct {
	Size uint64 `json:"size"`
	Root string `json:"root"`
	// Cosigners are the distinct organisations that cosigned the checkpoint.
	Cosigners json.RawMessage `json:"cosigners"`
	Level     string          `json:"level"`
}

// Killed is the aggregator that was sent SIGKILL in an open round.
type Killed struct {
	Node       string `json:"node"`
	Round      int    `json:"round"`
	Attempt    int    `json:"attempt"`    // that committed the round
	Aggregator string `json:"aggregator"` // of that attempt
	Retrained  int    `json:"retrained"`  // surviving nodes that trained twice for it
}

// Failure is the step that failed, why, and where its logs are.
type Failure struct {
	Code    string `json:"code"`
	Step    string `json:"step"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// row is one line of the table at the end.
type row struct {
	node, release, fate, verdict, rounds, model string
}

// newReport returns a report whose lists are empty, not null.
func newReport(o Options) *Report {
	return &Report{Nodes: o.Nodes, Rounds: o.Rounds, Accuracy: []float64{}, Admitted: []Fate{}, Evicted: []Fate{},
		Denied: []Fate{}, EvictionMS: map[string]float64{}, Log: Log{Cosigners: json.RawMessage("[]")}}
}

// renderTable aligns the rows under their headings.
func renderTable(rows []row) string {
	cells := [][]string{{"node", "release", "fate", "verdict", "rounds trained", "model root"}}
	for _, r := range rows {
		cells = append(cells, []string{r.node, r.release, r.fate, r.verdict, r.rounds, r.model})
	}
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, line := range cells {
		for i, c := range line {
			if i == len(line)-1 {
				b.WriteString(c)
				break
			}
			b.WriteString(c + strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// summary is the last paragraph: accuracy beside its two comparisons, and the log.
func (r *Report) summary() string {
	last := "none"
	if n := len(r.Accuracy); n > 0 {
		last = fmt.Sprintf("%.3f", r.Accuracy[n-1])
	}
	worst := 0.0
	for _, ms := range r.EvictionMS {
		worst = max(worst, ms)
	}
	return fmt.Sprintf("accuracy on held-out data: federated %s, best single organisation %.3f, labels shuffled %.3f\n"+
		"eviction: cut off on every node within %.0f ms of its decision\n"+
		"log: %d entries, root %s, %s, audited; certificates verified: %v\n",
		last, r.AccuracyLocal, r.AccuracyShuffled, worst, r.Log.Size, short(r.Log.Root), r.Log.Level, r.CertificateOK)
}

// short abbreviates a digest for people.
func short(digest string) string {
	const n = 16
	if len(digest) > n {
		return digest[:n] + "…"
	}
	if digest == "" {
		return "-"
	}
	return digest
}
