package fetch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

// Evidence fetches all collateral that evidence needs. A certificate that came with a report
// is kept in place of asking for it. The error is the context's or the disk's; what became of
// each object is in its outcome.
func (f *Fetcher) Evidence(ctx context.Context, ev attest.Evidence) (out []Outcome, err error) {
	p := collateral.PlatformOf(ev)
	if p.Report != nil {
		o, err := f.brought(ev, p)
		if err == nil && o == nil {
			o, err = f.get(ctx, f.certificate(p))
		}
		if err != nil {
			return out, err
		}
		out = append(out, *o)
		if parts := strings.Split(o.Name, "/"); o.Result != Failed || len(p.Key.Products()) == 1 {
			o, err = f.get(ctx, f.sevsnpCRL(parts[2], p.Key.Kind))
			if err != nil {
				return out, err
			}
			out = append(out, *o)
		}
	}
	if p.FMSPC != "" {
		more, err := f.all(ctx, f.tdx(p))
		return append(out, more...), err
	}
	return out, nil
}

// Renew fetches anew what the store has that does not stay current long enough.
func (f *Fetcher) Renew(ctx context.Context) ([]Outcome, error) {
	index, err := f.store.Index()
	if err != nil {
		return nil, err
	}
	return f.all(ctx, f.renewals(index))
}

func (f *Fetcher) all(ctx context.Context, requests []Request) (out []Outcome, err error) {
	for _, r := range requests {
		o, err := f.get(ctx, r)
		if err != nil {
			return out, err
		}
		out = append(out, *o)
	}
	return out, nil
}

// brought keeps the certificate that came with a report; nil if none did that verifies.
func (f *Fetcher) brought(ev attest.Evidence, p collateral.Platform) (*Outcome, error) {
	for _, der := range ev.Find(attest.TypeCertificate) {
		if !sevsnp.SignedBy(p.Report, der) {
			continue
		}
		v, err := f.verifier.Verify(attest.Item{Type: attest.TypeCertificate, Data: der}, nil)
		if err != nil || !v.Entry().Holds(f.config.Now()) {
			continue
		}
		added, err := f.store.Put(v)
		if err != nil {
			return nil, err
		}
		o := outcomeOf(v.Entry(), Current)
		if added {
			o.Result = Stored
		}
		return &o, nil
	}
	return nil, nil
}

func outcomeOf(e collateral.Entry, result string) Outcome {
	return Outcome{Name: e.Name, Result: result, Digest: e.Digest, Expires: e.Expires, Evaluation: e.Evaluation}
}

// get brings one object into the store.
func (f *Fetcher) get(ctx context.Context, r Request) (*Outcome, error) {
	index, err := f.store.Index()
	if err != nil {
		return nil, err
	}
	if e, ok := f.there(r, index, f.config.Now()); ok {
		o := outcomeOf(e, Current)
		return &o, nil
	}
	o := Outcome{Name: r.Name, Result: Failed, Error: r.impossible}
	if r.impossible != nil {
		return &o, nil
	}
	for _, u := range r.URLs {
		o.URL = u
		a, err := f.ask(ctx, r.Name, u, &o.Attempts)
		var entry collateral.Entry
		added := false
		if err == nil {
			entry, added, err = f.keep(r, a, index)
		}
		if err == nil {
			done := outcomeOf(entry, Unchanged)
			if added {
				done.Result = Stored
			}
			done.URL, done.Attempts = u, o.Attempts
			return &done, nil
		}
		if !errors.As(err, &o.Error) {
			return nil, err
		}
		if o.Error.Code != attest.CodeCollateralMissing { // else the next product line may have it
			break
		}
	}
	return &o, nil
}

// keep judges an answer and puts it, with the chain that came with it, into the store.
func (f *Fetcher) keep(r Request, a answer, index collateral.Index) (e collateral.Entry, added bool, err error) {
	item := attest.Item{Type: r.Type, Data: a.body}
	chain, err := a.chain(r.chainHeader, r.Type)
	if err != nil {
		return e, false, fail(attest.CodeMalformed, otherServer, "%s: header %s: %v", r.Name, r.chainHeader, err)
	}
	if _, err := collateral.Read(item); err != nil {
		return e, false, fail(attest.CodeMalformed, otherServer, "%s: the answer of %d bytes is nothing of the sort: %v", r.Name, len(a.body), err)
	}
	verified, err := f.verifier.Verify(item, append(chain, r.beside...))
	if err != nil {
		return e, false, fail(attest.CodeNotGenuine, otherServer, "%s: the answer does not verify under the vendor's root: %v", r.Name, err)
	}
	e = verified.Entry()
	if refusal := f.refuse(r, e, index); refusal != nil {
		return e, false, refusal
	}
	for _, c := range chain {
		v, err := f.verifier.Verify(c, nil)
		if err != nil {
			continue // the root that ends a chain of a PCK CA; what verified the object is kept
		}
		if _, err := f.store.Put(v); err != nil {
			return e, false, err
		}
	}
	added, err = f.store.Put(verified)
	return e, added, err
}

const otherServer = "try again later; if it repeats, the server or what is between gives wrong answers: ask the vendor's own"

// refuse says why a genuine answer is not kept: another's, not current, or older than what
// is there.
func (f *Fetcher) refuse(r Request, e collateral.Entry, index collateral.Index) error {
	now := f.config.Now()
	switch {
	case r.Report != nil && !sevsnp.SignedBy(r.Report, e.Item().Data), r.Report == nil && e.Name != r.Name:
		return fail(attest.CodeCertificateMismatch, otherServer, "asked for %s, got %s", r.Name, e.Name)
	case f.config.Evaluation > 0 && e.Evaluation != 0 && e.Evaluation != f.config.Evaluation:
		return fail(attest.CodeCertificateMismatch, otherServer, "%s: asked for tcbEvaluationDataNumber %d, got %d", r.Name, f.config.Evaluation, e.Evaluation)
	case e.Issued.After(now.Add(clockSkew)):
		return fail(attest.CodeCollateralStale, "compare this machine's clock", "%s: the answer is not valid before %s", r.Name, text(e.Issued))
	case !e.Expires.After(now):
		return fail(attest.CodeCollateralStale, "ask the vendor's own server; compare this machine's clock", "%s: the answer expired at %s", r.Name, text(e.Expires))
	}
	old, ok := index.Current(e.Name, now.Add(clockSkew))
	switch {
	case ok && e.Evaluation < old.Evaluation:
		return fail(attest.CodeCollateralStale, "ask the vendor's own server; to look at an older set, fetch into another folder",
			"%s: the answer has tcbEvaluationDataNumber %d, %d was seen", r.Name, e.Evaluation, old.Evaluation)
	case ok && e.Evaluation == old.Evaluation && e.Issued.Before(old.Issued):
		return fail(attest.CodeCollateralStale, "try again later: a cache on the way gives an older answer",
			"%s: the answer was issued at %s, there is one of %s", r.Name, text(e.Issued), text(old.Issued))
	}
	return nil
}

func text(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ask sends a request until there is an answer, within the limits on attempts and waiting.
func (f *Fetcher) ask(ctx context.Context, name, u string, attempts *int) (answer, error) {
	host := hostOf(u)
	if gave := f.givenUp[host]; gave != nil {
		e := fail(gave.Code, gave.Remedy, "%s: not asked for: %s gave no answer before", name, host)
		e.Until = gave.Until
		return answer{}, e
	}
	for tries := 1; ; tries++ {
		if d, s := f.servers.until(host, f.config.Now()); d > f.config.MaxWait {
			e := fail(attest.CodeUnavailable, "run this again after the time given; what is in the store is used until it expires", "%s: %s is left alone until %s: %s", name, host, text(s.Until), s.Why)
			e.Until = s.Until
			f.givenUp[host] = e
			return answer{}, e
		} else if d > 0 {
			f.config.Progress(Event{Name: name, URL: u, Attempt: tries, Wait: d, Why: s.Why})
			if err := f.config.Wait(ctx, d); err != nil {
				return answer{}, err
			}
		}
		f.config.Progress(Event{Name: name, URL: u, Attempt: tries})
		*attempts++
		a, trouble, err := f.once(ctx, u)
		if ctx.Err() != nil {
			return answer{}, ctx.Err()
		}
		if trouble == nil {
			if saveErr := f.servers.answered(host); saveErr != nil {
				return answer{}, saveErr
			}
			return a, named(name, err)
		}
		until, saveErr := f.servers.failed(host, trouble.why, f.config.Now(), trouble.after, trouble.first, f.config.Chance())
		if saveErr != nil {
			return answer{}, saveErr
		}
		if tries >= f.config.Attempts {
			e := fail(attest.CodeUnavailable, "run this again after the time given; what is in the store is used until it expires",
				"%s: %s: %s, %d times; it is left alone until %s", name, host, trouble.why, tries, text(until))
			e.Until = until
			f.givenUp[host] = e
			return answer{}, e
		}
	}
}

// named puts the object's name before a final answer's message.
func named(name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		e.Message = fmt.Sprintf("%s: %s", name, e.Message)
	}
	return err
}
