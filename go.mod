module github.com/attestmesh/meshnode

go 1.26.6

require (
	filippo.io/torchwood v0.9.0 // C2SP tiles, checkpoints and cosignatures
	github.com/anishathalye/porcupine v1.3.1 // judges whether histories of the simulator are linearizable
	github.com/cloudflare/circl v1.6.5 // a faster P-384, which a benchmark compares with Go's
	github.com/fxamacker/cbor/v2 v2.10.0 // deterministic CBOR of frames, evidence and commands
	github.com/google/go-attestation v0.6.4 // credential activation of TPM attestation keys
	github.com/google/go-configfs-tsm v0.3.3 // gets reports from Linux, and fakes it in tests
	github.com/google/go-eventlog v0.0.3-0.20260617163629-883cc5652c69 // a second replay and real logs, in tests
	github.com/google/go-sev-guest v0.15.0 // verifies AMD SEV-SNP reports and certificates
	github.com/google/go-tdx-guest v0.3.2-0.20250814004405-ffb0869e6f4d // verifies Intel TDX quotes
	github.com/google/go-tpm v0.9.8 // decodes TPM structures
	github.com/google/go-tpm-tools v0.4.10 // reads and verifies TPM attestations
	github.com/google/logger v1.1.1 // only to silence go-tdx-guest, see internal/quietlog
	github.com/google/uuid v1.6.0 // names the entries of AMD's certificate tables, in tests
	github.com/hashicorp/go-hclog v1.6.3 // the logger that hashicorp/raft wants
	github.com/hashicorp/golang-lru/v2 v2.0.7 // bounds what is remembered of verified chains
	github.com/hashicorp/raft v1.8.0 // orders the commands of the organisations
	github.com/in-toto/attestation v1.2.0 // the Statement that everything signed is
	github.com/libp2p/go-libp2p v0.51.0 // connections, TLS and streams between nodes
	github.com/mr-tron/base58 v1.3.0 // the text form of peer ids, without libp2p
	github.com/multiformats/go-multiaddr v0.16.1 // the addresses of the mesh port
	github.com/multiformats/go-multistream v0.6.1 // names the protocol of each stream
	github.com/prometheus/client_golang v1.24.1 // the metrics of log monitor, in the form that Prometheus reads
	github.com/rogpeppe/go-internal v1.14.1 // runs the scripts that test the command line
	github.com/secure-systems-lab/go-securesystemslib v0.11.1 // the DSSE encoding that ours is held against
	github.com/sigstore/sigstore v1.10.11 // signers and verifiers, of files and of key services
	github.com/spf13/cobra v1.10.2 // the command line
	github.com/transparency-dev/merkle v0.0.2 // the second Merkle implementation, which audits the first
	github.com/veraison/ear v1.1.2 // reads our attestation results in tests, as their receivers do
	go.etcd.io/bbolt v1.5.0 // holds the Raft log where genesis says disk
	go.uber.org/goleak v1.3.0 // finds goroutines that tests leave behind
	go.yaml.in/yaml/v4 v4.0.0 // decodes the files that people write
	golang.org/x/mod v0.38.0 // Merkle tree hashes, signed notes, go.mod in tests
	golang.org/x/sys v0.47.0 // file locks, peer credentials, pidfds
	golang.org/x/tools v0.48.0 // loads the import graph that internal/layering judges
	gonum.org/v1/gonum v0.17.0 // draws the Dirichlet split of training data
	google.golang.org/protobuf v1.36.12 // the vendors' evidence formats
)

require (
	filippo.io/bigmod v0.1.1-0.20260103110540-f8a47775ebe5 // indirect
	filippo.io/keygen v1.0.0 // indirect
	github.com/GoogleCloudPlatform/confidential-space/server v0.0.0-20260915221818-a6c0685fb9fc // indirect
	github.com/benbjohnson/clock v1.3.5 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/davidlazar/go-crypto v0.0.0-20200604182044-b73af7476f6c // indirect
	github.com/decred/dcrd/dcrec/secp256k1/v4 v4.4.1 // indirect
	github.com/dunglas/httpsfv v1.1.1 // indirect
	github.com/fatih/color v1.15.0 // indirect
	github.com/filecoin-project/go-clock v0.1.0 // indirect
	github.com/flynn/noise v1.1.0 // indirect
	github.com/goccy/go-json v0.9.11 // indirect
	github.com/google/go-containerregistry v0.21.9 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	github.com/hashicorp/go-immutable-radix v1.3.1 // indirect
	github.com/hashicorp/go-metrics v0.7.0 // indirect
	github.com/hashicorp/go-msgpack/v2 v2.1.5 // indirect
	github.com/hashicorp/golang-lru v1.0.2 // indirect
	github.com/huandu/xstrings v1.3.3 // indirect
	github.com/huin/goupnp v1.3.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/ipfs/go-cid v0.6.2 // indirect
	github.com/jackpal/go-nat-pmp v1.0.2 // indirect
	github.com/jbenet/go-temp-err-catcher v0.1.0 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/koron/go-ssdp v0.9.1 // indirect
	github.com/lestrrat-go/blackmagic v1.0.1 // indirect
	github.com/lestrrat-go/httpcc v1.0.1 // indirect
	github.com/lestrrat-go/httprc v1.0.4 // indirect
	github.com/lestrrat-go/iter v1.0.2 // indirect
	github.com/lestrrat-go/jwx/v2 v2.0.6 // indirect
	github.com/lestrrat-go/option v1.0.0 // indirect
	github.com/libp2p/go-buffer-pool v0.1.0 // indirect
	github.com/libp2p/go-flow-metrics v0.3.0 // indirect
	github.com/libp2p/go-libp2p-asn-util v0.4.1 // indirect
	github.com/libp2p/go-msgio v0.3.0 // indirect
	github.com/libp2p/go-netroute v0.4.0 // indirect
	github.com/libp2p/go-reuseport v0.4.0 // indirect
	github.com/libp2p/go-yamux/v5 v5.1.0 // indirect
	github.com/marten-seemann/tcp v0.0.0-20210406111302-dfbc87cc63fd // indirect
	github.com/mattn/go-colorable v0.1.13 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/mikioh/tcpinfo v0.0.0-20190314235526-30a79bb1804b // indirect
	github.com/mikioh/tcpopt v0.0.0-20190314235656-172688c1accc // indirect
	github.com/minio/sha256-simd v1.0.1 // indirect
	github.com/multiformats/go-base32 v0.1.0 // indirect
	github.com/multiformats/go-base36 v0.2.0 // indirect
	github.com/multiformats/go-multiaddr-dns v0.6.0 // indirect
	github.com/multiformats/go-multiaddr-fmt v0.1.0 // indirect
	github.com/multiformats/go-multibase v0.3.0 // indirect
	github.com/multiformats/go-multicodec v0.10.0 // indirect
	github.com/multiformats/go-multihash v0.2.3 // indirect
	github.com/multiformats/go-varint v0.1.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/pbnjay/memory v0.0.0-20210728143218-7b4eea64cf58 // indirect
	github.com/pion/datachannel v1.5.10 // indirect
	github.com/pion/dtls/v3 v3.1.2 // indirect
	github.com/pion/ice/v4 v4.0.10 // indirect
	github.com/pion/interceptor v0.1.40 // indirect
	github.com/pion/logging v0.2.4 // indirect
	github.com/pion/mdns/v2 v2.0.7 // indirect
	github.com/pion/randutil v0.1.0 // indirect
	github.com/pion/rtcp v1.2.16 // indirect
	github.com/pion/rtp v1.8.19 // indirect
	github.com/pion/sctp v1.8.39 // indirect
	github.com/pion/sdp/v3 v3.0.18 // indirect
	github.com/pion/srtp/v3 v3.0.6 // indirect
	github.com/pion/stun/v3 v3.1.1 // indirect
	github.com/pion/transport/v3 v3.0.7 // indirect
	github.com/pion/transport/v4 v4.0.1 // indirect
	github.com/pion/turn/v4 v4.0.2 // indirect
	github.com/pion/webrtc/v4 v4.1.2 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.71.0 // indirect
	github.com/prometheus/procfs v0.21.1 // indirect
	github.com/quic-go/qpack v0.6.0 // indirect
	github.com/quic-go/quic-go v0.64.1 // indirect
	github.com/quic-go/webtransport-go v0.13.0 // indirect
	github.com/sigstore/protobuf-specs v0.5.2 // indirect
	github.com/spaolacci/murmur3 v1.1.0 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	github.com/wlynxg/anet v0.0.5 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	github.com/youmark/pkcs8 v0.0.0-20240726163527-a2c0da244d78 // indirect
	go.uber.org/dig v1.19.0 // indirect
	go.uber.org/fx v1.24.0 // indirect
	go.uber.org/mock v0.6.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.uber.org/zap v1.28.0 // indirect
	golang.org/x/crypto v0.55.0 // indirect
	golang.org/x/exp v0.0.0-20260718201538-764159d718ef // indirect
	golang.org/x/net v0.58.0 // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/telemetry v0.0.0-20260717140457-bdb89881bb75 // indirect
	golang.org/x/term v0.45.0 // indirect
	golang.org/x/text v0.41.0 // indirect
	golang.org/x/time v0.15.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260727163830-6c54dddc4772 // indirect
	lukechampine.com/blake3 v1.4.1 // indirect
)
