package redteam

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Target is the node to attack, as its announcement describes it.
type Target struct {
	// URL is the public listener, http://host:port, or the endpoint for clients, https://host:port.
	// "" where there is none.
	URL string
	// Peer, MeshID and Incarnation are those of the Credential.
	Peer        identity.PeerID
	MeshID      identity.MeshID
	Incarnation identity.Incarnation
	// Credential is the target's own, which is public.
	Credential []byte
	// Addresses are all that the target announces.
	Addresses []string
	// Own says that the caller has verified Credential under an enroll key of his own
	// organisation. Without it only loopback addresses are attacked.
	Own bool
}

// Identity is a genuine node of one's own that attacks.
type Identity struct {
	Key        ed25519.PrivateKey
	Credential []byte
	Attester   attest.Attester
	// Sum computes binders; nil is attest.Binder.Sum. A mesh whose nodes all forget a field
	// has another: so the tests build one.
	Sum func(attest.Binder) [32]byte
}

// Peer is the identity's peer id.
func (id *Identity) Peer() identity.PeerID {
	return identity.PeerIDFromKey(id.Key.Public().(ed25519.PublicKey))
}

// prove makes evidence over b, as an honest node does for its own connection.
func (id *Identity) prove(ctx context.Context, mesh identity.MeshID, b attest.Binder) (attest.Proof, error) {
	sum := id.Sum
	if sum == nil {
		sum = attest.Binder.Sum
	}
	root, inclusions, err := attest.BatchRoot([][32]byte{sum(b)})
	if err != nil {
		return attest.Proof{}, err
	}
	data := attest.NewReportData(id.Attester.Kind(), mesh, string(id.Peer()), [32]byte{}, root)
	ev, err := id.Attester.Attest(ctx, data)
	if err != nil {
		return attest.Proof{}, fmt.Errorf("own attester: %w", err)
	}
	return attest.Proof{Evidence: ev, Inclusion: inclusions[0]}, nil
}

// Arsenal is what the attacker has. The zero value is a stranger's.
type Arsenal struct {
	// Self is a genuine, enrolled identity; nil: attacks that need one are skipped.
	Self *Identity
	// Missing says why there is no Self and what to pass.
	Missing string
	// Other is a second genuine identity, not necessarily enrolled.
	Other *Identity
	// Older is an earlier boot of Self's node.
	Older *Identity
	// Fresh enrols a newer boot of Self's node; nil: there is none. A node bounds how many
	// full attestations one peer may begin, so a campaign takes a new identity now and then.
	Fresh func(context.Context) (*Identity, error)
	// Forge makes a Credential for a peer that a key outside genesis signed.
	Forge func(identity.PeerID) ([]byte, error)
	// Genuine verifies evidence that must carry data, by whatever schemes the mesh has; nil:
	// none are at hand.
	Genuine func(context.Context, attest.Evidence, attest.ReportData) error
	// SeatProtocols are the streams that only seats may open; Self is none.
	SeatProtocols []string
	// Started says that the mesh orders, so that older boots get known as such.
	Started bool
}

// ErrNotOurs is returned for a target that may not be attacked.
var ErrNotOurs = errors.New("redteam: not shown to be your own node")

// ErrUnreachable is returned for a target of which nothing answers.
var ErrUnreachable = errors.New("redteam: the target does not answer")

// allowed returns the TCP addresses of t that may be attacked once they have proved to be t.
func (t *Target) allowed() ([]string, error) {
	if err := t.Peer.Validate(); err != nil || t.MeshID.IsZero() {
		return nil, fmt.Errorf("redteam: a target needs a peer id and a mesh id")
	}
	var out, refused []string
	for _, a := range t.Addresses {
		ip, ok := tcpAddr(a)
		switch {
		case !ok:
		case ip.IsLoopback(), t.Own && !ip.IsMulticast() && !ip.IsUnspecified():
			out = append(out, a)
		default:
			refused = append(refused, a)
		}
	}
	if len(out) == 0 && len(refused) > 0 {
		return nil, fmt.Errorf("%w: %s is no loopback address", ErrNotOurs, printable(refused[0]))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: it announces no TCP address", ErrUnreachable)
	}
	return out, nil
}

// tcpAddr returns the IP of a plain TCP multiaddr.
func tcpAddr(a string) (netip.Addr, bool) {
	m, err := ma.NewMultiaddr(a)
	if err != nil || len(m) != 2 {
		return netip.Addr{}, false
	}
	if _, err := m.ValueForProtocol(ma.P_TCP); err != nil {
		return netip.Addr{}, false
	}
	ip, err := manet.ToIP(m)
	if err != nil {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return addr.Unmap(), ok
}

// httpAllowed reports whether the public listener may be attacked: loopback, or an IP
// address that has proved to be the target's.
func (t *Target) httpAllowed(proved []string) error {
	u, err := url.Parse(t.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is no http://host:port or https://host:port", printable(t.URL))
	}
	host := u.Hostname()
	ip, err := netip.ParseAddr(host)
	if host == "localhost" {
		ip, err = netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	if err != nil {
		return fmt.Errorf("%s is a name, not an address", printable(host))
	}
	if ip.Unmap().IsLoopback() || slices.ContainsFunc(proved, func(a string) bool {
		got, ok := tcpAddr(a)
		return ok && got == ip.Unmap()
	}) {
		return nil
	}
	return fmt.Errorf("%w: %s is neither loopback nor a mesh address that proved to be the target", ErrNotOurs, ip)
}

// hostPort is the "host:port" of a TCP multiaddr.
func hostPort(a string) (string, error) {
	m, err := ma.NewMultiaddr(a)
	if err != nil {
		return "", err
	}
	_, addr, err := manet.DialArgs(m)
	return addr, err
}
