package sevsnp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// endorser returns the endorsement whose key signed the report and whose chain holds. Of
// several certificates those that agree with the report are tried, so that ones of other
// machines, older ones or broken ones in the same folder do no harm; where none agrees the
// first one is taken, to be refused for what it is.
func (s *Scheme) endorser(r report, certs [][]byte, at time.Time) (endorsement, error) {
	var agreeing, others []candidate
	var broken error
	for _, der := range certs {
		c, ok, err := s.candidate(der, at)
		switch {
		case err != nil:
			broken = err
		case !ok:
		case c.disagrees(r) == nil:
			agreeing = append(agreeing, c)
		default:
			others = append(others, c)
		}
	}
	if len(agreeing) == 0 && len(others) > 0 {
		agreeing = others[:1]
	}
	if len(agreeing) == 0 {
		if broken != nil {
			return endorsement{}, refuse(attest.CodeNotGenuine, "certificate", "unreadable", r.signingKey, broken)
		}
		return endorsement{}, refuse(attest.CodeCollateralMissing, "certificate", "", "the "+r.signingKey+" certificate", nil)
	}
	var first error
	for _, c := range agreeing[:min(len(agreeing), maxTries)] {
		err := s.authentic(r, c, at)
		if err == nil {
			return c.endorsement, nil
		}
		if first == nil {
			first = err
		}
	}
	return endorsement{}, first
}

// candidate is an endorsement, with whether its chain is known to hold at the time.
type candidate struct {
	endorsement
	known bool
}

// candidate reads a certificate, or recalls it.
func (s *Scheme) candidate(der []byte, at time.Time) (c candidate, ok bool, err error) {
	if e, ok := s.known.Recall(sha256.Sum256(der), at); ok {
		return candidate{e, true}, true, nil
	}
	e, ok, err := parseEndorsement(der)
	return candidate{e, false}, ok, err
}

// authentic verifies chain and signature, the chain only if it is not known to hold, and
// remembers it.
func (s *Scheme) authentic(r report, c candidate, at time.Time) error {
	root, ok := s.roots[c.product]
	if !ok {
		return refuse(attest.CodeNotGenuine, "certificate", fmt.Sprintf("issued by %q", c.cert.Issuer.CommonName), "AMD's intermediates", nil)
	}
	fail := func(err error) error {
		return refuse(attest.CodeNotGenuine, "report", "not verified", "a chain to AMD's root and a valid signature", err)
	}
	if !c.known {
		if err := root.endorses(c.endorsement, at); err != nil {
			return fail(err)
		}
	}
	if err := r.signedBy(c.key); err != nil {
		return fail(err)
	}
	if !c.known {
		s.known.Keep(sha256.Sum256(c.cert.Raw), chains.Validity(c.cert, root.intermediate(c.kind), root.ARK), c.endorsement)
	}
	return nil
}

// endorses verifies the chain of e. That the ARK certified the intermediate was verified
// when the scheme was made, by check.
func (r Root) endorses(e endorsement, at time.Time) error {
	parent := r.intermediate(e.kind)
	if parent == nil {
		return errors.New("a VLEK, but no ASVK is among the roots")
	}
	if span := chains.Validity(e.cert, parent, r.ARK); !span.Holds(at) {
		return fmt.Errorf("the chain is valid from %s to %s, not at %s",
			span.From.UTC().Format(time.RFC3339), span.To.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	if e.cert.IsCA {
		return errors.New("the certificate is a CA's")
	}
	return certifiedBy(e.cert, parent)
}
