package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

func TestPolicyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	read := func(text string) (client.Policy, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return client.ReadPolicy(path)
	}
	digest := service.Digest(sum("program")).String()
	p, err := read("organisations: [beta]\nnode: n1\nmeasurements: [" + attesttest.Measurement("one") + "]\n" +
		"services:\n  inference: {programs: [" + digest + "], models: [" + digest + "]}\nexclusive: true\nmax_age: 1m\nreattest: 30s\n")
	if err != nil || p.Organisations[0] != "beta" || p.Node != "n1" || !p.Exclusive || p.MaxAge != time.Minute || p.Reattest != 30*time.Second ||
		len(p.Services["inference"].Programs) != 1 || p.Services["inference"].Models[0].String() != digest {
		t.Errorf("got %+v, %v", p, err)
	}
	for text, want := range map[string]string{
		"organization: [beta]\n":  `line 1: unknown key "organization"`,
		"organisations: [Beta]\n": "organisation",
		"node: n1\n":              "exactly one organisation",
		"organisations: []\n":     "would mean any",
		"measurements: []\n":      "would mean any",
		"services: {a: {programs: [" + digest + "], models: []}}\n": "services.a.models: an empty list",
		"organisations: [a, b]\nnode: n1\n":                         "exactly one organisation",
		"measurements: [XY]\n":                                      "lower-case hex",
		"services: {inference: {programs: []}}\n":                   "at least one",
		"services: {inference: {programs: [12]}}\n":                 "services.inference.programs[0]",
		"services: {inference: {program: [" + digest + "]}}\n":      `unknown key "program"`,
		"services: {Inference: {programs: [" + digest + "]}}\n":     "service",
		"reattest: 5\n":  "no duration",
		"reattest: 2h\n": "want 1s to 1h0m0s",
		"max_age: 1s\n":  "want 10s",
		"max_age: 0s\n":  "leave it out",
		"":               "empty",
		"organisations: [beta]\n---\norganisations: [alpha]\n":      "more than one document",
		"organisations: [" + strings.Repeat("beta, ", 300) + "b]\n": "more than 256",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.60q: got %v, want %q", text, err, want)
		}
	}
	if _, err := client.ReadPolicy(path + "x"); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	m := newMesh(t, "config", orgs...)
	for name, cfg := range map[string]client.Config{
		"no genesis":    {},
		"no signatures": {Genesis: []byte(`{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[]}`)},
		"bad policy":    {Genesis: m.genesis.Raw(), Policy: client.Policy{Reattest: time.Nanosecond}},
	} {
		if _, err := client.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Who is no organisation is known once the policy is.
	n := serve(t, m, bob, "one")
	if _, _, err := ask(transport(t, m, client.Policy{Organisations: []identity.OrgID{"nobody"}}, nil), n.address, "a secret"); code(err) != attest.CodeUnknownOrganisation || n.requests.Load() != 0 {
		t.Errorf("a stranger: got %v, %d requests", err, n.requests.Load())
	}
	if _, err := client.New(client.Config{Genesis: append(m.genesis.Raw(), '\n')}); err != nil {
		t.Errorf("a file with a newline at its end: %v", err)
	}
}
