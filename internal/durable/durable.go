// Package durable is the only way in which meshnode writes files it must find again.
//
// A Dir writes a file by creating a temporary file beside it, writing, fsync(2), rename(2)
// and fsync of the directory, so that after a crash at any point the file holds either
// the old or the new content and, once WriteFile has returned, the new one. Replace does
// the same without the two fsyncs, for files that a log elsewhere can rebuild; Sync makes
// them durable later. An fsync that fails is final: the caller must stop writing.
//
// Tests inject failures by WithFault, which sees every step before it is taken.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Op is one step of a write, as seen by a fault hook.
type Op string

// The steps in their order.
const (
	OpCreate  Op = "create"
	OpWrite   Op = "write"
	OpSync    Op = "fsync"
	OpRename  Op = "rename"
	OpDirSync Op = "fsync-dir"
	OpRemove  Op = "remove"
)

// ErrInUse is wrapped by Lock's error when another process holds the directory.
var ErrInUse = errors.New("in use by another process")

// Dir is a directory in which files are written durably. Methods may be called from
// several goroutines as long as no two write the same name at once.
type Dir struct {
	path  string
	fault func(op Op, path string) error
	mode  fs.FileMode // of directories that are made
}

// Option configures Open.
type Option func(*Dir)

// WithFault makes every step call hook first and fail with its error.
func WithFault(hook func(op Op, path string) error) Option {
	return func(d *Dir) { d.fault = hook }
}

// Public makes directories that everybody may read (mode 0755).
func Public() Option {
	return func(d *Dir) { d.mode = 0o755 }
}

// Open returns the directory at path, making it (mode 0700, unless Public) where it is absent.
func Open(path string, opts ...Option) (*Dir, error) {
	d := &Dir{path: path, fault: func(Op, string) error { return nil }, mode: 0o700}
	for _, o := range opts {
		o(d)
	}
	if err := os.MkdirAll(path, d.mode); err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%s: is not a directory", path)
	}
	return d, nil
}

// Path returns the directory's path, or that of elem below it.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Sub returns the directory name below d, made where absent; options are inherited.
func (d *Dir) Sub(name string) (*Dir, error) {
	return Open(d.Path(name), WithFault(d.fault), func(sub *Dir) { sub.mode = d.mode })
}

// WriteFile writes data to name (slash-separated, below d) durably.
func (d *Dir) WriteFile(name string, data []byte, perm fs.FileMode) error {
	return d.write(name, data, perm, true)
}

// Replace writes data to name atomically but not durably.
func (d *Dir) Replace(name string, data []byte, perm fs.FileMode) error {
	return d.write(name, data, perm, false)
}

// ReadFile reads name and refuses files over max bytes.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	f, err := os.Open(d.Path(filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: over the limit of %d bytes", f.Name(), max)
	}
	return data, nil
}

// Remove deletes name durably; an absent file is no error.
func (d *Dir) Remove(name string) error {
	path := d.Path(filepath.FromSlash(name))
	if err := d.fault(OpRemove, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// Discard deletes name, or an empty directory of that name, but not durably: after a
// crash it may be back. An absent file is no error.
func (d *Dir) Discard(name string) error {
	path := d.Path(filepath.FromSlash(name))
	if err := d.fault(OpRemove, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sync makes earlier Replaces of the named files durable, with the directories between
// them and d.
func (d *Dir) Sync(names ...string) error {
	dirs := map[string]bool{}
	for _, name := range names {
		path := d.Path(filepath.FromSlash(name))
		if err := d.fault(OpSync, path); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
		for dir := filepath.Dir(path); !dirs[dir]; dir = filepath.Dir(dir) {
			dirs[dir] = true
			if dir == d.path || !strings.HasPrefix(dir, d.path) {
				break
			}
		}
	}
	for dir := range dirs {
		if err := d.syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) write(name string, data []byte, perm fs.FileMode, sync bool) (err error) {
	path := d.Path(filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), d.mode); err != nil {
		return err
	}
	if err := d.fault(OpCreate, path); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := d.fault(OpWrite, path); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if sync {
		if err := d.fault(OpSync, path); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := d.fault(OpRename, path); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	return d.syncDir(filepath.Dir(path))
}

func (d *Dir) syncDir(path string) error {
	if err := d.fault(OpDirSync, path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Held returns the error that Lock would return where another process holds the directory
// at path, and nil where none does. It makes and changes nothing; an absent directory is
// held by nobody.
func Held(path string) error {
	f, err := os.Open(filepath.Join(path, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return flock(f, path)
}

// flock locks f until it is closed.
func flock(f *os.File, dir string) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
		return fmt.Errorf("%s: %w (pid %s)", dir, ErrInUse, strings.TrimSpace(string(holder)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// lockName is the file that a lock is taken on; it holds the pid of the last holder.
const lockName = ".lock"

// lockPatience is how long Lock waits for another process. One that is killed as it starts a child
// leaves the lock to the child, whose copy of the descriptor is closed only when its program begins.
const lockPatience = time.Second

// Lock takes the directory for this process until release is called or the process ends.
// Where another process holds it for a second the error wraps ErrInUse and names its pid.
func (d *Dir) Lock() (release func(), err error) {
	path := d.Path(lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f, d.path)
	for end := time.Now().Add(lockPatience); errors.Is(err, ErrInUse) && time.Now().Before(end); err = flock(f, d.path) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
