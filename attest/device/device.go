// Package device waits for devices that make evidence: files under /dev, attributes under
// /sys, sockets of emulators. A driver may hold its caller inside the kernel for as long as
// it likes, and no signal ends that, so nobody calls one directly.
//
// A Device has one user at a time. Do runs a call in a goroutine of its own and stops
// waiting when the time of the call is up; the goroutine stays until the driver answers, and
// with it the device stays taken: at most one goroutine per device hangs, and who comes
// later is told for what and since when. Every error names the device.
package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Device is the right to use one device.
type Device struct {
	name string
	turn chan struct{} // holds one token: who has it may call

	mu    sync.Mutex
	what  string    // guarded by mu: what the present call is for
	since time.Time // guarded by mu
}

// New returns the device of a name, which is its path where it has one.
func New(name string) *Device {
	d := &Device{name: name, turn: make(chan struct{}, 1)}
	d.turn <- struct{}{}
	return d
}

// Name returns the name.
func (d *Device) Name() string { return d.name }

// Error is what every error of a Device is: which device, and for what it was wanted.
type Error struct {
	Device string
	What   string
	Err    error
}

// Error names device, purpose and cause.
func (e *Error) Error() string { return fmt.Sprintf("device %s: %s: %v", e.Device, e.What, e.Err) }

// Unwrap returns the cause; context.DeadlineExceeded where the device did not answer.
func (e *Error) Unwrap() error { return e.Err }

// Do waits for its turn and runs f, both together for no longer than limit or until ctx
// ends. f gets the time by which it should be done; it must not touch what Do's caller
// uses after Do has returned, because it may still run then. Its result is lost in that
// case.
func Do[T any](ctx context.Context, d *Device, what string, limit time.Duration, f func(until time.Time) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: %w", limit, context.DeadlineExceeded))
	defer cancel()
	fail := func(err error) (T, error) { return none, &Error{d.name, what, err} }
	if ctx.Err() != nil {
		return fail(context.Cause(ctx))
	}
	select {
	case <-d.turn:
	case <-ctx.Done():
		d.mu.Lock()
		defer d.mu.Unlock()
		return fail(fmt.Errorf("taken for %s since %s ago: %w", d.what, time.Since(d.since).Round(time.Second), context.Cause(ctx)))
	}
	d.mu.Lock()
	d.what, d.since = what, time.Now()
	d.mu.Unlock()

	type answer struct {
		out T
		err error
	}
	answered := make(chan answer, 1)
	until, _ := ctx.Deadline()
	go func() {
		defer func() { d.turn <- struct{}{} }()
		var a answer
		a.out, a.err = f(until)
		answered <- a
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return fail(a.err)
		}
		return a.out, nil
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
}

// Present returns an error unless there is something at path, one for which
// errors.Is(err, fs.ErrNotExist) holds where there is not.
func Present(path string) error {
	if _, err := os.Stat(path); err != nil {
		return &Error{path, "look", cause(err)}
	}
	return nil
}

// File is a file that the kernel fills on reading, as a log under /sys/kernel/security.
type File struct {
	*Device
	limit int
	wait  time.Duration
}

// NewFile returns the file at path, of at most limit bytes, read within wait.
func NewFile(path string, limit int, wait time.Duration) *File { return &File{New(path), limit, wait} }

// errNotRegular keeps a FIFO or terminal from being opened, which alone may wait for ever.
var errNotRegular = errors.New("not a regular file")

// Read returns the whole file. That it is absent is an error for which
// errors.Is(err, fs.ErrNotExist) holds; an empty file is one, too.
func (f *File) Read(ctx context.Context) ([]byte, error) {
	return Do(ctx, f.Device, "read", f.wait, func(time.Time) ([]byte, error) {
		info, err := os.Stat(f.name)
		if err != nil {
			return nil, cause(err)
		}
		if !info.Mode().IsRegular() {
			return nil, errNotRegular
		}
		file, err := os.Open(f.name)
		if err != nil {
			return nil, cause(err)
		}
		defer file.Close()
		// Files of the kernel claim a size of 0 or of one page.
		raw, err := io.ReadAll(io.LimitReader(file, int64(f.limit)+1))
		switch {
		case err != nil:
			return nil, cause(err)
		case len(raw) > f.limit:
			return nil, fmt.Errorf("over the limit of %d bytes", f.limit)
		case len(raw) == 0:
			return nil, io.ErrUnexpectedEOF
		}
		return raw, nil
	})
}

// cause is err without the path, which the Error around it names.
func cause(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
