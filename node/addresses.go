package node

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Limits of the address book.
const (
	lookupEvery  = time.Minute
	lookupWithin = 2 * time.Second
	maxAnnounced = 16 // addresses of one peer
)

// addressBook knows where the configured peers are: what their URLs' hosts resolve to, and
// what they announce. The mesh keeps places for connections from there, and bulk connections
// go there. It decides nothing about trust: whoever connects proves itself, and a place
// bought with a false announcement is one of a few.
type addressBook struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // nil: addresses only, no names

	mu    sync.Mutex
	byURL map[string]*address // guarded by mu; configured peers only
}

type address struct {
	host     []netip.Addr
	lookedUp time.Time
	peer     identity.PeerID
	mesh     []string // as announced
}

func newAddressBook(names bool) *addressBook {
	b := &addressBook{byURL: map[string]*address{}}
	if names {
		b.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return b
}

// resolve looks up the host of a peer's URL, unless it did so a short while ago. What a
// failed look-up knew before stays.
func (b *addressBook) resolve(ctx context.Context, peerURL string, now time.Time) {
	u, err := url.Parse(peerURL)
	if err != nil {
		return
	}
	b.mu.Lock()
	known := b.entry(peerURL)
	fresh := !known.lookedUp.IsZero() && now.Sub(known.lookedUp) < lookupEvery
	b.mu.Unlock()
	if fresh {
		return
	}
	var found []netip.Addr
	if literal, err := netip.ParseAddr(u.Hostname()); err == nil {
		found = []netip.Addr{literal}
	} else if b.lookup != nil {
		ctx, cancel := context.WithTimeout(ctx, lookupWithin)
		defer cancel()
		if found, err = b.lookup(ctx, u.Hostname()); err != nil {
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known.host, known.lookedUp = first(found, maxAnnounced), now
}

// announced notes what a peer with a valid Credential says of itself at its URL.
func (b *addressBook) announced(peerURL string, peer identity.PeerID, addrs []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(peerURL)
	e.peer, e.mesh = peer, slices.Clone(first(addrs, maxAnnounced))
}

func (b *addressBook) entry(peerURL string) *address {
	e := b.byURL[peerURL]
	if e == nil {
		e = &address{}
		b.byURL[peerURL] = e
	}
	return e
}

// of returns the mesh addresses that peer announced; none if it is not configured.
func (b *addressBook) of(peer identity.PeerID) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.byURL {
		if e.peer == peer && peer != "" {
			return slices.Clone(e.mesh)
		}
	}
	return nil
}

// prefixes is what mesh.Config.Allow wants.
func (b *addressBook) prefixes() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []netip.Prefix
	add := func(a netip.Addr) {
		if a = a.Unmap(); a.IsValid() && !a.IsUnspecified() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, e := range b.byURL {
		for _, a := range e.host {
			add(a)
		}
		for _, s := range e.mesh {
			m, err := ma.NewMultiaddr(s)
			if err != nil {
				continue
			}
			if ip, err := manet.ToIP(m); err == nil {
				a, _ := netip.AddrFromSlice(ip)
				add(a)
			}
		}
	}
	return out
}

func first[T any](s []T, n int) []T { return s[:min(len(s), n)] }

// Bulk streams are used from bulkFrom bytes on; bulkWithin is how long one may take to open.
const (
	bulkFrom   = 4 << 20
	bulkWithin = 5 * time.Second
)

// openLarge opens a stream for about size bytes: over a bulk connection where that is worth
// one and the peer's address is known, else, and where that fails, over the link.
func (n *Node) openLarge(ctx context.Context, link mesh.Link, p mesh.Protocol, size int) (mesh.Stream, error) {
	if size < bulkFrom {
		return n.open(ctx, link, p)
	}
	if s, err := n.openBulk(ctx, link, p); err == nil {
		return s, nil
	}
	return n.open(ctx, link, p)
}

// openBulk opens a stream over a bulk connection.
func (n *Node) openBulk(ctx context.Context, link mesh.Link, p mesh.Protocol) (mesh.Stream, error) {
	opening, cancel := context.WithTimeout(ctx, bulkWithin)
	defer cancel()
	s, err := n.mesh.Bulk(opening, link.Peer(), n.addresses.of(link.Peer()), p)
	if err != nil {
		n.log.Debug("no bulk connection", "peer", link.Session().Node.String(), "protocol", string(p), "error", err)
		return nil, err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = n.now().Add(forwardWithin)
	}
	_ = s.SetDeadline(deadline)
	return s, nil
}
