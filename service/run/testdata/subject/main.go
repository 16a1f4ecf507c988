// Command subject is the program that the tests of package run put into a sandbox: it tells
// what it sees and does what it is told.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

type sight struct {
	Model     string   `json:"model"`
	Args      []string `json:"args"`
	Env       []string `json:"env"`
	Root      []string `json:"root"`
	Files     []string `json:"files"` // what the descriptors point to
	Processes []string `json:"processes"`
	Links     []string `json:"links"`
	Limits    string   `json:"limits"`
	Status    string   `json:"status"`
	Failures  []string `json:"failures"` // what could not be done
	UID       int      `json:"uid"`
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "crash" {
		fmt.Fprintln(os.Stderr, "secret words of somebody")
		os.Exit(7)
	}
	if len(os.Args) > 1 && os.Args[1] == "nothing" {
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "sleep" {
		time.Sleep(time.Hour)
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		os.Exit(3)
	}
	http.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("GET /see", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(see()) })
	http.HandleFunc("POST /exit", func(http.ResponseWriter, *http.Request) {
		fmt.Fprint(os.Stderr, "secret words of somebody")
		os.Exit(7)
	})
	http.HandleFunc("POST /fill", func(w http.ResponseWriter, _ *http.Request) {
		f, err := os.Create("/tmp/x")
		if err == nil {
			_, err = io.CopyN(f, zeros{}, 128<<20)
		}
		fmt.Fprint(w, err)
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Meshnode-Receipt", "forged")
		w.Header().Set("X-Request", fmt.Sprintf("%s %s %q %q", r.Method, r.URL, r.Header["X-Mine"], r.Header["Meshnode-Nonce"]))
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(body)
	})
	http.HandleFunc("GET /stream", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "part %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	http.HandleFunc("GET /slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(2 * time.Second)
		fmt.Fprint(w, "at last")
	})
	http.HandleFunc("GET /endless", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, zeros{}) })
	http.HandleFunc("GET /half", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half of it")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	http.HandleFunc("GET /long", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(2<<20))
		_, _ = io.CopyN(w, zeros{}, 2<<20)
	})
	_ = http.Serve(l, nil)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func see() sight {
	s := sight{Args: os.Args[1:], Env: os.Environ(), UID: os.Getuid(), Failures: []string{}}
	h := sha256.New()
	_, _ = io.Copy(h, os.NewFile(4, "model"))
	s.Model = hex.EncodeToString(h.Sum(nil))
	s.Root, s.Processes, s.Links = names("/"), names("/proc"), names("/sys/class/net")
	for _, fd := range names("/proc/self/fd") {
		if to, err := os.Readlink("/proc/self/fd/" + fd); err == nil {
			s.Files = append(s.Files, to)
		}
	}
	if ifs, err := net.Interfaces(); err == nil {
		for _, i := range ifs {
			if i.Flags&net.FlagUp != 0 {
				s.Links = append(s.Links, i.Name)
			}
		}
	}
	s.Limits, s.Status = text("/proc/self/limits")+"oom_score_adj "+text("/proc/self/oom_score_adj"), text("/proc/self/status")
	s.try("dial", func() error { _, err := net.DialTimeout("tcp", "127.0.0.1:1", time.Second); return err })
	s.try("write /", func() error { return os.WriteFile("/x", nil, 0o600) })
	s.try("write /dev/shm", func() error { return os.WriteFile("/dev/shm/x", nil, 0o600) })
	s.try("write the model", func() error { return os.WriteFile("/proc/self/fd/4", []byte("x"), 0) })
	s.try("write the program", func() error { _, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0); return err })
	s.try("start itself", func() error { return exec.Command("/proc/self/exe", "nothing").Run() })
	s.try("new namespace", func() error {
		c := exec.Command("/proc/self/exe", "nothing")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return c.Run()
	})
	return s
}

func (s *sight) try(what string, f func() error) {
	if f() != nil {
		s.Failures = append(s.Failures, what)
	}
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if dir != "/proc" || strings.Trim(e.Name(), "0123456789") == "" {
			out = append(out, e.Name())
		}
	}
	return out
}

func text(path string) string {
	raw, _ := os.ReadFile(path)
	return string(raw)
}
