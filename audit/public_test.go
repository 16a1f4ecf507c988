package audit

import (
	"encoding"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
)

// leafKinds are the predicates of everything that can be a leaf: what dispatch replays.
var leafKinds = map[string]any{
	"genesis": consensus.Genesis{}, "bootstrap": consensus.Bootstrap{}, "recovery": consensus.Recovery{}, "credential": consensus.Credential{},
	"proposal": consensus.Proposal{}, "withdrawal": consensus.Withdrawal{}, "attestation-result": consensus.AttestationResult{},
	"membership": consensus.Membership{}, "suspension": consensus.Suspension{}, "suspension-lift": consensus.SuspensionLift{},
	"state": consensus.LoggedState{}, "ready": consensus.Ready{}, "drain": consensus.Drain{}, "retirement": consensus.Retirement{}, "round": federated.Round{},
}

// parts are what several of them have; each has a row of its own in the page.
var parts = map[string]any{"entry": consensus.Entry{}, "floor": attest.Floor{}, "product": attest.Product{}, "organisation": consensus.Organisation{}, "key": consensus.Key{},
	"limits": consensus.Limits{}, "tdx": attest.TDXDemand{}, "tcb": attest.TCB{}, "vector": attest.Vector{}}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// fieldsOf returns the paths of what a value of type t is as JSON: "verifier.node".
func fieldsOf(t reflect.Type, prefix string, out map[string]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		if t.Implements(textMarshaler) || t.Implements(jsonMarshaler) {
			break
		}
		t = t.Elem()
	}
	if prefix != "" && isPart(t) {
		out[strings.TrimPrefix(prefix, ".")] = true
		return
	}
	own := t.Kind() != reflect.Struct || t.Implements(textMarshaler) || reflect.PointerTo(t).Implements(textMarshaler)
	if own || t.Implements(jsonMarshaler) && t.NumField() == 0 {
		if t.Kind() == reflect.Map {
			fieldsOf(t.Elem(), prefix+".*", out)
			return
		}
		out[strings.TrimPrefix(prefix, ".")] = true
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case f.Anonymous && name == "" && isPart(f.Type) && prefix != "":
			out[strings.TrimPrefix(prefix, ".")] = true
		case f.Anonymous && name == "":
			fieldsOf(f.Type, prefix, out)
		default:
			if name == "" {
				name = f.Name
			}
			fieldsOf(f.Type, prefix+"."+name, out)
		}
	}
}

func isPart(t reflect.Type) bool {
	for _, p := range parts {
		if reflect.TypeOf(p) == t {
			return true
		}
	}
	return false
}

// The page lists every field of every leaf as public: a new one must be put there, and so be thought about.
func TestPageListsEveryPublicField(t *testing.T) {
	page, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "What the log shows\n")
	if !ok {
		t.Fatal("docs/PROTOCOL.md has no section \"What the log shows\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	row, word := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (.*?) \\|"), regexp.MustCompile("`([^`]+)`")
	said := map[string]map[string]bool{}
	for _, r := range row.FindAllStringSubmatch(section, -1) {
		if said[r[1]] == nil {
			said[r[1]] = map[string]bool{}
		}
		for _, w := range word.FindAllStringSubmatch(r[2], -1) {
			said[r[1]][w[1]] = true
		}
	}
	all := maps.Clone(leafKinds)
	maps.Copy(all, parts)
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		is := map[string]bool{}
		fieldsOf(reflect.TypeOf(all[kind]), "", is)
		for _, f := range slices.Sorted(maps.Keys(is)) {
			if !said[kind][f] {
				t.Errorf("%s: %s is not in the page", kind, f)
			}
		}
		for _, f := range slices.Sorted(maps.Keys(said[kind])) {
			if !is[f] {
				t.Errorf("%s: the page lists %s, which it has not", kind, f)
			}
		}
	}
}
