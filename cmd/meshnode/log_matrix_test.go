package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/internal/identity"
)

// A table fits a terminal of 100 columns and cuts off no number, whatever the names; what does not fit is a list.
func TestMatrixWidth(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	matrix := func(n int, leaf uint64) *audit.Matrix {
		m := &audit.Matrix{At: at, Needed: 2}
		for i := range n {
			ref := identity.NodeRef{Org: identity.OrgID(fmt.Sprintf("organisation-with-a-long-name-%d", i)), Name: "n1"}
			m.Nodes = append(m.Nodes, audit.MatrixNode{Node: ref, Code: attest.CodeFewVerifiers})
		}
		for _, v := range m.Nodes {
			for _, s := range m.Nodes {
				if v.Node != s.Node {
					m.Edges = append(m.Edges, audit.MatrixEdge{Verifier: v.Node, Subject: s.Node, Verdict: attest.VerdictAffirming, Code: attest.CodeStale, Leaf: leaf, Epoch: 12, Made: at.Add(-500 * time.Hour)})
				}
			}
		}
		return m
	}
	for _, tc := range []struct {
		nodes int
		leaf  uint64
		table bool
	}{{7, 9999, true}, {8, 9999, false}, {6, 99_999, true}, {7, 99_999, false}, {4, 999_999_999, true}, {5, 999_999_999, false}} {
		text := matrixText("log", &audit.Report{OK: true, Entries: 1}, matrix(tc.nodes, tc.leaf))
		if !tc.table {
			want := fmt.Sprintf("organisation-with-a-long-name-%d/n1: affirming, 20d old, epoch 12 (entry 0), entry %d, does not count: stale", tc.nodes-1, tc.leaf)
			if strings.Contains(text, "verifier \\ subject") || !strings.Contains(text, want) {
				t.Errorf("%+v: %s", tc, text)
			}
			continue
		}
		table, _, _ := strings.Cut(text, "\n1  organisation-with-a-long-name-0/n1: ")
		for _, line := range strings.Split(table, "\n") {
			if utf8.RuneCountInString(line) > 100 {
				t.Errorf("%+v: %d columns: %s", tc, utf8.RuneCountInString(line), line)
			}
		}
		if !strings.Contains(table, "(ok 20d)") || strings.Count(table, fmt.Sprintf("e12 #%d", tc.leaf)) != tc.nodes*(tc.nodes-1) {
			t.Errorf("%+v: %s", tc, table)
		}
	}
}

// Below a table stands why a result does not count, and what those say that do not affirm.
func TestMatrixLegend(t *testing.T) {
	a, b := identity.NodeRef{Org: "alpha", Name: "n1"}, identity.NodeRef{Org: "beta", Name: "n1"}
	m := &audit.Matrix{Needed: 1, Nodes: []audit.MatrixNode{{Node: a}, {Node: b}}, Edges: []audit.MatrixEdge{
		{Verifier: a, Subject: b, Verdict: attest.VerdictContraindicated, Codes: []attest.Code{attest.CodeRevoked, attest.CodeDebug}, Leaf: 4},
		{Verifier: b, Subject: a, Verdict: attest.VerdictAffirming, Code: attest.CodeStale, Leaf: 3}}}
	text := matrixText("log", &audit.Report{OK: true}, m)
	for _, want := range []string{"if nodes of 1 other organisation affirm it\n", "\nIn brackets, because it does not count:\n  beta/n1 on alpha/n1 (entry 3): stale\n",
		"\nDoes not affirm:\n  alpha/n1 on beta/n1 (entry 4): contraindicated, revoked debug\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	m.Edges = m.Edges[:1]
	if text = matrixText("log", &audit.Report{OK: true}, m); strings.Contains(text, "In brackets") {
		t.Error(text)
	}
}
