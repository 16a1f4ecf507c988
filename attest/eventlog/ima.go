package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// ParseIMA replays an IMA runtime measurement list, ASCII or binary (little endian).
func ParseIMA(raw []byte) (Log, error) {
	if len(raw) == 0 || len(raw) > MaxLog {
		return Log{}, fmt.Errorf("ima: %d bytes, want 1 to %d", len(raw), MaxLog)
	}
	out := Log{Format: "ima", Banks: map[string]map[int][]byte{}}
	var err error
	if raw[0] >= '0' && raw[0] <= '9' {
		err = out.ascii(raw)
	} else {
		err = out.binary(raw)
	}
	if err != nil {
		return Log{}, err
	}
	return out, nil
}

// measure extends one bank of register n; an all-zero digest is a violation.
func (l *Log) measure(hash crypto.Hash, n int, digest []byte) {
	bank := bankNames[hash]
	if l.Banks[bank] == nil {
		l.Banks[bank] = map[int][]byte{}
	}
	if l.Banks[bank][n] == nil {
		l.Banks[bank][n] = make([]byte, hash.Size())
	}
	if bytes.Count(digest, []byte{0}) == len(digest) {
		digest = bytes.Repeat([]byte{0xff}, len(digest))
	}
	l.Banks[bank][n] = extend(hash, l.Banks[bank][n], digest)
}

// ascii reads lines "PCR TEMPLATE-DIGEST TEMPLATE …". The fields after the name are not
// covered by anything here: the template digest alone is replayed.
func (l *Log) ascii(raw []byte) error {
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		l.Entries++
		f := strings.SplitN(line, " ", 4)
		if l.Entries > MaxEvents || len(f) < 4 {
			return fmt.Errorf("ima: line %d: want PCR DIGEST TEMPLATE DATA, at most %d lines", l.Entries, MaxEvents)
		}
		n, err := strconv.Atoi(f[0])
		if err != nil || n < 0 || n > 23 {
			return fmt.Errorf("ima: line %d: register %q, want 0 to 23", l.Entries, f[0])
		}
		digest, err := hex.DecodeString(f[1])
		if err != nil || len(digest) != 20 && len(digest) != 32 {
			return fmt.Errorf("ima: line %d: template digest %q, want 20 or 32 bytes in hex", l.Entries, f[1])
		}
		if !strings.HasPrefix(f[2], "ima") || len(f[2]) > maxName {
			return fmt.Errorf("ima: line %d: template %q, want an ima template", l.Entries, f[2])
		}
		// Newer kernels list SHA-256 template digests in a file of their own.
		hash := crypto.SHA1
		if len(digest) == crypto.SHA256.Size() {
			hash = crypto.SHA256
		}
		l.measure(hash, n, digest)
	}
	if l.Entries == 0 {
		return fmt.Errorf("ima: no entries")
	}
	return nil
}

// binary reads entries {u32 PCR, 20-byte digest, u32 length, name, u32 length, data}.
func (l *Log) binary(raw []byte) error {
	r := bytes.NewReader(raw)
	for r.Len() > 0 {
		l.Entries++
		var head struct {
			PCR     uint32
			Digest  [20]byte
			NameLen uint32
		}
		if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
			return fmt.Errorf("ima: entry %d: cut short", l.Entries)
		}
		if l.Entries > MaxEvents || head.PCR > 23 || head.NameLen > maxName {
			return fmt.Errorf("ima: entry %d: register %d, name of %d bytes", l.Entries, head.PCR, head.NameLen)
		}
		name := make([]byte, head.NameLen)
		var size uint32
		if _, err := r.Read(name); err != nil || binary.Read(r, binary.LittleEndian, &size) != nil || int64(size) > int64(r.Len()) {
			return fmt.Errorf("ima: entry %d: cut short", l.Entries)
		}
		if !strings.HasPrefix(string(name), "ima-") {
			return fmt.Errorf("ima: entry %d: template %q is not supported", l.Entries, name)
		}
		data := make([]byte, size)
		_, _ = r.Read(data) // the size was checked; bytes.Reader gives all or EOF for none
		violation := head.Digest == [20]byte{}
		if h := crypto.SHA1.New(); !violation {
			h.Write(data)
			if !bytes.Equal(h.Sum(nil), head.Digest[:]) {
				return fmt.Errorf("ima: entry %d: the template digest is not that of its data", l.Entries)
			}
		}
		l.measure(crypto.SHA1, int(head.PCR), head.Digest[:])
		wide := make([]byte, crypto.SHA256.Size())
		if h := crypto.SHA256.New(); !violation {
			h.Write(data)
			wide = h.Sum(nil)
		}
		l.measure(crypto.SHA256, int(head.PCR), wide)
	}
	return nil
}
