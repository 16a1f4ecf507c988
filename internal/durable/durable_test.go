package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errInjected = errors.New("injected")

// Each step of a write fails once: the file then holds the old or the new content, never
// a mixture, and no temporary file stays.
func TestEveryStepFails(t *testing.T) {
	for _, op := range []Op{OpCreate, OpWrite, OpSync, OpRename, OpDirSync} {
		root := t.TempDir()
		armed := false
		d, err := Open(root, WithFault(func(o Op, _ string) error {
			if armed && o == op {
				return errInjected
			}
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.WriteFile("a/b", []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		armed = true
		if err := d.WriteFile("a/b", []byte("new"), 0o600); !errors.Is(err, errInjected) {
			t.Fatalf("%s: got %v", op, err)
		}
		got, err := d.ReadFile("a/b", 10)
		if err != nil || (string(got) != "old" && string(got) != "new") {
			t.Errorf("%s: got %q, %v", op, got, err)
		}
		if op != OpDirSync && string(got) != "old" {
			t.Errorf("%s: content changed before the rename", op)
		}
		left, _ := filepath.Glob(filepath.Join(root, "a", ".*tmp*"))
		if len(left) != 0 {
			t.Errorf("%s: left %v", op, left)
		}
	}
}

func TestReadLimitAndRemove(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Replace("x", []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadFile("x", 4); err == nil {
		t.Error("a file over the limit was read")
	}
	if err := d.Remove("x"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("x"); err != nil {
		t.Errorf("removing an absent file: %v", err)
	}
	if _, err := os.Stat(d.Path("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestHeldChangesNothing(t *testing.T) {
	path := t.TempDir()
	if err := Held(filepath.Join(path, "absent")); err != nil {
		t.Errorf("an absent directory: %v", err)
	}
	if err := Held(path); err != nil {
		t.Errorf("a directory that was never locked: %v", err)
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
		t.Errorf("looking left %v, %v", entries, err)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	release, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := Held(path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a locked directory: %v", err)
	}
	release()
	if err := Held(path); err != nil {
		t.Errorf("a directory whose lock was released: %v", err)
	}
	if release, err = d.Lock(); err != nil {
		t.Fatalf("after looking: %v", err)
	}
	release()
}

// A lock that somebody lets go within a second is waited for, as that of the child of a killed process.
func TestLockWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		release, err := d.Lock()
		if err != nil {
			t.Fatal(err)
		}
		locked := make(chan error, 1)
		go func() {
			again, err := d.Lock()
			if err == nil {
				again()
			}
			locked <- err
		}()
		time.Sleep(lockPatience / 2)
		select {
		case err := <-locked:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		release()
		if err := <-locked; err != nil {
			t.Errorf("after it was let go: %v", err)
		}
	})
}

func TestLockNamesHolder(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	release, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("got %v", err)
	}
	release()
	again, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestOpenRefusesFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil {
		t.Error("a file was opened as a directory")
	}
}

// Discard removes files and empty directories, and only those; Sync reaches every
// directory between a file and the root.
func TestDiscardAndSyncOfDirectories(t *testing.T) {
	var synced []string
	root := t.TempDir()
	d, err := Open(root, WithFault(func(o Op, path string) error {
		if o == OpDirSync {
			synced = append(synced, strings.TrimPrefix(path, root))
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Replace("a/b/c", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync("a/b/c"); err != nil || len(synced) != 3 {
		t.Errorf("synced %q, %v; want the root, a and a/b", synced, err)
	}
	if err := d.Discard("a/b"); err == nil {
		t.Error("a directory with a file in it was removed")
	}
	for _, name := range []string{"a/b/c", "a/b", "a/b"} {
		if err := d.Discard(name); err != nil {
			t.Errorf("Discard(%s): %v", name, err)
		}
	}
	if _, err := os.Stat(d.Path("a", "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
