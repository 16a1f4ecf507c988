package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/audit/audittest"
)

// Signature types of c2sp.org/signed-note.
const (
	typeEd25519     = 1
	typeCosignature = 4
)

// text is what a checkpoint signs.
func text(origin string, size int, root tlog.Hash) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root[:]))
}

// line is a signature line with a body behind the key's hash.
func line(name string, alg byte, key ed25519.PrivateKey, body []byte) string {
	id := sha256.Sum256(append([]byte(name+"\n"+string(rune(alg))), key.Public().(ed25519.PublicKey)...))
	return "— " + name + " " + base64.StdEncoding.EncodeToString(append(id[:4:4], body...)) + "\n"
}

// logLine is the log key's signature.
func logLine(text, origin string, key ed25519.PrivateKey) string {
	return line(origin, typeEd25519, key, ed25519.Sign(key, []byte(text)))
}

// cosign is the line of a seat of the present incarnation.
func (s *spoiled) cosign(text, boot string, at time.Time) string {
	return string(audittest.Cosign(text, s.CosignerName(boot), audittest.Key(boot+" cosigner"), at))
}

// write writes a checkpoint.
func (s *spoiled) write(text string, lines ...string) {
	check(os.WriteFile(filepath.Join(s.dir, "checkpoint"), []byte(text+"\n"+strings.Join(lines, "")), 0o644))
}

// sealed is a checkpoint of the leaves, signed by the log key and cosigned by boots, or by all seats.
func (s *spoiled) sealed(boots ...string) string {
	if len(boots) == 0 {
		boots = s.Cosigners()
	}
	t := text(s.State.Origin(), len(s.Leaves), rootOf(s.Leaves))
	out := t + "\n" + logLine(t, s.State.Origin(), s.LogKey())
	for _, boot := range boots {
		out += s.cosign(t, boot, s.At)
	}
	return out
}

// seal writes the tree of the leaves and its checkpoint.
func (s *spoiled) seal(boots ...string) {
	s.rebuild()
	s.put(filepath.Join(s.dir, "checkpoint"), []byte(s.sealed(boots...)))
}

// sealAll is seal by the log key and all seats: only the leaves can show what is wrong.
func (s *spoiled) sealAll() { s.seal() }

// head is the text of the checkpoint as it was.
func (s *spoiled) head() string {
	t, _, _ := strings.Cut(string(s.cp), "\n\n")
	return t + "\n"
}

// resign writes the text of the checkpoint as it was with other lines.
func (s *spoiled) resign(lines ...string) { s.write(s.head(), lines...) }
