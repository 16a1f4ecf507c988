package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// dirs is what a node has open on disk and on the network besides the mesh.
type dirs struct {
	data            *durable.Dir
	log, blobs      *durable.Dir
	evidence        *evidenceStore
	outbox          *durable.Dir
	left            []*durable.Dir // outboxes of earlier boots
	jobs            *durable.Dir   // of all boots
	misbehaviour    *durable.Dir   // of all boots
	older           []*durable.Dir // blobs of earlier boots
	raft            *durable.Dir   // for the store kind disk only
	control, public net.Listener
	https           net.Listener // nil where none is configured
	release         func()
}

func (d *dirs) close() {
	for _, l := range []net.Listener{d.control, d.public, d.https} {
		if l != nil {
			l.Close()
		}
	}
	if d.release != nil {
		d.release()
	}
}

// openDirs takes the data directory for this process and opens the listeners. What can
// fail is tried before anything is made: a node that does not start leaves nothing behind.
// Each boot has its own log directory: a tree starts empty, and older logs stay for audits.
func (n *Node) openDirs(cfg Config, deps Deps) (*dirs, error) {
	if deps.InMemory {
		return &dirs{control: deps.Control, public: deps.Public, https: deps.HTTPS}, nil
	}
	d := &dirs{}
	if err := d.open(cfg, n.genesis.StoreKind, n.now()); err != nil {
		d.close()
		return nil, err
	}
	n.edges.dir, n.edges.older.dirs = d.outbox, d.left
	n.raftDir, n.evidence, n.jobDir, n.logDir = d.raft, d.evidence, d.jobs, d.log.Path()
	return d, nil
}

func (d *dirs) open(cfg Config, store string, now time.Time) error {
	exists, err := checkDataDir(cfg.Data)
	if err != nil {
		return err
	}
	if exists {
		if err := d.take(cfg.Data); err != nil {
			return err
		}
	}
	if d.public, err = net.Listen("tcp", cfg.Public); err != nil {
		return &ConfigError{Field: "public", Err: err, Remedy: "choose a free address; another process may hold the port"}
	}
	if cfg.HTTPS != "" {
		if d.https, err = net.Listen("tcp", cfg.HTTPS); err != nil {
			return &ConfigError{Field: "https", Err: err, Remedy: "choose a free address; another process may hold the port"}
		}
	}
	for _, addr := range cfg.Listen {
		if err := probeListen(addr); err != nil {
			return &ConfigError{Field: "listen", Err: err, Remedy: "choose a free address; another process may hold the port"}
		}
	}
	if !exists {
		if err := d.take(cfg.Data); err != nil {
			return err
		}
	}
	if older, err := filepath.Glob(d.data.Path("boot-*", "blobs")); err == nil {
		for _, dir := range older {
			if dir, err := durable.Open(dir); err == nil {
				d.older = append(d.older, dir)
			}
		}
	}
	boot := fmt.Sprintf("boot-%d", now.UnixMilli())
	if d.log, err = d.data.Sub(boot + "/log"); err == nil {
		d.blobs, err = d.data.Sub(boot + "/blobs")
	}
	if err == nil {
		d.evidence, err = openEvidence(d.data, boot)
	}
	if err == nil {
		d.outbox, err = d.data.Sub(boot + "/outbox")
	}
	if err == nil {
		d.left = openOutboxes(d.data, d.outbox.Path())
		d.jobs, err = d.data.Sub("jobs")
	}
	if err == nil {
		d.misbehaviour, err = d.data.Sub(misbehaviourDir)
	}
	if err == nil && store == consensus.StoreDisk {
		d.raft, err = d.data.Sub(boot + "/raft")
	}
	if err == nil {
		d.control, err = listenControl(cfg.SocketPath())
	}
	if err != nil {
		return &ConfigError{Field: "data", Err: err, Remedy: "look at the directory's permissions and the disk"}
	}
	return nil
}

// take makes the directory where it is absent and locks it for this process.
func (d *dirs) take(path string) (err error) {
	if d.data, err = durable.Open(path); err != nil {
		return &ConfigError{Field: "data", Err: err, Remedy: "name a directory that this user can write"}
	}
	if d.release, err = d.data.Lock(); errors.Is(err, fs.ErrPermission) {
		return &ConfigError{Field: "data", Err: err, Remedy: "name a directory that this user can write"}
	} else if err != nil {
		return &ConfigError{Field: "data", Err: err, Remedy: "stop the other process, or give this node a directory of its own"}
	}
	return nil
}

// absolute is for people and programs that work in another directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// checkDataDir reports whether the data directory exists. Nobody else may write into it:
// they could put their own control socket there.
func checkDataDir(path string) (exists bool, err error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, &ConfigError{Field: "data", Err: err, Remedy: "name a directory that this user can write"}
	case !st.IsDir():
		return false, &ConfigError{Field: "data", Err: fmt.Errorf("%s: is not a directory", path), Remedy: "name a directory for this node alone"}
	case st.Mode().Perm()&0o022 != 0:
		return false, &ConfigError{Field: "data", Err: fmt.Errorf("%s: mode %04o lets others write into it", path, st.Mode().Perm()), Remedy: "chmod 700 " + path}
	}
	return true, nil
}

// probeListen reports whether addr, a multiaddr of a TCP port, can be listened on. The
// mesh listens only once the node is enrolled, and would find out too late.
func probeListen(addr string) error {
	m, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		return err
	}
	network, address, err := manet.DialArgs(m)
	if err != nil {
		return err
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	return l.Close()
}
