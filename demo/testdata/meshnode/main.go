// Command meshnode, here, is one process of the fake mesh of demo's tests: it hands its
// arguments to the world in the test's process, prints what that answers, and lives until
// told to exit or terminated. It is a program of its own, and a small one, because one story
// starts a hundred of them.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
)

type request struct {
	Args []string
	Exe  string
	Pid  int
}

type reply struct {
	Line string // to standard output
	Log  string // to standard error
	Exit *int
}

func main() { os.Exit(run(os.Getenv("MESHNODE_DEMO_FAKE"))) }

func run(socket string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	if err := json.NewEncoder(conn).Encode(request{os.Args[1:], os.Args[0], os.Getpid()}); err != nil {
		return 99
	}
	done := make(chan int, 1)
	go func() {
		in := bufio.NewScanner(conn)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var r reply
			if json.Unmarshal(in.Bytes(), &r) != nil {
				break
			}
			if r.Log != "" {
				fmt.Fprintln(os.Stderr, r.Log)
			}
			if r.Line != "" {
				fmt.Println(r.Line)
			}
			if r.Exit != nil {
				done <- *r.Exit
				return
			}
		}
		done <- 98
	}()
	select {
	case code := <-done:
		return code
	case <-term:
		return 0
	}
}
