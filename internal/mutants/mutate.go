package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one check that can be left out.
type mutant struct {
	id       int
	file     string
	line     int
	function string // METHOD or FUNCTION that holds it
	what     string // the condition, on one line
	from, to int    // its bytes
}

// String returns "FILE:LINE: FUNCTION: CONDITION".
func (m mutant) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", m.file, m.line, m.function, m.what)
}

// key is what excuses a mutant: its place without the line, which changes.
func (m mutant) key() string { return fmt.Sprintf("%s: %s: %s", m.file, m.function, m.what) }

// source is one file and its mutants.
type source struct {
	pkg     string // the name in its package clause
	src     []byte
	mutants []mutant
}

// sources are files by their paths.
type sources map[string]*source

// read finds the mutants of all files of packages, tests apart, and numbers them from 0.
func read(packages []string) (sources, error) {
	all, next := sources{}, 0
	for _, pkg := range packages {
		files, err := filepath.Glob(filepath.Join(pkg, "*.go"))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("%s: no Go files", pkg)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			src, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			s, err := mutantsOf(file, src, next)
			if err != nil {
				return nil, err
			}
			all[file] = s
			next += len(s.mutants)
		}
	}
	return all, nil
}

func (s sources) count() (n int) {
	for _, f := range s {
		n += len(f.mutants)
	}
	return n
}

// mutants returns those of all files, by file and line.
func (s sources) mutants() (out []mutant) {
	for _, file := range slices.Sorted(maps.Keys(s)) {
		out = append(out, s[file].mutants...)
	}
	return out
}

// mutantsOf returns the mutants of one file, numbered from first: for each if and each case of
// a switch without a tag whose body refuses, one for every condition of its disjunction.
func mutantsOf(file string, src []byte, first int) (*source, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	s := &source{pkg: tree.Name.Name, src: src}
	var function string
	var leaveOut func(cond ast.Expr)
	leaveOut = func(cond ast.Expr) {
		switch c := cond.(type) {
		case *ast.ParenExpr:
			leaveOut(c.X)
			return
		case *ast.BinaryExpr:
			if c.Op == token.LOR {
				leaveOut(c.X)
				leaveOut(c.Y)
				return
			}
		}
		from, to := fset.Position(cond.Pos()), fset.Position(cond.End())
		s.mutants = append(s.mutants, mutant{
			id: first + len(s.mutants), file: file, line: from.Line, function: function,
			what: strings.Join(strings.Fields(string(src[from.Offset:to.Offset])), " "),
			from: from.Offset, to: to.Offset,
		})
	}
	for _, decl := range tree.Decls {
		function = "var"
		if f, ok := decl.(*ast.FuncDecl); ok {
			function = f.Name.Name
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.IfStmt:
				if refuses(n.Body.List) && (n.Init != nil || !propagates(n.Cond)) {
					leaveOut(n.Cond)
				}
			case *ast.SwitchStmt:
				if n.Tag != nil {
					break
				}
				for _, stmt := range n.Body.List {
					if c, ok := stmt.(*ast.CaseClause); ok && refuses(c.Body) {
						for _, cond := range c.List {
							leaveOut(cond)
						}
					}
				}
			}
			return true
		})
	}
	return s, nil
}

// isError reports whether a name is that of an error: err1, errBank, ErrFull.
func isError(name string) bool {
	return strings.HasPrefix(name, "err") || strings.HasPrefix(name, "Err")
}

// instrumented returns the file with every condition asking whether it is left out, after it
// was evaluated.
func (s *source) instrumented() []byte {
	insert := map[int][]string{}
	for _, m := range s.mutants {
		insert[m.from] = append(insert[m.from], "((")
		insert[m.to] = append(insert[m.to], fmt.Sprintf(") && mutantHolds(%d))", m.id))
	}
	var b bytes.Buffer
	at := 0
	for _, i := range slices.Sorted(maps.Keys(insert)) {
		b.Write(s.src[at:i])
		b.WriteString(strings.Join(insert[i], ""))
		at = i
	}
	b.Write(s.src[at:])
	return b.Bytes()
}

// chooser returns the file that a package of instrumented files needs: MUTANT in the
// environment is the number of the one left out, MUTANTS_LOG a file to which the number of
// each condition that held is appended once.
func chooser(pkg string, count int) []byte {
	return fmt.Appendf(nil, `package %s

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
)

var (
	mutantChosen, mutantNone = strconv.Atoi(os.Getenv("MUTANT"))
	mutantsLog               = os.Getenv("MUTANTS_LOG")
	mutantsHeld              [%d]atomic.Bool
)

func mutantHolds(id int) bool {
	if mutantsLog != "" && !mutantsHeld[id].Swap(true) {
		f, err := os.OpenFile(mutantsLog, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(f, id)
		if err := f.Close(); err != nil {
			panic(err)
		}
	}
	return mutantNone != nil || id != mutantChosen
}
`, pkg, count)
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
		return isError(last.Name) || last.Name == "false"
	case *ast.SelectorExpr:
		return isError(last.Sel.Name) && last.Sel.Name != "Err" // the error within another one
	case *ast.CallExpr:
		name := ""
		switch f := last.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		return slices.Contains([]string{"refuse", "fail", "malformed", "notGenuine", "Errorf", "New", "Join"}, name)
	case *ast.UnaryExpr:
		return last.Op == token.AND // &Error{…}
	}
	return false
}
