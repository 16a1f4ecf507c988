package federated

import (
	"os"
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/federated/data"
)

// digits is real handwriting, kept outside the repository; MESHNODE_DIGITS names it.
func digits(t *testing.T) *data.Dataset {
	t.Helper()
	for _, path := range []string{os.Getenv("MESHNODE_DIGITS"), "../../shared/data/digits.csv"} {
		if _, err := os.Stat(path); path == "" || err != nil {
			continue
		}
		d, err := data.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	t.Skip("no digits.csv (UCI handwritten digits): set MESHNODE_DIGITS to its path")
	return nil
}

func specFor(d *data.Dataset) Spec {
	s := DefaultSpec()
	s.Name, s.Features, s.Labels = "digits", d.Features, d.Classes()
	return s
}

// What the defaults promise, over seeds of split, model and training: the federated model
// reaches 0.93, beats the best participant alone, and learns nothing from shuffled labels.
func promise(t *testing.T, d *data.Dataset, seeds []uint64) {
	for _, seed := range seeds {
		spec := specFor(d)
		spec.Seed = seed
		train, test, err := d.Holdout(0.2, seed)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := train.Dirichlet(6, 0.5, 8, seed)
		if err != nil {
			t.Fatal(err)
		}
		federated, err := FederatedAccuracy(spec, parts, test)
		if err != nil {
			t.Fatal(err)
		}
		got := federated[len(federated)-1]
		t.Logf("seed %d: federated %.3f, by round %.3f", seed, got, federated)
		if got < 0.93 {
			t.Errorf("seed %d: federated %.3f, want at least 0.93", seed, got)
		}
		if underRace { // the comparisons are three times the work and no other code
			continue
		}
		local, err := LocalAccuracy(spec, parts, test)
		if err != nil {
			t.Fatal(err)
		}
		shuffled, err := FederatedAccuracy(spec, data.ShuffleLabels(parts, seed), test)
		if err != nil {
			t.Fatal(err)
		}
		alone, chance := slices.Max(local), shuffled[len(shuffled)-1]
		t.Logf("seed %d: best alone %.3f, shuffled %.3f", seed, alone, chance)
		if got <= alone || chance > 0.25 {
			t.Errorf("seed %d: federated %.3f, best alone %.3f, shuffled %.3f", seed, got, alone, chance)
		}
	}
}

func TestAccuracyDrawn(t *testing.T) {
	promise(t, data.Digits(1200, 5), []uint64{1})
}

func TestAccuracyDigits(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5}
	d := digits(t)
	if underRace || testing.Short() {
		seeds = seeds[:1]
	}
	promise(t, d, seeds)
}

// One organisation is evicted after round 3, another is killed after round 6: what they
// taught is not forgotten.
func TestAccuracySurvivesLeavers(t *testing.T) {
	d, seeds := digits(t), uint64(3)
	if underRace || testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		spec := specFor(d)
		spec.Seed = seed
		train, test, err := d.Holdout(0.2, seed)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := train.Dirichlet(6, 0.5, 8, seed)
		if err != nil {
			t.Fatal(err)
		}
		m := newMesh(t, append(five(), "alpha/n2")...)
		for i, n := range m.nodes {
			n.data = parts[i]
		}
		spec.MinParticipants = 3
		job := m.submit(spec)
		for round := range spec.Rounds + 1 {
			switch round {
			case 4:
				m.revoke(m.node("epsilon/n1"))
				m.round(job)
			case 7:
				a := m.deliver(job, m.open(job.ID, ""))
				dead := m.nodeOf(a.open.Aggregator.Peer)
				m.finish(job, m.deliver(job, m.open(job.ID, "killed", dead)))
				m.revoke(dead)
			default:
				m.round(job)
			}
		}
		got, err := spec.Evaluate(m.dir[ModelFile].Data, test)
		if err != nil || got < 0.90 {
			t.Errorf("seed %d: accuracy %.3f, %v", seed, got, err)
		}
		t.Logf("seed %d: %.3f with 4 of 6 nodes left", seed, got)
	}
}

func BenchmarkTenRounds(b *testing.B) {
	d := data.Digits(1500, 5)
	parts, err := d.Dirichlet(6, 0.5, 8, 1)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := Federate(specFor(d), parts, func(uint32, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
