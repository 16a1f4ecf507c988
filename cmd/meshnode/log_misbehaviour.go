package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/audit/proof"
	"github.com/attestmesh/meshnode/consensus"
)

// verifiedFile is one file that log verify has looked at.
type verifiedFile interface{ text() string }

// verifyFile verifies a file by what it is: a proof, or what convicts who signed two histories.
func verifyFile(path string, opts proof.Options) (verifiedFile, int) {
	data, err := readLimited(path, misbehaviour.MaxFile)
	if err == nil && misbehaviour.Is(data) {
		return verifyMisbehaviour(path, data, opts.Genesis)
	}
	v, exit := verifyProofFile(path, opts)
	return &v, exit
}

// verifiedMisbehaviour is one line of log verify --json.
type verifiedMisbehaviour struct {
	File    string `json:"file"`
	OK      bool   `json:"ok"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	*misbehaviour.Report
	Proves    []string `json:"proves"`
	ProvesNot []string `json:"proves_not"`

	exit int
}

// verifyMisbehaviour returns exit code 0 where the file proves what it is there for, whoever that convicts.
func verifyMisbehaviour(path string, data []byte, g *consensus.Genesis) (verifiedFile, int) {
	out := &verifiedMisbehaviour{File: path, Proves: []string{}, ProvesNot: []string{}}
	r, err := misbehaviour.Verify(data, g)
	if err == nil {
		out.OK, out.Report, out.Proves, out.ProvesNot = true, &r, r.Proves(), r.ProvesNot()
		return out, exitOK
	}
	out.Message = err.Error()
	switch {
	case errors.Is(err, misbehaviour.ErrMalformed):
		out.Code, out.Remedy = string(attest.CodeMalformed), "give the file that a node wrote to DATA/misbehaviour"
		out.exit = exitUsage
		return out, out.exit
	case errors.Is(err, misbehaviour.ErrOtherMesh):
		out.Code, out.Remedy = audit.CodeGenesisMismatch, "give the genesis of the mesh that the file is about"
	case errors.Is(err, misbehaviour.ErrNothing):
		out.Code, out.Remedy = "proves_nothing", "believe nobody who shows this file: it convicts no one"
	default:
		out.Code, out.Remedy = string(consensus.ReasonOf(err).Code), "believe nobody who shows this file: it is forged, or damaged"
	}
	out.exit = exitRefused
	return out, out.exit
}

func (v *verifiedMisbehaviour) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "file       %s\n", v.File)
	if !v.OK {
		b.WriteString(notVerified(v.exit, v.File, v.Code, v.Message, v.Remedy))
		return b.String()
	}
	fmt.Fprintf(&b, "mesh       %s\norigin     %s\nverdict    %s\n", v.MeshID, v.Origin, v.Verdict)
	for _, c := range v.Convicted {
		fmt.Fprintf(&b, "convicted  %s: node %s, boot %d\n", c.Organisation, c.Node, c.BootSeq)
	}
	if len(v.Convicted) == 0 {
		b.WriteString("convicted  nobody\n")
	}
	for _, s := range v.Checkpoints {
		fmt.Fprintf(&b, "history    size %d, root %s, cosigned by %s\n", s.Size, s.Root, orNobody(s.Cosigners))
	}
	b.WriteString("\nThis proves\n")
	for _, line := range v.Proves {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	b.WriteString("It does not prove\n")
	for _, line := range v.ProvesNot {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	return b.String()
}
