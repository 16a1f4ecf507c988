package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

func TestAddressBook(t *testing.T) {
	ctx, now := context.Background(), time.Unix(1e9, 0)
	b := newAddressBook(true)
	lookups, fails := 0, false
	b.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		lookups++
		if fails || host != "beta.example" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}, nil
	}
	want := func(prefixes ...string) {
		t.Helper()
		var got []string
		for _, p := range b.prefixes() {
			got = append(got, p.String())
		}
		slices.Sort(got)
		slices.Sort(prefixes)
		if !slices.Equal(got, prefixes) {
			t.Errorf("got %v, want %v", got, prefixes)
		}
	}
	b.resolve(ctx, "http://10.0.0.2:80", now)
	b.resolve(ctx, "http://[2001:db8::9]:80", now)
	if lookups != 0 {
		t.Error("an address was looked up")
	}
	b.resolve(ctx, "http://beta.example:80", now)
	b.resolve(ctx, "http://beta.example:80", now.Add(lookupEvery/2))
	want("10.0.0.2/32", "2001:db8::9/128", "192.0.2.7/32", "2001:db8::7/128")
	fails = true
	b.resolve(ctx, "http://beta.example:80", now.Add(lookupEvery))
	if lookups != 2 {
		t.Errorf("%d look-ups, want one in %s", lookups, lookupEvery)
	}
	// What is announced is a few addresses, and addresses only.
	addrs := []string{"/ip4/10.0.0.3/tcp/1", "/ip4/0.0.0.0/tcp/1", "/dns4/gamma.example/tcp/1", "nonsense"}
	b.announced("http://10.0.0.2:80", "a peer", addrs)
	want("10.0.0.2/32", "10.0.0.3/32", "2001:db8::9/128", "192.0.2.7/32", "2001:db8::7/128")
	if got := b.of("a peer"); !slices.Equal(got, addrs) {
		t.Errorf("announced %v", got)
	}
	if b.of("another") != nil || b.of(identity.PeerID("")) != nil {
		t.Error("addresses of a peer that announced none")
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("/ip4/10.1.%d.%d/tcp/1", i>>8, i&255))
	}
	b.announced("http://10.0.0.2:80", "a peer", many)
	if n := len(b.prefixes()); n != 4+maxAnnounced {
		t.Errorf("%d prefixes", n)
	}
	// Simulations have no names.
	b = newAddressBook(false)
	b.resolve(ctx, "http://beta.example:80", now)
	want()
}
