// Package vtpmtest gives tests a real TPM 2.0: swtpm, with endorsement keys certified by a
// CA of the test's own, made by swtpm_setup. Each test has a TPM to itself.
//
// swtpm serves one connection at a time and has no resource manager. The socket of a TPM
// here takes any number of connections, passes their commands on one by one and drops what a
// connection leaves loaded, as /dev/tpmrm0 does. Unlike there, objects that one loads are
// visible to the others, and there is room for three in all.
//
// Where swtpm or swtpm_setup (Debian: swtpm, swtpm-tools) is absent the tests skip, saying
// so.
package vtpmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// startWithin is how long swtpm and swtpm_setup may take on a busy machine.
const startWithin = time.Minute

// TPM is a running software TPM.
type TPM struct {
	// Socket takes TPM commands, on any number of connections.
	Socket string
	// Dir is the directory of this TPM alone, with a short path; it goes with the test.
	Dir string
	// Issuer certified the endorsement keys; it is its own root.
	Issuer *x509.Certificate

	key     *ecdsa.PrivateKey // the issuer's
	ak      crypto.PublicKey  // made by ProvisionAK
	backend string            // swtpm's own socket
	process *exec.Cmd
	exited  chan struct{}

	mu      sync.Mutex
	conn    net.Conn          // guarded by mu: the one connection to swtpm
	clients map[net.Conn]bool // guarded by mu
}

// Start starts a TPM that ends with the test.
func Start(t testing.TB) *TPM {
	t.Helper()
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no software TPM: %v (Debian: apt install swtpm swtpm-tools)", err)
		}
	}
	dir, err := os.MkdirTemp("", "vtpm") // t.TempDir's paths are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	m := &TPM{Dir: dir, Socket: filepath.Join(dir, "tpm.sock"), backend: filepath.Join(dir, "swtpm.sock"),
		clients: map[net.Conn]bool{}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := m.manufacture(); err != nil {
		t.Fatal(err)
	}
	if err := m.power(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.unplug)
	l, err := net.Listen("unix", m.Socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { m.serve(l, &serving) })
	t.Cleanup(func() { l.Close(); m.hangUp(); serving.Wait() })
	return m
}

// manufacture makes the TPM's state, endorsement keys and their certificates.
func (m *TPM) manufacture() error {
	for _, sub := range []string{"ca", "state"} {
		if err := os.Mkdir(filepath.Join(m.Dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := m.makeIssuer(); err != nil {
		return err
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return err
	}
	ca := filepath.Join(m.Dir, "ca")
	files := map[string]string{
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s/localca.conf\ncreate_certs_tool_options = %s/localca.options\n",
			localca, m.Dir, m.Dir),
		"localca.conf":    fmt.Sprintf("statedir = %s\nsigningkey = %s/key.pem\nissuercert = %s/cert.pem\ncertserial = %s/serial\n", ca, ca, ca, ca),
		"localca.options": "--platform-manufacturer test\n--platform-version 1\n--platform-model test\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(m.Dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", filepath.Join(m.Dir, "state"), "--create-ek-cert",
		"--config", filepath.Join(m.Dir, "setup.conf"), "--pcr-banks", "sha1,sha256,sha384", "--overwrite")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	return nil
}

// makeIssuer makes the CA that swtpm_localca signs with.
func (m *TPM) makeIssuer() (err error) {
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM manufacturer of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "TPM manufacturer of a test"}}, &m.key.PublicKey, m.key)
	if err != nil {
		return err
	}
	if m.Issuer, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(m.key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(m.Dir, "ca", "cert.pem"), m.IssuerPEM(), 0o600),
		os.WriteFile(filepath.Join(m.Dir, "ca", "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600))
}

// IssuerPEM returns the issuer's certificate as a file holds it.
func (m *TPM) IssuerPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Issuer.Raw})
}

// power starts swtpm, which does TPM2_Startup(CLEAR): a boot.
func (m *TPM) power() error {
	m.process = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(m.Dir, "state"),
		"--server", "type=unixio,path="+m.backend, "--flags", "not-need-init,startup-clear")
	if err := m.process.Start(); err != nil {
		return err
	}
	exited, process := make(chan struct{}), m.process
	m.exited = exited
	go func() { process.Wait(); close(exited) }()
	for deadline := time.Now().Add(startWithin); ; {
		conn, err := net.Dial("unix", m.backend)
		if err == nil {
			m.conn = conn
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("swtpm ended: %v", process.ProcessState)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			process.Process.Kill()
			return fmt.Errorf("swtpm does not listen: %w", err)
		}
	}
}

// unplug ends swtpm.
func (m *TPM) unplug() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	m.process.Process.Kill()
	<-m.exited
}

// Reboot turns the TPM off and on: registers, sessions and loaded keys are gone, the
// endorsement keys are the same. Connections stay, as a driver would.
func (m *TPM) Reboot(t testing.TB) {
	t.Helper()
	m.mu.Lock()
	// An orderly shutdown, lest the TPM count a failure.
	_ = tpm2.Shutdown(m.conn, tpm2.StartupClear)
	m.mu.Unlock()
	m.unplug()
	os.Remove(m.backend)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.power(); err != nil {
		t.Fatal(err)
	}
}

// with runs f on a connection of its own.
func (m *TPM) with(t testing.TB, f func(io.ReadWriter) error) {
	t.Helper()
	conn, err := net.Dial("unix", m.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(startWithin))
	if err := f(conn); err != nil {
		t.Fatal(err)
	}
}

// Extend extends a register of one bank by a digest, as firmware does.
func (m *TPM) Extend(t testing.TB, pcr int, bank tpm2.Algorithm, digest []byte) {
	t.Helper()
	m.with(t, func(rw io.ReadWriter) error { return tpm2.PCRExtend(rw, tpmutil.Handle(pcr), bank, digest, "") })
}

// Event extends a register of every bank by the digest of data.
func (m *TPM) Event(t testing.TB, pcr int, data []byte) {
	t.Helper()
	m.with(t, func(rw io.ReadWriter) error { return tpm2.PCREvent(rw, tpmutil.Handle(pcr), data) })
}

// PCR returns a register's value.
func (m *TPM) PCR(t testing.TB, pcr int, bank tpm2.Algorithm) []byte {
	t.Helper()
	var out []byte
	m.with(t, func(rw io.ReadWriter) (err error) { out, err = tpm2.ReadPCR(rw, pcr, bank); return err })
	return out
}
