package fetch

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
)

// serversFile is where a store remembers which servers want to be left alone.
const serversFile = "servers.json"

// server is what is remembered of one host.
type server struct {
	Failures int       `json:"failures"` // in a row
	Until    time.Time `json:"until"`    // it is not asked before
	Why      string    `json:"why"`
}

// servers remembers hosts in trouble. What cannot be read is forgotten: it only spares a
// server, nothing is believed for it.
type servers struct {
	dir   *durable.Dir
	hosts map[string]server
}

func loadServers(dir *durable.Dir) *servers {
	s := &servers{dir: dir, hosts: map[string]server{}}
	if raw, err := dir.ReadFile(serversFile, maxState); err == nil {
		if json.Unmarshal(raw, &s.hosts) != nil || s.hosts == nil {
			s.hosts = map[string]server{}
		}
	}
	return s
}

// until returns how long a host is left alone from now on, and why. A time further off than
// any we set is a clock's mistake.
func (s *servers) until(host string, now time.Time) (time.Duration, server) {
	h := s.hosts[host]
	if d := h.Until.Sub(now); d > 0 && d <= maxAway {
		return d, h
	}
	return 0, h
}

// failed notes a failure and returns when the host may be asked again.
func (s *servers) failed(host, why string, now time.Time, after time.Duration, first time.Duration, chance float64) (time.Time, error) {
	h := s.hosts[host]
	h.Failures = min(h.Failures+1, 32)
	if after <= 0 {
		after = first
		for range h.Failures - 1 {
			if after = 2 * after; after >= lastDelay {
				after = lastDelay
				break
			}
		}
		after += time.Duration(chance * float64(after) / 10)
	}
	h.Until, h.Why = now.Add(min(after, maxAway)), why
	s.hosts[host] = h
	return h.Until, s.save()
}

// answered forgets failures.
func (s *servers) answered(host string) error {
	if _, ok := s.hosts[host]; !ok {
		return nil
	}
	delete(s.hosts, host)
	return s.save()
}

func (s *servers) save() error {
	raw, err := json.Marshal(s.hosts)
	if err != nil {
		return err
	}
	return s.dir.WriteFile(serversFile, append(raw, '\n'), 0o644)
}

// retryAfter reads the header (RFC 9110, section 10.2.3): seconds or a date; 0 if absent,
// past or unreadable.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}
