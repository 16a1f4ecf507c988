package demo

import (
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// port is a TCP port of 127.0.0.1 kept for a process that starts later. It is bound but
// does not listen: nobody else is given it, and who dials it before its owner is up is
// refused at once instead of hanging in a queue that nobody serves.
type port struct {
	number int
	fd     int
}

// reservePort reserves a free port.
func reservePort() (*port, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("reserve a port of 127.0.0.1: %w", err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	return &port{sa.(*syscall.SockaddrInet4).Port, fd}, nil
}

// release gives the port up; its owner is about to start. It may be called again.
func (p *port) release() {
	if p.fd >= 0 {
		_ = syscall.Close(p.fd)
		p.fd = -1
	}
}

func (p *port) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.number)) }

func (p *port) multiaddr() string { return "/ip4/127.0.0.1/tcp/" + strconv.Itoa(p.number) }
