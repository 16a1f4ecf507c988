package simulations

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
)

// nextRelease builds the release after this one: its state machine has the next fsm_version and
// knows a change that this one does not. It is this tree with files laid over it that are not in it.
func nextRelease(t *testing.T, out string) {
	t.Helper()
	dir := t.TempDir()
	overlay := map[string]string{}
	for file, edits := range map[string][][2]string{
		"genesis.go": {{fmt.Sprintf("const FSMVersion = %d", consensus.FSMVersion), fmt.Sprintf("const FSMVersion = %d", consensus.FSMVersion+1)}},
		"action.go": {
			{"type Action struct {\n", "type Action struct {\n\tNote *Note `json:\"note,omitempty\"`\n"},
			{"\tset = append(set, a.constitution()...)\n", "\tset = append(set, a.constitution()...)\n\tif a.Note != nil {\n\t\tset = append(set, a.Note)\n\t}\n"},
			{"func (a Action) check() error {\n", "// Note changes nothing.\ntype Note struct {\n\tText string `json:\"text\"`\n}\n\n" +
				"func (*Note) check() error { return nil }\nfunc (*Note) apply(*PolicyState, string) error { return nil }\nfunc (*Note) class() Class { return ClassWiden }\n" +
				"func (*Note) describe() string { return \"+ a note\" }\nfunc (*Note) since() int { return FSMVersion }\n\nfunc (a Action) check() error {\n"},
		},
	} {
		path, err := filepath.Abs(filepath.Join("..", "consensus", file))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edits {
			if bytes.Count(source, []byte(e[0])) != 1 {
				t.Fatalf("%s has no single %q: the next release cannot be made of it", file, e[0])
			}
			source = bytes.Replace(source, []byte(e[0]), []byte(e[1]), 1)
		}
		overlay[path] = filepath.Join(dir, file)
		if err := os.WriteFile(overlay[path], source, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", out, "../cmd/meshnode")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// novelty submits, at one node, a change that only the next release knows, signed by orgs: in a mesh
// of this release's fsm_version whichever leads refuses it in its own words, and nobody moves.
func (p *processes) novelty(org string, orgs []string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	view, err := p.hosts[org].policy(ctx)
	p.must(err)
	const known, novel = `{"allow_product":{"product":"Milan"}}`, `{"note":{"text":"hello"}}`
	var a consensus.Action
	p.must(json.Unmarshal([]byte(known), &a))
	raw, err := p.world.payload("novelty at "+org, view.Base, a)
	p.must(err)
	if bytes.Count(raw, []byte(known)) != 1 {
		p.Fatalf("no %s in %s", known, raw)
	}
	raw, err = signAll(bytes.Replace(raw, []byte(known), []byte(novel), 1), orgs)
	p.must(err)
	this, next := `unknown field "note"`, fmt.Sprintf("%d or more", consensus.FSMVersion+1)
	if _, err := p.hosts[org].propose(ctx, raw); err == nil || !strings.Contains(err.Error(), this) && !strings.Contains(err.Error(), next) {
		p.Errorf("%s says of a change of the next release: %v, want %q or %q", org, err, this, next)
	}
}

// apart demands that this release refuses the meshes of the next by name, and runs nothing of them.
func (p *processes) apart(spec, v2 string) {
	p.Helper()
	next := p.path("next.json")
	cmd := exec.CommandContext(p.Context(), v2, "genesis", "new", spec, "-o", next)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.Fatalf("%v: %s", err, out)
	}
	out, err := exec.CommandContext(p.Context(), p.binary, "genesis", "show", next).CombinedOutput()
	var ended *exec.ExitError
	want := fmt.Sprintf("fsm_version: got %d, this release runs 1 to %d", consensus.FSMVersion+1, consensus.FSMVersion)
	if !errors.As(err, &ended) || ended.ExitCode() != 2 || !bytes.Contains(out, []byte(want)) {
		p.Errorf("a mesh of the next release: %v: %s; want exit 2 and %q", err, out, want)
	}
}
