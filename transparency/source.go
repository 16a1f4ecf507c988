package transparency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// ErrUnavailable is wrapped by errors that say nothing about the log: it could not be
// read now (network, server error, permission), and may be read later.
var ErrUnavailable = errors.New("unavailable")

// source fetches the files of a published log. fetch returns at most limit bytes; a file
// that is larger is errTooLarge, one that is not there wraps fs.ErrNotExist, everything
// else wraps ErrUnavailable or the context's error.
type source interface {
	fetch(ctx context.Context, name string, limit int64) ([]byte, error)
	Close() error
}

// errTooLarge is returned for a file over its limit.
var errTooLarge = errors.New("file is larger than any valid one")

func openSource(location string) (source, error) {
	if strings.HasPrefix(location, "http://") || strings.HasPrefix(location, "https://") {
		return newHTTPSource(location)
	}
	if location == "" {
		return nil, &fs.PathError{Op: "open", Path: location, Err: fs.ErrNotExist}
	}
	// OpenRoot waits for the writer of a fifo; what is no directory has no ".".
	root, err := os.OpenRoot(location + "/.")
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			pe.Path = location
		}
		return nil, err
	}
	return dirSource{root}, nil
}

// dirSource reads below one directory; symbolic links that leave it are refused.
type dirSource struct{ root *os.Root }

func (s dirSource) Close() error { return s.root.Close() }

func (s dirSource) fetch(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// O_NONBLOCK: a fifo in place of a tile must not hang an audit.
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", name, fs.ErrNotExist)
	}
	return readLimited(f, name, st.Size(), limit)
}

// readLimited reads at most limit bytes. likely is how many there are said to be, or less.
func readLimited(r io.Reader, name string, likely, limit int64) ([]byte, error) {
	buf := bytes.NewBuffer(make([]byte, 0, max(0, min(likely, limit))+bytes.MinRead))
	_, err := buf.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, name, err)
	}
	data := buf.Bytes()
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w (%d bytes)", name, errTooLarge, limit)
	}
	return data, nil
}

// httpSource fetches from a server, each request within requestTimeout, with a few
// repetitions where the server or the network fails.
type httpSource struct {
	base   *url.URL
	client *http.Client
	pause  time.Duration // before the second try, twice as long before the third
}

func newHTTPSource(location string) (*httpSource, error) {
	base, err := url.Parse(location)
	if err != nil {
		return nil, err
	}
	if base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("%.200q: want http(s)://host[:port][/path]", location)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = requestTimeout
	return &httpSource{base: base, pause: retryPause, client: &http.Client{
		Transport: transport,
		Timeout:   requestTimeout,
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}}, nil
}

func (s *httpSource) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

func (s *httpSource) fetch(ctx context.Context, name string, limit int64) ([]byte, error) {
	for try := 1; ; try++ {
		data, again, err := s.get(ctx, name, limit)
		if err == nil || !again || try == requestTries {
			return data, err
		}
		pause := time.NewTimer(time.Duration(try) * s.pause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil, ctx.Err()
		case <-pause.C:
		}
	}
}

func (s *httpSource) get(ctx context.Context, name string, limit int64) (data []byte, again bool, err error) {
	u := s.base.JoinPath(name).String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	req.Header.Set("User-Agent", "meshnode")
	resp, err := s.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		return nil, true, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return nil, false, fmt.Errorf("%s: %w", u, fs.ErrNotExist)
	case resp.StatusCode != http.StatusOK:
		transient := resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
		return nil, transient, fmt.Errorf("%w: %s answers %s", ErrUnavailable, u, resp.Status)
	}
	data, err = readLimited(resp.Body, u, min(resp.ContentLength, likelyBody), limit)
	if ctx.Err() != nil {
		return nil, false, ctx.Err()
	}
	return data, errors.Is(err, ErrUnavailable), err
}
