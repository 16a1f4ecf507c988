package redteam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"
)

// httpAttacks try the public listener, which serves addresses, policy and log.
func httpAttacks() []Attack {
	return []Attack{
		{Name: "http-body", Tries: "POST a body of 1 GiB to every public path", Flaw: "read whatever it is sent", Needs: NeedHTTP, run: httpBody},
		{Name: "http-headers", Tries: "send headers of 256 KiB", Flaw: "keep whatever it is sent", Needs: NeedHTTP, run: httpHeaders},
		{Name: "http-traversal", Tries: "read files beside the log by .., encoded and not", Flaw: "serve any file", Needs: NeedHTTP, run: httpTraversal},
		{Name: "http-slow", Tries: "send a request one byte a second", Flaw: "wait for ever", Needs: NeedHTTP, run: httpSlow},
	}
}

// publicPaths are served by every node.
var publicPaths = []string{"/.well-known/meshnode/node", "/.well-known/meshnode/policy", "/.well-known/meshnode/attest", "/log/checkpoint"}

func (c *Campaign) dialHTTP(ctx context.Context) (net.Conn, error) {
	u, err := url.Parse(c.target.URL)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		return c.dialHTTPS(ctx, clientTLS())
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(c.patience))
}

// secure reports whether the target was named by its endpoint for clients.
func (c *Campaign) secure() bool { return strings.HasPrefix(c.target.URL, "https://") }

// sendHTTP writes a request by hand and returns the status line and the beginning of the
// rest.
func (c *Campaign) sendHTTP(ctx context.Context, head string, body io.Reader) (status string, sent int64, rest []byte, err error) {
	conn, err := c.dialHTTP(ctx)
	if err != nil {
		return "", 0, nil, fmt.Errorf("%w: %w", errNoConnection, err)
	}
	defer conn.Close()
	answered := make(chan []byte, 1)
	go func() {
		raw, _ := io.ReadAll(io.LimitReader(conn, maxAnswer))
		answered <- raw
	}()
	if _, err = io.WriteString(conn, head); err == nil && body != nil {
		sent, _ = io.Copy(conn, body)
		if tcp, ok := conn.(*net.TCPConn); ok && sent == 0 {
			_ = tcp.CloseWrite()
		}
	}
	raw := <-answered
	status, _, _ = strings.Cut(string(raw), "\r\n")
	return printable(status), sent, raw, nil
}

// httpBody: the node must answer, or hang up, long before it has read what was announced.
func httpBody(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for _, path := range publicPaths {
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: redteam\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", path, bigBody)
		body := io.LimitReader(spaces{}, bodySent)
		status, sent, _, err := c.sendHTTP(ctx, head, body)
		switch {
		case err != nil:
			tries[path] = skipped("%v", err)
		case sent >= bodySent:
			tries[path] = broken("read %d MiB of a body nobody wants (%s)", sent>>20, status)
		default:
			tries[path] = held("%s after %d KiB", orElse(status, "closed"), sent>>10)
		}
	}
	return worst(tries)
}

// spaces is an endless body.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func httpHeaders(ctx context.Context, c *Campaign) Outcome {
	head := "GET " + publicPaths[0] + " HTTP/1.1\r\nHost: redteam\r\nConnection: close\r\nX-Big: " + strings.Repeat("x", bigHeader) + "\r\n\r\n"
	status, _, _, err := c.sendHTTP(ctx, head, nil)
	switch {
	case err != nil && errors.Is(err, errNoConnection):
		return skipped("%v", err)
	case strings.Contains(status, " 200 "):
		return broken("headers of %d KiB were taken: %s", bigHeader>>10, status)
	}
	return held("%s", orElse(status, "closed"))
}

// httpTraversal asks for a file that every machine has, by paths that a client would clean.
func httpTraversal(ctx context.Context, c *Campaign) Outcome {
	up := strings.Repeat("../", 12)
	tries := map[string]Outcome{}
	for _, path := range []string{"/log/" + up + "etc/passwd", "/log/" + strings.Repeat("%2e%2e/", 12) + "etc/passwd", "/log/" + strings.Repeat("..%2f", 12) + "etc/passwd",
		"/log//etc/passwd", "/log/tile/" + up + "etc/passwd", "/log/%00/../../etc/passwd", "/log/../meshnode.sock", "//etc/passwd", "/log/..", "/log/tile/0/..%5c..%5cetc/passwd"} {
		status, _, raw, err := c.sendHTTP(ctx, "GET "+path+" HTTP/1.1\r\nHost: redteam\r\nConnection: close\r\n\r\n", nil)
		switch {
		case err != nil:
			tries[path] = skipped("%v", err)
		case bytes.Contains(raw, []byte("root:")) || strings.HasPrefix(status, "HTTP/1.1 200"):
			tries[path] = broken("answered %s with %d bytes", status, len(raw))
		default:
			tries[path] = held("%s", orElse(status, "closed"))
		}
	}
	return summary(tries)
}

func httpSlow(ctx context.Context, c *Campaign) Outcome {
	conn, err := c.dialHTTP(ctx)
	if err != nil {
		return skipped("could not be tried: %v", err)
	}
	defer conn.Close()
	begun := time.Now()
	for i := 0; time.Since(begun) < c.patience; i++ {
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nX: yyyyyyyyyyyyyy")[min(i, 30):][:1]); err != nil {
			return held("cut after %s", time.Since(begun).Round(time.Second))
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if cut(conn) {
			return held("cut after %s", time.Since(begun).Round(time.Second))
		}
	}
	return broken("still open after %s", c.patience)
}
