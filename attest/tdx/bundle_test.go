package tdx_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// bundle is collateral under the names of sgx_ql_qve_collateral_t, with bodies and
// signatures apart and lists in hex.
func bundle(t testing.TB, items []attest.Item) map[string]string {
	t.Helper()
	apart := func(raw []byte, name string) (body, signature string) {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		return string(m[name]), strings.Trim(string(m["signature"]), `"`)
	}
	out := map[string]string{"tcb_info_issuer_chain": string(items[2].Data), "qe_identity_issuer_chain": string(items[2].Data) + "\x00",
		"pck_crl": hex.EncodeToString(items[3].Data), "root_ca_crl": hex.EncodeToString(items[4].Data), "pck_crl_issuer_chain": "unused"}
	out["tcb_info"], out["tcb_info_signature"] = apart(items[0].Data, "tcbInfo")
	out["qe_identity"], out["qe_identity_signature"] = apart(items[1].Data, "enclaveIdentity")
	return out
}

// TestCollateralShapes: in whatever JSON a set of collateral is kept, the same comes out,
// and it verifies.
func TestCollateralShapes(t *testing.T) {
	f, at := attesttest.NewTDX("bundle"), time.Now()
	items := f.Collateral()
	for name, edit := range map[string]func(m map[string]string) any{
		"bodies and signatures": func(m map[string]string) any { return m },
		"under a name":          func(m map[string]string) any { return map[string]any{"quote": "00", "collateral": m} },
		"answers": func(m map[string]string) any {
			m["tcb_info"], m["qe_identity"] = string(items[0].Data), string(items[1].Data)
			delete(m, "tcb_info_signature")
			return m
		},
		"objects": func(m map[string]string) any {
			out := map[string]any{"tcb_info": json.RawMessage(items[0].Data), "qe_identity": json.RawMessage(items[1].Data)}
			for _, k := range []string{"tcb_info_issuer_chain", "pck_crl", "root_ca_crl"} {
				out[k] = m[k]
			}
			return out
		},
		"lists in base64, chain escaped": func(m map[string]string) any {
			m["pck_crl"], m["root_ca_crl"] = base64.StdEncoding.EncodeToString(items[3].Data), base64.StdEncoding.EncodeToString(items[4].Data)
			m["tcb_info_issuer_chain"] = url.PathEscape(m["tcb_info_issuer_chain"])
			return m
		},
		"lists in PEM": func(m map[string]string) any {
			m["pck_crl"] = string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: items[3].Data}))
			return m
		},
	} {
		raw, err := json.Marshal(edit(bundle(t, items)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := tdx.Collateral(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ev := made(t, f)
		ev.Items = append(ev.Items[:1:1], got...)
		if r := judge(t, f, ev, at); !r.Affirming() {
			t.Errorf("%s: %v", name, r.Reasons)
		}
	}
}

func TestCollateralRefusals(t *testing.T) {
	f := attesttest.NewTDX("bundle")
	items := f.Collateral()
	good := bundle(t, items)
	with := func(k, v string) []byte {
		m := map[string]string{}
		for name, value := range good {
			m[name] = value
		}
		m[k] = v
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":                    {nil, "JSON: unexpected end"},
		"a list":                     {[]byte("[]"), "JSON: json: cannot unmarshal array"},
		"an empty set":               {[]byte("{}"), "not Intel's collateral"},
		"an empty inner set":         {[]byte(`{"collateral":{}}`), "not Intel's collateral"},
		"an inner list":              {[]byte(`{"collateral":[]}`), "not Intel's collateral"},
		"not JSON inside":            {with("tcb_info", "{"), "tcb_info: no JSON"},
		"a member of its own":        {with("tcb_info", good["tcb_info"]+`,"x":1`), "tcb_info: no JSON"},
		"no list":                    {with("pck_crl", "zz"), "pck_crl"},
		"an odd list":                {with("root_ca_crl", "00"), "root_ca_crl"},
		"TCB info of SGX":            {bytes.Replace(items[0].Data, []byte(`"TDX"`), []byte(`"SGX"`), 1), `"SGX" version 3, want "TDX"`},
		"identity of the QE":         {bytes.Replace(items[1].Data, []byte(`"TD_QE"`), []byte(`"QE"`), 1), `"QE" version 2, want "TD_QE"`},
		"an identity for a TCB info": {with("tcb_info", string(items[1].Data)), "tcb_info"},
	} {
		if got, err := tdx.Collateral(tc.raw); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %d items, %v, want %q", name, len(got), err, tc.want)
		}
	}
	for _, it := range items[:2] {
		if got, err := tdx.Collateral(it.Data); err != nil || !reflect.DeepEqual(got, []attest.Item{it}) {
			t.Errorf("%s: %v", it.Type, err)
		}
	}
}

func FuzzCollateralSet(f *testing.F) {
	items := attesttest.NewTDX("bundle").Collateral()
	raw, err := json.Marshal(bundle(f, items))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(items[0].Data)
	f.Add([]byte(`{"tcb_info":{"id":"TDX"},"pck_crl":"00"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := tdx.Collateral(raw)
		if err == nil && (len(got) == 0 || len(got) > 6) {
			t.Errorf("%d items", len(got))
		}
		total := 0
		for _, it := range got {
			total += len(it.Data)
		}
		if total > 2*len(raw)+1024 {
			t.Errorf("%d bytes out of %d", total, len(raw))
		}
	})
}
