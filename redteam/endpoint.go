package redteam

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
)

// endpointAttacks try the HTTPS endpoint for clients outside the mesh.
func endpointAttacks() []Attack {
	return []Attack{
		{Name: "https-tls12", Tries: "speak TLS 1.2 to the endpoint for clients", Flaw: "negotiate TLS down, where no exporter binds the handshake", Needs: NeedHTTPS, run: httpsTLS12},
		{Name: "https-resumption", Tries: "resume a session of the endpoint for clients", Flaw: "issue tickets, so that a client skips the certificate", Needs: NeedHTTPS, run: httpsResumption},
		{Name: "challenge-malformed", Tries: "challenge with a nonce that is zero, short, long, in capitals, or with more than a nonce",
			Flaw: "quote for whatever it is sent", Needs: NeedHTTPS, run: challengeMalformed},
		{Name: "challenge-replay", Tries: "get an answer on one connection and use it on another with the same nonce",
			Flaw: "bind its answer to the nonce and not to the connection", Needs: NeedHTTPS, run: challengeReplay},
		{Name: "challenge-flood", Tries: fmt.Sprintf("challenge %d times at once", challenges), Flaw: "have no quote left for its peers", Needs: NeedHTTPS, run: challengeFlood},
	}
}

// clientTLS trusts any certificate: what it would vouch for is the attack's own question.
func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}} // #nosec: an attacker
}

// dialHTTPS makes one TLS connection to the endpoint.
func (c *Campaign) dialHTTPS(ctx context.Context, config *tls.Config) (*tls.Conn, error) {
	u, err := url.Parse(c.target.URL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: config}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), conn.SetDeadline(time.Now().Add(c.patience))
}

func httpsTLS12(ctx context.Context, c *Campaign) Outcome {
	config := clientTLS()
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
	conn, err := c.dialHTTPS(ctx, config)
	if err != nil {
		return held("no handshake: %v", err)
	}
	defer conn.Close()
	return broken("a handshake of version %s", tls.VersionName(conn.ConnectionState().Version))
}

func httpsResumption(ctx context.Context, c *Campaign) Outcome {
	config := clientTLS()
	config.ClientSessionCache, config.ServerName = tls.NewLRUClientSessionCache(4), "redteam"
	for range 2 {
		conn, err := c.dialHTTPS(ctx, config)
		if err != nil {
			return skipped("could not be tried: %v", err)
		}
		resumed := conn.ConnectionState().DidResume
		// A whole request, so that tickets behind the handshake are read.
		_, _ = io.WriteString(conn, "GET "+publicPaths[0]+" HTTP/1.1\r\nHost: redteam\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxAnswer))
		_ = conn.Close()
		if resumed {
			return broken("the second handshake resumed the first")
		}
	}
	return held("two full handshakes, no ticket")
}

// challenge posts body on conn and returns the status and the answer.
func challenge(conn *tls.Conn, body []byte) (int, []byte, error) {
	req, err := http.NewRequest(http.MethodPost, "https://redteam"+ratls.Path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if err := req.Write(conn); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, ratls.MaxAnswer))
	return resp.StatusCode, raw, err
}

func challengeMalformed(ctx context.Context, c *Campaign) Outcome {
	good := strings.Repeat("ab", ratls.NonceSize)
	tries := map[string]Outcome{}
	for name, body := range map[string]string{
		"zero": `{"nonce":"` + strings.Repeat("00", ratls.NonceSize) + `"}`, "short": `{"nonce":"` + good[2:] + `"}`, "long": `{"nonce":"` + good + `ab"}`,
		"capitals": `{"nonce":"` + strings.ToUpper(good) + `"}`, "more": `{"nonce":"` + good + `","purpose":1}`, "twice": `{"nonce":"` + good + `","nonce":"` + good + `"}`,
		"trailing": `{"nonce":"` + good + `"} {}`, "empty": "", "deep": strings.Repeat("[", 100_000),
	} {
		conn, err := c.dialHTTPS(ctx, clientTLS())
		if err != nil {
			return skipped("could not be tried: %v", err)
		}
		status, _, err := challenge(conn, []byte(body))
		_ = conn.Close()
		switch {
		case err != nil:
			tries[name] = held("closed: %v", err)
		case status == http.StatusOK:
			tries[name] = broken("answered")
		default:
			tries[name] = held("%d", status)
		}
	}
	return summary(tries)
}

// answerOn challenges on a connection of its own.
func (c *Campaign) answerOn(ctx context.Context, nonce [ratls.NonceSize]byte) (ratls.Answer, [ratls.EKMSize]byte, error) {
	conn, err := c.dialHTTPS(ctx, clientTLS())
	if err != nil {
		return ratls.Answer{}, [ratls.EKMSize]byte{}, err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	ekm, err := ratls.EKM(state.ExportKeyingMaterial, nonce)
	if err != nil {
		return ratls.Answer{}, ekm, err
	}
	status, raw, err := challenge(conn, ratls.Request{Nonce: nonce}.Encode())
	if err == nil && status != http.StatusOK {
		var refusal struct {
			Error attest.Reason `json:"error"`
		}
		_ = json.Unmarshal(raw, &refusal)
		err = fmt.Errorf("status %d: %s", status, refusal.Error.String())
	}
	if err != nil {
		return ratls.Answer{}, ekm, err
	}
	a, err := ratls.DecodeAnswer(raw)
	return a, ekm, err
}

// challengeReplay asks twice with one nonce. The first answer must not fit the second
// connection; where schemes are at hand it is verified, else the proofs must differ.
func challengeReplay(ctx context.Context, c *Campaign) Outcome {
	nonce := freshNonce()
	first, _, err := c.answerOn(ctx, nonce)
	if err != nil {
		return skipped("no answer to replay: %v", err)
	}
	second, ekm, err := c.answerOn(ctx, nonce)
	if err != nil {
		return skipped("no second answer: %v", err)
	}
	if bytes.Equal(first.Proof, second.Proof) {
		return broken("both connections got the same proof")
	}
	if c.arsenal.Genuine == nil {
		return held("two connections, one nonce, two proofs")
	}
	if err := c.fits(ctx, second, nonce, ekm); err != nil {
		return broken("the proof is not bound to its own connection: %v", err)
	}
	if err := c.fits(ctx, first, nonce, ekm); err == nil {
		return broken("the proof of one connection verifies on another")
	}
	return held("each proof verifies on its own connection only")
}

// fits reports whether an answer's proof is genuine and bound to a connection.
func (c *Campaign) fits(ctx context.Context, a ratls.Answer, nonce [ratls.NonceSize]byte, ekm [ratls.EKMSize]byte) error {
	p, err := ratls.DecodeProof(a.Proof)
	if err != nil {
		return err
	}
	claimant := ratls.Claimant{MeshID: c.target.MeshID, Incarnation: c.target.Incarnation, Peer: c.target.Peer}
	data, err := p.ReportData(claimant.ChallengeBinder(nonce, ekm), c.target.MeshID, string(c.target.Peer))
	if err != nil {
		return err
	}
	return c.arsenal.Genuine(ctx, p.Evidence, data)
}

// challengeFlood: clients share a lane for quotes; peers have theirs.
func challengeFlood(ctx context.Context, c *Campaign) Outcome {
	var wg sync.WaitGroup
	statuses := make(chan int, challenges)
	for range challenges {
		wg.Go(func() {
			conn, err := c.dialHTTPS(ctx, clientTLS())
			if err != nil {
				statuses <- 0
				return
			}
			defer conn.Close()
			status, _, _ := challenge(conn, ratls.Request{Nonce: freshNonce()}.Encode())
			statuses <- status
		})
	}
	served := c.servesMeanwhile(ctx)
	wg.Wait()
	close(statuses)
	counts := map[int]int{}
	for s := range statuses {
		counts[s]++
	}
	if served != nil {
		return broken("no peer was served beside %d challenges: %v", challenges, served)
	}
	if counts[http.StatusOK]+counts[http.StatusTooManyRequests] == 0 {
		return skipped("no challenge was answered, nor told to wait: %v", counts)
	}
	if counts[http.StatusTooManyRequests] == 0 && counts[http.StatusOK] > challenges*3/4 {
		return broken("%d of %d challenges of one source were answered at once, and nobody was told to wait", counts[http.StatusOK], challenges)
	}
	return held("%d answered, %d told to wait, %d otherwise; a peer was served meanwhile", counts[http.StatusOK], counts[http.StatusTooManyRequests],
		challenges-counts[http.StatusOK]-counts[http.StatusTooManyRequests])
}
