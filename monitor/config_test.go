package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// loadText loads a configuration file of a text.
func loadText(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "monitor.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	if err != nil {
		return c, err
	}
	return c, c.Validate()
}

// TestOperationsPage: the settings of docs/OPERATIONS.md are all there are, with their defaults, and
// its metrics exist.
func TestOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, _ := strings.Cut(string(page), "\n## Follow a log\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	_, block, found := strings.Cut(chapter, "```yaml\nwitnesses: ")
	block, _, _ = strings.Cut(block, "```")
	if !found {
		t.Fatal("no settings")
	}
	got, err := loadText(t, "state: s\nlogs: [l]\nwitnesses: "+block)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.State, want.Logs = got.State, got.Logs
	want.Witnesses, want.Receipts, want.Hook = []string{}, []string{}, []string{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the page says %+v, the defaults are %+v", got, want)
	}
	for i := range reflect.TypeFor[Config]().NumField() {
		if key := reflect.TypeFor[Config]().Field(i).Tag.Get("yaml"); !strings.Contains(chapter, "\n"+key+":") {
			t.Errorf("no setting %s", key)
		}
	}
	m := newMetrics()
	m.alerts.WithLabelValues("stale", "warning")
	m.open.WithLabelValues("stale", "warning")
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, name := range regexp.MustCompile(`meshnode_monitor_[a-z_]+`).FindAllString(chapter, -1) {
		if !names[name] {
			t.Errorf("no metric %s", name)
		}
	}
}

// TestConfigRefuses: each mistake is named with its field.
func TestConfigRefuses(t *testing.T) {
	const good = "state: s\nlogs: [l, 'http://a.example/log']\n"
	c, err := loadText(t, good)
	if err != nil || !filepath.IsAbs(c.State) || !filepath.IsAbs(c.Logs[0]) || c.Logs[1] != "http://a.example/log" {
		t.Fatalf("%+v, %v", c, err)
	}
	for text, field := range map[string]string{
		"logs: [l]":                "state",
		"state: s":                 "logs",
		"state: s\nlogs: [l, ./l]": "logs",
		"state: s\nlogs: ['http://a', 'http://a/']":                          "logs",
		"state: s\nlogs: ['http://a?x']":                                     "logs",
		good + "witnesses: [dir]":                                            "witnesses",
		good + "interval: 10ms":                                              "interval",
		good + "max_age: -1s":                                                "max_age",
		good + "silent: 0s":                                                  "silent",
		good + "skew: 0s":                                                    "skew",
		good + "level: unpublished":                                          "level",
		good + "level: some":                                                 "level",
		good + "start: 5\nend: 5":                                            "start",
		good + "metrics: nine":                                               "metrics",
		good + "hook: ['']":                                                  "hook",
		good + "rules: [{name: x}]":                                          "rules",
		good + "rules: [{kind: x}]":                                          "rules",
		good + "rules: [{name: x, kind: '['}]":                               "rules",
		good + "rules: [{name: x, kind: y}, {name: x, kind: y}]":             "rules",
		good + "rules: [{name: x, kind: y, severity: loud}]":                 "rules",
		good + "rules: [{name: x, kind: " + strings.Repeat("a", 2000) + "}]": "rules",
	} {
		_, err := loadText(t, text)
		var mistake *ConfigError
		if !errors.As(err, &mistake) || mistake.Field != field || mistake.Remedy == "" {
			t.Errorf("%.80q: %v, want a mistake in %s", text, err, field)
		}
	}
	if _, err := loadText(t, good+"other: 1"); err == nil {
		t.Error("an unknown key was read")
	}
}
