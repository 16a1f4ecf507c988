package vtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// channel carries one TPM command at a time: what is written is a whole command, what is
// read a whole response. It is a character device of the kernel (/dev/tpmrm0) or a unix
// stream socket on which an emulator listens (swtpm's --server type=unixio). Commands and
// responses have the same header: u16 tag, u32 size with the header, u32 code, big-endian
// (TPM 2.0 Library, Part 3, §5).
//
// A channel does not survive a failure: an answer that comes too late would be taken for
// that to the next command.
type channel struct {
	fd     int
	until  time.Time // by then the present command must be answered
	broken bool      // a command or response was not carried
}

const tpmHeader = 10

// openChannel opens the TPM at path.
func openChannel(path string, until time.Time) (*channel, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err.(*fs.PathError).Err // the caller names the path
	}
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		return dialChannel(path, until)
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, errors.New("neither a TPM device nor a socket")
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &channel{fd: fd}, nil
}

func dialChannel(path string, until time.Time) (*channel, error) {
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if ctlErr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); ctlErr != nil || err != nil {
		return nil, errors.Join(ctlErr, err)
	}
	return &channel{fd: fd}, nil
}

// Close closes the channel; the kernel's resource manager then drops its objects.
func (c *channel) Close() error { return unix.Close(c.fd) }

// wait waits until the file is ready for events.
func (c *channel) wait(events int16) error {
	for {
		left := time.Until(c.until)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil // an error or hang-up shows in the call that follows
		}
	}
}

// Write sends a whole command.
func (c *channel) Write(command []byte) (int, error) {
	if c.broken {
		return 0, net.ErrClosed
	}
	n, err := c.send(command)
	c.broken = err != nil
	return n, err
}

// Read receives a whole response. A device gives it all at once, a socket in any pieces.
func (c *channel) Read(response []byte) (int, error) {
	if c.broken {
		return 0, net.ErrClosed
	}
	n, err := c.receive(response)
	c.broken = err != nil
	return n, err
}

func (c *channel) send(command []byte) (int, error) {
	for sent := 0; sent < len(command); {
		if err := c.wait(unix.POLLOUT); err != nil {
			return sent, err
		}
		n, err := unix.Write(c.fd, command[sent:])
		if err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			return sent, err
		}
		sent += n
	}
	return len(command), nil
}

func (c *channel) receive(response []byte) (int, error) {
	have := 0
	for {
		if err := c.wait(unix.POLLIN); err != nil {
			return 0, err
		}
		n, err := unix.Read(c.fd, response[have:])
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.ErrUnexpectedEOF
		}
		have += n
		if have < tpmHeader {
			continue
		}
		size := binary.BigEndian.Uint32(response[2:])
		if size > uint32(len(response)) || uint32(have) > size {
			return 0, fmt.Errorf("a response of %d bytes that says it has %d, want %d to %d", have, size, tpmHeader, len(response))
		}
		if uint32(have) == size {
			return have, nil
		}
	}
}
