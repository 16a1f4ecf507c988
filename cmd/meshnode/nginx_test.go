package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/transparency"
)

// served is a log that grows, and Debian's nginx that serves its export as docs/SERVING.md says.
type served struct {
	t     *testing.T
	dir   string
	mesh  *audittest.Mesh
	tree  *transparency.Tree
	began int // leaves of the beginning
	url   string
	ask   *http.Client
}

// startNginx serves dir/www until the test ends.
func startNginx(t *testing.T, dir string) (url string) {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx"
	}
	if _, err := os.Stat(nginx); err != nil {
		t.Skip("nginx is not installed (apt-get install nginx)")
	}
	page, err := os.ReadFile("../../docs/SERVING.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/SERVING.md has no configuration of nginx")
	}
	address := loopback.Address(t)
	server := strings.NewReplacer("listen 80;", "listen "+address+";", "root /srv/meshnode;", "root "+dir+"/www;").Replace(string(block[1]))
	if !strings.Contains(server, address) || !strings.Contains(server, dir) {
		t.Fatal("the configuration does not listen on port 80, or does not serve /srv/meshnode")
	}
	var paths strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&paths, "%s_temp_path %s/tmp;\n", name, dir)
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off;\npid %s/nginx.pid;\nerror_log stderr;\nworker_processes 2;\nevents { }\nhttp {\naccess_log off;\n%s%s}\n", dir, &paths, server)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(nginx, "-e", "stderr", "-p", dir, "-c", conf)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("nginx: %s", &stderr)
		}
	})
	url = "http://" + address
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); ; <-tick.C {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			return url
		}
		select {
		case err := <-ended:
			t.Fatalf("nginx ended: %v: %s", err, &stderr)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("nginx does not answer: %v", err)
		}
	}
}

func startServed(t *testing.T) *served {
	t.Helper()
	// Not t.TempDir, which no other user may enter: nginx's workers are another one.
	dir, err := os.MkdirTemp("", "served")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "www"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &served{t: t, dir: dir, ask: &http.Client{Timeout: 10 * time.Second}}
	now := time.Now().UTC().Truncate(time.Second)
	s.mesh = audittest.New(audittest.Options{At: now.Add(-24 * time.Hour)}).Start()
	s.mesh.Cosigned, s.began = now, len(s.mesh.Leaves)
	live, err := durable.Open(filepath.Join(dir, "live"))
	if err == nil {
		s.tree, err = transparency.NewTree(live)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.grow(300)
	s.url = startNginx(t, dir) + "/log"
	return s
}

// grow publishes the log with n leaves, and exports it.
func (s *served) grow(n int) {
	s.t.Helper()
	seats := audittest.Seats()
	for i := len(s.mesh.Leaves) - s.began; len(s.mesh.Leaves) < n; i++ { // each says something that its verifier did not say before
		s.mesh.At = s.mesh.At.Add(time.Second)
		subject := (i%3 + 1 + i/3%2) % 3
		s.mesh.Force(s.mesh.Result(seats[i%3], seats[subject], []string{"old", "new"}[i/6%2]))
	}
	_, err := s.tree.AppendAll(s.mesh.Leaves[s.tree.Size():])
	if err == nil {
		err = s.tree.Publish(s.mesh.Checkpoint(s.tree, audittest.Seats()...))
	}
	if err != nil {
		s.t.Error(err)
		return
	}
	if out, err := exec.Command("meshnode", "log", "export", s.dir+"/live", s.dir+"/www/log").CombinedOutput(); err != nil {
		s.t.Errorf("log export: %v: %s", err, out)
	}
}

func (s *served) get(t *testing.T, method, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.ask.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestNginxServesTheLog(t *testing.T) {
	s := startServed(t)
	t.Run("headers", s.headers)
	t.Run("while it grows", s.growing)
}

// headers: types, caching, compression, and nothing else of the directory.
func (s *served) headers(t *testing.T) {
	const forever = "public, max-age=31536000, immutable"
	for name, want := range map[string][2]string{
		"/checkpoint": {"text/plain; charset=utf-8", "max-age=1"}, "/tile/0/000": {"application/octet-stream", forever},
		"/tile/entries/000": {"application/octet-stream", forever}, "/tile/entries/001.p/44": {"application/octet-stream", forever},
	} {
		file, err := os.ReadFile(s.dir + "/www/log" + name)
		if err != nil {
			t.Fatal(err)
		}
		resp, body := s.get(t, http.MethodGet, s.url+name)
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, file) || resp.Header.Get("Content-Type") != want[0] || resp.Header.Get("Cache-Control") != want[1] {
			t.Errorf("%s: %s, %d bytes of %d, %v", name, resp.Status, len(body), len(file), resp.Header)
		}
		if resp, body := s.get(t, http.MethodHead, s.url+name); resp.StatusCode != http.StatusOK || len(body) != 0 {
			t.Errorf("HEAD %s: %s", name, resp.Status)
		}
	}
	resp, packed := s.get(t, http.MethodGet, s.url+"/tile/entries/000", "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatalf("%v: %v", resp.Header, err)
	}
	whole, err := io.ReadAll(z)
	if err != nil || len(packed) >= len(whole)*9/10 || resp.Header.Get("Vary") == "" {
		t.Errorf("a bundle of %d bytes is sent as %d: %v", len(whole), len(packed), err)
	}
	if resp, body := s.get(t, http.MethodGet, s.url+"/tile/0/000", "Range", "bytes=32-63"); resp.StatusCode != http.StatusPartialContent || len(body) != 32 {
		t.Errorf("a range: %s, %d bytes", resp.Status, len(body))
	}
	if err := os.WriteFile(s.dir+"/www/log/.checkpoint.tmp1", []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(s.dir + "/www/log/.checkpoint.tmp1")
	base := strings.TrimSuffix(s.url, "/log")
	for _, url := range []string{base, base + "/", s.url, s.url + "/", s.url + "/tile", s.url + "/tile/", s.url + "/tile/entries/", s.url + "/.checkpoint.tmp1",
		s.url + "/tile/0/999", s.url + "/tile/0/001.p/45", base + "/nginx.conf", s.url + "/../../nginx.conf", base + "/live/checkpoint"} {
		if resp, body := s.get(t, http.MethodGet, url); resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Cache-Control") != "" || bytes.Contains(body, []byte("checkpoint")) {
			t.Errorf("%s: %s %v", url, resp.Status, resp.Header)
		}
	}
	if resp, _ := s.get(t, http.MethodPost, s.url+"/checkpoint"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
}

// growing: an auditor, a monitor's polling and a client that we did not write read the log while it
// grows by several tiles, and none of them ever sees half of anything.
func (s *served) growing(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var mu sync.Mutex
	read := map[string]int{}
	loop := func(name string, once func() error) {
		readers.Go(func() {
			for ctx.Err() == nil {
				if err := once(); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				mu.Lock()
				read[name]++
				mu.Unlock()
			}
		})
	}
	loop("log audit", func() error { return s.audit(ctx) })
	var last uint64
	loop("polling", func() error {
		r, err := transparency.OpenReader(s.url)
		if err != nil {
			return err
		}
		defer r.Close()
		note, err := r.Checkpoint(ctx)
		if err != nil {
			return err
		}
		c, err := transparency.ParseCheckpoint(note)
		if err == nil && c.Size < last {
			err = fmt.Errorf("size %d after %d", c.Size, last)
		}
		last = c.Size
		return err
	})
	loop("torchwood", func() error { return s.torchwood(ctx) })
	for n := 340; n <= 1100; n += 95 {
		s.grow(n)
	}
	stop()
	readers.Wait()
	for _, name := range []string{"log audit", "polling", "torchwood"} {
		if read[name] == 0 {
			t.Errorf("%s never came to an end", name)
		}
	}
	genesis := filepath.Join(s.dir, "genesis.json")
	if err := os.WriteFile(genesis, s.mesh.Genesis.Raw(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("meshnode", "log", "audit", s.url, "--genesis", genesis).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("everything holds")) || !bytes.Contains(out, []byte(fmt.Sprintf("entries    %d\n", len(s.mesh.Leaves)))) {
		t.Errorf("%v: %s", err, out)
	}
	if left, err := fs.Glob(os.DirFS(s.dir+"/www/log"), "tile/entries/00[12].p"); err != nil || len(left) != 0 {
		t.Errorf("partial tiles are left: %v %v", left, err)
	}
	t.Logf("read while it grew: %v", read)
}

func (s *served) audit(ctx context.Context) error {
	r, err := transparency.OpenReader(s.url)
	if err != nil {
		return err
	}
	defer r.Close()
	report, err := audit.Log(ctx, r, audit.Options{Genesis: s.mesh.Genesis, At: time.Now()})
	if err == nil && !report.OK {
		err = fmt.Errorf("findings %v", report.Findings)
	}
	return err
}

func (s *served) torchwood(ctx context.Context) error {
	src, err := torchwood.NewTileFetcher(s.url, torchwood.WithHTTPClient(s.ask))
	if err != nil {
		return err
	}
	note, err := src.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return err
	}
	c, err := transparency.ParseCheckpoint(note)
	if err != nil {
		return err
	}
	client, err := torchwood.NewClient(src)
	if err != nil {
		return err
	}
	n := uint64(0)
	for range client.AllEntries(ctx, tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Root)}, 0) {
		n++
	}
	if err := client.Err(); err != nil && !errors.Is(err, context.Canceled) {
		// It does not take a full tile for a partial one: it has to begin again under the newest checkpoint.
		if now, _ := src.ReadEndpoint(ctx, "checkpoint"); strings.Contains(err.Error(), "404") && !bytes.Equal(now, note) {
			return nil
		}
		return err
	}
	if ctx.Err() == nil && n != c.Size {
		return fmt.Errorf("%d entries of %d", n, c.Size)
	}
	return nil
}
