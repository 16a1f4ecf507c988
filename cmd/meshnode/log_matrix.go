package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/transparency"
)

// matrixView is the output of log matrix --json.
type matrixView struct {
	OK bool `json:"ok"`
	*audit.Matrix
	Entries  uint64                 `json:"entries"` // in the log
	Level    transparency.Level     `json:"level"`
	Findings []transparency.Finding `json:"findings"`
}

func logMatrixCommand() *cobra.Command {
	var genesis, at string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "matrix [--at TIME|INDEX] [--genesis FILE] DIR|URL",
		Short: "Show who had verified whom, under which policy, and who could take part in rounds",
		Long: `Show the newest results of nodes on each other: the verdict, how old it was, the policy that
it was judged by, its entry, and whether it counts towards eligibility. The log is audited
meanwhile.

--at INDEX is the state after that entry. --at TIME is the state before the first result or
Credential that was made after TIME: entries do not say when they were ordered, so this errs
by the time between two that say when they were made, and by their makers' clocks. What had
ended by then is judged by TIME; for an entry by the newest time named up to it; and without
--at by when the quorum cosigned the checkpoint.

What is in no log is not here: links, and the quarantine in which each verifier keeps a peer
whose result was not published in time.

Exit 0: the log holds. 1: it does not; the findings say why, and the table may be wrong.
2: no log, or no such place in it. 3: it could not be read to the end.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := audit.Options{At: time.Now()}
			place, err := placeOf(at)
			if err != nil {
				return err
			}
			if genesis != "" {
				if opts.Genesis, err = signedGenesis(genesis); err != nil {
					return err
				}
			}
			return runLogMatrix(cmd, args[0], place, opts, asJSON)
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "the state at `TIME|INDEX`: RFC 3339, or the number of an entry (default: the end of the log)")
	cmd.Flags().StringVar(&genesis, "genesis", "", "genesis file of the mesh that is meant (default: the log's own)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// placeOf reads --at.
func placeOf(text string) (audit.Place, error) {
	if text == "" {
		return audit.Place{}, nil
	}
	if index, err := strconv.ParseUint(text, 10, 63); err == nil {
		return audit.Place{Index: &index}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.IsZero() {
		return audit.Place{}, usageError("give a time like 2026-01-31T12:00:00Z, or the number of an entry", "--at %.40q is neither a time nor the number of an entry", text)
	}
	return audit.Place{Time: at}, nil
}

func runLogMatrix(cmd *cobra.Command, location string, place audit.Place, opts audit.Options, asJSON bool) error {
	ctx := cmd.Context()
	reader, err := openLog(ctx, location)
	if err != nil {
		return err
	}
	defer reader.Close()
	done := showProgress(cmd, "audited", "entries", &opts.Progress)
	report, m, err := audit.MatrixOf(ctx, reader, place, opts)
	done()
	if errors.Is(err, audit.ErrNoPlace) {
		return usageError("leave --at out for the end of the log; meshnode log show lists the entries", "%s: --at %s: %v", location, cmd.Flag("at").Value, err)
	}
	if err != nil {
		return logFailure(ctx, location, err)
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), matrixView{report.OK, m, report.Entries, report.Level, report.Findings})
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), printable(matrixText(location, &report, m)))
	}
	switch {
	case err != nil:
		return unavailableError("unavailable", "", "%v", err)
	case report.OK:
		return nil
	case report.Undecided():
		return exitStatus(exitUnavailable)
	}
	return exitStatus(exitRefused)
}

// tableWidth is how many columns of text a table may take, firstColumn what its verifiers do.
const (
	tableWidth  = 100
	firstColumn = 23
)

// matrixText is a table where the nodes fit, and a list where they do not.
func matrixText(location string, r *audit.Report, m *audit.Matrix) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log        %s\n", location)
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "FINDING    %s\n", findingText(f, r))
	}
	verdict := "NOT as it should be"
	if r.Undecided() {
		verdict = "cannot decide"
	}
	if m == nil {
		fmt.Fprintf(&b, "verdict    %s: there is no state to show\n", verdict)
		return b.String()
	}
	if !r.OK {
		fmt.Fprintf(&b, "verdict    %s: what follows may be wrong\n", verdict)
	}
	fmt.Fprintf(&b, "state      after entry %d of %d, judged at %s\n", m.Index, r.Entries, m.At.Format(time.RFC3339))
	fmt.Fprintf(&b, "policy     epoch %d, from entry %d\n", m.Epoch, m.PolicyLeaf)
	others := "organisations"
	if m.Needed == 1 {
		others = "organisation"
	}
	fmt.Fprintf(&b, "eligible   if nodes of %d other %s affirm it\n\n", m.Needed, others)
	width := cellWidth(m)
	if firstColumn+width*len(m.Nodes) > tableWidth {
		matrixList(&b, m)
		return b.String()
	}
	matrixTable(&b, m, width)
	b.WriteString("\n")
	for i, n := range m.Nodes {
		fmt.Fprintf(&b, "%d  %s: %s\n", i+1, n.Node, standing(n, m.Needed))
	}
	matrixLegend(&b, "In brackets, because it does not count", m, func(e audit.MatrixEdge) string { return string(e.Code) })
	matrixLegend(&b, "Does not affirm", m, func(e audit.MatrixEdge) string {
		if e.Verdict == attest.VerdictAffirming {
			return ""
		}
		return strings.TrimSuffix(fmt.Sprintf("%s, %s", e.Verdict, codesText(e.Codes)), ", ")
	})
	return b.String()
}

// matrixLegend lists the edges of which what has something to say.
func matrixLegend(b *strings.Builder, title string, m *audit.Matrix, what func(audit.MatrixEdge) string) {
	for _, e := range m.Edges {
		why := what(e)
		if e.Counts || why == "" {
			continue
		}
		if title != "" {
			fmt.Fprintf(b, "\n%s:\n", title)
			title = ""
		}
		fmt.Fprintf(b, "  %s on %s (entry %d): %s\n", e.Verifier, e.Subject, e.Leaf, why)
	}
}

func codesText(codes []attest.Code) string {
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = string(c)
	}
	return strings.Join(words, " ")
}

// cell is what a table says of an edge, in two lines.
func cell(m *audit.Matrix, e audit.MatrixEdge) (verdict, place string) {
	verdict, place = shortVerdict(e)+" "+shortAge(m.Age(e)), fmt.Sprintf("e%d #%d", e.Epoch, e.Leaf)
	if !e.Counts && e.Verdict == attest.VerdictAffirming {
		verdict = "(" + verdict + ")"
	}
	return verdict, place
}

// cellWidth is that of a table's columns: an entry's number is not cut off.
func cellWidth(m *audit.Matrix) int {
	width := 11
	for _, e := range m.Edges {
		verdict, place := cell(m, e)
		width = max(width, len(verdict)+2, len(place)+2)
	}
	return width
}

// matrixTable writes a row of two lines for each verifier and a column for each subject.
func matrixTable(b *strings.Builder, m *audit.Matrix, width int) {
	line := func(label string, cells []string) {
		text := pad(label, firstColumn)
		for _, c := range cells {
			text += pad(c, width)
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	var heads []string
	for i := range m.Nodes {
		heads = append(heads, strconv.Itoa(i+1))
	}
	line("verifier \\ subject", heads)
	for i, v := range m.Nodes {
		var verdicts, places []string
		for _, s := range m.Nodes {
			verdict, place := ".", ""
			if s.Node == v.Node {
				verdict = "-"
			}
			for _, e := range m.Edges {
				if e.Verifier == v.Node && e.Subject == s.Node {
					verdict, place = cell(m, e)
				}
			}
			verdicts, places = append(verdicts, verdict), append(places, place)
		}
		line(strconv.Itoa(i+1)+"  "+v.Node.String(), verdicts)
		line("", places)
	}
}

// matrixList writes each subject with the edges on it.
func matrixList(b *strings.Builder, m *audit.Matrix) {
	for _, n := range m.Nodes {
		fmt.Fprintf(b, "%s: %s\n", n.Node, standing(n, m.Needed))
		for _, e := range m.Edges {
			if e.Subject != n.Node {
				continue
			}
			counts := "counts"
			if !e.Counts {
				counts = "does not count"
				if e.Code != "" {
					counts += ": " + string(e.Code)
				}
			}
			codes := ""
			if len(e.Codes) > 0 {
				codes = " (" + codesText(e.Codes) + ")"
			}
			fmt.Fprintf(b, "  %s: %s%s, %s old, epoch %d (entry %d), entry %d, %s\n", e.Verifier, e.Verdict, codes, shortAge(m.Age(e)), e.Epoch, e.PolicyLeaf, e.Leaf, counts)
		}
	}
}

// standing says who affirms a node and whether that is enough.
func standing(n audit.MatrixNode, needed int) string {
	out := "eligible"
	if !n.Eligible {
		out = "NOT eligible (" + string(n.Code) + ")"
	}
	if n.Seat {
		out += ", seat"
	}
	if len(n.AffirmedBy) > 0 {
		out += ", affirmed by " + orNobody(n.AffirmedBy)
	} else {
		out += fmt.Sprintf(", affirmed by none of %d", needed)
	}
	if !n.Suspended.IsZero() {
		out += ", SUSPENDED until " + n.Suspended.Format(time.RFC3339)
	}
	if n.Measurement != "" {
		out += fmt.Sprintf(", %s %.16s", n.Kind, n.Measurement)
	}
	return out
}

func shortVerdict(e audit.MatrixEdge) string {
	switch e.Verdict {
	case attest.VerdictAffirming:
		return "ok"
	case attest.VerdictWarning:
		return "warn"
	case attest.VerdictContraindicated:
		return "BAD"
	}
	return "none"
}

// shortAge is a duration in its largest unit.
func shortAge(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// pad brings text to a width, and cuts off what does not fit.
func pad(text string, width int) string {
	if n := utf8.RuneCountInString(text); n < width {
		return text + strings.Repeat(" ", width-n)
	}
	return string([]rune(text)[:width-2]) + "… "
}
