package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
)

// mutant is one file with one check left out.
type mutant struct {
	file string
	line int
	what string // the condition that was left out, on one line
	src  []byte // the whole file without it
}

// String returns "FILE:LINE: CONDITION".
func (m mutant) String() string { return fmt.Sprintf("%s:%d: %s", m.file, m.line, m.what) }

// mutantsOf returns the mutants of one file: for each if and each case of a switch without a
// tag whose body refuses, one for every condition of its disjunction.
func mutantsOf(file string, src []byte) ([]mutant, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := source{file: file, src: src, fset: fset}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt:
			if refuses(n.Body.List) && (n.Init != nil || !propagates(n.Cond)) {
				f.leaveOut(n.Cond)
			}
		case *ast.SwitchStmt:
			if n.Tag != nil {
				break
			}
			for _, s := range n.Body.List {
				if c, ok := s.(*ast.CaseClause); ok && refuses(c.Body) {
					for _, cond := range c.List {
						f.leaveOut(cond)
					}
				}
			}
		}
		return true
	})
	return f.out, nil
}

// propagates reports whether a condition asks for nothing but an error that another call has
// returned: the check is there, and has its own mutant.
func propagates(cond ast.Expr) bool {
	b, ok := cond.(*ast.BinaryExpr)
	if !ok || b.Op != token.NEQ {
		return false
	}
	x, ok1 := b.X.(*ast.Ident)
	y, ok2 := b.Y.(*ast.Ident)
	return ok1 && ok2 && strings.HasPrefix(x.Name, "err") && y.Name == "nil"
}

// refuses reports whether statements refuse: they end with the return of an error or of
// false, or call what records a reason.
func refuses(body []ast.Stmt) bool {
	for _, s := range body {
		if e, ok := s.(*ast.ExprStmt); ok {
			if call, ok := e.X.(*ast.CallExpr); ok {
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "refuse" || sel.Sel.Name == "add") {
					return true
				}
			}
		}
	}
	if len(body) == 0 {
		return false
	}
	r, ok := body[len(body)-1].(*ast.ReturnStmt)
	if !ok || len(r.Results) == 0 {
		return false
	}
	switch last := r.Results[len(r.Results)-1].(type) {
	case *ast.Ident:
		return strings.HasPrefix(last.Name, "err") || last.Name == "false"
	case *ast.CallExpr:
		name := ""
		switch f := last.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		return name == "refuse" || name == "fail" || name == "Errorf" || name == "New"
	case *ast.UnaryExpr:
		return last.Op == token.AND // &Error{…}
	}
	return false
}

// source makes mutants of one file by its bytes.
type source struct {
	file string
	src  []byte
	fset *token.FileSet
	out  []mutant
}

// leaveOut makes a mutant for each operand of a disjunction: a check that is left out never
// holds.
func (f *source) leaveOut(cond ast.Expr) {
	switch c := cond.(type) {
	case *ast.ParenExpr:
		f.leaveOut(c.X)
		return
	case *ast.BinaryExpr:
		if c.Op == token.LOR {
			f.leaveOut(c.X)
			f.leaveOut(c.Y)
			return
		}
	}
	from, to := f.fset.Position(cond.Pos()), f.fset.Position(cond.End())
	text := f.src[from.Offset:to.Offset]
	var b bytes.Buffer
	b.Write(f.src[:from.Offset])
	fmt.Fprintf(&b, "(len(%q) < 0 && (%s))", "left out", text) // not a constant: vet and the compiler keep quiet
	b.Write(f.src[to.Offset:])
	f.out = append(f.out, mutant{f.file, from.Line, strings.Join(strings.Fields(string(text)), " "), b.Bytes()})
}
