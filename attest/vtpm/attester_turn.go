package vtpm

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"

	"github.com/attestmesh/meshnode/attest/device"
)

// Whether a command may be given a second time where the channel was lost on the first.
const (
	once  = false
	again = true
)

// do runs f with the TPM open and the attestation key loaded, in a's turn. A key that is
// no longer loaded, as after a suspension of the machine, is made again.
func do[T any](ctx context.Context, a *Attester, what string, repeat bool, f func(*channel) (T, error)) (T, error) {
	limit := commandWithin
	a.mu.Lock()
	if a.akDigest == "" {
		limit += keyWithin
	}
	a.mu.Unlock()
	return device.Do(ctx, a.device, what, limit, func(until time.Time) (T, error) {
		var none T
		kept := a.channel != nil
		if err := a.ready(until); err != nil {
			return none, err
		}
		out, err := f(a.channel)
		unloaded := notLoaded(err)
		if !unloaded && !a.channel.broken {
			return out, err
		}
		a.drop()
		if !kept || !unloaded && !repeat || !time.Now().Before(until) {
			return none, err
		}
		if err := a.ready(until); err != nil {
			return none, err
		}
		if out, err = f(a.channel); notLoaded(err) || a.channel.broken {
			a.drop()
		}
		return out, err
	})
}

// answered reports whether err is the TPM's own.
func answered(err error) bool {
	var (
		general   tpm2.Error
		handle    tpm2.HandleError
		parameter tpm2.ParameterError
		session   tpm2.SessionError
		warning   tpm2.Warning
	)
	return errors.As(err, &general) || errors.As(err, &handle) || errors.As(err, &parameter) || errors.As(err, &session) || errors.As(err, &warning)
}

// notLoaded reports whether the TPM did nothing because it has not the key any more.
func notLoaded(err error) bool {
	var warning tpm2.Warning
	return errors.As(err, &warning) && warning.Code >= tpm2.RCReferenceH0 && warning.Code <= tpm2.RCReferenceH6
}

// ready opens the channel and loads the key where that was not done or was undone.
func (a *Attester) ready(until time.Time) (err error) {
	if a.channel != nil {
		a.channel.until = until
		return nil
	}
	ch, err := openChannel(a.opts.Device, until)
	if err != nil {
		return err
	}
	ch.until = until
	a.channel = ch
	defer func() {
		if err != nil {
			a.drop()
		}
	}()
	if a.bank, err = chooseBank(ch); err != nil {
		return err
	}
	if a.opts.AK != nil {
		a.key, err = provisionedKey(ch, *a.opts.AK)
	} else {
		a.key, err = createKey(ch, a.template)
	}
	if err != nil {
		return err
	}
	digest, err := keyDigest(a.key.PublicKey())
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.akDigest != "" && a.akDigest != digest {
		return errors.New("another TPM than before, or one that was cleared: its attestation key is not the one that peers know; start again")
	}
	a.akDigest = digest
	return nil
}

func (a *Attester) drop() error {
	ch := a.channel
	a.channel, a.key = nil, nil
	return ch.Close()
}

// chooseBank takes SHA-256, which all logs have, else SHA-384. SHA-1 is no evidence.
func chooseBank(ch io.ReadWriter) (tpm2.Algorithm, error) {
	allocated, err := client.AllocatedPCRs(ch)
	if err != nil {
		return 0, err
	}
	for _, want := range []tpm2.Algorithm{tpm2.AlgSHA256, tpm2.AlgSHA384} {
		for _, bank := range allocated {
			if bank.Hash == want && len(bank.PCRs) == 24 {
				return want, nil
			}
		}
	}
	return 0, errors.New("neither a SHA-256 nor a SHA-384 bank of 24 registers is allocated: allocate one in the firmware's settings")
}
