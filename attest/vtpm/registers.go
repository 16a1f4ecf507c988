package vtpm

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/internal/cursor"
)

// values are register values by bank and number. Nothing in them is authentic before a
// quote's digest was compared.
type values map[crypto.Hash]*bank

// bank holds the registers of one hash, nil where there is none.
type bank [lastRegister + 1][]byte

// numbered returns the values by register.
func (b *bank) numbered() map[int][]byte {
	out := map[int][]byte{}
	for n, value := range b {
		if value != nil {
			out[n] = value
		}
	}
	return out
}

// maxPCRs bounds a file of register values: four banks with 24 values in hex.
const maxPCRs = 32 << 10

// set adds a value of the size of its bank, once.
func (v values) set(hash crypto.Hash, n int, value []byte) error {
	if n < 0 || n > lastRegister || len(value) != hash.Size() {
		return fmt.Errorf("register %d of bank %s has %d bytes, want registers 0 to %d of %d bytes", n, bankName(hash), len(value), lastRegister, hash.Size())
	}
	b := v[hash]
	if b == nil {
		b = new(bank)
		v[hash] = b
	}
	if b[n] != nil {
		return fmt.Errorf("register %d of bank %s is given twice", n, bankName(hash))
	}
	b[n] = value
	return nil
}

// get returns a value, nil if there is none.
func (v values) get(hash crypto.Hash, n int) []byte {
	if b := v[hash]; b != nil {
		return b[n]
	}
	return nil
}

// digest returns the hash over the values that s selects, in its order (Part 1, §17.5), or
// an error naming the register that is missing.
func (v values) digest(s statement, hash crypto.Hash) ([]byte, error) {
	h := hash.New()
	for _, sel := range s.selections {
		for _, n := range sel.registers {
			value := v.get(sel.bank, n)
			if value == nil {
				return nil, fmt.Errorf("no value of register %d of bank %s", n, bankName(sel.bank))
			}
			h.Write(value)
		}
	}
	return h.Sum(nil), nil
}

// count returns how many values there are.
func (v values) count() (n int) {
	for _, b := range v {
		for _, value := range b {
			if value != nil {
				n++
			}
		}
	}
	return n
}

// parsePCRs reads the values for a statement: JSON, either {bank: {number: hex}} or, where
// their size says the bank, {number: hex}; lines, as textPCRs reads them; or exactly the
// selected values in a row.
func parsePCRs(raw []byte, s statement) (values, error) {
	if len(raw) > maxPCRs {
		return nil, fmt.Errorf("registers: %d bytes, the limit is %d", len(raw), maxPCRs)
	}
	if bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) {
		return jsonPCRs(raw)
	}
	if out, err := textPCRs(raw); err == nil {
		return out, nil
	}
	out, r := values{}, cursor.Big(raw)
	for _, sel := range s.selections {
		for _, n := range sel.registers {
			if value := r.Take(uint64(sel.bank.Size())); out.set(sel.bank, n, value) != nil {
				return nil, fmt.Errorf("registers: %d bytes, fewer than the quote selects", len(raw))
			}
		}
	}
	if r.Len() != 0 {
		return nil, fmt.Errorf("registers: %d bytes more than the quote selects", r.Len())
	}
	return out, nil
}

// LooksLikePCRs reports whether raw are register values in JSON or in lines.
func LooksLikePCRs(raw []byte) bool {
	v, err := jsonPCRs(raw)
	if err != nil {
		v, err = textPCRs(raw)
	}
	return err == nil && v.count() > 0
}

// textPCRs reads lines "BANK:NUMBER:HEX", or those of tpm2_pcrread: "BANK:", then one line
// "NUMBER: 0xHEX" for each register of it. Blanks do not matter.
func textPCRs(raw []byte) (values, error) {
	if len(raw) > maxPCRs {
		return nil, fmt.Errorf("registers: %d bytes, the limit is %d", len(raw), maxPCRs)
	}
	out := values{}
	var bank crypto.Hash
	for line := range strings.Lines(string(raw)) {
		f := strings.Split(strings.Join(strings.Fields(line), ""), ":")
		switch {
		case len(f) == 1 && f[0] == "":
			continue
		case len(f) == 2 && f[1] == "":
			var known bool
			if bank, known = bankOf(strings.ToLower(f[0])); known {
				continue
			}
		case len(f) == 3:
			bank, _ = bankOf(strings.ToLower(f[0]))
			f = f[1:]
		}
		if bank == 0 || len(f) != 2 {
			return nil, fmt.Errorf("registers: line %.40q", line)
		}
		if err := out.text(bank, f[0], f[1]); err != nil {
			return nil, fmt.Errorf("registers: %w", err)
		}
	}
	if out.count() == 0 {
		return nil, errors.New("registers: no line")
	}
	return out, nil
}

func jsonPCRs(raw []byte) (values, error) {
	if len(raw) > maxPCRs {
		return nil, fmt.Errorf("registers: %d bytes, the limit is %d", len(raw), maxPCRs)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	out := values{}
	err := object(dec, func(name string) error {
		if bank, ok := bankOf(strings.ToLower(name)); ok {
			return object(dec, func(number string) error { return out.member(dec, bank, number) })
		}
		return out.member(dec, 0, name)
	})
	if err != nil {
		return nil, fmt.Errorf("registers: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("registers: data behind the object")
	}
	return out, nil
}

// member reads the value of a register, of the bank that its size says where none is given.
func (v values) member(dec *json.Decoder, bank crypto.Hash, number string) error {
	var text string
	if err := dec.Decode(&text); err != nil {
		return err
	}
	return v.text(bank, number, text)
}

// text adds a value in hex.
func (v values) text(bank crypto.Hash, number, text string) error {
	n, _ := strconv.Atoi(number) // what is no number is not the same again
	if strconv.Itoa(n) != number {
		return fmt.Errorf("%.20q is no register", number)
	}
	value, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
	if err != nil {
		return err
	}
	for _, h := range bankHashes {
		if bank == 0 && h.Size() == len(value) {
			bank = h
		}
	}
	if bank == 0 {
		return fmt.Errorf("a value of %d bytes is of no bank", len(value))
	}
	return v.set(bank, n, value)
}

// object calls member for each name of the JSON object that is next; member reads its value.
func object(dec *json.Decoder, member func(name string) error) error {
	if t, _ := dec.Token(); t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		if err := member(t.(string)); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}
