package node

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// docs/PROTOCOL.md names every stream between nodes, in the class that Permit puts it into.
func TestProtocolPageListsStreams(t *testing.T) {
	page, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]class{}
	for name, c := range map[string]class{"control": classControl, "policy": classPolicy, "log": classLog, "data": classData} {
		row := regexp.MustCompile(`(?m)^\| ` + name + ` \| ([^|]*) \|`).FindStringSubmatch(string(page))
		if row == nil {
			t.Fatalf("no row for %s streams", name)
		}
		for stream := range strings.FieldsSeq(row[1]) {
			said[strings.Trim(stream, "`")] = c
		}
	}
	id := identity.MeshID{1}
	p := newProtocols(id)
	streams := reflect.TypeFor[protocols]()
	for i := range streams.NumField() {
		name := streams.Field(i).Name
		protocol := mesh.Protocol("/meshnode/" + id.Short() + "/" + name + "/1")
		if c := p.class(protocol); c == classNone || said[name] != c {
			t.Errorf("%s is of class %d, the page says %d", name, c, said[name])
		}
	}
	if len(said) != streams.NumField() {
		t.Errorf("%d streams on the page, want %d", len(said), streams.NumField())
	}
}
