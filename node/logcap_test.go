package node

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestStrangersCannotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := capped(slog.New(slog.NewJSONHandler(&out, nil)))
		for range capLines {
			log.Info("refused")
			log.With("peer", "x").Info("refused")
		}
		if n := strings.Count(out.String(), "\n"); n != capLines {
			t.Errorf("%d lines in one period, want %d", n, capLines)
		}
		out.Reset()
		time.Sleep(capPeriod) // virtual
		log.Info("refused")
		log.Info("refused")
		if n, want := strings.Count(out.String(), "\n"), `"left_out_before":60`; n != 2 || strings.Count(out.String(), want) != 1 {
			t.Errorf("next period: got %q, want two lines and %s once", out.String(), want)
		}
	})
}
