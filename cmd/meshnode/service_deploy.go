package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/regular"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/service"
	"github.com/spf13/cobra"
)

// deployOptions are the flags of service deploy.
type deployOptions struct {
	to, genesis, policy, key, name, program, model string
	version                                        uint64
	versioned                                      bool // --version was given
	asJSON                                         bool
}

func serviceDeployCommand() *cobra.Command {
	var o deployOptions
	cmd := &cobra.Command{
		Use:   "deploy --to URL --genesis FILE --policy FILE --key FILE --name NAME --program FILE --model FILE [-- ARG...]",
		Short: "Release a program and its model to a node that proves what it runs",
		Long: `Release a program and its model to a node of a mesh.

The node proves on this very connection what it is, under genesis and your policy; only then
does anything leave this machine, and it can be read by nobody but that node. The node
records the program's digest before it starts it, in a log that all its later evidence
covers.

The program is one static executable (Go: CGO_ENABLED=0). It serves HTTP/1.1 on the listening
socket that is descriptor 3 and reads its model from descriptor 4. It runs without network
and without files, with the arguments behind --. The key is made by meshnode keygen --role
service; the node's configuration lists its public half under this name.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 && len(args) > 0 {
				return usageError("put the program's arguments behind --", "unexpected argument %q", args[0])
			}
			o.versioned = cmd.Flags().Changed("version")
			return runDeploy(cmd, o, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "https URL of the node")
	f.StringVar(&o.genesis, "genesis", "", "the mesh's signed genesis file")
	f.StringVar(&o.policy, "policy", "", "what you demand of the node (YAML; meshnode proxy --help shows its form)")
	f.StringVar(&o.key, "key", "", "your service key")
	f.StringVar(&o.name, "name", "", "the service's name on the node")
	f.StringVar(&o.program, "program", "", "a static executable")
	f.StringVar(&o.model, "model", "", "the model's file")
	f.Uint64Var(&o.version, "version", 0, "version of the manifest; must rise (default: the present second)")
	f.BoolVar(&o.asJSON, "json", false, "print one JSON object")
	return cmd
}

func runDeploy(cmd *cobra.Command, o deployOptions, args []string) error {
	for _, required := range []struct{ flag, value string }{{"to", o.to}, {"genesis", o.genesis}, {"policy", o.policy}, {"key", o.key},
		{"name", o.name}, {"program", o.program}, {"model", o.model}} {
		if required.value == "" {
			return usageError("see meshnode service deploy --help", "--%s is missing", required.flag)
		}
	}
	target, err := deployURL(o.to, o.name)
	if err != nil {
		return err
	}
	g, err := signedGenesis(o.genesis)
	if err != nil {
		return err
	}
	policy, err := readClientPolicy(o.policy)
	if err != nil {
		return err
	}
	// The program is not there before it is deployed: what this policy wants of services is
	// for those who ask them.
	policy.Services, policy.Exclusive = nil, false
	up, err := prepareUpload(o, g.MeshID(), args)
	if err != nil {
		return err
	}
	defer up.close()
	var proved client.Session
	t, err := client.New(client.Config{Genesis: g.Raw(), Policy: policy, OnSession: func(s client.Session) { proved = s }})
	if err != nil {
		return usageError("compare policy and genesis", "%v", err)
	}
	defer t.Close()
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPut, target, up.body(cmd))
	if err != nil {
		return err
	}
	req.ContentLength = up.size
	req.Header.Set("Content-Type", service.ContentType)
	resp, err := (&http.Client{Transport: t}).Do(req)
	up.endProgress()
	if err != nil {
		return clientFailure(cmd.Context(), err)
	}
	defer resp.Body.Close()
	d, err := deploymentOf(resp)
	if err != nil {
		return err
	}
	return up.show(cmd, o, proved, d)
}

func deployURL(to, name string) (string, error) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return "", usageError("give the node's https address and port, as https://node.example.org:8443", "--to %q: is no https URL of a node", to)
	}
	if err := service.CheckName(name); err != nil {
		return "", usageError("use the name that the node's configuration lists", "--name: %v", err)
	}
	return (&url.URL{Scheme: "https", Host: u.Host, Path: service.PathDeploy + name}).String(), nil
}

// upload is one deployment's body.
type upload struct {
	manifest       service.Manifest
	envelope       []byte
	program, model *os.File
	size           int64
	endProgress    func()
}

func (u *upload) close() {
	for _, f := range []*os.File{u.program, u.model} {
		if f != nil {
			f.Close()
		}
	}
}

func prepareUpload(o deployOptions, mesh identity.MeshID, args []string) (*upload, error) {
	key, err := loadKey(o.key)
	if err != nil {
		return nil, err
	}
	if _, ok := key.(ed25519.PrivateKey); !ok {
		return nil, usageError("make one with meshnode keygen --role service", "key %s: is no Ed25519 key", o.key)
	}
	if o.versioned && o.version == 0 {
		return nil, usageError("leave --version out for the present second", "--version 0: want 1 or more")
	}
	u := &upload{manifest: service.Manifest{MeshID: mesh, Service: o.name, Version: o.version, Args: args}, endProgress: func() {}}
	if u.manifest.Version == 0 {
		u.manifest.Version = uint64(time.Now().Unix())
	}
	for _, part := range []struct {
		path  string
		limit int64
		file  **os.File
		blob  *service.Blob
	}{{o.program, service.MaxProgram, &u.program, &u.manifest.Program}, {o.model, service.MaxModel, &u.model, &u.manifest.Model}} {
		if *part.file, *part.blob, err = digestFile(part.path, part.limit); err != nil {
			u.close()
			return nil, err
		}
	}
	signer, err := signerOf(key)
	if err == nil {
		u.envelope, err = service.SignManifest(signer, u.manifest)
	}
	if err != nil {
		u.close()
		return nil, usageError("see meshnode service deploy --help", "%v", err)
	}
	u.size = 4 + int64(len(u.envelope)) + u.manifest.Program.Size + u.manifest.Model.Size
	return u, nil
}

// digestFile opens a file and returns its digest; the file stands at its beginning.
func digestFile(path string, limit int64) (*os.File, service.Blob, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, service.Blob{}, usageError("check the path", "%v", err)
	}
	sum := sha256.New()
	size, err := io.Copy(sum, io.LimitReader(f, limit+1))
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	switch {
	case err != nil:
		f.Close()
		return nil, service.Blob{}, usageError("give the path of a file", "%s: %v", path, err)
	case size == 0 || size > limit:
		f.Close()
		return nil, service.Blob{}, usageError("give another file", "%s: %d bytes, want 1 to %d", path, size, limit)
	}
	return f, service.Blob{SHA256: service.Digest(sum.Sum(nil)), Size: size}, nil
}

// body returns what is sent; it shows on a terminal how far it has come.
func (u *upload) body(cmd *cobra.Command) io.Reader {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(u.envelope)))
	r := &countedReader{r: io.MultiReader(bytes.NewReader(append(head, u.envelope...)), io.LimitReader(u.program, u.manifest.Program.Size),
		io.LimitReader(u.model, u.manifest.Model.Size)), size: uint64(u.size)}
	u.endProgress = showProgress(cmd, "sent", "KiB", &r.progress)
	return r
}

// countedReader tells how much was read, in KiB.
type countedReader struct {
	r          io.Reader
	done, size uint64
	progress   func(done, size uint64)
}

// Read implements io.Reader.
func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.done += uint64(n); c.progress != nil {
		c.progress(c.done>>10, c.size>>10)
	}
	return n, err
}

// deploymentOf reads a node's answer.
func deploymentOf(resp *http.Response) (node.Deployment, error) {
	var reply struct {
		node.Deployment
		Error *node.ControlError `json:"error"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(raw, &reply)
	}
	switch {
	case err == nil && reply.Error != nil:
		exit := exitRefused
		switch {
		case resp.StatusCode == http.StatusBadRequest:
			exit = exitUsage
		case resp.StatusCode >= http.StatusInternalServerError:
			exit = exitUnavailable
		}
		return node.Deployment{}, &failure{exit: exit, code: reply.Error.Code, message: "the node does not run it: " + reply.Error.Message, remedy: reply.Error.Remedy}
	case err != nil || resp.StatusCode != http.StatusOK:
		return node.Deployment{}, unavailableError("unavailable", "compare releases", "the node answers %s: %v", resp.Status, err)
	}
	return reply.Deployment, nil
}

func (u *upload) show(cmd *cobra.Command, o deployOptions, s client.Session, d node.Deployment) error {
	if d.Program != u.manifest.Program.SHA256.String() || d.Model != u.manifest.Model.SHA256.String() || d.Version != u.manifest.Version {
		return refusedError("result_mismatch", "deploy again", "the node says that it runs program %s, model %s, version %d", d.Program, d.Model, d.Version)
	}
	if o.asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"ok": true, "node": s.Node.String(), "peer": s.Peer.String(), "measurement": s.Claims.Measurement,
			"simulated": s.Simulated(), "service": d.Service, "version": d.Version, "manifest": d.Manifest, "program": d.Program, "model": d.Model,
			"runtime_head": d.RuntimeHead, "state": d.State})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s runs %s, version %d: %s\n  program      %s\n  model        %s\n  manifest     %s\n  measurement  %s (%s)\n",
		s.Node, d.Service, d.Version, d.State, d.Program, d.Model, d.Manifest, s.Claims.Measurement, s.Claims.Kind)
	if s.Simulated() {
		fmt.Fprintln(cmd.OutOrStdout(), "  warning      evidence is simulated: it protects nothing from its host")
	}
	return nil
}
