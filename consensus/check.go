package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Roles of nodes. Every node is a member.
const (
	RoleMember     = "member"
	RoleSeat       = "seat"
	RoleTrainer    = "trainer"
	RoleAggregator = "aggregator"
)

// refuse returns an error that carries a Reason.
func refuse(code attest.Code, claim, got, want string) error {
	return &attest.Error{Reason: attest.NewReason(code, claim, got, want)}
}

// refuseErr is refuse for an underlying error.
func refuseErr(code attest.Code, claim string, err error) error {
	return &attest.Error{Reason: attest.NewReason(code, claim, "", ""), Err: err}
}

// ReasonOf returns the reason that err carries, or one that says malformed.
func ReasonOf(err error) *attest.Reason {
	var e *attest.Error
	if errors.As(err, &e) {
		r := e.Reason
		if e.Err != nil && r.Got == "" {
			r.Got = e.Err.Error()
		}
		return &r
	}
	r := attest.NewReason(attest.CodeMalformed, "", err.Error(), "")
	return &r
}

// checkTime demands UTC with at most milliseconds: the one spelling of a moment.
func checkTime(what string, t time.Time) error {
	if _, offset := t.Zone(); offset != 0 || !t.Equal(t.Truncate(time.Millisecond)) || t.IsZero() {
		return fmt.Errorf("%s: got %s, want a time in UTC with at most milliseconds", what, t.Format(time.RFC3339Nano))
	}
	if y := t.Year(); y < 2000 || y > 9999 {
		return fmt.Errorf("%s: year %d is out of range", what, y)
	}
	return nil
}

// canonicalTime is t as checkTime wants it.
func canonicalTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Millisecond)
}

// checkHex demands lower-case hex of one of the given numbers of bytes.
func checkHex(what, s string, sizes ...int) error {
	for _, n := range sizes {
		if len(s) == 2*n && strings.Trim(s, "0123456789abcdef") == "" {
			return nil
		}
	}
	return fmt.Errorf("%s: got %d characters %.24q, want lower-case hex of %v bytes", what, len(s), s, sizes)
}

// checkRoles demands known, distinct, sorted roles with "member" among them.
func checkRoles(roles []string) error {
	if len(roles) > MaxRoles {
		return fmt.Errorf("roles: %d listed, there are %d", len(roles), MaxRoles)
	}
	for i, r := range roles {
		switch r {
		case RoleMember, RoleSeat, RoleTrainer, RoleAggregator:
		default:
			return fmt.Errorf("roles: unknown role %.40q", r)
		}
		if i > 0 && roles[i-1] >= r {
			return fmt.Errorf("roles: %q after %q, want distinct roles in order", r, roles[i-1])
		}
	}
	if !slices.Contains(roles, RoleMember) {
		return fmt.Errorf("roles: got %v, every node is a member", roles)
	}
	return nil
}

// NormaliseRoles returns roles sorted, without repetition and with "member".
func NormaliseRoles(roles []string) []string {
	out := append([]string{RoleMember}, roles...)
	slices.Sort(out)
	return slices.Compact(out)
}

// covers reports whether every one of want is in have.
func covers(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// meshSubject is the subject of statements about the mesh as a whole: its digest is the
// mesh id, which is the SHA-256 of the genesis payload.
func meshSubject(m identity.MeshID) envelope.Subject {
	return envelope.Subject{Name: "mesh", Digest: map[string]string{"sha256": m.String()}}
}

func nodeSubject(ref identity.NodeRef, peer identity.PeerID) envelope.Subject {
	return envelope.SubjectOf(ref.String(), []byte(peer))
}

// checkSubject demands that a statement names what its predicate is about.
func checkSubject(got []envelope.Subject, want envelope.Subject) error {
	if len(got) != 1 || got[0].Name != want.Name || len(got[0].Digest) != 1 || got[0].Digest["sha256"] != want.Digest["sha256"] {
		return fmt.Errorf("statement: the subject is not %q with the digest of what the predicate names", want.Name)
	}
	return nil
}

// floorHalf is ⌊n/2⌋+1.
func floorHalf(n int) int { return n/2 + 1 }

// NarrowThreshold is the number of distinct organisations, of n, that may take rights
// away.
func NarrowThreshold(n int) int { return floorHalf(n) }

// WidenThreshold is the number of distinct organisations, of n, that may give rights.
func WidenThreshold(n int) int { return max(floorHalf(n), (2*n+2)/3) }
