package vtpmtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// serve passes the commands of every connection on.
func (m *TPM) serve(l net.Listener, serving *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !m.came(conn) {
			return
		}
		serving.Go(func() {
			defer m.left(conn)
			loaded := map[uint32]bool{}
			for m.exchange(conn, loaded) == nil {
			}
			m.flush(loaded)
		})
	}
}

// came remembers a connection, unless all were hung up.
func (m *TPM) came(conn net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clients == nil {
		conn.Close()
		return false
	}
	m.clients[conn] = true
	return true
}

// left forgets a connection.
func (m *TPM) left(conn net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.clients, conn)
	conn.Close()
}

// hangUp ends all connections, so that who left one open does not hold up the test's end.
func (m *TPM) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for conn := range m.clients {
		conn.Close()
	}
	m.clients = nil
}

// exchange passes one command on and its response back, and keeps account of the objects
// and sessions that are loaded by it.
func (m *TPM) exchange(client net.Conn, loaded map[uint32]bool) error {
	command, err := readMessage(client)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == nil {
		return net.ErrClosed
	}
	if _, err := m.conn.Write(command); err != nil {
		return err
	}
	response, err := readMessage(m.conn)
	if err != nil {
		return err
	}
	word := binary.BigEndian.Uint32
	if code := tpmutil.Command(word(command[6:])); word(response[6:]) == 0 && loads[code] && len(response) >= 14 {
		loaded[word(response[10:])] = true
	} else if code == tpm2.CmdFlushContext && len(command) >= 14 {
		delete(loaded, word(command[10:]))
	}
	_, err = client.Write(response)
	return err
}

// loads are the commands whose response begins with the handle of what they loaded.
var loads = map[tpmutil.Command]bool{tpm2.CmdCreatePrimary: true, tpm2.CmdLoad: true, tpm2.CmdLoadExternal: true,
	tpm2.CmdContextLoad: true, tpm2.CmdStartAuthSession: true}

// flush drops what a connection left loaded.
func (m *TPM) flush(loaded map[uint32]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for handle := range loaded {
		if m.conn != nil {
			_ = tpm2.FlushContext(m.conn, tpmutil.Handle(handle)) // a reboot has dropped it already
		}
	}
}

// readMessage reads a command or response by the size in its header.
func readMessage(r io.Reader) ([]byte, error) {
	header := make([]byte, 10)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < 10 || size > 4096 {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	message := append(header, make([]byte, size-10)...)
	_, err := io.ReadFull(r, message[10:])
	return message, err
}
