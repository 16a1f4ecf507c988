package sim

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// Names in a platform's directory.
const (
	SocketName = "sim.sock"
	RootName   = "root.pub"
	keyName    = "platform.key"
)

// maxSocketPath is what sockaddr_un holds, less the final zero.
const maxSocketPath = 107

// Platform is a sim platform that listens. It belongs to the goroutine that calls Run.
type Platform struct {
	dir     *durable.Dir
	key     ed25519.PrivateKey
	ln      *net.UnixListener
	release func()
	log     *slog.Logger
	slots   chan struct{} // one token per connection
}

// Listen opens the platform of a directory: it takes the directory for itself (an error
// wraps durable.ErrInUse where another platform has it), makes the root key where there
// is none, writes root.pub and listens. Run must follow, or Close.
func Listen(dir string, log *slog.Logger) (*Platform, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d, err := durable.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("sim platform: %w", err)
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("sim platform: %w", err)
	} else if st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("sim platform: %s has mode %04o, others could replace its socket: want at most 0755", dir, st.Mode().Perm())
	}
	if n := len(d.Path(SocketName)); n > maxSocketPath {
		return nil, fmt.Errorf("sim platform: the socket path %s has %d bytes, the system's limit is %d: choose a shorter directory", d.Path(SocketName), n, maxSocketPath)
	}
	release, err := d.Lock()
	if err != nil {
		return nil, fmt.Errorf("sim platform: %w", err)
	}
	p := &Platform{dir: d, release: release, log: log, slots: make(chan struct{}, maxConnections)}
	if err := p.start(); err != nil {
		release()
		return nil, fmt.Errorf("sim platform: %w", err)
	}
	return p, nil
}

func (p *Platform) start() (err error) {
	if p.key, err = loadRoot(p.dir); err != nil {
		return err
	}
	der, err := envelope.MarshalPublic(p.Root())
	if err != nil {
		return err
	}
	if err := p.dir.WriteFile(RootName, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		return err
	}
	// The directory is locked: a socket in it is one that a killed platform left.
	if err := p.dir.Remove(SocketName); err != nil {
		return err
	}
	addr := &net.UnixAddr{Name: p.Socket(), Net: "unix"}
	if p.ln, err = net.ListenUnix("unix", addr); err != nil {
		return err
	}
	if err := os.Chmod(p.Socket(), 0o600); err != nil {
		p.ln.Close()
		return err
	}
	return nil
}

// Socket returns the path of the socket.
func (p *Platform) Socket() string { return p.dir.Path(SocketName) }

// Root returns the public key that genesis names.
func (p *Platform) Root() ed25519.PublicKey { return p.key.Public().(ed25519.PublicKey) }

// Close ends a platform that is not run: the socket goes, the directory is free.
func (p *Platform) Close() error {
	err := p.ln.Close()
	p.release()
	return err
}

// Run serves until ctx ends, then closes every connection and the platform, and returns
// nil; any other end is an error.
func (p *Platform) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer func() {
		cancel()
		serving.Wait()
		p.release()
	}()
	stop := context.AfterFunc(ctx, func() { p.ln.Close() })
	defer func() {
		if stop() {
			p.ln.Close()
		}
	}()
	for {
		conn, err := p.ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("sim platform: %s: %w", p.Socket(), err)
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.refuse(conn, fmt.Errorf("the platform serves %d connections already", maxConnections))
			conn.Close()
			continue
		}
		serving.Go(func() {
			defer func() { <-p.slots }()
			p.serve(ctx, conn)
		})
	}
}

// serve owns conn: it measures the peer once and then answers its requests.
func (p *Platform) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	m, pid, err := measurePeer(conn)
	if err != nil {
		p.log.Warn("sim platform: not measured", "pid", pid, "err", err)
		p.refuse(conn, err)
		return
	}
	p.log.Info("sim platform: measured", "pid", pid, "measurement", hex.EncodeToString(m[:]))
	for ctx.Err() == nil {
		if err := p.answer(ctx, conn, m); err != nil {
			if !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
				p.log.Info("sim platform: connection ended", "pid", pid, "err", err)
			}
			return
		}
	}
}

// answer reads one request and answers it. The wait for its first byte is long, the rest
// must follow at once.
func (p *Platform) answer(ctx context.Context, conn *net.UnixConn, m [MeasurementSize]byte) error {
	if err := setDeadline(ctx, conn.SetReadDeadline, idleTimeout); err != nil {
		return err
	}
	body, err := readFrame(&armedReader{ctx: ctx, conn: conn}, maxRequest)
	if err != nil {
		return err
	}
	data, err := parseRequest(body)
	if err != nil {
		p.refuse(conn, err)
		return err
	}
	report, err := Sign(p.key, m, data)
	if err != nil {
		p.refuse(conn, errors.New("the platform could not sign"))
		return err
	}
	if err := setDeadline(ctx, conn.SetWriteDeadline, frameTimeout); err != nil {
		return err
	}
	return writeFrame(conn, append([]byte{answerReport}, report...))
}

// refuse sends a refusal if the peer takes it at once.
func (p *Platform) refuse(conn *net.UnixConn, reason error) {
	conn.SetWriteDeadline(time.Now().Add(frameTimeout))
	_ = writeFrame(conn, encodeRefusal(reason)) // the connection closes in either case
}

// setDeadline sets a deadline and undoes it if ctx had ended meanwhile, whose end may
// have set its own just before.
func setDeadline(ctx context.Context, set func(time.Time) error, after time.Duration) error {
	if err := set(time.Now().Add(after)); err != nil {
		return err
	}
	return ctx.Err()
}

// armedReader shortens the read deadline once the first bytes have come.
type armedReader struct {
	ctx   context.Context
	conn  *net.UnixConn
	armed bool
}

func (r *armedReader) Read(p []byte) (int, error) {
	n, err := r.conn.Read(p)
	if n > 0 && !r.armed {
		r.armed = true
		err = errors.Join(err, setDeadline(r.ctx, r.conn.SetReadDeadline, frameTimeout))
	}
	return n, err
}

// loadRoot reads the root key of a directory, or makes it.
func loadRoot(d *durable.Dir) (ed25519.PrivateKey, error) {
	path := d.Path(keyName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeRoot(d)
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600: others may have read the root; remove it and found a new mesh", path, st.Mode().Perm())
	}
	raw, err := d.ReadFile(keyName, 4<<10)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, fmt.Errorf("%s: want one PEM block PRIVATE KEY", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %T, want an Ed25519 key", path, key)
	}
	return ed, nil
}

func makeRoot(d *durable.Dir) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, d.WriteFile(keyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
