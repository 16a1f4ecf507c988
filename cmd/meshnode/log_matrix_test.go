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

// Seven nodes with the longest names, ages and numbers fit a terminal of 100 columns; eight are a list.
func TestMatrixWidth(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	matrix := func(n int) *audit.Matrix {
		m := &audit.Matrix{At: at, Needed: 2}
		for i := range n {
			ref := identity.NodeRef{Org: identity.OrgID(fmt.Sprintf("organisation-with-a-long-name-%d", i)), Name: "n1"}
			m.Nodes = append(m.Nodes, audit.MatrixNode{Node: ref, Code: attest.CodeFewVerifiers})
		}
		for _, v := range m.Nodes {
			for _, s := range m.Nodes {
				if v.Node != s.Node {
					m.Edges = append(m.Edges, audit.MatrixEdge{Verifier: v.Node, Subject: s.Node, Verdict: attest.VerdictAffirming, Code: attest.CodeStale, Leaf: 999999, Epoch: 12, Made: at.Add(-500 * time.Hour)})
				}
			}
		}
		return m
	}
	text := matrixText("log", &audit.Report{OK: true, Entries: 1}, matrix(maxColumns))
	table, _, _ := strings.Cut(text, "\n1  organisation-with-a-long-name-0/n1: ")
	for _, line := range strings.Split(table, "\n") {
		if utf8.RuneCountInString(line) > 100 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
	if !strings.Contains(table, "(ok 20d)") || !strings.Contains(table, "e12 #9999…") && !strings.Contains(table, "e12 #999999") {
		t.Error(table)
	}
	list := matrixText("log", &audit.Report{OK: true, Entries: 1}, matrix(maxColumns+1))
	if strings.Contains(list, "verifier \\ subject") || !strings.Contains(list, "organisation-with-a-long-name-7/n1: affirming, 20d old, epoch 12 (entry 0), entry 999999, does not count: stale") {
		t.Error(list)
	}
}
