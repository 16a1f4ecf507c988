package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"

	"github.com/attestmesh/meshnode/attest"
)

// Collateral reads the JSON in which Intel's collateral is passed around and returns its
// items as Verify takes them:
//
//   - an answer of the PCS: TCB info of TDX or identity of the TD quoting enclave, each with
//     its signature;
//   - a set under the names of Intel's sgx_ql_qve_collateral_t, as many verifiers keep it:
//     tcb_info, qe_identity (an answer, or its body with …_signature beside it),
//     tcb_info_issuer_chain, qe_identity_issuer_chain (PEM, as it is or escaped as in an HTTP
//     header), pck_crl, root_ca_crl (PEM, DER in hex or base64). The set may stand under
//     "collateral".
//
// It verifies nothing. Collateral of SGX is refused: it says nothing about TDs.
func Collateral(raw []byte) ([]attest.Item, error) {
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(raw, &outer); err != nil {
		return nil, fmt.Errorf("JSON: %w", err)
	}
	for itemType, m := range members {
		if outer[m.name] != nil && outer["signature"] != nil {
			_, err := ReadDocument(itemType, raw)
			return []attest.Item{{Type: itemType, Data: raw}}, err
		}
	}
	if inner := outer["collateral"]; len(inner) > 0 && inner[0] == '{' {
		outer = nil
		_ = json.Unmarshal(inner, &outer) // an object in JSON that was read
	}
	return set(outer)
}

// set reads the members of sgx_ql_qve_collateral_t.
func set(outer map[string]json.RawMessage) (items []attest.Item, err error) {
	for _, m := range []struct{ name, itemType string }{{"tcb_info", attest.TypeTDXTCBInfo}, {"qe_identity", attest.TypeTDXQEIdent}} {
		if outer[m.name] == nil {
			continue
		}
		answer, err := document(m.itemType, text(outer[m.name]), text(outer[m.name+"_signature"]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		items = append(items, attest.Item{Type: m.itemType, Data: answer})
	}
	for _, name := range []string{"tcb_info_issuer_chain", "qe_identity_issuer_chain"} {
		chain := text(outer[name])
		if decoded, err := url.PathUnescape(string(chain)); err == nil {
			chain = []byte(decoded)
		}
		if len(chain) > 0 && (len(items) == 0 || !bytes.Equal(items[len(items)-1].Data, chain)) {
			items = append(items, attest.Item{Type: attest.TypeTDXTCBChain, Data: chain})
		}
	}
	for _, name := range []string{"pck_crl", "root_ca_crl"} {
		if list := text(outer[name]); len(list) > 0 {
			der, err := listDER(list)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			items = append(items, attest.Item{Type: attest.TypeCRL, Data: der})
		}
	}
	if len(items) == 0 {
		return nil, errors.New("JSON that is not Intel's collateral")
	}
	return items, nil
}

// text is a JSON value as text: what a string says, or any other value as it stands.
func text(raw json.RawMessage) []byte {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return bytes.TrimRight([]byte(s), "\x00")
	}
	return raw
}

// document returns an answer of the PCS, from one or from its body and signature.
func document(itemType string, body, signature []byte) ([]byte, error) {
	if _, err := ReadDocument(itemType, body); err == nil {
		return body, nil
	}
	if !json.Valid(body) {
		return nil, errors.New("no JSON")
	}
	if raw, err := base64.StdEncoding.DecodeString(string(signature)); err == nil && len(raw) == signatureSize {
		signature = hex.AppendEncode(nil, raw)
	}
	answer := fmt.Appendf(nil, `{%q:%s,"signature":%q}`, members[itemType].name, body, signature)
	_, err := ReadDocument(itemType, answer)
	return answer, err
}

// listDER returns the DER of a revocation list.
func listDER(list []byte) ([]byte, error) {
	if block, _ := pem.Decode(list); block != nil {
		list = block.Bytes
	} else if der, err := hex.DecodeString(string(bytes.TrimSpace(list))); err == nil {
		list = der
	} else if der, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(list))); err == nil {
		list = der
	}
	_, err := x509.ParseRevocationList(list)
	return list, err
}
