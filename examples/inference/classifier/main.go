// Command classifier is Charlie's program: it sorts texts into the classes of its model. It
// is what a meshnode service is: one static executable that reads its weights from file
// descriptor 4 and answers HTTP/1.1 on the listening socket that is descriptor 3.
//
//	POST /classify   a text of at most 64 KiB, UTF-8
//	                 {"label","scores":[{"label","probability"}],"words","reference"}
//
// reference is a number for the customer's letter: 32 hex characters of the SHA-256 of the
// text.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
	"unicode/utf8"

	"github.com/attestmesh/meshnode/examples/inference/bag"
)

// The descriptors that a node hands to a program.
const (
	fdListener = 3
	fdModel    = 4
)

const maxText = 64 << 10

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "classifier:", err)
		os.Exit(1)
	}
}

func run() error {
	raw, err := io.ReadAll(os.NewFile(fdModel, "model"))
	if err != nil {
		return err
	}
	model, err := bag.Decode(raw)
	if err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(fdListener, "listener"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /classify", func(w http.ResponseWriter, r *http.Request) { classify(w, r, model) })
	return (&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

func classify(w http.ResponseWriter, r *http.Request, model *bag.Model) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxText))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("the text is over %d bytes", maxText), http.StatusRequestEntityTooLarge)
		return
	case err != nil || !utf8.Valid(text):
		http.Error(w, "the body is no text in UTF-8", http.StatusBadRequest)
		return
	}
	scores, sum := model.Classify(string(text)), sha256.Sum256(text)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"label": scores[0].Label, "scores": scores,
		"words": len(bag.Words(string(text))), "reference": hex.EncodeToString(sum[:16])})
}
