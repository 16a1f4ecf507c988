package data

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// Streams keep the uses of one seed apart.
const (
	streamHoldout = iota + 1
	streamDirichlet
	streamShuffle
	streamDigits
)

func source(seed uint64, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// Holdout sets a fraction of the rows apart for testing, chosen by seed and with about the
// same share of every class. Both parts have at least one row.
func (d *Dataset) Holdout(fraction float64, seed uint64) (train, test *Dataset, err error) {
	if !(fraction > 0 && fraction < 1) {
		return nil, nil, fmt.Errorf("%s: held-out fraction %v, want more than 0 and less than 1", d.Source, fraction)
	}
	if d.Rows() < 2 {
		return nil, nil, fmt.Errorf("%s: %d row, want at least 2 to hold some out", d.Source, d.Rows())
	}
	rng := source(seed, streamHoldout)
	// A row is held out when its class's running quota passes an integer; shuffling first
	// makes the choice random, the quota keeps the shares.
	order, quota := rng.Perm(d.Rows()), map[string]float64{}
	var in, out []int
	for _, i := range order {
		quota[d.Labels[i]] += fraction
		if quota[d.Labels[i]] >= 1 {
			quota[d.Labels[i]]--
			out = append(out, i)
		} else {
			in = append(in, i)
		}
	}
	if len(out) == 0 {
		in, out = in[1:], in[:1]
	}
	if len(in) == 0 {
		in, out = out[:1], out[1:]
	}
	slices.Sort(in)
	slices.Sort(out)
	return d.Subset(in), d.Subset(out), nil
}

// Dirichlet deals the rows to nodes with label skew: for every class the nodes' shares are
// one draw of a symmetric Dirichlet distribution with concentration alpha (Hsu, Qi and
// Brown 2019, arXiv 1909.06335). Small alpha means strong skew. Every node ends with at
// least minRows rows, taken where needed from the richest node.
func (d *Dataset) Dirichlet(nodes int, alpha float64, minRows int, seed uint64) ([]*Dataset, error) {
	if nodes < 1 || !(alpha > 0) || minRows < 0 {
		return nil, fmt.Errorf("%s: %d nodes with alpha %v, want at least one node and alpha above 0", d.Source, nodes, alpha)
	}
	if d.Rows() < nodes*max(minRows, 1) {
		return nil, fmt.Errorf("%s: %d rows for %d nodes, want at least %d for each; use fewer nodes or more data", d.Source, d.Rows(), nodes, max(minRows, 1))
	}
	rng := source(seed, streamDirichlet)
	parts := make([][]int, nodes)
	for _, class := range d.Classes() {
		var rows []int
		for i, l := range d.Labels {
			if l == class {
				rows = append(rows, i)
			}
		}
		rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		shares, from, sum := dirichlet(rng, nodes, alpha), 0, 0.0
		for n, s := range shares {
			sum += s
			to := min(int(sum*float64(len(rows))+0.5), len(rows))
			if n == nodes-1 {
				to = len(rows)
			}
			parts[n] = append(parts[n], rows[from:to]...)
			from = to
		}
	}
	level(rng, parts, minRows)
	out := make([]*Dataset, nodes)
	for n, rows := range parts {
		slices.Sort(rows)
		out[n] = d.Subset(rows)
	}
	return out, nil
}

// level moves random rows from the richest part to any that has fewer than minRows.
func level(rng *rand.Rand, parts [][]int, minRows int) {
	for n := range parts {
		for len(parts[n]) < minRows {
			rich := 0
			for i, p := range parts {
				if len(p) > len(parts[rich]) {
					rich = i
				}
			}
			k := rng.IntN(len(parts[rich]))
			parts[n] = append(parts[n], parts[rich][k])
			parts[rich] = slices.Delete(parts[rich], k, k+1)
		}
	}
}

// dirichlet draws shares that sum to 1. Very small alpha underflows every gamma draw to 0;
// one node then takes all, which is the limit of the distribution.
func dirichlet(rng *rand.Rand, n int, alpha float64) []float64 {
	g := distuv.Gamma{Alpha: alpha, Beta: 1, Src: rng}
	shares, sum := make([]float64, n), 0.0
	for i := range shares {
		shares[i] = g.Rand()
		sum += shares[i]
	}
	if sum == 0 {
		shares[rng.IntN(n)], sum = 1, 1
	}
	for i := range shares {
		shares[i] /= sum
	}
	return shares
}

// ShuffleLabels returns the parts with all their labels permuted among all rows, by seed:
// what is learnt from them cannot be better than chance.
func ShuffleLabels(parts []*Dataset, seed uint64) []*Dataset {
	var all []string
	for _, p := range parts {
		all = append(all, p.Labels...)
	}
	source(seed, streamShuffle).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	out := make([]*Dataset, len(parts))
	for i, p := range parts {
		q := *p
		q.Labels, all = all[:p.Rows():p.Rows()], all[p.Rows():]
		out[i] = &q
	}
	return out
}
