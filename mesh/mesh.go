// Package mesh makes connections on which both ends have proved what they run, and nothing
// else. A connection exists for the rest of meshnode only as a Link, a Link exists only
// after the exchange of package exchange has finished on that very connection, and each
// stream of it is permitted one by one.
//
// Two implementations, NewLibp2p and NewMemory, share the exchange, the links and every
// rule below; one conformance suite runs over both.
//
// # Links
//
// One Link per connection. Links and Link show at most one live link per peer. If both ends
// dialled at once there are two for a moment; the end with the lower peer id decides:
//
//   - both dialled by the same end: the newer stays, since an end dials only when it has none;
//   - established more than ten seconds apart: the newer stays, its dialler had lost the other;
//   - else: the one that the lower peer id dialled stays.
//
// It keeps the other open a quarter of a second more, so that nobody is ever without, and
// closes it with code duplicate. The other end waits; should nothing be closed within five
// seconds, the older connection is dead at the decider and is closed here.
//
// # Streams
//
// A stream is opened with multistream-select and then admitted by one frame of the
// acceptor: ACCEPT (type 7, empty) or REFUSAL, so that Open reports the peer's reason at no
// extra round trip. Both ends ask Judge.Permit. The protocol /meshnode/control/1 is the
// mesh's own, and whoever opens it sends one frame. CLOSE (type 8, one reason): the peer notes it as
// the link's cause, answers ACCEPT and lets the opener close the connection. EPOCH (type 11,
// an unsigned integer in deterministic CBOR): the opener judges under this policy epoch from
// now on; the peer answers ACCEPT. An epoch that is lower than one heard before changes
// nothing.
//
// What is permitted can end: Recheck asks Judge.Keep about every open stream and resets those
// refused while the link stays.
//
// # Bulk
//
// Mesh.Bulk is for what is large: a connection of its own, to the same port and through the
// same TLS and exchange (normally its fast form), whose ALPN offers the muxer
// /meshnode-bulk/1.0.0 alone. That muxer muxes nothing: what follows the exchange is one
// stream, opened and admitted as above, and TLS records carry its bytes without frames or
// another window. TLS's close_notify is CloseWrite; an end without it is a reset. The
// stream is one of the peer's live link and ends with it; a bulk connection of a peer
// without one is closed.
//
// # Re-attestation
//
// A verdict counts for Config.Window from its evidence on. At about 80 % of it, give or take a
// fifth by chance, either end opens a stream of /meshnode/reattest/1, which is the mesh's
// own too; the acceptor answers ACCEPT, or REFUSAL with code busy while another one runs or
// if the peer asks too often. Then both prove themselves by the exchange with purpose 2, in
// the roles of the connection's TLS handshake whoever opened the stream, and each ends its
// direction. If both ends open one at once the TLS client's counts: it refuses the other as
// busy. Success gives the link a new Session, for every layer at once, and both ends new
// pair keys. A refusal, or no answer in time, closes the link with the reason and drops the
// pair; busy and unavailable are tried again while the window lasts. A link whose verdict
// outlives its window is closed with code stale, and a link that ends for another reason
// than shutdown, duplicate, busy or a lost connection takes the pair with it.
//
// # Guards of the libp2p implementation
//
// The security protocol /meshnode-atls/1.0.0 is the only one offered; it wraps libp2p's TLS
// 1.3 and returns a connection only after the exchange. The muxer refuses a connection that
// did not come from it, and so does the connection gater. The only transport is TCP, since
// QUIC, WebTransport and WebRTC have handshakes of their own; port reuse is off, since
// simultaneous opens break TLS. The constructor of the security protocol refuses every key
// but the node's. A front listener hands libp2p a connection when its first byte is there and
// there is a place for it: strangers are capped by source and all together, members have
// places of their own, and who stays silent for three seconds is dropped. There is no host
// around the swarm: no identify, ping, relay, AutoNAT or hole punching exists that would
// have to be turned off.
//
// # What others can cost
//
// Nobody holds a place for nothing: 3 s to say a first byte, 3 s to name the security
// protocol, 5 s for TLS, 2 s for HELLO, 10 s for the exchange (limits.go has all numbers).
// Connections that are not attested yet have bounded places, in which a flood pushes out
// itself; the addresses of members, as Config.Allow names them or as links showed, have
// their own. Whoever has a valid Credential may begin three full attestations in 30 s, with
// a burst of twelve, and waits its organisation's turn to be judged; more is refused with
// code busy, before a quote is made or evidence looked at. Who shows no valid Credential is
// told nothing, or the generic refusal. Counters say how often.
package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/transport"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// The vocabulary of the exchange, under the names that users of a mesh know.
type (
	// Protocol names what a stream speaks, as "/meshnode/raft/1".
	Protocol = exchange.Protocol
	// Subject is who a peer is.
	Subject = exchange.Subject
	// Session is the verdict about the peer of one connection.
	Session = exchange.Session
	// Judge is the Relying Party's opinion of peers.
	Judge = exchange.Judge
	// Refusal is the error of a connection or stream that one side refused.
	Refusal = exchange.Refusal
)

// Stream is one permitted, ordered, bidirectional byte stream. Close ends both directions,
// CloseWrite only ours: the peer reads io.EOF. After Reset both ends get an error. Deadlines
// of the past end blocked calls at once.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	Reset() error
	SetDeadline(time.Time) error
}

// Link is one attested connection. Methods are safe for concurrent use.
type Link interface {
	// Peer is the peer of the connection, by its identity key.
	Peer() identity.PeerID
	// Session is the newest verdict about the peer: the one that opened the link, or that of
	// its last re-attestation.
	Session() *Session
	// PeerEpoch is the newest policy epoch that the peer says it judges under: its HELLO's,
	// or a later announcement's.
	PeerEpoch() identity.Epoch
	// Open opens a stream. A *Refusal says who did not permit it and why. Without a
	// deadline in ctx it waits at most OpenTimeout.
	Open(ctx context.Context, p Protocol) (Stream, error)
	// Reattest has both ends prove again, on this connection and with evidence younger than
	// the call, what they run; concurrent calls share one exchange. It happens by itself
	// before the window of the present verdict ends. After an error the link is closed with
	// the reason, unless that is busy, unavailable or the end of ctx.
	Reattest(ctx context.Context) error
	// Close ends every stream at once, tells the peer the reason (best effort, 500 ms) and
	// closes the connection. It returns when the link is down; later calls change nothing.
	Close(reason attest.Reason) error
	// Done is closed when the link is down, whoever ended it.
	Done() <-chan struct{}
	// Cause is why the link is down or going down: our reason, the peer's, or code
	// unavailable for a lost connection. It is the zero Reason while the link lives.
	Cause() attest.Reason
}

// Mesh makes and accepts links. Methods are safe for concurrent use.
type Mesh interface {
	// Self is this node's peer id.
	Self() identity.PeerID
	// Addrs are the addresses that peers can dial, as resolved after listening.
	Addrs() []string
	// Handle accepts streams of p. The handler runs in a goroutine of its stream and must
	// return soon after the stream fails. A nil handler takes p away. Handle panics if p is
	// empty, without a leading '/' or the mesh's own: protocols are constants.
	Handle(p Protocol, handler func(Link, Stream))
	// Notify calls f once for every link, those that exist already included. Calls come one
	// after another from one goroutine; a link may be down before f hears of it.
	Notify(f func(Link))
	// Dial returns the live link to peer, or makes one. Concurrent dials of one peer are one
	// dial. There is no back-off here: the caller decides when to try again. A *Refusal
	// says who refused and why.
	Dial(ctx context.Context, peer identity.PeerID, addrs []string) (Link, error)
	// Bulk opens a stream over a connection of its own to a peer with a live link: for many
	// bytes, which then pass no muxer. It is permitted and refused as Link.Open, belongs to
	// that link and ends with it. Without a link there is an error.
	Bulk(ctx context.Context, peer identity.PeerID, addrs []string, p Protocol) (Stream, error)
	// Links returns the live links, at most one per peer, in no order.
	Links() []Link
	// Link returns the live link to peer.
	Link(peer identity.PeerID) (Link, bool)
	// Recheck asks Judge.Keep about every open stream and resets those refused, in
	// goroutines of their own. Links stay. Whoever uses such a stream here gets a *Refusal
	// with the reason; the peer gets an error, and the reason when it opens another.
	Recheck()
	// AnnounceEpoch tells every peer that has not heard it yet the epoch of Config.Epoch. It
	// does not wait for them.
	AnnounceEpoch()
	// Counters returns how often what happened since the start: "refused/CODE" for what
	// this node refused (exchanges, streams, re-attestations), "refused_us/CODE" for what
	// refused it, "attested/full" and "attested/fast" for verdicts over new connections,
	// "attested/again" for re-attestations, "turned_away/WHY" for connections of others that
	// never got as far as the exchange: no place for them (source, rate, crowded), nothing
	// said in time (silent, slow), or closed by either end before (unfinished).
	Counters() map[string]uint64
	// Close closes all links with code shutdown, stops listening and waits for handlers. It
	// must not be called by a handler or a notified function.
	Close() error
}

// Config makes a Mesh. Key, MeshID, Incarnation, Epoch, Credential, Quoter and Judge are
// required; the functions are asked at every exchange and must not block.
type Config struct {
	Key         ed25519.PrivateKey
	MeshID      identity.MeshID
	Incarnation func() identity.Incarnation
	Epoch       func() identity.Epoch
	Credential  func() []byte
	Quoter      *attest.Quoter // running; its owner stops it after Close
	Judge       Judge

	// Listen are multiaddrs with an IP address and a TCP port (libp2p) or any names (memory).
	// Listening on each must succeed.
	Listen []string
	// Allow, if set, names the addresses of members. Their connections bypass the caps per
	// source and have places that no stranger can take; they prove themselves like any other.
	// It is asked at most once a second and must not block.
	Allow func() []netip.Prefix
	// FullBurst is how many full attestations one peer may begin at once, before the rate of
	// three in 30 s holds; 0: 12.
	FullBurst int

	// Window is how long evidence counts before a link must be attested again, and a new
	// connection in full: 1 to 60 min; 0: 5 min.
	Window time.Duration

	// OnRefusal, if set, hears every refused exchange, either way. It must not block.
	OnRefusal func(Refusal)
	// OnEpoch, if set, hears of every link whose peer has announced a newer epoch than before
	// on it. It must not block.
	OnEpoch func(Link)
	// Log, if set, gets a debug line for each exchange that failed: strangers can cause many.
	Log *slog.Logger

	// Transport makes the only libp2p transport; nil: TCP without port reuse. It must
	// upgrade its connections with the given upgrader, where the guards live.
	Transport func(transport.Upgrader, network.ResourceManager) (transport.Transport, error)
	// WrapListener, if set, stands between the sockets and libp2p: it sees raw connections
	// first and may drop them.
	WrapListener func(manet.Listener) manet.Listener
}

func (c *Config) validate() error {
	if len(c.Key) != ed25519.PrivateKeySize {
		return fmt.Errorf("mesh: a key of %d bytes, want Ed25519", len(c.Key))
	}
	var missing []string
	for name, ok := range map[string]bool{
		"MeshID": !c.MeshID.IsZero(), "Incarnation": c.Incarnation != nil, "Epoch": c.Epoch != nil,
		"Credential": c.Credential != nil, "Quoter": c.Quoter != nil, "Judge": c.Judge != nil,
	} {
		if !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("mesh: configuration without %s", strings.Join(missing, ", "))
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// ErrClosed is returned by a Mesh after Close.
var ErrClosed = errors.New("mesh: closed")
