// Package regular opens files that people name, and nothing else that a path can lead to. A
// plain open of a named pipe waits for ever for somebody who writes, and no signal handler of
// ours ends it.
package regular

import (
	"io/fs"
	"os"
	"syscall"
)

// NotRegularError says what a path leads to instead of a file.
type NotRegularError struct{ Mode fs.FileMode }

// Error names the kind.
func (e *NotRegularError) Error() string {
	kind := "no regular file"
	switch {
	case e.Mode.IsDir():
		kind = "a directory"
	case e.Mode&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case e.Mode&fs.ModeSocket != 0:
		kind = "a socket"
	case e.Mode&fs.ModeDevice != 0:
		kind = "a device"
	}
	return "is " + kind + ", want a file"
}

// Open opens a regular file for reading; links are followed. It never waits. The error is
// an *fs.PathError, of os.Open's or around a *NotRegularError.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // without effect on regular files
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: &NotRegularError{st.Mode()}}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
