package data

import (
	"math"
	"math/rand/v2"
	"strconv"
)

// DigitSide is the side of a drawn digit in pixels; each of its pixels is a feature from
// 0 to DigitInk.
const (
	DigitSide = 12
	DigitInk  = 16
)

type point struct{ x, y float64 }

// skeletons holds for each digit the polylines a pen follows, in the unit square with y
// downwards.
func skeletons() [10][][]point {
	oval := func(cx, cy, rx, ry float64) []point {
		var out []point
		for i := range 17 {
			a := 2 * math.Pi * float64(i) / 16
			out = append(out, point{cx + rx*math.Sin(a), cy - ry*math.Cos(a)})
		}
		return out
	}
	return [10][][]point{
		{oval(.5, .5, .25, .38)},
		{{{.36, .28}, {.54, .12}, {.54, .88}}},
		{{{.27, .3}, {.36, .15}, {.55, .11}, {.71, .22}, {.7, .4}, {.28, .87}, {.75, .87}}},
		{{{.28, .16}, {.7, .14}, {.46, .43}, {.66, .5}, {.73, .67}, {.6, .85}, {.4, .88}, {.26, .8}}},
		{{{.62, .88}, {.62, .12}, {.24, .64}, {.8, .64}}},
		{{{.72, .13}, {.34, .13}, {.31, .46}, {.52, .42}, {.7, .52}, {.72, .7}, {.58, .86}, {.38, .88}, {.27, .8}}},
		{{{.66, .13}, {.44, .28}, {.31, .52}, {.3, .7}}, oval(.5, .69, .2, .19)},
		{{{.26, .14}, {.74, .14}, {.44, .88}}},
		{oval(.5, .31, .18, .19), oval(.5, .69, .22, .2)},
		{oval(.5, .32, .2, .2), {{.7, .32}, {.68, .58}, {.56, .87}}},
	}
}

// Digits draws n handwritten-looking digits: a random affine image of the digit's skeleton
// with random pen width, wobble and noise. Equal seeds draw equal data; classes take turns.
func Digits(n int, seed uint64) *Dataset {
	d := &Dataset{Source: "drawn digits", Features: DigitSide * DigitSide}
	d.X = make([]float64, 0, n*d.Features)
	shapes, rng := skeletons(), source(seed, streamDigits)
	for i := range n {
		digit := i % 10
		d.X = append(d.X, draw(rng, shapes[digit])...)
		d.Labels = append(d.Labels, strconv.Itoa(digit))
	}
	return d
}

func draw(rng *rand.Rand, strokes [][]point) []float64 {
	uniform := func(lo, hi float64) float64 { return lo + (hi-lo)*rng.Float64() }
	angle, shear := uniform(-.22, .22), uniform(-.25, .25)
	sx, sy := uniform(.8, 1.1), uniform(.8, 1.08)
	dx, dy := uniform(-.07, .07), uniform(-.07, .07)
	pen, soft := uniform(.035, .075), .05
	sin, cos := math.Sincos(angle)
	var placed [][]point
	for _, s := range strokes {
		var line []point
		for _, p := range s {
			x := (p.x-.5)*sx + (p.y-.5)*shear + uniform(-.018, .018)
			y := (p.y-.5)*sy + uniform(-.018, .018)
			line = append(line, point{.5 + x*cos - y*sin + dx, .5 + x*sin + y*cos + dy})
		}
		placed = append(placed, line)
	}
	out := make([]float64, DigitSide*DigitSide)
	for i := range out {
		at := point{(float64(i%DigitSide) + .5) / DigitSide, (float64(i/DigitSide) + .5) / DigitSide}
		ink := (pen + soft - distance(at, placed)) / soft
		ink = math.Max(0, math.Min(1, ink)) + uniform(-.09, .09)
		out[i] = math.Round(DigitInk * math.Max(0, math.Min(1, ink)))
	}
	return out
}

// distance returns how far p is from the nearest stroke.
func distance(p point, strokes [][]point) float64 {
	best := math.Inf(1)
	for _, s := range strokes {
		for i := 1; i < len(s); i++ {
			a, b := s[i-1], s[i]
			vx, vy := b.x-a.x, b.y-a.y
			t := ((p.x-a.x)*vx + (p.y-a.y)*vy) / (vx*vx + vy*vy)
			t = math.Max(0, math.Min(1, t))
			best = math.Min(best, math.Hypot(p.x-a.x-t*vx, p.y-a.y-t*vy))
		}
	}
	return best
}
