package sim

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/attest"
)

// First bytes of an answer.
const (
	answerReport  = 0
	answerRefusal = 1
)

// readFrame reads one frame of at most max bytes; the length is checked before anything
// is allocated. It returns io.EOF only where no byte of a frame had come.
func readFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > uint32(max) {
		return nil, fmt.Errorf("frame of %d bytes, want 1 to %d", n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body, nil
}

// writeFrame writes body as one frame.
func writeFrame(w io.Writer, body []byte) error {
	_, err := w.Write(attest.LengthPrefixed(nil, body))
	return err
}

func encodeRequest(data attest.ReportData) []byte {
	return append([]byte{Version}, data[:]...)
}

func parseRequest(body []byte) (attest.ReportData, error) {
	var data attest.ReportData
	if body[0] != Version {
		return data, fmt.Errorf("request of version %d, want %d", body[0], Version)
	}
	if len(body) != 1+len(data) {
		return data, fmt.Errorf("request of %d bytes, want %d", len(body), 1+len(data))
	}
	copy(data[:], body[1:])
	return data, nil
}

func encodeRefusal(err error) []byte {
	text := err.Error()
	return append([]byte{answerRefusal}, text[:min(len(text), maxRefusal)]...)
}

// refusedError is the platform's own refusal, as opposed to a broken connection.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return fmt.Sprintf("refused: %q", e.text) }

// parseAnswer returns the encoded report of an answer over data.
func parseAnswer(body []byte, data attest.ReportData) ([]byte, error) {
	switch body[0] {
	case answerReport:
		r, err := ParseReport(body[1:])
		if err != nil {
			return nil, err
		}
		if r.ReportData != data {
			return nil, fmt.Errorf("the report carries other report data than was asked for")
		}
		return body[1:], nil
	case answerRefusal:
		text := body[1:]
		return nil, &refusedError{string(text[:min(len(text), maxRefusal)])}
	default:
		return nil, fmt.Errorf("answer of kind %d, want %d or %d", body[0], answerReport, answerRefusal)
	}
}
