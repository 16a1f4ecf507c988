package vtpmtest

import (
	"crypto"
	_ "crypto/sha1" // a bank of the TPM's
	"crypto/sha256"
	_ "crypto/sha512" // banks of the TPM's
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// banks are those that Start allocates.
var banks = map[tpm2.Algorithm]struct {
	hash crypto.Hash
	log  register.HashAlg
}{
	tpm2.AlgSHA1:   {crypto.SHA1, register.HashSHA1},
	tpm2.AlgSHA256: {crypto.SHA256, register.HashSHA256},
	tpm2.AlgSHA384: {crypto.SHA384, register.HashSHA384},
}

// Boot extends the registers by every event of a TCG event log, as the firmware did that
// wrote it, and returns the path of a file that holds the log. The TPM must be new.
func (m *TPM) Boot(t testing.TB, log []byte) string {
	t.Helper()
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		t.Fatal(err)
	}
	m.with(t, func(rw io.ReadWriter) error {
		for alg, bank := range banks {
			for _, e := range parsed.Events(bank.log) {
				if e.Type == tcg.NoAction {
					continue // measured into nothing
				}
				if err := tpm2.PCRExtend(rw, tpmutil.Handle(e.Index), alg, e.Digest, ""); err != nil {
					return err
				}
			}
		}
		return nil
	})
	path := filepath.Join(m.Dir, "binary_bios_measurements")
	if err := os.WriteFile(path, log, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// IMA is the kernel's list of what was executed, with template ima-ng.
type IMA struct {
	// Path is the list in the kernel's binary form.
	Path string

	tpm *TPM
	mu  sync.Mutex
}

// imaRegister is the one that IMA extends.
const imaRegister = 10

// StartIMA begins a list, with the aggregate of registers 0 to 9 as its first entry
// (security/integrity/ima/ima_crypto.c, ima_calc_boot_aggregate).
func (m *TPM) StartIMA(t testing.TB) *IMA {
	t.Helper()
	ima := &IMA{Path: filepath.Join(m.Dir, "binary_runtime_measurements"), tpm: m}
	h := sha256.New()
	for pcr := range 10 {
		h.Write(m.PCR(t, pcr, tpm2.AlgSHA256))
	}
	ima.Measure(t, "boot_aggregate", [32]byte(h.Sum(nil)))
	return ima
}

// Measure adds a file of a SHA-256 to the list and extends register 10 of every bank by
// the digest of the entry. The entry is in the list first, as the kernel does it.
func (i *IMA) Measure(t testing.TB, path string, digest [32]byte) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	field := func(dst, data []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(dst, uint32(len(data))), data...)
	}
	data := field(nil, append([]byte("sha256:\x00"), digest[:]...))
	data = field(data, append([]byte(path), 0))
	hash := func(h crypto.Hash) []byte { w := h.New(); w.Write(data); return w.Sum(nil) }

	entry := binary.LittleEndian.AppendUint32(nil, imaRegister)
	entry = append(entry, hash(crypto.SHA1)...)
	entry = field(entry, []byte("ima-ng"))
	entry = field(entry, data)
	list, err := os.OpenFile(i.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	if _, err := list.Write(entry); err != nil {
		t.Fatal(err)
	}
	i.tpm.with(t, func(rw io.ReadWriter) error {
		for alg, bank := range banks {
			if err := tpm2.PCRExtend(rw, imaRegister, alg, hash(bank.hash), ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// MeasureFile is Measure for a file's present content.
func (i *IMA) MeasureFile(t testing.TB, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i.Measure(t, path, sha256.Sum256(raw))
}
