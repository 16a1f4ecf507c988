package vtpm

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

// meddler passes commands on to a TPM. Before each it calls meddle, which may do something
// to the TPM, and may have the connection closed once the command was carried out.
type meddler struct {
	mu     sync.Mutex
	seen   map[tpmutil.Command]int // guarded by mu
	meddle func(command tpmutil.Command, nth int) (hangUp bool)
}

func startMeddler(t *testing.T, tpm *vtpmtest.TPM) (*meddler, string) {
	m := &meddler{seen: map[tpmutil.Command]int{}}
	path, _ := serveTPM(t, func(conn net.Conn) {
		backend, err := net.Dial("unix", tpm.Socket)
		if err != nil {
			return
		}
		defer backend.Close()
		for m.pass(conn, backend) == nil {
		}
	})
	return m, path
}

// message reads one by its header.
func message(r io.Reader) ([]byte, error) {
	head := make([]byte, tpmHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	out := append(head, make([]byte, binary.BigEndian.Uint32(head[2:])-tpmHeader)...)
	_, err := io.ReadFull(r, out[tpmHeader:])
	return out, err
}

func (m *meddler) pass(conn, backend net.Conn) error {
	raw, err := message(conn)
	if err != nil {
		return err
	}
	command := tpmutil.Command(binary.BigEndian.Uint32(raw[6:]))
	m.mu.Lock()
	m.seen[command]++
	hangUp := m.meddle != nil && m.meddle(command, m.seen[command])
	m.mu.Unlock()
	if _, err := backend.Write(raw); err != nil {
		return err
	}
	answer, err := message(backend)
	if err == nil && hangUp {
		err = net.ErrClosed
	}
	if err == nil {
		_, err = conn.Write(answer)
	}
	return err
}

// with sets what is done from now on.
func (m *meddler) with(f func(command tpmutil.Command, nth int) (hangUp bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meddle = f
}

func (m *meddler) count(command tpmutil.Command) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[command]
}

// IMA may extend a register between the quote and the reading of the registers: the quote
// is made again, but not for ever.
func TestAttesterQuotesAgainWhereRegistersMove(t *testing.T) {
	tpm := vtpmtest.Start(t)
	m, socket := startMeddler(t, tpm)
	a := NewAttester(Options{Device: socket})
	defer a.Close()
	moves := 0
	m.with(func(command tpmutil.Command, _ int) bool {
		if command == tpm2.CmdPCRRead && moves > 0 {
			moves--
			tpm.Event(t, 10, []byte("a file"))
		}
		return false
	})
	for want, n := range map[int]int{1: 0, 2: 1} {
		m.mu.Lock()
		moves, m.seen = n, map[tpmutil.Command]int{}
		m.mu.Unlock()
		if _, err := a.Attest(t.Context(), mesh.ReportData{}); err != nil || m.count(tpm2.CmdQuote) != want {
			t.Errorf("%d moves: %d quotes, %v, want %d", n, m.count(tpm2.CmdQuote), err, want)
		}
	}
	m.mu.Lock()
	moves, m.seen = 1000, map[tpmutil.Command]int{}
	m.mu.Unlock()
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); err == nil || !strings.Contains(err.Error(), "5 quotes, none over the registers") || m.count(tpm2.CmdQuote) != quoteTries {
		t.Errorf("%d quotes, %v, want %d and no more", m.count(tpm2.CmdQuote), err, quoteTries)
	}
}

// Where the channel is lost a quote is made again over a new one; an extension, which may
// have been carried out, is not.
func TestAttesterRepeatsNoExtension(t *testing.T) {
	tpm := vtpmtest.Start(t)
	m, socket := startMeddler(t, tpm)
	a := NewAttester(Options{Device: socket})
	defer a.Close()
	digest, err := a.AKDigest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.with(func(command tpmutil.Command, nth int) bool {
		return nth == 1 && (command == tpm2.CmdQuote || command == tpm2.CmdPCREvent)
	})
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); err != nil || m.count(tpm2.CmdQuote) != 2 {
		t.Errorf("%d quotes, %v, want a second", m.count(tpm2.CmdQuote), err)
	}
	if err := a.Extend(t.Context(), []byte("event")); err == nil || m.count(tpm2.CmdPCREvent) != 1 {
		t.Errorf("%d extensions, %v, want one and an error", m.count(tpm2.CmdPCREvent), err)
	}
	if err := a.Extend(t.Context(), []byte("event")); err != nil {
		t.Errorf("over a new channel: %v", err)
	}
	if again, err := a.AKDigest(t.Context()); err != nil || again != digest {
		t.Errorf("got key %s, %v, want %s", again, err, digest)
	}
	// A key that is no longer loaded is made again, at the first word of that.
	conn, err := net.Dial("unix", tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := tpm2.FlushContext(conn, a.key.Handle()); err != nil {
		t.Fatal(err)
	}
	quotes := m.count(tpm2.CmdQuote)
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); err != nil || m.count(tpm2.CmdQuote) != quotes+2 {
		t.Errorf("%d quotes, %v, want a second", m.count(tpm2.CmdQuote)-quotes, err)
	}
	// A first call has no channel to lose: what fails is told at once.
	b := NewAttester(Options{Device: socket})
	defer b.Close()
	m.with(func(command tpmutil.Command, _ int) bool { return command == tpm2.CmdQuote })
	before := m.count(tpm2.CmdQuote)
	if _, err := b.Attest(t.Context(), mesh.ReportData{}); err == nil || strings.Contains(err.Error(), "5 quotes") || m.count(tpm2.CmdQuote) != before+1 {
		t.Errorf("%d quotes, %v, want one and an error", m.count(tpm2.CmdQuote)-before, err)
	}
}

// The certificates between endorsement key and root are the configuration's.
func TestEndorseAddsTheChain(t *testing.T) {
	tpm, a := start(t, func(m *vtpmtest.TPM, o *Options) { o.EKChain = filepath.Join(m.Dir, "chain.pem") })
	one := tpm.IssuerPEM()
	for name, tc := range map[string]struct {
		file []byte
		want int
	}{
		"one":      {one, 1},
		"the most": {bytes.Repeat(one, maxEKChain), maxEKChain},
		"too many": {bytes.Repeat(one, maxEKChain+1), 0},
		"none":     {[]byte("nothing"), 0},
		"a key":    {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), 0},
	} {
		if err := os.WriteFile(a.opts.EKChain, tc.file, 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := a.Endorse(t.Context())
		if tc.want == 0 {
			if err == nil || !strings.Contains(err.Error(), a.opts.EKChain) {
				t.Errorf("%s: got %v, want an error that names the file", name, err)
			}
			continue
		}
		if err != nil || len(e.Intermediates) != tc.want || !bytes.Equal(e.Intermediates[0], tpm.Issuer.Raw) {
			t.Errorf("%s: got %v, %v, want %d", name, e, err, tc.want)
		}
	}
}

// A key of a template in an NV index, as Google's machines have, and a certificate of
// another key, which is refused.
func TestProvisionedKeyFromATemplate(t *testing.T) {
	tpm := vtpmtest.Start(t)
	tpm.ProvisionAK(t)
	const template, foreign = 0x01c10003, 0x01c1000f
	area, err := attestationTemplate().Encode()
	if err != nil {
		t.Fatal(err)
	}
	tpm.WriteIndex(t, template, area)
	tpm.WriteIndex(t, foreign, append(bytes.Clone(tpm.Issuer.Raw), 0xff, 0xff)) // padded, as some are
	a := NewAttester(Options{Device: tpm.Socket, AK: &ProvisionedAK{TemplateIndex: template}})
	defer a.Close()
	ev, err := a.Attest(t.Context(), mesh.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := Parse(ev.Find(mesh.TypeTPMQuote)[0]); err != nil || len(msg.GetAkCert()) != 0 {
		t.Errorf("got a certificate of %d bytes, %v, want none", len(msg.GetAkCert()), err)
	}
	for name, tc := range map[string]struct {
		ak   ProvisionedAK
		says string
	}{
		"another key's certificate": {ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: foreign}, "NV index 0x1c1000f"},
		"no certificate there":      {ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: 0x01c1fff0}, "NV index 0x1c1fff0"},
		"no certificate at all":     {ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: template}, "no certificate"},
		"no template there":         {ProvisionedAK{TemplateIndex: 0x01c1fff0}, "template 0x1c1fff0"},
	} {
		b := NewAttester(Options{Device: tpm.Socket, AK: &tc.ak})
		if _, err := b.Attest(t.Context(), mesh.ReportData{}); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want one that says %q", name, err, tc.says)
		}
		b.Close()
	}
	if _, err := x509.ParseCertificate(tpm.Issuer.Raw); err != nil {
		t.Error(err)
	}
}
