package bag

import (
	"bytes"
	"testing"
)

var examples = []Example{
	{"billing", "my invoice is wrong"}, {"billing", "refund this payment, the card was charged twice"}, {"billing", "the price on the bill"},
	{"technical", "the app crashes at login"}, {"technical", "error message after the update"}, {"technical", "the screen stays black"},
}

func TestLearnsAndComesBack(t *testing.T) {
	m, err := Train(examples, 50, 0.5, 1)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"Was my card charged twice?": "billing", "black screen after the update": "technical"} {
		got := back.Classify(text)
		if got[0].Label != want || got[0].Probability < 0.6 || len(got) != 2 || got[0] != m.Classify(text)[0] {
			t.Errorf("%s: %v", text, got)
		}
	}
	again, err := back.Encode()
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("encodes differently: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	for name, e := range map[string][]Example{"nothing": nil, "one label": examples[:3], "a bad label": {{"a b", "x"}, {"c", "y"}}} {
		if _, err := Train(e, 1, 0.1, 1); err == nil {
			t.Errorf("%s was trained on", name)
		}
	}
	if _, err := Decode([]byte("x")); err == nil {
		t.Error("not a model")
	}
}

func FuzzDecode(f *testing.F) {
	m, err := Train(examples, 1, 0.5, 1)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(_ *testing.T, raw []byte) {
		if m, err := Decode(raw); err == nil {
			m.Classify("some words")
		}
	})
}
