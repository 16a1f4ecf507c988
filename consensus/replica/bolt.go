package replica

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/attestmesh/meshnode/internal/durable"
)

// boltFile is the store's only file. Every value begins with the CRC-32C of its key and the rest of
// it, u32: bbolt does not notice a page that has changed. Bucket "log" maps index u64 to an
// entry: version u8 = 1, type u8, term u64, data. Bucket "stable" maps raft's keys to bytes or u64, and
// "commit-index" to the newest index known to be committed when entries were last stored. Bucket
// "snapshot" maps "newest", without that CRC, to: version u8 = 1, index u64, term u64, configuration index u64,
// configuration length u32, configuration, SHA-256 [32] of everything else, data.
const (
	boltFile     = "raft.db"
	entryVersion = 1
	// boltWait is how long another process may take to give the file up.
	boltWait = time.Second
)

// errNotFound has the text by which raft knows an absent key.
var errNotFound = errors.New("not found")

// boltStore is a Store in one bbolt file. A transaction returns after fsync.
type boltStore struct {
	db     *bolt.DB
	commit uint64 // staged; raft's main loop alone stages and stores
}

func bucketLog() []byte    { return []byte("log") }
func bucketStable() []byte { return []byte("stable") }

func bucketSnapshot() []byte { return []byte("snapshot") }
func keyNewest() []byte      { return []byte(snapshotID) }

func keyCommit() []byte { return []byte("commit-index") }

func openBolt(dir *durable.Dir) (*boltStore, error) {
	path := dir.Path(boltFile)
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: boltWait, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("raft store %s: %w; stop the other node or choose another data directory", path, durable.ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("raft store %s: %w", path, err)
	}
	s := &boltStore{db: db}
	err = db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(bucketLog()); err != nil {
			return err
		}
		if _, err := tx.CreateBucketIfNotExists(bucketSnapshot()); err != nil {
			return err
		}
		_, err := tx.CreateBucketIfNotExists(bucketStable())
		return err
	})
	if err == nil {
		err = dir.Sync(boltFile) // the file's name must survive too
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("raft store %s: %w", path, err)
	}
	return s, nil
}

// Close implements io.Closer.
func (s *boltStore) Close() error { return s.db.Close() }

// FirstIndex implements raft.LogStore.
func (s *boltStore) FirstIndex() (uint64, error) { return s.edge((*bolt.Cursor).First) }

// LastIndex implements raft.LogStore.
func (s *boltStore) LastIndex() (uint64, error) { return s.edge((*bolt.Cursor).Last) }

func (s *boltStore) edge(move func(*bolt.Cursor) (key, value []byte)) (index uint64, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		if k, _ := move(tx.Bucket(bucketLog()).Cursor()); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

// GetLog implements raft.LogStore.
func (s *boltStore) GetLog(index uint64, l *raft.Log) error {
	return s.db.View(func(tx *bolt.Tx) error {
		v, err := unsealed(tx.Bucket(bucketLog()), key64(index))
		if err != nil {
			return fmt.Errorf("%s: entry %d: %w", s.db.Path(), index, err)
		}
		if v == nil {
			return raft.ErrLogNotFound
		}
		if len(v) < 10 || v[0] != entryVersion {
			return fmt.Errorf("entry %d: %w: %d bytes", index, errMalformed, len(v))
		}
		*l = raft.Log{Index: index, Type: raft.LogType(v[1]), Term: binary.BigEndian.Uint64(v[2:])}
		if len(v) > 10 {
			l.Data = append([]byte(nil), v[10:]...) // v is bbolt's
		}
		return nil
	})
}

// StoreLog implements raft.LogStore.
func (s *boltStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *boltStore) StoreLogs(logs []*raft.Log) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketLog())
		last := uint64(0)
		if k, _ := b.Cursor().Last(); k != nil {
			last = binary.BigEndian.Uint64(k)
		}
		if err := checkNext(last, logs); err != nil {
			return err
		}
		b.FillPercent = 0.9 // indices only grow
		for _, l := range logs {
			v := append(make([]byte, 0, 10+len(l.Data)), entryVersion, byte(l.Type))
			v = append(binary.BigEndian.AppendUint64(v, l.Term), l.Data...)
			if err := b.Put(key64(l.Index), sealed(key64(l.Index), v)); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketStable()).Put(keyCommit(), sealed(keyCommit(), key64(s.commit)))
	})
}

// DeleteRange implements raft.LogStore.
func (s *boltStore) DeleteRange(first, last uint64) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketLog()).Cursor()
		for k, _ := c.Seek(key64(first)); k != nil && binary.BigEndian.Uint64(k) <= last; k, _ = c.Seek(key64(first)) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// SaveSnapshot implements Store.
func (s *boltStore) SaveSnapshot(snapshot *Snapshot) error {
	head := appendSnapshotHead(nil, snapshot)
	sum := sha256.New()
	sum.Write(head)
	sum.Write(snapshot.Data)
	v := make([]byte, 0, len(head)+sha256.Size+len(snapshot.Data))
	v = append(sum.Sum(append(v, head...)), snapshot.Data...)
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketSnapshot()).Put(keyNewest(), v) })
}

func appendSnapshotHead(b []byte, s *Snapshot) []byte {
	b = append(b, entryVersion)
	for _, v := range []uint64{s.Index, s.Term, s.ConfigurationIndex} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s.Configuration))), s.Configuration...)
}

// LoadSnapshot implements Store.
func (s *boltStore) LoadSnapshot() (snapshot *Snapshot, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketSnapshot()).Get(keyNewest())
		if v == nil {
			return nil
		}
		snapshot, err = decodeSnapshot(bytes.Clone(v)) // v is bbolt's
		if err != nil {
			err = fmt.Errorf("%s: %w", s.db.Path(), err)
		}
		return err
	})
	return snapshot, err
}

func decodeSnapshot(v []byte) (*Snapshot, error) {
	const fixed = 1 + 3*8 + 4
	if len(v) < fixed || v[0] != entryVersion {
		return nil, fmt.Errorf("snapshot: %w: %d bytes", errMalformed, len(v))
	}
	be := binary.BigEndian
	s := &Snapshot{Index: be.Uint64(v[1:]), Term: be.Uint64(v[9:]), ConfigurationIndex: be.Uint64(v[17:])}
	n := int64(be.Uint32(v[25:]))
	if n+fixed+sha256.Size > int64(len(v)) {
		return nil, fmt.Errorf("snapshot: %w: a configuration of %d bytes in %d", errMalformed, n, len(v))
	}
	head, rest := v[:fixed+n], v[fixed+n:]
	s.Configuration, s.Data = head[fixed:], rest[sha256.Size:]
	sum := sha256.New()
	sum.Write(head)
	sum.Write(s.Data)
	if !bytes.Equal(sum.Sum(nil), rest[:sha256.Size]) {
		return nil, fmt.Errorf("snapshot at entry %d: %w: not what was written", s.Index, errMalformed)
	}
	return s, nil
}

// StageCommitIndex implements raft.CommitTrackingLogStore.
func (s *boltStore) StageCommitIndex(index uint64) error {
	s.commit = index
	return nil
}

// GetCommitIndex implements raft.CommitTrackingLogStore.
func (s *boltStore) GetCommitIndex() (uint64, error) {
	index, err := s.GetUint64(keyCommit())
	if err != nil {
		return 0, err
	}
	last, err := s.LastIndex()
	return min(index, last), err
}

// Set implements raft.StableStore.
func (s *boltStore) Set(key, value []byte) error {
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketStable()).Put(key, sealed(key, value)) })
}

// Get implements raft.StableStore.
func (s *boltStore) Get(key []byte) (value []byte, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		v, err := unsealed(tx.Bucket(bucketStable()), key)
		if err != nil {
			return fmt.Errorf("%s: %q: %w", s.db.Path(), key, err)
		}
		if v == nil {
			return errNotFound
		}
		value = append([]byte{}, v...)
		return nil
	})
	return value, err
}

// SetUint64 implements raft.StableStore.
func (s *boltStore) SetUint64(key []byte, value uint64) error { return s.Set(key, key64(value)) }

// GetUint64 implements raft.StableStore.
func (s *boltStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if errors.Is(err, errNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%q: %w: %d bytes, want 8", key, errMalformed, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// sealed returns what is stored for a value.
func sealed(key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(value)), checksum(key, value)), value...)
}

// unsealed returns the value of a key, nil where there is none.
func unsealed(b *bolt.Bucket, key []byte) ([]byte, error) {
	v := b.Get(key)
	if v == nil {
		return nil, nil
	}
	if len(v) < 4 || binary.BigEndian.Uint32(v) != checksum(key, v[4:]) {
		return nil, fmt.Errorf("%w: not what was written", errMalformed)
	}
	return v[4:], nil
}

func checksum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, table), table, value)
}

func key64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
