package fetch

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// answer is a server's answer of status 200.
type answer struct {
	body   []byte
	header http.Header
}

// trouble is a failure after which a server may be asked again.
type trouble struct {
	why   string
	after time.Duration // as the server said, 0 if it did not
	first time.Duration // else
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}

// once sends one request. One of answer, trouble and error (which is final) is given.
func (f *Fetcher) once(ctx context.Context, u string) (answer, *trouble, error) {
	within, cancel := context.WithTimeout(ctx, f.config.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(within, http.MethodGet, u, nil)
	if err != nil {
		return answer{}, nil, err
	}
	req.Header.Set("User-Agent", "meshnode-collateral")
	req.Header.Set("Accept", "*/*")
	resp, err := f.client.Do(req)
	if err != nil {
		return answer{}, noAnswer(err), nil
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t, err := refusal(resp, f.config.Now())
		return answer{}, t, err
	}
	if resp.ContentLength > maxBody {
		return answer{}, nil, tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil { // the end of a connection that we gave up may look like the answer's
		err = within.Err()
	}
	switch {
	case err != nil:
		return answer{}, noAnswer(err), nil
	case len(body) > maxBody:
		return answer{}, nil, tooLarge()
	case len(body) == 0:
		return answer{}, nil, fail(attest.CodeMalformed, otherServer, "the answer is empty")
	}
	return answer{body, resp.Header}, nil, nil
}

func tooLarge() error {
	return fail(attest.CodeMalformed, otherServer, "the answer is over the limit of %d bytes", maxBody)
}

// noAnswer is what a connection that failed, or took too long, is.
func noAnswer(err error) *trouble {
	why := "no answer"
	var timeout interface{ Timeout() bool }
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(err, &unknown), errors.As(err, &host):
		why = "its TLS certificate is not believed"
	case errors.As(err, &timeout) && timeout.Timeout():
		why = "no whole answer within the time limit"
	}
	var inner *url.Error
	if errors.As(err, &inner) { // the address is named by the caller
		err = inner.Err
	}
	return &trouble{why: fmt.Sprintf("%s (%v)", why, err), first: firstDelay}
}

// refusal reads a status other than 200.
func refusal(resp *http.Response, now time.Time) (*trouble, error) {
	after := retryAfter(resp.Header, now)
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests:
		return &trouble{"429, too many requests", after, rateDelay}, nil
	case code >= 500:
		return &trouble{fmt.Sprintf("status %d", code), after, firstDelay}, nil
	case code == http.StatusNotFound:
		return nil, fail(attest.CodeCollateralMissing, "compare the platform: its product line, chip, TCB or FMSPC; firmware that is not released yet has none",
			"404, the vendor has no such object")
	case code == http.StatusGone:
		return nil, fail(attest.CodeCollateralStale, "ask for a newer tcbEvaluationDataNumber, or leave it out", "410, Intel no longer publishes this tcbEvaluationDataNumber")
	case code >= 300 && code < 400:
		return nil, fail(attest.CodeUnavailable, "give the address that it leads to, if you know whose that is", "status %d to %q: redirects are not followed", code, resp.Header.Get("Location"))
	default:
		return nil, fail(attest.CodeUnavailable, "compare the address; a mirror must answer the vendor's paths", "status %d", code)
	}
}

// chain reads the issuers' chain that came in a header: PEM, escaped as in a URL. It is one
// item for the signers of documents, and one for each certificate else.
func (a answer) chain(header, itemType string) ([]attest.Item, error) {
	if header == "" {
		return nil, nil
	}
	text, err := url.PathUnescape(a.header.Get(header))
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, errors.New("want a certificate chain, got nothing")
	}
	if itemType != attest.TypeCRL {
		return []attest.Item{{Type: attest.TypeTDXTCBChain, Data: []byte(text)}}, nil
	}
	var items []attest.Item
	for rest := []byte(text); len(items) < 3; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		items = append(items, attest.Item{Type: attest.TypeCertificate, Data: block.Bytes})
	}
	if len(items) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return items, nil
}
