package sim

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// measurePeer measures the process at the other end of conn.
func measurePeer(conn *net.UnixConn) ([MeasurementSize]byte, int, error) {
	cred, pidfd, err := peerProcess(conn)
	if err != nil {
		return [MeasurementSize]byte{}, 0, err
	}
	defer unix.Close(pidfd)
	if uid := os.Getuid(); int(cred.Uid) != uid {
		return [MeasurementSize]byte{}, int(cred.Pid), fmt.Errorf("process %d runs as user %d, the platform serves user %d", cred.Pid, cred.Uid, uid)
	}
	m, err := measureProcess(int(cred.Pid), pidfd, hashExecutable)
	return m, int(cred.Pid), err
}

// peerProcess returns the credentials of conn's peer and a pidfd that names the same
// process.
func peerProcess(conn *net.UnixConn) (*unix.Ucred, int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, -1, err
	}
	var cred *unix.Ucred
	pidfd, inner := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		pidfd, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if errors.Is(inner, unix.ENOPROTOOPT) {
			pidfd, inner = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, -1, fmt.Errorf("peer process: %w", err)
	}
	return cred, pidfd, nil
}

// measureProcess hashes the executable of the process pid, which pidfd names too. The
// order matters: the file is opened, hashed, and only then is the process seen alive, so
// that pid named it throughout; and it must still run the file that was hashed.
func measureProcess(pid, pidfd int, hash func(*os.File) ([MeasurementSize]byte, error)) ([MeasurementSize]byte, error) {
	var none [MeasurementSize]byte
	path := fmt.Sprintf("/proc/%d/exe", pid)
	f, err := os.Open(path)
	if err != nil {
		return none, fmt.Errorf("executable of process %d (must be alive, dumpable and of the platform's pid namespace): %w", pid, err)
	}
	defer f.Close()
	m, err := hash(f)
	if err != nil {
		return none, fmt.Errorf("executable of process %d: %w", pid, err)
	}
	opened, err := f.Stat()
	if err != nil {
		return none, err
	}
	now, _ := os.Stat(path) // nil is no file
	if !os.SameFile(opened, now) {
		return none, fmt.Errorf("process %d changed its executable or ended while it was measured", pid)
	}
	if alive, err := processAlive(pidfd); err != nil || !alive {
		return none, errors.Join(fmt.Errorf("process %d ended while it was measured", pid), err)
	}
	return m, nil
}

// processAlive reports whether the process of a pidfd has not ended; a zombie has.
func processAlive(pidfd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n == 0, err
	}
}

// hashExecutable returns the SHA-384 of all of f.
func hashExecutable(f *os.File) ([MeasurementSize]byte, error) {
	var m [MeasurementSize]byte
	h := sha512.New384()
	n, err := io.Copy(h, io.LimitReader(f, maxExecutable+1))
	if err != nil {
		return m, err
	}
	if n > maxExecutable {
		return m, fmt.Errorf("over the limit of %d bytes", maxExecutable)
	}
	h.Sum(m[:0])
	return m, nil
}
