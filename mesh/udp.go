package mesh

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	webtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// udpTimeout bounds each attempt at a UDP port. Silence there takes all of it, but no
// silence is to be expected: a kernel says at once that a port of its own is closed.
const udpTimeout = 2 * time.Second

// selfTestUDP looks for a libp2p transport at the UDP port with the number of a TCP address.
func selfTestUDP(ctx context.Context, self peer.ID, overTCP ma.Multiaddr) error {
	target, err := udpAddr(overTCP)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, udpTimeout)
	defer cancel()
	answer, err := askSTUN(ctx, target)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil // the kernel: nobody listens there
	case answer:
		return fmt.Errorf("%w: UDP port %d answers as libp2p's WebRTC does", ErrUnguarded, target.Port)
	}
	base, err := manet.FromNetAddr(target)
	if err != nil {
		return err
	}
	quicV1 := base.Encapsulate(ma.StringCast("/quic-v1"))
	ended := func(err error) error {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil // nobody answered
		}
		return err
	}
	return together(2, func(i int) error {
		if i == 0 {
			return ended(tryStock(ctx, stockKind{name: "QUIC", options: []libp2p.Option{libp2p.Transport(quic.NewTransport)}}, self, quicV1))
		}
		hash, err := certHash(ctx, quicV1)
		if err != nil {
			return nil // no HTTP/3 there
		}
		at := quicV1.Encapsulate(ma.StringCast("/webtransport/certhash/" + hash))
		return ended(tryStock(ctx, stockKind{name: "WebTransport", options: []libp2p.Option{libp2p.Transport(webtransport.New)}}, self, at))
	})
}

func udpAddr(overTCP ma.Multiaddr) (*net.UDPAddr, error) {
	a, err := manet.ToNetAddr(overTCP)
	if err != nil {
		return nil, err
	}
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("%s is no TCP address", overTCP)
	}
	return &net.UDPAddr{IP: t.IP, Port: t.Port, Zone: t.Zone}, nil
}

// certHash returns the digest of whatever certificate a QUIC listener shows for HTTP/3, in
// the form in which an address carries it: who dials WebTransport has to know it before.
func certHash(ctx context.Context, addr ma.Multiaddr) (string, error) {
	m, err := quicreuse.NewConnManager([32]byte{}, [32]byte{})
	if err != nil {
		return "", err
	}
	defer m.Close()
	c, err := m.DialQUIC(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}, MinVersion: tls.VersionTLS13}, nil)
	if err != nil {
		return "", err
	}
	defer c.CloseWithError(0, "")
	certs := c.ConnectionState().TLS.PeerCertificates
	if len(certs) == 0 {
		return "", errors.New("no certificate")
	}
	digest := sha256.Sum256(certs[0].Raw)
	multihash := append([]byte{0x12, sha256.Size}, digest[:]...)
	return "u" + base64.RawURLEncoding.EncodeToString(multihash), nil
}

// askSTUN sends what begins a WebRTC connection to a libp2p listener, a STUN binding request
// (RFC 8489) under a name that it accepts, and reports whether it is answered. Who gets an
// answer can go on without proving anything. The error says that the port is closed, or
// that ctx has ended.
func askSTUN(ctx context.Context, to *net.UDPAddr) (bool, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return false, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	request := stunRequest("libp2p+webrtc+v1/" + rand.Text())
	buf := make([]byte, 2048)
	for ctx.Err() == nil { // a datagram may be lost, and the listener takes a moment
		if _, err := c.Write(request); err != nil {
			return false, err
		}
		next := time.Now().Add(udpTimeout / 8)
		if deadline.Before(next) {
			next = deadline
		}
		_ = c.SetReadDeadline(next)
		n, err := c.Read(buf)
		if err == nil && n >= 20 && binary.BigEndian.Uint32(buf[4:]) == stunCookie && buf[0] == 1 {
			return true, nil // a binding success or error response
		}
		var timeout net.Error
		if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			return false, err
		}
		if time.Until(deadline) < udpTimeout/2 {
			break // leave the rest to the other transports
		}
	}
	return false, ctx.Err()
}

const stunCookie = 0x2112A442

// stunRequest is a binding request with the ICE attributes of RFC 8445 §7.1, both users and
// the password being name.
func stunRequest(name string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{0, 1, 0, 0}, stunCookie)
	m = append(m, make([]byte, 12)...)
	_, _ = rand.Read(m[8:20])
	attribute := func(kind uint16, value []byte) {
		m = binary.BigEndian.AppendUint16(m, kind)
		m = binary.BigEndian.AppendUint16(m, uint16(len(value)))
		m = append(append(m, value...), make([]byte, -len(value)&3)...)
	}
	// The length in the header covers the attribute that is about to be computed.
	upTo := func(size int) { binary.BigEndian.PutUint16(m[2:], uint16(len(m)-20+4+size)) }
	attribute(0x0006, []byte(name+":"+name))    // USERNAME
	attribute(0x802A, make([]byte, 8))          // ICE-CONTROLLING
	attribute(0x0024, []byte{0x6e, 0, 0, 0xff}) // PRIORITY
	upTo(sha1.Size)
	mac := hmac.New(sha1.New, []byte(name))
	mac.Write(m)
	attribute(0x0008, mac.Sum(nil)) // MESSAGE-INTEGRITY
	upTo(4)
	attribute(0x8028, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(m)^0x5354554e)) // FINGERPRINT
	return m
}
