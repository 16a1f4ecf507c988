package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Attester asks the platform at one socket for reports about the calling process. It
// keeps one connection and makes a new one when the platform was restarted. Methods may
// be called from several goroutines; requests go one after the other.
type Attester struct {
	socket string
	turn   chan struct{} // holds one token: who has it owns conn
	conn   net.Conn      // owned by the token's holder
}

// NewAttester returns the attester for a platform's socket. It does not connect yet.
func NewAttester(socket string) *Attester {
	a := &Attester{socket: socket, turn: make(chan struct{}, 1)}
	a.turn <- struct{}{}
	return a
}

// Kind implements attest.Attester.
func (*Attester) Kind() string { return attest.KindSim }

// Attest implements attest.Attester. Without an earlier end of ctx it gives up after
// attestTimeout; errors name the socket.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	select {
	case <-a.turn:
	case <-ctx.Done():
		return attest.Evidence{}, fmt.Errorf("sim platform %s: waiting for an earlier request: %w", a.socket, ctx.Err())
	}
	defer func() { a.turn <- struct{}{} }()

	reused := a.conn != nil
	report, err := a.ask(ctx, data)
	var refused *refusedError
	if err != nil && reused && !errors.As(err, &refused) && ctx.Err() == nil {
		report, err = a.ask(ctx, data) // the platform was restarted: connect anew, once
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return attest.Evidence{}, fmt.Errorf("sim platform %s: %w", a.socket, err)
	}
	return Evidence(report), nil
}

// Probe reports whether the platform answers. A socket that only takes connections may
// belong to a stopped process, so it asks for a report, over no data: nobody accepts that
// one. It asks on the kept connection, because a new one has the executable measured again.
func (a *Attester) Probe(ctx context.Context) error {
	_, err := a.Attest(ctx, attest.ReportData{})
	return err
}

// ask makes one request. It leaves no connection behind that an error has spoiled.
func (a *Attester) ask(ctx context.Context, data attest.ReportData) (report []byte, err error) {
	if a.conn == nil {
		var d net.Dialer
		if a.conn, err = d.DialContext(ctx, "unix", a.socket); err != nil {
			a.conn = nil
			return nil, err
		}
	}
	conn := a.conn
	defer func() {
		if err != nil {
			conn.Close()
			a.conn = nil
		}
	}()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// A platform that refuses does so without reading: its answer tells more than EPIPE.
	wErr := writeFrame(conn, encodeRequest(data))
	body, err := readFrame(conn, maxAnswer)
	if err != nil {
		return nil, errors.Join(wErr, err)
	}
	return parseAnswer(body, data)
}

// Close closes the connection; a later Attest makes a new one.
func (a *Attester) Close() error {
	<-a.turn
	defer func() { a.turn <- struct{}{} }()
	if a.conn == nil {
		return nil
	}
	err := a.conn.Close()
	a.conn = nil
	return err
}
