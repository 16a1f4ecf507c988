package redteam

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint // STUN's MESSAGE-INTEGRITY is HMAC-SHA-1
	"encoding/binary"
	"hash/crc32"
	"net"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
)

// quicAttack asks the UDP port beside each mesh port for QUIC; where one answers it dials.
// The question is a long header packet of an unknown version, which every QUIC server
// answers with Version Negotiation (RFC 9000 §6): it finds WebTransport, too, which cannot
// be dialled without the certificate hash of an announcement.
func quicAttack(ctx context.Context, c *Campaign) Outcome {
	var found []string
	for _, a := range c.udpAddrs() {
		if quicAnswers(ctx, a) {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return held("no QUIC server answers at the UDP ports of %s", strings.Join(c.addrs, " "))
	}
	var dial []string
	for _, a := range c.addrs {
		dial = append(dial, strings.Replace(a, "/tcp/", "/udp/", 1)+"/quic-v1")
	}
	o := c.stock(ctx, dial, libp2p.Transport(quic.NewTransport))
	if o.Status == Broken {
		return o
	}
	return broken("a QUIC server answers at UDP %s; QUIC and WebTransport have handshakes of their own, without attestation", strings.Join(found, " "))
}

// webrtcAttack sends a STUN binding request as a browser's ICE agent would: a WebRTC-direct
// endpoint answers any user name it can parse.
func webrtcAttack(ctx context.Context, c *Campaign) Outcome {
	for _, a := range c.udpAddrs() {
		if stunAnswers(ctx, a) {
			return broken("a WebRTC endpoint answers at UDP %s", a)
		}
	}
	return held("nobody answers STUN at the UDP ports of %s", strings.Join(c.addrs, " "))
}

// udpAddrs are the UDP ports that a node would share with its TCP ports, and any announced.
func (c *Campaign) udpAddrs() []string {
	var out []string
	add := func(hp string) {
		if hp != "" && !contains(out, hp) {
			out = append(out, hp)
		}
	}
	for _, a := range c.addrs {
		hp, _ := hostPort(a)
		add(hp)
	}
	for _, a := range c.announced() {
		parts := strings.Split(a, "/")
		for i := 3; i+1 < len(parts); i++ {
			if parts[i] == "udp" {
				add(net.JoinHostPort(parts[2], parts[i+1]))
			}
		}
	}
	return out
}

func quicAnswers(ctx context.Context, addr string) bool {
	packet := make([]byte, 1200)
	packet[0] = 0xc0                                         // long header, fixed bit
	binary.BigEndian.PutUint32(packet[1:], 0x1a2a3a4a)       // reserved to provoke negotiation
	packet[5] = 8                                            // destination connection id
	_, _ = rand.Read(packet[6:14])                           // never fails
	packet[14] = 8                                           // source connection id
	_, _ = rand.Read(packet[15:23])                          // never fails
	return askUDP(ctx, addr, packet, func(got []byte) bool { // version 0 is negotiation
		return len(got) >= 7 && got[0]&0x80 != 0 && binary.BigEndian.Uint32(got[1:]) == 0
	})
}

// stunAnswers sends an RFC 8489 binding request with the user name of libp2p's
// WebRTC-direct, whose password is that very name.
func stunAnswers(ctx context.Context, addr string) bool {
	name := []byte("libp2p+webrtc+v1/" + rand.Text())
	user := append(append(append([]byte{}, name...), ':'), name...)
	id := make([]byte, 12)
	_, _ = rand.Read(id) // never fails
	var attrs []byte
	attr := func(kind uint16, value []byte) {
		attrs = binary.BigEndian.AppendUint16(attrs, kind)
		attrs = binary.BigEndian.AppendUint16(attrs, uint16(len(value)))
		attrs = append(append(attrs, value...), make([]byte, (4-len(value)%4)%4)...)
	}
	message := func(after int) []byte { // the length counts an attribute still to come
		head := binary.BigEndian.AppendUint16([]byte{0x00, 0x01}, uint16(len(attrs)+after))
		head = append(binary.BigEndian.AppendUint32(head, 0x2112a442), id...)
		return append(head, attrs...)
	}
	attr(0x0006, user)                                                                          // USERNAME
	attr(0x0024, []byte{0x6e, 0xff, 0xff, 0xff})                                                // PRIORITY
	attr(0x802a, []byte{1, 2, 3, 4, 5, 6, 7, 8})                                                // ICE-CONTROLLING
	attr(0x0025, nil)                                                                           // USE-CANDIDATE
	mac := hmac.New(sha1.New, name)                                                             // MESSAGE-INTEGRITY
	mac.Write(message(24))                                                                      //
	attr(0x0008, mac.Sum(nil))                                                                  //
	attr(0x8028, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(message(8))^0x5354554e)) // FINGERPRINT
	return askUDP(ctx, addr, message(0), func(got []byte) bool {
		return len(got) >= 20 && (bytes.Equal(got[8:20], id) || got[0] == 0 && binary.BigEndian.Uint32(got[4:]) == 0x2112a442)
	})
}

// askUDP sends packet twice at most and reports whether a datagram that fits came back.
func askUDP(ctx context.Context, addr string, packet []byte, fits func([]byte) bool) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	buf := make([]byte, 2048)
	for range 2 {
		if _, err := conn.Write(packet); err != nil {
			continue // an ICMP refusal of the packet before
		}
		_ = conn.SetReadDeadline(time.Now().Add(probeTimeout))
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if fits(buf[:n]) {
				return true
			}
		}
	}
	return false
}
