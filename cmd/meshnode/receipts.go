package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"

	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/service"
	"golang.org/x/sys/unix"
)

// receiptDir is a directory that receipts are kept in; "" keeps none.
type receiptDir string

// open makes the directory where it is absent.
func (d receiptDir) open() error {
	if d == "" {
		return nil
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return usageError("name a directory that this user can write", "--receipts: %v", err)
	}
	// Without a receipt that is kept no answer would come through.
	if err := unix.Access(string(d), unix.W_OK|unix.X_OK); err != nil {
		return usageError("name a directory that this user can write", "--receipts: %s: %v", string(d), err)
	}
	return nil
}

// keep writes one verified receipt: TIME-SERVICE-DIGEST.json, whole or not at all.
func (d receiptDir) keep(k client.Kept) error {
	if d == "" {
		return nil
	}
	r, err := service.ParseReceipt(k.Receipt)
	if err != nil {
		return err
	}
	raw, err := k.Encode()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(k.Receipt)
	dir, err := durable.Open(string(d))
	if err != nil {
		return err
	}
	return dir.WriteFile(r.Time.Format("20060102T150405Z")+"-"+r.Service+"-"+hex.EncodeToString(sum[:8])+".json", raw, 0o600)
}
