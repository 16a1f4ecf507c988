package vtpm

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/legacy/tpm2/credactivation"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

// start returns the attester of a new TPM.
func start(t *testing.T, edit func(*vtpmtest.TPM, *Options)) (*vtpmtest.TPM, *Attester) {
	t.Helper()
	tpm := vtpmtest.Start(t)
	opts := Options{Device: tpm.Socket}
	if edit != nil {
		edit(tpm, &opts)
	}
	a := NewAttester(opts)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return tpm, a
}

func TestAttesterQuotes(t *testing.T) {
	tpm, a := start(t, nil)
	data := mesh.ReportData{1, 2, 3}
	ev, err := a.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := New(nil).Verify(t.Context(), ev, &data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := a.AKDigest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v := claims.VTPM; !claims.Genuine || !claims.Bound || v.Bank != "sha256" || len(v.PCRs) != 24 || v.AKTrust != "" || v.AKDigest != digest {
		t.Errorf("got %+v %+v, want bound claims of key %s", claims, v, digest)
	}
	// Counters are readable: the key is of the endorsement hierarchy.
	if claims.VTPM.ResetCount > 16 || claims.VTPM.RestartCount > 16 {
		t.Errorf("got reset count %d, restart count %d: disguised", claims.VTPM.ResetCount, claims.VTPM.RestartCount)
	}
	other := mesh.ReportData{9}
	var refused *mesh.Error
	if _, err := New(nil).Verify(t.Context(), ev, &other, time.Now()); !errors.As(err, &refused) || refused.Reason.Code != mesh.CodeNotBound {
		t.Errorf("with other report data: got %v, want %s", err, mesh.CodeNotBound)
	}

	// What is extended shows in the next quote.
	event := []byte("event")
	if err := a.Extend(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(event)
	want := sha256.Sum256(append(make([]byte, 32), sum[:]...))
	if got := tpm.PCR(t, RuntimePCR, tpm2.AlgSHA256); hex.EncodeToString(got) != hex.EncodeToString(want[:]) {
		t.Errorf("got register %x, want %x", got, want)
	}
	if ev, err = a.Attest(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	if claims, err = New(nil).Verify(t.Context(), ev, &data, time.Now()); err != nil || claims.Registers["pcr13"] != hex.EncodeToString(want[:]) {
		t.Errorf("got %v %v, want pcr13 %x", claims.Registers["pcr13"], err, want)
	}
	refusesSizes(t, a)
}

// refusesSizes demands that events of other sizes than a TPM takes are refused.
func refusesSizes(t *testing.T, a *Attester) {
	t.Helper()
	for _, size := range []int{0, 1025} {
		if err := a.Extend(t.Context(), make([]byte, size)); err == nil || !strings.Contains(err.Error(), "want 1 to 1024") || !strings.Contains(err.Error(), a.opts.Device) {
			t.Errorf("%d bytes: got %v", size, err)
		}
	}
	if err := a.Extend(t.Context(), make([]byte, 1024)); err != nil {
		t.Error(err)
	}
}

func TestAttesterReadsLogs(t *testing.T) {
	_, a := start(t, func(m *vtpmtest.TPM, o *Options) {
		o.EventLog, o.IMALog = filepath.Join(m.Dir, "log"), filepath.Join(m.Dir, "ima")
	})
	var named *device.Error
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &named) || named.Device != a.opts.EventLog {
		t.Errorf("without the log: got %v, want one that names %s", err, a.opts.EventLog)
	}
	for _, f := range []string{a.opts.EventLog, a.opts.IMALog} {
		if err := os.WriteFile(f, []byte("contents of "+f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ev, err := a.Attest(t.Context(), mesh.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := Parse(ev.Find(mesh.TypeTPMQuote)[0])
	if err != nil || string(msg.GetEventLog()) != "contents of "+a.opts.EventLog {
		t.Errorf("got log %q, %v", msg.GetEventLog(), err)
	}
	if list := ev.Find(mesh.TypeIMALog); len(list) != 1 || string(list[0]) != "contents of "+a.opts.IMALog {
		t.Errorf("got IMA list %q", list)
	}
	if err := os.WriteFile(a.opts.IMALog, make([]byte, mesh.MaxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); !errors.As(err, &named) || named.Device != a.opts.IMALog {
		t.Errorf("with too long a list: got %v, want one that names %s", err, a.opts.IMALog)
	}
}

// A TPM that was turned off has lost its keys: the attester makes the same key again.
func TestAttesterKeepsItsKey(t *testing.T) {
	tpm, a := start(t, nil)
	before, err := a.AKDigest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tpm.Reboot(t)
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); err != nil {
		t.Fatal(err)
	}
	if after, err := a.AKDigest(t.Context()); err != nil || after != before {
		t.Errorf("got key %s, %v, want %s", after, err, before)
	}
	if b := NewAttester(Options{Device: tpm.Socket}); true {
		defer b.Close()
		if other, err := b.AKDigest(t.Context()); err != nil || other == before {
			t.Errorf("another attester: got key %s, %v, want one of its own", other, err)
		}
	}
	// Another TPM at the same place is not taken for this one.
	a.channel.Close()
	a.channel, a.opts.Device = nil, vtpmtest.Start(t).Socket
	if _, err := a.Attest(t.Context(), mesh.ReportData{}); err == nil || !strings.Contains(err.Error(), "another TPM than before") {
		t.Errorf("with another TPM: got %v", err)
	}
}

func TestActivation(t *testing.T) {
	tpm, a := start(t, nil)
	shown, err := a.Endorse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := shown.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEndorsement(raw)
	if err != nil {
		t.Fatal(err)
	}
	ca := NewAttestationCA([]*x509.Certificate{tpm.Issuer})
	challenge, pending, err := ca.Challenge(e, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = challenge.Encode(); err != nil {
		t.Fatal(err)
	}
	c, err := DecodeChallenge(raw)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := a.Activate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := a.AKDigest(t.Context())
	if err != nil || pending.AKDigest != digest {
		t.Errorf("got key %s, %v, want %s", pending.AKDigest, err, digest)
	}
	if !pending.Confirm(secret) {
		t.Error("the answer of the TPM was refused")
	}
	if pending.Confirm(secret) {
		t.Error("a second answer was taken")
	}

	// A wrong answer ends the activation.
	challenge, pending, err = ca.Challenge(e, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if pending.Confirm(make([]byte, SecretSize)) || pending.Confirm(nil) {
		t.Error("a wrong answer was taken")
	}
	if secret, err = a.Activate(t.Context(), challenge); err != nil || pending.Confirm(secret) {
		t.Errorf("the right answer after a wrong one: %v", err)
	}
	if new(Pending).Confirm(make([]byte, SecretSize)) {
		t.Error("the zero value confirms")
	}

	// A challenge that is none does not reach the TPM, and a secret of another size than a
	// CA's is not shown to anybody.
	if _, err := a.Activate(t.Context(), &Challenge{Credential: []byte{1}}); err == nil || !strings.Contains(err.Error(), "a structure of 0 bytes") {
		t.Errorf("half a challenge: got %v", err)
	}
	ek, err := x509.ParseCertificate(e.EKCertificate)
	if err != nil {
		t.Fatal(err)
	}
	area, err := tpm2.DecodePublic(e.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	name, err := area.Name()
	if err != nil {
		t.Fatal(err)
	}
	id, encrypted, err := credactivation.Generate(name.Digest, ek.PublicKey, 16, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := a.Activate(t.Context(), &Challenge{Credential: id[2:], Secret: encrypted[2:]}); err == nil || secret != nil || !strings.Contains(err.Error(), "a secret of 16 bytes") {
		t.Errorf("got %x, %v, want a refusal of its size", secret, err)
	}

	// Another TPM, or another key of the same, cannot answer.
	b := NewAttester(Options{Device: tpm.Socket})
	defer b.Close()
	_, other := start(t, nil)
	for name, wrong := range map[string]*Attester{"another key of this TPM": b, "another TPM": other} {
		if _, err := wrong.Activate(t.Context(), challenge); err == nil || !strings.Contains(err.Error(), "not for this endorsement and attestation key") {
			t.Errorf("%s: got %v, want a refusal by the TPM", name, err)
		}
	}
}

// A measured boot, a provisioned key, IMA and the runtime log: all of what a TPM can say.
func TestAttesterOnMeasuredBoot(t *testing.T) {
	msg, err := Parse(sample(t, "secureboot-on-ecc.pb"))
	if err != nil {
		t.Fatal(err)
	}
	var ima *vtpmtest.IMA
	tpm, a := start(t, func(m *vtpmtest.TPM, o *Options) {
		m.ProvisionAK(t)
		o.EventLog = m.Boot(t, msg.GetEventLog())
		ima = m.StartIMA(t)
		o.IMALog = ima.Path
		o.AK = &ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: vtpmtest.ProvisionedAKIndex}
	})
	scheme := New([]*x509.Certificate{tpm.Issuer})
	data := mesh.ReportData{5}
	verified := func() mesh.Claims {
		t.Helper()
		ev, err := a.Attest(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		c, err := scheme.Verify(t.Context(), ev, &data, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := verified()
	if v := before.VTPM; v.AKTrust != mesh.AKTrustCertificate || !v.LogReplayed || v.SecureBoot == nil || !*v.SecureBoot {
		t.Errorf("got %+v, want a certified key and a replayed log with Secure Boot", v)
	}
	ima.Measure(t, "/usr/bin/true", sha256.Sum256([]byte("true")))
	if err := a.Extend(t.Context(), []byte("event")); err != nil {
		t.Fatal(err)
	}
	after := verified()
	if after.Measurement != before.Measurement || after.Registers["pcr10"] == before.Registers["pcr10"] || after.Registers["pcr13"] == before.Registers["pcr13"] {
		t.Errorf("got %+v after %+v, want other registers 10 and 13 and the same measurement", after, before)
	}
	// Nobody can activate a key that the attester did not make.
	if _, err := a.Endorse(t.Context()); err == nil || !strings.Contains(err.Error(), "needs a certificate") {
		t.Errorf("got %v, want a refusal to endorse a provisioned key", err)
	}
	missing := NewAttester(Options{Device: tpm.Socket, AK: &ProvisionedAK{Handle: 0x81000099}})
	defer missing.Close()
	if _, err := missing.Attest(t.Context(), data); err == nil || !strings.Contains(err.Error(), "0x81000099") {
		t.Errorf("got %v, want one that names the handle", err)
	}
}
