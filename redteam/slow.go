package redteam

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/mesh/exchange"
)

// slowAttacks hold connections that make no progress and look whether the node serves
// somebody honest meanwhile.
func slowAttacks() []Attack {
	return []Attack{
		{Name: "slow", Tries: fmt.Sprintf("hold %d connections that are silent or send one byte a second, at every stage", slowConns),
			Flaw: "wait for them for ever, or serve nobody else meanwhile", run: slow},
		{Name: "half-open", Tries: fmt.Sprintf("abandon %d connections after each message, with FIN and with RST", slowConns),
			Flaw: "keep what was abandoned, or serve nobody else", run: halfOpen},
	}
}

// slow holds connections at each stage; all must be cut within cutTimeout.
func slow(ctx context.Context, c *Campaign) Outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	results := make(chan string, slowConns)
	stages := []string{"silent socket", "slow socket", "silent after the security protocol", "slow TLS", "silent after TLS", "slow HELLO"}
	for i := range slowConns {
		stage := stages[i%len(stages)]
		wg.Go(func() { results <- c.holdSlow(ctx, stage) })
	}
	served := c.servesMeanwhile(ctx)
	wg.Wait()
	close(results)
	for r := range results {
		if r != "" {
			return broken("%s", r)
		}
	}
	if served != nil {
		return broken("nobody honest was served meanwhile: %v", served)
	}
	return held("%d connections cut, each within %s; an honest attempt was served meanwhile", slowConns, c.patience)
}

// servesMeanwhile makes an honest attempt, with all rights where there is a Self.
func (c *Campaign) servesMeanwhile(ctx context.Context) error {
	if !pause(ctx, time.Second) {
		return ctx.Err()
	}
	if !c.accepted {
		return c.alive(ctx)
	}
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	a.close()
	return a.err
}

// holdSlow holds one connection at a stage and says what was wrong, or "".
func (c *Campaign) holdSlow(ctx context.Context, stage string) string {
	conn, closer, err := c.slowConn(ctx, stage)
	if err != nil {
		return "" // cut before it could be slow
	}
	defer closer()
	trickle := []byte{byte(exchange.FrameHelloI), 0, 0, 8, 0}
	switch stage {
	case "slow socket":
		trickle = []byte("\x13/multistream/1.0.0\n")
	case "slow TLS":
		trickle = []byte{22, 3, 1, 2, 0}
	}
	slowly := stage[:4] == "slow"
	end := time.Now().Add(c.patience)
	for i := 0; ; i++ {
		if slowly {
			if _, err := conn.Write(trickle[min(i, len(trickle)-1):][:1]); err != nil {
				return ""
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if cut(conn) {
			return ""
		}
		if time.Now().After(end) {
			return fmt.Sprintf("%s: still open after %s", stage, c.patience)
		}
		if ctx.Err() != nil {
			return ""
		}
	}
}

// readConn is what holdSlow needs of a connection.
type readConn interface {
	exchange.Conn
	SetReadDeadline(time.Time) error
}

func (c *Campaign) slowConn(ctx context.Context, stage string) (readConn, func() error, error) {
	var raw net.Conn
	var err error
	switch stage {
	case "silent socket", "slow socket":
		raw, err = dialRaw(ctx, c.addrs[0])
	case "silent after the security protocol", "slow TLS":
		raw, err = dialSelected(ctx, c.addrs[0])
	default:
		ch, err := dialTLS(ctx, c.addrs[0], c.target.Peer, newKey())
		if err != nil {
			return nil, nil, err
		}
		return ch, ch.Close, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return raw, raw.Close, nil
}

// cut reads until a deadline and reports whether the connection has ended.
func cut(conn readConn) bool {
	var buf [4096]byte
	for {
		_, err := conn.Read(buf[:])
		if err == nil {
			continue
		}
		timeout, ok := err.(interface{ Timeout() bool })
		return !ok || !timeout.Timeout()
	}
}

// halfOpen abandons connections, without waiting for anything, after each message.
func halfOpen(ctx context.Context, c *Campaign) Outcome {
	abandoned := 0
	for i := range slowConns {
		reset := i%2 == 1
		switch i / 2 % 4 {
		case 0, 1:
			dial := dialRaw
			if i/2%4 == 1 {
				dial = dialSelected
			}
			if conn, err := dial(ctx, c.addrs[0]); err == nil {
				abandon(conn, reset)
				abandoned++
			}
		default:
			a := c.abandonAfter(ctx, i/2%4 == 3, reset)
			if a {
				abandoned++
			}
		}
	}
	if abandoned == 0 {
		return skipped("no connection could be made")
	}
	if err := c.servesMeanwhile(ctx); err != nil {
		return broken("nobody honest was served after %d abandoned connections: %v", abandoned, err)
	}
	return held("%d connections abandoned by FIN and RST; an honest attempt was served afterwards", abandoned)
}

// abandonAfter leaves after HELLO_I, or after ATT_I where there is a Self that is accepted.
func (c *Campaign) abandonAfter(ctx context.Context, evidence, reset bool) bool {
	id := stranger()
	if c.accepted {
		id = c.arsenal.Self
	}
	ch, err := dialTLS(ctx, c.addrs[0], c.target.Peer, id.Key)
	if err != nil {
		return false
	}
	s := &speaker{conn: ch, export: ch.export, id: id, target: &c.target}
	if s.helloI, err = s.ownHello(); err == nil {
		err = s.say(exchange.FrameHelloI, s.helloI)
	}
	if err == nil && evidence && c.accepted {
		if s.helloR, err = s.listen(exchange.FrameHelloR); err == nil {
			s.ekm, err = exchange.EKM(s.export, s.helloI, s.helloR)
		}
		if err == nil {
			if body, err := s.attestation(ctx); err == nil {
				_ = s.say(exchange.FrameAttI, body)
			}
		}
	}
	abandon(ch, reset)
	return true
}

// abandon closes a connection, with a reset if it can be had.
func abandon(conn interface{ Close() error }, reset bool) {
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
