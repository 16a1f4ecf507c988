package collateral

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/durable"
)

// suffixes are those of object files by type.
var suffixes = map[string]string{
	attest.TypeCertificate: ".crt",
	attest.TypeCRL:         ".crl",
	attest.TypeTDXTCBInfo:  ".tcb-info.json",
	attest.TypeTDXQEIdent:  ".qe-identity.json",
	attest.TypeTDXTCBChain: ".tcb-signing-chain.pem",
}

const objects = "objects"

// Damage is a file of a store that cannot be used.
type Damage struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

// Store is a directory of objects. It is safe for concurrent use, also by several processes:
// objects are never changed, and what others put is seen by the next call of Index.
type Store struct {
	dir   *durable.Dir
	limit int // of objects

	mu      sync.Mutex
	known   map[string]Entry  // by file name
	damaged map[string]string // why, by file name
}

// IsStore reports whether the directory at path is a store.
func IsStore(path string) bool {
	info, err := os.Stat(path + "/" + objects)
	return err == nil && info.IsDir()
}

// Open opens the store at path, making an empty one where nothing is. Options are for tests.
func Open(path string, opts ...durable.Option) (*Store, error) {
	dir, err := durable.Open(path, opts...)
	if err == nil {
		_, err = dir.Sub(objects)
	}
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, limit: maxObjects, known: map[string]Entry{}, damaged: map[string]string{}}
	_, err = s.Index()
	return s, err
}

// Dir returns the directory, in which package fetch keeps its memory of servers.
func (s *Store) Dir() *durable.Dir { return s.dir }

// Lock keeps other processes from writing until release is called.
func (s *Store) Lock() (release func(), err error) { return s.dir.Lock() }

// Index returns the index of all objects that are there now.
func (s *Store) Index() (Index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index()
}

func (s *Store) index() (Index, error) {
	files, err := os.ReadDir(s.dir.Path(objects))
	if err != nil {
		return Index{}, err
	}
	if len(files) > s.limit {
		return Index{}, fmt.Errorf("%s: %d files, the limit is %d; move what is no longer judged elsewhere", s.dir.Path(objects), len(files), s.limit)
	}
	known, damaged := make(map[string]Entry, len(files)), map[string]string{}
	entries := make([]Entry, 0, len(files))
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") { // a write that is under way, or was cut off
			continue
		}
		e, ok := s.known[f.Name()]
		if !ok {
			if e, err = s.load(f.Name()); err != nil {
				damaged[f.Name()] = err.Error()
				continue
			}
		}
		known[f.Name()] = e
		entries = append(entries, e)
	}
	s.known, s.damaged = known, damaged
	return NewIndex(entries...), nil
}

// load reads one object and compares it with its name.
func (s *Store) load(name string) (Entry, error) {
	digest, suffix, _ := strings.Cut(name, ".")
	for itemType, want := range suffixes {
		if "."+suffix != want {
			continue
		}
		raw, err := s.dir.ReadFile(objects+"/"+name, maxObject)
		if err != nil {
			return Entry{}, err
		}
		e, err := Read(attest.Item{Type: itemType, Data: raw})
		if err != nil {
			return Entry{}, err
		}
		if e.Digest != digest {
			return Entry{}, fmt.Errorf("its content has digest %s", e.Digest)
		}
		return e, nil
	}
	return Entry{}, errors.New("no name of an object")
}

// Damaged lists the files that the last Index could not use.
func (s *Store) Damaged() []Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Damage
	for file, why := range s.damaged {
		out = append(out, Damage{objects + "/" + file, why})
	}
	slices.SortFunc(out, func(a, b Damage) int { return strings.Compare(a.File, b.File) })
	return out
}

// Put keeps a verified object durably. added is false if it was there.
func (s *Store) Put(v Verified) (added bool, err error) {
	e := v.entry
	if e.Name == "" {
		return false, errors.New("collateral: nothing was verified")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	file := e.Digest + suffixes[e.Type]
	if _, ok := s.known[file]; ok {
		return false, nil
	}
	if len(s.known) >= s.limit {
		return false, fmt.Errorf("collateral: the store has %d objects, which is its limit", len(s.known))
	}
	if err := s.dir.WriteFile(objects+"/"+file, e.data, fs.FileMode(0o644)); err != nil {
		return false, err
	}
	s.known[file] = e
	delete(s.damaged, file)
	return true, nil
}

// Complete returns evidence with the collateral of the store that counts at a time; see
// Index.Complete. Where the store cannot be read evidence is returned as it is: it is then
// for the verifier to say what is missing.
func (s *Store) Complete(ev attest.Evidence, at time.Time) attest.Evidence {
	index, err := s.Index()
	if err != nil {
		return ev
	}
	out, _ := index.Complete(ev, at)
	if out.Check() != nil {
		return ev // more than evidence may hold
	}
	return out
}
