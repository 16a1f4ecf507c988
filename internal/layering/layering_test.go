package layering

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/tools/go/packages"
)

// root is the module's directory.
var root = filepath.Join("..", "..")

// graph loads every package of ours with all it imports, once for all tests.
var graph = sync.OnceValues(func() (map[string]*packages.Package, error) {
	if err := watchTree(); err != nil {
		return nil, err
	}
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedImports | packages.NeedDeps,
		Dir:  root,
	}, "./...")
	if err != nil {
		return nil, err
	}
	out := map[string]*packages.Package{}
	for _, p := range pkgs {
		out[p.PkgPath] = p
	}
	return out, nil
})

// watchTree reads what the go command will read, so that go test sees it and does not
// answer from its cache when somebody adds a package or an import.
func watchTree() error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go"):
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			return f.Close()
		}
		return nil
	})
}

func ourPackages(t *testing.T) map[string]*packages.Package {
	t.Helper()
	pkgs, err := graph()
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 5 {
		t.Fatalf("only %d packages found: the test looks at the wrong directory", len(pkgs))
	}
	return pkgs
}

// relative returns a package's path below the module, or its import path.
func relative(path string) (string, bool) {
	if rest, ok := strings.CutPrefix(path, Module+"/"); ok {
		return rest, true
	}
	return path, false
}

// reach calls visit for every package that p imports at any distance, with the shortest
// way to it.
func reach(p *packages.Package, visit func(to *packages.Package, way []string)) {
	type step struct {
		p   *packages.Package
		way []string
	}
	seen := map[string]bool{p.PkgPath: true}
	for queue := []step{{p, []string{p.PkgPath}}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		names := make([]string, 0, len(at.p.Imports))
		for name := range at.p.Imports {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			to := at.p.Imports[name]
			if seen[to.PkgPath] {
				continue
			}
			seen[to.PkgPath] = true
			way := append(slices.Clone(at.way), to.PkgPath)
			visit(to, way)
			queue = append(queue, step{to, way})
		}
	}
}

func TestRoomsKnowOnlyWhomTheyMay(t *testing.T) {
	for path, p := range ourPackages(t) {
		from, _ := relative(path)
		room, ok := RoomOf(from)
		if !ok {
			t.Errorf("%s: no room in internal/layering; add one with the reason of its rules", from)
			continue
		}
		for name := range p.Imports {
			if to, ours := relative(name); ours && !room.MayImport(to) {
				t.Errorf("%s imports %s; allowed are %v: %s", from, to, room.Direct, room.Reason)
			}
		}
		reach(p, func(to *packages.Package, way []string) {
			if name, ours := relative(to.PkgPath); ours && len(way) > 2 && !room.MayReach(name) {
				t.Errorf("%s reaches %s by %s: %s", from, name, strings.Join(way, " > "), room.Reason)
			}
		})
	}
}

func TestForbiddenEdges(t *testing.T) {
	for path, p := range ourPackages(t) {
		from, _ := relative(path)
		reach(p, func(to *packages.Package, way []string) {
			name, ours := relative(to.PkgPath)
			for _, e := range Forbidden() {
				if e.Forbids(from, name, ours) {
					t.Errorf("%s reaches %s by %s: %s", from, name, strings.Join(way, " > "), e.Reason)
				}
			}
		})
	}
}

// The tables say what the prose says: a rule that selects nothing by a slip of the pen
// would pass every tree.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		from, to      string
		direct, reach bool
	}{
		{"attest", "internal/identity", false, false},
		{"attest/sim", "attest", true, true},
		{"attest/sim", "consensus", false, false},
		{"mesh", "consensus", false, false},
		{"mesh", "transparency", false, false},
		{"mesh", "federated/mlp", false, false},
		{"consensus", "mesh", false, false},
		{"consensus", "consensus/replica", false, false},
		{"consensus", "federated", false, false},
		{"consensus", "transparency", false, false},
		{"consensus/replica", "consensus", true, true},
		{"consensus/replica", "mesh", false, false},
		{"transparency", "consensus", false, false},
		{"transparency", "attest", false, false},
		{"federated", "transparency", false, false},
		{"federated/mlp", "federated/data", true, true},
		{"enroll", "consensus", true, true},
		{"enroll", "consensus/replica", false, false},
		{"audit", "transparency", true, true},
		{"audit", "mesh", false, false},
		{"audit", "consensus/replica", false, false},
		{"client", "node", false, false},
		{"client", "service", true, true},
		{"client", "service/run", false, false},
		{"service", "service/run", false, false},
		{"service", "consensus", false, false},
		{"service/run", "node", false, false},
		{"node", "service/run", true, true},
		{"cmd/meshnode", "service/run", false, true},
		{"examples/inference", "node", false, false},
		{"demo", "node", false, false},
		{"demo", "internal/identity", true, true},
		{"node", "consensus/replica", true, true},
		{"node", "demo", false, false},
		{"cmd/meshnode", "node", true, true},
		{"cmd/meshnode", "mesh", false, true},
		{"cmd/meshnode", "consensus/replica", false, true},
		{"cmd/meshnode", "attest/sim", true, true},
		{"internal/durable", "attest", false, false},
	} {
		room, ok := RoomOf(tc.from)
		if !ok {
			t.Errorf("%s has no room", tc.from)
			continue
		}
		if got := room.MayImport(tc.to); got != tc.direct {
			t.Errorf("%s may import %s: %v, want %v", tc.from, tc.to, got, tc.direct)
		}
		if got := room.MayReach(tc.to); got != tc.reach {
			t.Errorf("%s may reach %s: %v, want %v", tc.from, tc.to, got, tc.reach)
		}
	}
	for _, tc := range []struct {
		from, to  string
		ours      bool
		forbidden bool
	}{
		{"cmd/meshnode", "attest/attesttest", true, true},
		{"node", "attest/attesttest", true, true},
		{"simulations", "attest/attesttest", true, false},
		{"cmd/meshnode", "simulations", true, true},
		{"audit", "github.com/libp2p/go-libp2p/core/peer", false, true},
		{"audit", "github.com/hashicorp/raft", false, true},
		{"client", "github.com/libp2p/go-libp2p-pubsub", false, true},
		{"client", "github.com/hashicorp/raft", false, true},
		{"consensus/replica", "github.com/hashicorp/raft", false, false},
		{"consensus", "github.com/hashicorp/raft", false, true},
		{"mesh", "github.com/libp2p/go-libp2p", false, false},
		{"cmd/meshnode", "github.com/libp2p/go-libp2p", false, false},
		{"node", "internal/deps", true, true},
	} {
		got := slices.ContainsFunc(Forbidden(), func(e Edge) bool { return e.Forbids(tc.from, tc.to, tc.ours) })
		if got != tc.forbidden {
			t.Errorf("%s to %s forbidden: %v, want %v", tc.from, tc.to, got, tc.forbidden)
		}
	}
	for _, r := range Rooms() {
		if r.Reason == "" {
			t.Errorf("room %s has no reason", r.Pattern)
		}
	}
	for _, e := range Forbidden() {
		if e.Reason == "" {
			t.Errorf("edge %s to %s has no reason", e.From, e.To)
		}
	}
}

// Every package says what it is, in a comment on its clause; commands say "Command".
func TestEveryPackageHasDoc(t *testing.T) {
	for path, p := range ourPackages(t) {
		from, _ := relative(path)
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		var docs []string
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				docs = append(docs, f.Doc.Text())
			}
		}
		switch {
		case len(docs) == 0:
			t.Errorf("%s has no package comment: begin one with %q", from, want)
		case len(docs) > 1:
			t.Errorf("%s has %d package comments, want one", from, len(docs))
		case !strings.HasPrefix(docs[0], want):
			t.Errorf("%s: the package comment begins with %.40q, want %q", from, docs[0], want)
		}
		for _, vague := range []string{"util", "utils", "common", "helpers", "misc"} {
			if slices.Contains(strings.Split(from, "/"), vague) {
				t.Errorf("%s: the name %q says nothing; anything would gather there", from, vague)
			}
		}
	}
}
