package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

// controlTimeout bounds a command's wait for a node on this machine; a submission waits
// for consensus.
const controlTimeout = 30 * time.Second

// statusTimeout bounds the wait for a status, which a node has at hand.
const statusTimeout = 10 * time.Second

// maxControlReply bounds what a command reads from the node: a model at most.
const maxControlReply = 256 << 20

// nodeFlag adds --node to a command that talks to a running node.
func nodeFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("node", "", "data directory of the node, or the control socket in it ("+node.SocketName+")")
}

// control is a client of one node's control socket.
type control struct {
	socket string
	client *http.Client
}

// newControl finds the socket: --node, or meshnode.sock in the working directory.
func newControl(socket string) (*control, error) {
	if socket == "" {
		socket = node.SocketName
	}
	if st, err := os.Stat(socket); err == nil && st.IsDir() {
		socket = filepath.Join(socket, node.SocketName)
	}
	_, err := os.Stat(socket)
	if errors.Is(err, fs.ErrPermission) {
		return nil, unavailableError("unavailable", "run this as the user that the node runs as", "no way to the node: %v", err)
	}
	if err != nil {
		return nil, unavailableError("unavailable", "name the node's data directory with --node DATA; is the node running?", "no node here: %v", err)
	}
	return &control{socket, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// open sends one request and returns the body of a good answer.
func (c *control) open(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://meshnode"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, ctx.Err()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, unavailableError("unavailable", "its process is there but stopped, stuck or starved: look at its log and its CPU", "the node at %s does not answer in time", c.socket)
		}
		return nil, unavailableError("unavailable", "no process serves this socket: start the node, and look at its log if it ended by itself", "the node at %s does not answer: %v", c.socket, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var reply struct {
		Error node.ControlError `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&reply); err != nil || reply.Error.Message == "" {
		return nil, unavailableError("unavailable", "", "the node answers %s", resp.Status)
	}
	exit := map[int]int{http.StatusForbidden: exitRefused, http.StatusBadRequest: exitUsage, http.StatusNotFound: exitUsage}[resp.StatusCode]
	if exit == 0 {
		exit = exitUnavailable
	}
	return nil, &failure{exit: exit, code: reply.Error.Code, message: reply.Error.Message, remedy: reply.Error.Remedy}
}

// call sends one request and decodes the JSON answer into v; raw bytes where v is *[]byte.
func (c *control) call(ctx context.Context, method, path string, body []byte, v any) error {
	timeout := controlTimeout
	if path == "/v1/status" {
		timeout = statusTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := c.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxControlReply+1))
	if err != nil {
		return unavailableError("unavailable", "", "the node at %s stopped answering: %v", c.socket, err)
	}
	if len(data) > maxControlReply {
		return fmt.Errorf("the node's answer is over %d bytes", maxControlReply)
	}
	if raw, ok := v.(*[]byte); ok {
		*raw = data
		return nil
	}
	return json.Unmarshal(data, v)
}
