package redteam

import (
	"context"
	"fmt"
	"io"
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
	return connects(ctx, func() error {
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
		a.close()
		return a.err
	})
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

// halfOpen abandons connections after each message: with FIN, with RST, and by saying
// nothing more, as a machine that lost its power.
func halfOpen(ctx context.Context, c *Campaign) Outcome {
	var standing []io.Closer
	defer func() {
		for _, conn := range standing {
			_ = conn.Close()
		}
	}()
	abandoned := 0
	for i := range slowConns {
		conn, err := c.startAndStop(ctx, i%4)
		if err != nil {
			continue
		}
		abandoned++
		switch i / 4 {
		case 0:
			_ = conn.Close()
		case 1:
			reset(conn)
		default:
			standing = append(standing, conn)
		}
	}
	if abandoned == 0 {
		return skipped("no connection could be made")
	}
	if err := c.servesMeanwhile(ctx); err != nil {
		return broken("nobody honest was served beside %d abandoned connections: %v", abandoned, err)
	}
	return held("%d connections abandoned by FIN, by RST and by silence; an honest attempt was served meanwhile", abandoned)
}

// startAndStop speaks up to a stage: connected, security agreed, HELLO_I, ATT_I. The last
// two need an identity that is accepted, else they are a stranger's HELLO_I.
func (c *Campaign) startAndStop(ctx context.Context, stage int) (io.Closer, error) {
	switch stage {
	case 0:
		return dialRaw(ctx, c.addrs[0])
	case 1:
		return dialSelected(ctx, c.addrs[0])
	}
	id := stranger()
	if c.accepted {
		id = c.arsenal.Self
	}
	ch, err := dialTLS(ctx, c.addrs[0], c.target.Peer, id.Key)
	if err != nil {
		return nil, err
	}
	s := &speaker{conn: ch, export: ch.export, id: id, target: &c.target}
	if stage == 3 && c.accepted {
		if err := s.hellos(); err != nil {
			return ch, nil
		}
		if body, err := s.attestation(ctx); err == nil {
			_ = s.say(exchange.FrameAttI, body)
		}
		return ch, nil
	}
	if body, err := s.ownHello(); err == nil {
		_ = s.say(exchange.FrameHelloI, body)
	}
	return ch, nil
}

// reset closes a connection so that the peer gets an RST, where its socket can be had.
func reset(conn io.Closer) {
	if ch, ok := conn.(*channel); ok {
		conn = ch.raw
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
