package run

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/service"
	"golang.org/x/sys/unix"
)

// Blob is bytes in sealed anonymous memory: nobody can change them any more, and no file
// system has them. Its zero value holds nothing.
type Blob struct {
	file       *os.File // read-only
	size       int64
	executable bool
}

// Receive reads exactly want.Size bytes from r into sealed memory. They must have want's
// digest and, if they are to be executed, be a program that can be. Bytes that r has beyond
// that are left there.
func Receive(want service.Blob, executable bool, r io.Reader) (*Blob, error) {
	if want.Size < 1 {
		return nil, fmt.Errorf("%d bytes, want at least one", want.Size)
	}
	f, err := newMemory(executable)
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	defer f.Close() // a descriptor that could write keeps the program from being executed
	hash := sha256.New()
	if n, err := io.CopyN(io.MultiWriter(f, hash), r, want.Size); err != nil {
		return nil, fmt.Errorf("%d of %d bytes came: %w", n, want.Size, err)
	}
	if got := service.Digest(hash.Sum(nil)); got != want.SHA256 {
		return nil, fmt.Errorf("SHA-256 is %s, want %s", got, want.SHA256)
	}
	if executable {
		if err := checkStatic(f); err != nil {
			return nil, err
		}
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("memory: seal: %w", err)
	}
	b := &Blob{size: want.Size, executable: executable}
	if b.file, err = reopen(f); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	return b, nil
}

// newMemory makes an anonymous file. Kernels before 6.3 do not know the second flag and
// make all of them executable.
func newMemory(executable bool) (*os.File, error) {
	mode := unix.MFD_NOEXEC_SEAL
	if executable {
		mode = unix.MFD_EXEC
	}
	fd, err := unix.MemfdCreate("meshnode-service", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|mode)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("meshnode-service", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}

// reopen opens the same memory once more, for reading, with an offset of its own.
func reopen(f *os.File) (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

// Close gives the memory back once no process has it open.
func (b *Blob) Close() {
	if b != nil && b.file != nil {
		b.file.Close()
	}
}

// ELF constants (System V ABI, "ELF Header" and "Program Header").
const (
	elfHeader   = 64
	elfProgram  = 56
	elfInterp   = 3 // PT_INTERP
	elfExec     = 2
	elfDyn      = 3 // what a static position-independent executable is as well
	machineX86  = 62
	machineArm  = 183
	maxPrograms = 256
)

// checkStatic wants a 64-bit executable of this machine that needs no loader: there are no
// libraries where it runs, and none of them would have been measured.
func checkStatic(r io.ReaderAt) error {
	var h [elfHeader]byte
	if _, err := r.ReadAt(h[:], 0); err != nil || string(h[:4]) != "\x7fELF" {
		return errors.New("the program is no ELF executable")
	}
	machine := map[string]uint16{"amd64": machineX86, "arm64": machineArm}[runtime.GOARCH]
	le := binary.LittleEndian
	kind, arch, at, size, count := le.Uint16(h[16:]), le.Uint16(h[18:]), le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])
	if h[4] != 2 || h[5] != 1 || kind != elfExec && kind != elfDyn || arch != machine || machine == 0 {
		return fmt.Errorf("the program is no executable for %s: class %d, type %d, machine %d", runtime.GOARCH, h[4], kind, arch)
	}
	if size != elfProgram || count > maxPrograms || at > service.MaxProgram {
		return fmt.Errorf("the program has %d program headers of %d bytes at %d", count, size, at)
	}
	for i := range int64(count) {
		var p [elfProgram]byte
		if _, err := r.ReadAt(p[:], int64(at)+i*elfProgram); err != nil {
			return fmt.Errorf("the program's headers are cut off: %w", err)
		}
		if le.Uint32(p[:]) == elfInterp {
			return errors.New("the program is linked dynamically; build it static (Go: CGO_ENABLED=0; C: -static)")
		}
	}
	return nil
}

// NoCores keeps this process from leaving a core on a disk, or with a program: what services
// are asked is in its memory. 1 and not 0, see limitsFor.
func NoCores() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}) }

// Swap returns where this machine may write memory to a disk: what it holds in clear could
// then be read there. Compressed memory is no disk.
func Swap() ([]string, error) {
	f, err := os.Open("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return swapAreas(f)
}

func swapAreas(r io.Reader) ([]string, error) {
	var areas []string
	s := bufio.NewScanner(r)
	for s.Scan() {
		name, _, _ := strings.Cut(s.Text(), " ")
		name, _, _ = strings.Cut(name, "\t")
		if name == "" || name == "Filename" || strings.HasPrefix(path.Base(name), "zram") {
			continue
		}
		areas = append(areas, name)
	}
	return areas, s.Err()
}

// CheckMemory reports whether program and model fit beside what runs already: each is held
// once, and the process may hold the model again in its own form.
func CheckMemory(m *service.Manifest) error {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return err
	}
	defer f.Close()
	available, err := memAvailable(f)
	if err != nil {
		return err
	}
	if need := 2*m.Program.Size + (1+memoryPerModel)*m.Model.Size + memoryReserve; need > available {
		return fmt.Errorf("%d MiB are needed and %d MiB available", need>>20, available>>20)
	}
	return nil
}

func memAvailable(r io.Reader) (int64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 50)
			return kib << 10, err
		}
	}
	return 0, errors.Join(errors.New("/proc/meminfo has no MemAvailable"), s.Err())
}
