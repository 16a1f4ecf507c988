package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	settleDeadline   = 30 * time.Second // the last entries are published
	baselineDeadline = 5 * time.Minute  // the comparisons, on a busy machine
)

// digits says what the comparisons must show where the data are the ten digits: the only
// data for which more than a report is promised.
const (
	digitFeatures  = 64
	digitLabels    = 10
	shuffledAtMost = 0.30 // chance is 0.10; a few hundred held-out rows scatter
)

// acts is the story.
func (d *director) acts() []act {
	return []act{
		{"make three releases", d.releases},
		{"start the simulated platform", d.simPlatform},
		{"make the organisations' keys", d.keys},
		{"agree on genesis", d.genesis},
		{"start the enrollers", d.enroll},
		{"split the data", d.split},
		{"found the mesh", d.found},
		{"deny a measurement nobody approved", d.deny},
		{"admit it by vote", d.admit},
		{"submit the job", d.submit},
		{"train", d.train},
		{"revoke a release by vote", d.revoke},
		{"lose an aggregator", d.lose},
		{"finish the job", d.complete},
		{"audit the log", d.audit},
		{"verify the certificates", d.export},
		{"compare", d.compare},
		{"sum up", d.sumUp},
	}
}

// audit exports the published log as anybody could and has a process of its own audit it.
func (d *director) audit() error {
	n := d.survivors()[0]
	if err := d.awaitNode(n, "the publication of its whole log", settleDeadline, func(v nodeView) (bool, string) { return v.published(), "" }); err != nil {
		return err
	}
	export := d.meshnode("log", "export", d.publicURL(n), d.lay.log())
	if _, err := d.run.run(d.ctx, export...); err != nil {
		return err
	}
	audit := d.meshnode("log", "audit", d.lay.log(), "--genesis", d.lay.genesis(), "--json")
	var v auditView
	if err := d.run.runJSON(d.ctx, &v, audit...); err != nil {
		return err
	}
	if !v.OK || len(v.Findings) > 0 {
		return fmt.Errorf("log audit: got ok %v with findings %v", v.OK, v.Findings)
	}
	if v.Level != "published" && v.Level != "strong" {
		return fmt.Errorf("log audit: the checkpoint is %s, want published or strong", v.Level)
	}
	d.report.Log = Log{v.Entries, v.Root, v.Cosigners, v.Level}
	if len(v.Cosigners) == 0 {
		d.report.Log.Cosigners = json.RawMessage("[]")
	}
	if err := d.writeStatuses(d.ctx); err != nil {
		return err
	}
	d.say.step(fmt.Sprintf("log of %d entries (%s, cosigned by %s) audited by a process of its own", v.Entries, v.Level, cosigners(v.Cosigners)),
		quoteCommand(export), quoteCommand(audit))
	return nil
}

func cosigners(raw json.RawMessage) string {
	var names []string
	if json.Unmarshal(raw, &names) != nil {
		return string(raw)
	}
	return strings.Join(names, " ")
}

// compare waits for the two comparisons that have been running beside the story.
func (d *director) compare() error {
	ctx, cancel := context.WithTimeout(d.ctx, baselineDeadline)
	defer cancel()
	for range 2 {
		select {
		case b := <-d.baselines:
			if b.err != nil {
				return b.err
			}
			if b.shuffled {
				d.report.AccuracyShuffled = b.value
			} else {
				d.report.AccuracyLocal = b.value
			}
		case <-ctx.Done():
			if cause := context.Cause(d.ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("waited %s for job baseline; %s ends:\n%s", baselineDeadline, d.lay.commands(), logTail(d.lay.commands()))
		}
	}
	federated := d.report.Accuracy[len(d.report.Accuracy)-1]
	verdict := "beats"
	if federated <= d.report.AccuracyLocal {
		verdict = "does not beat"
	}
	if d.digits() && verdict != "beats" {
		return fmt.Errorf("federated accuracy %.3f %s the best organisation alone, %.3f", federated, verdict, d.report.AccuracyLocal)
	}
	if d.digits() && d.report.AccuracyShuffled > shuffledAtMost {
		return fmt.Errorf("accuracy with shuffled labels is %.3f, want chance, at most %.2f", d.report.AccuracyShuffled, shuffledAtMost)
	}
	d.say.step(fmt.Sprintf("federated accuracy %.3f %s the best organisation alone, %.3f; with shuffled labels %.3f",
		federated, verdict, d.report.AccuracyLocal, d.report.AccuracyShuffled),
		quoteCommand(d.baselineCommand(false)), quoteCommand(d.baselineCommand(true)))
	return nil
}

// digits reports whether the data look like the UCI digits or the drawn ones.
func (d *director) digits() bool {
	if d.data.Features != digitFeatures || len(d.data.Labels) != digitLabels {
		return false
	}
	for i := range digitLabels {
		if !slices.Contains(d.data.Labels, strconv.Itoa(i)) {
			return false
		}
	}
	return true
}

// sumUp makes the table. The verdict on each node is that of another node.
func (d *director) sumUp() error {
	survivors := d.survivors()
	witness, second := survivors[0], survivors[1]
	first, err := d.ask(witness)
	if err != nil {
		return err
	}
	other, err := d.ask(second)
	if err != nil {
		return err
	}
	job := d.watch.latest()
	for _, n := range d.plan.all() {
		seen := first
		if n.ref() == witness.ref() {
			seen = other
		}
		peer, _ := seen.peer(n.ref())
		r := row{node: n.ref(), release: n.release, fate: "member", verdict: orDash(peer.Verdict),
			rounds: strconv.Itoa(rowsTrained(job, n.ref())), model: short(d.report.ModelRoot)}
		switch n.ref() {
		case d.plan.evicted:
			r.fate, r.model = "evicted, refused: "+d.report.Evicted[0].Code, "-"
		case d.killed:
			r.fate, r.model = fmt.Sprintf("killed in round %d", d.report.Killed.Round), "-"
		case d.plan.newcomer.ref():
			r.fate = "denied, then admitted"
		}
		if p := d.proc(n.ref()); p.alive() == (n.ref() == d.killed) {
			return fmt.Errorf("%s: %s", n.ref(), p.fate())
		}
		d.report.table = append(d.report.table, r)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// export fetches the certificates, the model and the updates of the job from one node.
func (d *director) export() error {
	n := d.survivors()[0]
	if err := os.MkdirAll(d.lay.job(), 0o700); err != nil {
		return err
	}
	argv := d.meshnode("job", "export", d.jobID, "--node", d.lay.socket(n), "-o", d.lay.job())
	if _, err := d.run.run(d.ctx, argv...); err != nil {
		return err
	}
	verify := d.meshnode("job", "verify", d.lay.job(), "--json")
	var v struct {
		OK       bool              `json:"ok"`
		Findings []json.RawMessage `json:"findings"`
	}
	if err := d.run.runJSON(d.ctx, &v, verify...); err != nil {
		return err
	}
	if !v.OK || len(v.Findings) > 0 {
		return fmt.Errorf("job verify: got ok %v, findings %s", v.OK, v.Findings)
	}
	d.report.CertificateOK = true
	d.say.step("certificates verified and every sum re-executed by a process of its own", quoteCommand(argv), quoteCommand(verify))
	return nil
}

// rowsTrained counts the committed rounds a node took part in.
func rowsTrained(v jobView, ref string) int {
	n := 0
	for _, c := range v.Committed {
		if c.Round > 0 && slices.Contains(c.Participants, ref) {
			n++
		}
	}
	return n
}
