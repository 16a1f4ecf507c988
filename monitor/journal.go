package monitor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/attestmesh/meshnode/internal/durable"
)

// maxLine bounds one alert as it is kept; messages are cut to maxMessage before.
const (
	maxLine    = 64 << 10
	maxMessage = 8 << 10
)

// journal is the file of all alerts, one JSON object a line, to which is only added. It is the
// record of the monitor and the queue of its outputs, which each remember how far they have read.
type journal struct {
	f    *os.File
	size int64 // of whole lines
	// known are the ids behind the place that the state covers: the monitor was killed after it
	// had kept them and before it had kept the state that they came from, so they will come again.
	known map[string]bool
	fault func(step string) error // in tests
}

// openJournal opens the file in dir and removes a line at its end that is not whole: it was never
// acknowledged. covered is the size of which the state knows.
func openJournal(dir *durable.Dir, covered int64) (*journal, error) {
	f, err := os.OpenFile(dir.Path(journalName), os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err = dir.WriteFile(journalName, nil, 0o600); err == nil {
			f, err = os.OpenFile(dir.Path(journalName), os.O_RDWR|os.O_APPEND, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	j := &journal{f: f, known: map[string]bool{}}
	if err := j.recover(covered); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) recover(covered int64) error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < covered {
		return fmt.Errorf("%w: %s has %d bytes, the state says that it had %d: it was cut from outside", ErrBroken, j.f.Name(), st.Size(), covered)
	}
	j.size = covered
	r := bufio.NewReaderSize(io.NewSectionReader(j.f, covered, st.Size()-covered), maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			break // what is left is no whole line
		}
		var a Alert
		if err != nil || json.Unmarshal(line, &a) != nil {
			break // a write that did not come to the disk whole
		}
		j.known[a.ID] = true
		j.size += int64(len(line))
	}
	if j.size == st.Size() {
		return nil
	}
	if err := j.f.Truncate(j.size); err != nil {
		return err
	}
	return j.f.Sync()
}

func (j *journal) Close() error { return j.f.Close() }

// add appends the lines of r, which are whole, but not those known; then it is on the disk.
func (j *journal) add(r io.Reader) error {
	if err := j.step("append"); err != nil {
		return err
	}
	in, out := bufio.NewReaderSize(r, maxLine), bufio.NewWriterSize(j.f, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("alerts: %w", err)
		}
		var a struct {
			ID string `json:"id"`
		}
		if len(j.known) > 0 && json.Unmarshal(line, &a) == nil && j.known[a.ID] {
			continue
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
		j.size += int64(len(line))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := j.step("sync"); err != nil {
		return err
	}
	return j.f.Sync()
}

func (j *journal) step(name string) error {
	if j.fault == nil {
		return nil
	}
	return j.fault(name)
}

// line returns the line at an offset and the offset behind it; io.EOF at limit.
func (j *journal) line(at, limit int64) ([]byte, int64, error) {
	if at >= limit {
		return nil, at, io.EOF
	}
	line, err := bufio.NewReaderSize(io.NewSectionReader(j.f, at, limit-at), 4096).ReadBytes('\n')
	if err != nil {
		return nil, at, fmt.Errorf("%s at byte %d: %w", j.f.Name(), at, err)
	}
	return line, at + int64(len(line)), nil
}

// encodeAlert is the line of an alert.
func encodeAlert(a Alert) ([]byte, error) {
	a.Type = "alert"
	if len(a.Message) > maxMessage {
		a.Message = a.Message[:maxMessage] + "…"
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(a); err != nil {
		return nil, err
	}
	if buf.Len() > maxLine {
		return nil, fmt.Errorf("an alert of %d bytes, the limit is %d", buf.Len(), maxLine)
	}
	return buf.Bytes(), nil
}
