package audit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

var (
	advisoryPattern = regexp.MustCompile(`^INTEL-SA-[0-9]{1,6}$`)
	codePattern     = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)
	hexPattern      = regexp.MustCompile(`^([0-9a-f]{2}){1,64}$`)
	productPattern  = regexp.MustCompile(`^[A-Za-z0-9-]{1,32}$`)
	assumption      = regexp.MustCompile(`^(\S+) broken(?: since (\S+))?$`)
)

func isVendorAdvisory(s string) bool { return advisoryPattern.MatchString(s) }

// isKind reports whether s is one kind of evidence, which results name in public.
func isKind(s string) bool {
	kinds, err := attest.ParseKinds(s)
	return err == nil && len(kinds) == 1
}

// ParseTarget reads what an impact asks about, TARGET:VALUE with one of the targets but product.
// Without TARGET it follows from the form: 16 hex digits are an entry's id, 64 and 96 a
// measurement, other hex is a chip; INTEL-SA-NNNNN is an advisory, as are the codes of results
// that this release knows.
func ParseTarget(s string) (Query, error) {
	target, value, given := strings.Cut(s, ":")
	if !given {
		value = s
		switch {
		case hexPattern.MatchString(s) && len(s) == 16:
			target = TargetEntry
		case hexPattern.MatchString(s) && (len(s) == 64 || len(s) == 96):
			target = TargetMeasurement
		case hexPattern.MatchString(s):
			target = TargetChip
		case isVendorAdvisory(s) || slices.Contains(attest.Codes(), attest.Code(s)):
			target = TargetAdvisory
		default:
			// Of a word that was mistyped "nothing relied on it" would be said.
			return Query{}, fmt.Errorf("%.160q: want the id of an entry, a measurement or chip id in hex, INTEL-SA-NNNNN, or a code of results; %s: before a code that this release does not know", s, TargetAdvisory)
		}
	}
	ok := false
	switch target {
	case TargetEntry:
		ok = hexPattern.MatchString(value) && len(value) == 16
	case TargetMeasurement, TargetChip:
		ok = hexPattern.MatchString(value)
	case TargetAdvisory:
		ok = isVendorAdvisory(value) || codePattern.MatchString(value)
	default:
		return Query{}, fmt.Errorf("target %.40q: want %s, %s, %s or %s before the colon", target, TargetEntry, TargetMeasurement, TargetAdvisory, TargetChip)
	}
	if !ok {
		return Query{}, fmt.Errorf("%.160q is no %s: want the id of an entry, a measurement or chip id in hex, INTEL-SA-NNNNN, or a code", value, target)
	}
	return Query{Target: target, Value: value}, nil
}

// ParseAssumption reads "PRODUCT broken [since DATE]": a kind of evidence (sevsnp, tdx, vtpm,
// sim), AMD's product line as certificates name it (Milan, Genoa, Turin), or Intel's FMSPC. DATE
// is RFC 3339, or its day alone, in UTC.
func ParseAssumption(s string) (Query, error) {
	m := assumption.FindStringSubmatch(s)
	if m == nil || !productPattern.MatchString(m[1]) {
		return Query{}, fmt.Errorf("%.160q: want \"PRODUCT broken since DATE\", as \"Milan broken since 2026-03-01\"", s)
	}
	q := Query{Target: TargetProduct, Value: m[1]}
	if m[2] == "" {
		return q, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, m[2]); err == nil {
			q.Since = at.UTC()
			return q, nil
		}
	}
	return Query{}, fmt.Errorf("%.40q: want a date like 2026-03-01 or 2026-03-01T12:00:00Z", m[2])
}
