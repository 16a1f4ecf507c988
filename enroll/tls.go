package enroll

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
)

// loadTLSKey reads the enroller's TLS key, or makes it.
func loadTLSKey(dir *durable.Dir) (*ecdsa.PrivateKey, error) {
	path := dir.Path(tlsKeyName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, dir.WriteFile(tlsKeyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600: others may have read it; remove it, start again and pin the new key in the nodes' configurations", path, st.Mode().Perm())
	}
	raw, err := dir.ReadFile(tlsKeyName, 4<<10)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, fmt.Errorf("%s: want one PEM block PRIVATE KEY", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: %T, want an ECDSA P-256 key", path, key)
	}
	return ec, nil
}

// selfSigned returns a certificate of key. Nothing in it but the key is ever looked at.
func selfSigned(key *ecdsa.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "meshnode enroller"},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// spkiPin is what configurations name an enroller by.
func spkiPin(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{cert},
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768}, // both ends are this program
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true,
	}
}

// clientTLS accepts exactly the server whose key has the pin; names, dates and issuers of
// its certificate are not looked at.
func clientTLS(pin string) (*tls.Config, error) {
	if raw, err := hex.DecodeString(pin); err != nil || len(raw) != sha256.Size {
		return nil, fmt.Errorf("enroll: spki %.80q, want 64 characters of lower-case hex from the enroller's ready line", pin)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: true, // the pin below takes the place of the chain
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the enroller shows no certificate")
			}
			got := spkiPin(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare([]byte(got), []byte(pin)) != 1 {
				return &pinError{got: got, want: pin}
			}
			return nil
		},
	}, nil
}

// pinError is a server with another key than the configuration pins.
type pinError struct{ got, want string }

func (e *pinError) Error() string {
	return fmt.Sprintf("the server's key is %s, the configuration pins %s", e.got, e.want)
}
