package eventlog

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/cursor"
)

// Owners of variables and types of signatures (UEFI 2.10 §3.3, §32.4.1; shim), as GUIDs
// lie in memory.
const (
	globalVariable   = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c" // 8be4df61-93ca-11d2-aa0d-00e098032b8c
	securityDatabase = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f" // d719b2cb-3d3a-4596-a3bc-dad00e67656f
	shimLock         = "\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23" // 605dab50-e046-4300-abb6-3dd810dd8b23
	certX509         = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72" // a5c059a1-94e4-4aa7-87b5-ab155c2bf072
	certSHA256       = "\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28" // c1c41626-504c-4092-aca9-41f936934328
	certX509SHA256   = "\x92\xa4\xd2\x3b\xc0\x96\x79\x40\xb4\x20\xfc\xf9\x8e\xf1\x03\xed" // 3bd2a492-96c0-4079-b420-fcf98ef103ed
)

// variable is UEFI_VARIABLE_DATA: GUID, u64 length of the name in characters, u64 length
// of the value, name in UTF-16, value (PFP §10.2.6).
type variable struct {
	guid  string
	name  string
	value []byte
}

const maxVariableName = 256

func parseVariable(data []byte) (variable, bool) {
	v, rest, ok := splitVariable(data)
	return v, ok && len(rest) == 0
}

// splitVariable parses a variable and returns what follows it.
func splitVariable(data []byte) (v variable, rest []byte, ok bool) {
	r := cursor.Little(data)
	guid, names, values := r.Take(16), r.U64(), r.U64()
	if names > maxVariableName {
		return variable{}, nil, false
	}
	name, value := r.Take(2*names), r.Take(values)
	if r.Short() {
		return variable{}, nil, false
	}
	return variable{string(guid), decodeUTF16(name), value}, r.Rest(), true
}

func (v variable) encode() []byte {
	name := utf16.Encode([]rune(v.name))
	out := append([]byte(v.guid), make([]byte, 16)...)
	binary.LittleEndian.PutUint64(out[16:], uint64(len(name)))
	binary.LittleEndian.PutUint64(out[24:], uint64(len(v.value)))
	for _, u := range name {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return append(out, v.value...)
}

// secureBoot takes the facts of the register that holds Secure Boot.
func (f *facts) secureBoot(n int, events []event) {
	end, on, off := -1, 0, 0
	for i, e := range events {
		switch f.meaning(e) {
		case separator:
			if end < 0 {
				end = i
			}
		case errorSeparator:
			// In RTMR0 this may be the value of a boot order.
			if !f.td {
				f.contradict("the firmware ended Secure Boot's register with an error")
			}
		case secureBootOn:
			if on++; end >= 0 {
				f.contradict("SecureBoot is measured after the separator")
			}
		case secureBootOff:
			off++
		case debugMode:
			f.FirmwareDebug = true
		case dmaProtectionOff:
			f.DMAUnprotected = true
		}
	}
	switch {
	case end < 0: // the firmware never handed over: nothing is said
	case on > 0 && off > 0:
		f.contradict("SecureBoot is measured on and off")
	case on > 1:
		f.contradict("SecureBoot is measured on %d times", on)
	case on == 1 || off > 0:
		state := on == 1
		f.SecureBoot = &state
	}
	if end >= 0 {
		f.databases(n, events[:end])
	}
	if end >= 0 && !f.td {
		f.authorities(n, events[end+1:])
	}
}

// databases takes the variables that follow SecureBoot without a gap.
func (f *facts) databases(n int, events []event) {
	start := slices.IndexFunc(events, func(e event) bool {
		m := f.meaning(e)
		return m == secureBootOn || m == secureBootOff
	})
	if start < 0 {
		return
	}
	places := map[string]**attest.SignatureDatabase{
		globalVariable + "PK": &f.PK, globalVariable + "KEK": &f.KEK, securityDatabase + "db": &f.DB, securityDatabase + "dbx": &f.DBX}
	for _, e := range events[start+1:] {
		v, ok := parseVariable(e.data)
		if !ok || !f.hashes(e, e.data) {
			if e.kind == evVariableConfig || f.DBX == nil && f.meaning(e) == 0 {
				f.damaged(n, e)
			}
			return
		}
		place := places[v.guid+v.name]
		switch {
		case place == nil && (v.guid == securityDatabase || v.guid == globalVariable): // dbt, dbr
		case place == nil:
			return
		case *place != nil:
			f.contradict("%s is measured twice", v.name)
		default:
			*place = parseDatabase(v.value)
		}
	}
}

// parseDatabase reads EFI_SIGNATURE_LISTs: type GUID, u32 size of the list, of a header,
// of one signature, then signatures of an owner's GUID and data. What does not fit is
// counted as other.
func parseDatabase(value []byte) *attest.SignatureDatabase {
	out := &attest.SignatureDatabase{}
	r := cursor.Little(value)
	for r.Len() > 0 {
		before := r.Len()
		kind, size, header, each := string(r.Take(16)), r.U32(), r.U32(), r.U32()
		const fixed = 28
		if r.Short() || uint64(size) < fixed+uint64(header) || uint64(size) > uint64(before) || each <= 16 {
			out.Other++
			return out
		}
		r.Take(uint64(header))
		body := cursor.Little(r.Take(uint64(size - fixed - header)))
		for !body.Short() && body.Len() > 0 {
			sig := body.Take(uint64(each))
			if sig == nil {
				out.Other++
				break
			}
			switch data := sig[16:]; {
			case kind == certX509:
				out.Certificates = append(out.Certificates, certificate(data))
			case kind == certSHA256 && len(data) == 32:
				out.Hashes = append(out.Hashes, hex.EncodeToString(data))
			case kind == certX509SHA256 && len(data) == 48: // then the time of revocation
				out.Hashes = append(out.Hashes, hex.EncodeToString(data[:32]))
			default:
				out.Other++
			}
		}
	}
	return out
}

func certificate(der []byte) attest.CertificateFact {
	sum := sha256.Sum256(der)
	out := attest.CertificateFact{Digest: hex.EncodeToString(sum[:])}
	if cert, err := x509.ParseCertificate(der); err == nil {
		out.Subject = cert.Subject.String()
	}
	return out
}

// authorities takes what images were verified with, and shim's revocation level.
func (f *facts) authorities(n int, events []event) {
	for _, e := range events {
		v, ok := f.authentic(e)
		if !ok {
			if e.kind == evVariableAuth {
				f.damaged(n, e)
			}
			continue
		}
		switch {
		case v.guid == shimLock && v.name == "SbatLevel":
			f.sbat(v.value)
		case v.name == "MokListTrusted":
		default:
			f.authority(v.name, v.value)
		}
	}
}

// authentic returns the variable that an event's digest was made of. Shim before 15.3 logs
// some bytes more than the variable has, and hashes all but the last of them.
func (f *facts) authentic(e event) (variable, bool) {
	v, rest, ok := splitVariable(e.data)
	switch {
	case !ok:
		return v, false
	case f.hashes(e, e.data):
		return v, true
	case len(rest) > 0:
		return v, f.hashes(e, e.data[:len(e.data)-1])
	}
	return v, false
}

// authority adds an entry of a database: a certificate, by some loaders after its owner's
// GUID, or something else.
func (f *facts) authority(name string, value []byte) {
	cert := certificate(value)
	if cert.Subject == "" && len(value) > 16 {
		if owned := certificate(value[16:]); owned.Subject != "" {
			cert = owned
		}
	}
	f.Authorities = append(f.Authorities, attest.Authority{Variable: name, Digest: cert.Digest, Subject: cert.Subject})
}

const maxSBAT = 64 // components of a level

// sbat reads lines "component,generation[,date]" (shim, SBAT.md). Where there are several
// levels the lowest generation counts.
func (f *facts) sbat(value []byte) {
	level := map[string]uint64{}
	for line := range strings.Lines(string(bytes.TrimRight(value, "\x00"))) {
		fields := strings.Split(strings.TrimSpace(line), ",")
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 32)
		name := text([]byte(fields[0]))
		if err != nil || name == "" || len(level) == maxSBAT {
			f.contradict("the SBAT level is not in the form COMPONENT,GENERATION")
			return
		}
		level[name] = n
		if name == "sbat" && len(fields) > 2 {
			if date, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
				level["sbat.date"] = date
			}
		}
	}
	if f.SBAT == nil {
		f.SBAT = level
		return
	}
	for name := range f.SBAT {
		n, ok := level[name]
		if !ok {
			delete(f.SBAT, name)
			continue
		}
		f.SBAT[name] = min(f.SBAT[name], n)
	}
}
