// Package tlogwitness shows the checkpoints of one log to a witness that somebody else runs, and
// brings its cosignature back: the client of c2sp.org/tlog-witness v1.
//
//	POST <prefix>/add-checkpoint
//
//	old <size that the witness cosigned last, decimal>\n
//	<consistency proof from there, a base64 hash a line>\n …
//	\n
//	<the checkpoint, with the log key's signature>
//
// A witness answers 200 with its cosignature lines, or 409 and the size it cosigned last, in decimal,
// where that is another than old: the client proves from there and asks once more. Everything else
// is a refusal (Refused) that says what the witness thinks of the log, or a failure that says nothing.
// What a witness sends is bounded, waited for no longer than the context allows, and believed only as
// far as its key verifies it.
package tlogwitness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/transparency"
)

const (
	// maxAnswer bounds what a witness answers: a few lines of less than 300 bytes.
	maxAnswer = 16 << 10
	// sizeType is the content type of a 409 that names a size.
	sizeType = "text/x.tlog.size"
)

// ErrAhead is wrapped where the witness has cosigned a size that the log has not reached: this log is
// an older state of itself, or the witness has been shown another one. It is for people to look at.
var ErrAhead = errors.New("the witness has cosigned a larger log")

// Refused is a witness's refusal.
type Refused struct {
	Status  int // as in the C2SP document: 400 malformed, 403 signature, 404 origin, 409 root, 422 proof
	Message string
}

// Error says what the status means.
func (r *Refused) Error() string {
	what := map[int]string{http.StatusForbidden: "it does not accept the log key", http.StatusNotFound: "it does not know this log's origin",
		http.StatusUnprocessableEntity: "the log is no extension of what it has cosigned", http.StatusBadRequest: "it cannot read the request",
		http.StatusConflict: "it has cosigned another root of this size"}[r.Status]
	if what == "" {
		what = "it failed"
	}
	return fmt.Sprintf("%s (%d %.200q)", what, r.Status, r.Message)
}

// Disagrees reports whether the witness has cosigned another history of the log than it was shown.
func (r *Refused) Disagrees() bool {
	return r.Status == http.StatusUnprocessableEntity || r.Status == http.StatusConflict
}

// Log is what the client needs of the log.
type Log interface {
	// ConsistencyProof returns the RFC 6962 §2.1.2 proof from size a to size b.
	ConsistencyProof(a, b uint64) ([]transparency.Hash, error)
}

// Client shows one log to one witness. It remembers what the witness cosigned last, which costs a
// round trip when it is wrong and nothing else. It is not safe for concurrent use.
type Client struct {
	witness transparency.Outside
	address string
	log     Log
	http    *http.Client
	last    uint64
}

// New returns the client of the witness with that key at the submission prefix.
func New(witness transparency.Outside, prefix string, log Log) (*Client, error) {
	if witness.Name() == "" {
		return nil, errors.New("a witness without a key")
	}
	u, err := url.Parse(prefix)
	if err != nil {
		return nil, fmt.Errorf("witness %s: %w", witness.Name(), err)
	}
	if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("witness %s at %.200q: want http(s)://host[:port][/path]", witness.Name(), prefix)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 1
	transport.MaxResponseHeaderBytes = maxAnswer
	return &Client{witness: witness, address: u.JoinPath("add-checkpoint").String(), log: log, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Key is the verifier key of the witness.
func (c *Client) Key() string { return c.witness.Key() }

// Name is the name under which the witness cosigns.
func (c *Client) Name() string { return c.witness.Name() }

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Cosign shows a checkpoint and returns it with the witness's cosignature added. ctx must have a
// deadline that suits the caller: a witness may be slow.
func (c *Client) Cosign(ctx context.Context, checkpoint []byte) ([]byte, error) {
	cp, err := transparency.ParseCheckpoint(checkpoint)
	if err != nil {
		return nil, err
	}
	for range 2 {
		old := min(c.last, cp.Size)
		lines, cosigned, err := c.add(ctx, old, cp.Size, checkpoint)
		if err != nil {
			return nil, fmt.Errorf("witness %s: %w", c.Name(), err)
		}
		if lines == nil {
			if cosigned > cp.Size {
				return nil, fmt.Errorf("witness %s: %w: %d, this one has %d", c.Name(), ErrAhead, cosigned, cp.Size)
			}
			if cosigned == old && old == cp.Size { // it is asked from where it stands, and has another root there
				return nil, fmt.Errorf("witness %s: %w", c.Name(), &Refused{Status: http.StatusConflict, Message: fmt.Sprint(cosigned)})
			}
			c.last = cosigned
			continue
		}
		out, err := c.merge(checkpoint, lines)
		if err == nil {
			c.last = cp.Size
		}
		return out, err
	}
	return nil, fmt.Errorf("witness %s: it names another size each time", c.Name())
}

// merge adds the witness's own line, of those it answered, which may be signed with several keys.
func (c *Client) merge(checkpoint, lines []byte) ([]byte, error) {
	var first error
	for line := range bytes.Lines(lines) {
		out, err := transparency.MergeOutside(checkpoint, line, c.witness)
		if err == nil {
			return out, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("witness %s: no cosignature by its key: %w", c.Name(), first)
}

// add asks once. It returns the cosignature lines, or, without any, what the witness cosigned last.
func (c *Client) add(ctx context.Context, old, size uint64, checkpoint []byte) (lines []byte, cosigned uint64, err error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", old)
	if old > 0 && old < size {
		proof, err := c.log.ConsistencyProof(old, size)
		if err != nil {
			return nil, 0, err
		}
		for _, h := range proof {
			body.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
		}
	}
	body.WriteByte('\n')
	body.Write(checkpoint)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address, &body)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("User-Agent", "meshnode")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, 0, err
	}
	if len(answer) > maxAnswer {
		return nil, 0, fmt.Errorf("it answers more than %d bytes", maxAnswer)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if len(answer) == 0 {
			return nil, 0, errors.New("it answers 200 and no cosignature")
		}
		return answer, 0, nil
	case http.StatusConflict:
		if kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); kind != sizeType {
			break
		}
		text, ok := strings.CutSuffix(string(answer), "\n")
		cosigned, err := strconv.ParseUint(text, 10, 63)
		if !ok || err != nil || strconv.FormatUint(cosigned, 10) != text {
			return nil, 0, fmt.Errorf("it answers 409 and %.40q, want a size", answer)
		}
		return nil, cosigned, nil
	}
	return nil, 0, &Refused{resp.StatusCode, strings.TrimSpace(string(answer))}
}
