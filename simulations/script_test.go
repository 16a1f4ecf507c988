package simulations

import (
	"strings"
	"testing"
	"time"
)

func TestParseRefuses(t *testing.T) {
	const head = "mesh alpha beta\nallow new\n"
	for _, line := range []string{
		"dance", "start alpha/n1", "stop", "stop a/b c/d", "crash", "name victim", "wait", "wait soon", "wait 5s-1s", "wait -1s",
		"wait 1s 2s", "silence alpha/n1", "cut", "heal all", "propose keep new signed alpha at alpha/n1",
		"propose remove new signed at alpha/n1", "propose remove new signed alpha", "propose remove new signed alpha at",
		"propose remove new signed alpha at alpha/n1 refused", "clients", "clients many", "quiet please", "expect", "expect rain",
		"expect leader alpha/n1", "expect phase of alpha/n1", "expect phase member", "expect phase refused code of alpha/n1",
		"expect closed alpha/n1 within 1s", "expect closed by rest", "expect unlinked alpha/n1", "expect linked", "expect kept",
		"reboot alpha/n1", "expect proof proven", "expect proof of alpha/n1", "expect proof proven of alpha/n1", "expect proof proven at alpha/n1",
		"expect voters at alpha/n1", "expect voters alpha/n1", "expect voters alpha/n1 at", "expect equal", "expect published within 1s",
		"expect equal rest within", "mesh alpha",
	} {
		_, err := Parse("s.txt", head+"start alpha/n1 new\n"+line)
		if err == nil || !strings.HasPrefix(err.Error(), "s.txt:4: ") {
			t.Errorf("%q: got %v, want an error in line 4", line, err)
		}
	}
	for _, text := range []string{"", "# nothing\n", "mesh alpha", "allow new"} {
		if _, err := Parse("s.txt", text); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func TestSpan(t *testing.T) {
	s, err := parseTime([]string{"5s-15s"})
	if err != nil || s != (span{5 * time.Second, 15 * time.Second}) {
		t.Errorf("got %v, %v", s, err)
	}
	for _, edge := range []struct {
		draw int64
		want time.Duration
	}{{0, 5 * time.Second}, {int64(10 * time.Second), 15 * time.Second}} {
		if got := s.draw(fixed(edge.draw)); got != edge.want {
			t.Errorf("got %s, want %s", got, edge.want)
		}
	}
}

type fixed int64

func (f fixed) Int64N(int64) int64 { return int64(f) }
