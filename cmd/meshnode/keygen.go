package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/service"
	"github.com/spf13/cobra"
)

func keygenCommand() *cobra.Command {
	var role, alg, out, key string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "keygen --role ROLE (-o FILE | --key NAME://KEY)",
		Short: "Make a signing key of an organisation, or show that of a key service",
		Long: `Make a signing key of an organisation: PKCS#8 PEM, readable by its owner only.

A key has one role. govern signs genesis and proposals and belongs on a machine that is
off most of the time; enroll signs Credentials and is online at the enroller; emergency
signs suspensions and nothing else. Genesis lists the public half, which this command prints.

A service key belongs to whoever owns a program that a node runs: it signs what may run
under a service's name, and the node's configuration lists its public half.

With --key nothing is made: the public half of a govern or emergency key is printed that a
key service holds, reached through sigstore's plug-in sigstore-kms-NAME in PATH.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if key != "" {
				return showServiceKey(cmd, role, key, out != "" || cmd.Flags().Changed("alg"), asJSON)
			}
			key, err := newKey(role, alg)
			if err != nil {
				return err
			}
			if out == "" {
				return usageError("add -o FILE", "no file for the key")
			}
			if err := writeKey(out, key); err != nil {
				return err
			}
			return printKey(cmd, role, alg, key.Public(), asJSON)
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "govern, enroll, emergency or service")
	cmd.Flags().StringVar(&alg, "alg", "ed25519", "ed25519, or p256 for govern and emergency keys")
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write; it must not exist")
	cmd.Flags().StringVar(&key, "key", "", "NAME://KEY of a key that exists already behind the plug-in sigstore-kms-NAME")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// showServiceKey prints the public half of a key that a key service holds.
func showServiceKey(cmd *cobra.Command, role, uri string, more, asJSON bool) error {
	switch {
	case role != consensus.KeyGovern && role != consensus.KeyEmergency:
		return usageError("add --role govern or --role emergency; other keys are files, which their programs read at the start", "--role %q: no key of a key service", role)
	case more:
		return usageError("leave -o and --alg out: the key exists already", "key %s: nothing is made or written", uri)
	}
	k, err := openKMS(cmd.Context(), uri, kmsWithin)
	if err != nil {
		return err
	}
	alg := "ed25519"
	if _, ok := k.public.(*ecdsa.PublicKey); ok {
		alg = "p256"
	}
	return printKey(cmd, role, alg, k.public, asJSON)
}

func newKey(role, alg string) (crypto.Signer, error) {
	switch role {
	case consensus.KeyGovern, consensus.KeyEmergency:
	case consensus.KeyEnroll, service.KeyRole:
		if alg != "ed25519" {
			return nil, usageError("leave --alg out", "--alg %s: %s keys are Ed25519", alg, role)
		}
	default:
		return nil, usageError("add --role govern, --role enroll, --role emergency or --role service", "--role %q: unknown role", role)
	}
	switch alg {
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, usageError("use ed25519 or p256", "--alg %q: unknown algorithm", alg)
}

func printKey(cmd *cobra.Command, role, alg string, pub crypto.PublicKey, asJSON bool) error {
	id, err := envelope.KeyID(pub)
	if err != nil {
		return err
	}
	der, err := envelope.MarshalPublic(pub)
	if err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString(der)
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]string{"role": role, "alg": alg, "key_id": id, "public": text})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s key (%s)\n  key id  %s\n  public  %s\n", role, alg, id, text)
	return nil
}
