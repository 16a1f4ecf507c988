package attesttest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

func TestGenuineEvidence(t *testing.T) {
	f := New(t.Name())
	a := f.Attester(Measurement("one"))
	data := attest.ReportData{1, 2, 3}
	for _, m := range []string{Measurement("one"), Measurement("two")} {
		a.Remeasure(m)
		ev, err := a.Attest(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		c, err := f.Scheme().Verify(context.Background(), ev, &data, time.Now())
		if err != nil || !c.Genuine || !c.Bound || c.Measurement != m || c.Kind != a.Kind() {
			t.Errorf("got %+v, %v", c, err)
		}
		if err := ev.Check(); err != nil {
			t.Error(err)
		}
	}
	if a.Calls() != 2 {
		t.Errorf("%d calls", a.Calls())
	}
}

// Each forgery is refused by the scheme with one of the codes that Codes promises, and
// only because of the forgery: the same attester is genuine before and after.
func TestForgeries(t *testing.T) {
	f := New(t.Name())
	a := f.Attester(Measurement("one"))
	serial := byte(0)
	verify := func() error {
		serial++
		data := attest.ReportData{serial}
		ev, err := a.Attest(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Scheme().Verify(context.Background(), ev, &data, time.Now())
		return err
	}
	for _, forgery := range Forgeries() {
		for range 3 {
			a.Forge(Genuine)
			if err := verify(); err != nil {
				t.Fatalf("genuine: %v", err)
			}
			a.Forge(forgery)
			var e *attest.Error
			if err := verify(); !errors.As(err, &e) || !slices.Contains(forgery.Codes(), e.Reason.Code) {
				t.Errorf("%s: got %v, want one of %v", forgery, err, forgery.Codes())
			}
		}
	}
}

func TestForgersDiffer(t *testing.T) {
	data := attest.ReportData{1}
	ev, err := New("one").Attester(Measurement("m")).Attest(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New("two").Scheme().Verify(context.Background(), ev, &data, time.Now()); err == nil {
		t.Error("one forger's evidence is genuine to another")
	}
	if _, err := New("one").Scheme().Verify(context.Background(), ev, &data, time.Now()); err != nil {
		t.Errorf("a second forger of the same name: %v", err)
	}
}

func TestFailAndHold(t *testing.T) {
	a := New(t.Name()).Attester(Measurement("m"))
	a.Fail(ErrDevice)
	if _, err := a.Attest(context.Background(), attest.ReportData{}); !errors.Is(err, ErrDevice) {
		t.Errorf("got %v", err)
	}
	a.Fail(nil)
	release := a.Hold()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Attest(ctx, attest.ReportData{}); !errors.Is(err, context.Canceled) {
		t.Errorf("held: got %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := a.Attest(context.Background(), attest.ReportData{})
		done <- err
	}()
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := a.Attest(context.Background(), attest.ReportData{}); err != nil {
		t.Error(err)
	}
}
