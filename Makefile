# meshnode: what people and CI run. Every target works from a clean clone.
GO ?= go
STATICCHECK_VERSION := v0.8.2
LDFLAGS := -s -w -X main.version=$(VERSION)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

.PHONY: check fmt vet staticcheck test race demo inference bench flood crash million fuzz model mutants second-verifier tamper dist

check: fmt vet staticcheck race

fmt:
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }

vet:
	$(GO) vet ./...

staticcheck:
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) ./...

# The README's test command.
test:
	$(GO) test ./...

race:
	$(GO) test -race ./...

# The whole story with real processes, on drawn digits and, where they are at hand, on real ones.
demo: bin/meshnode
	bin/meshnode demo --json
	@if test -f ../shared/data/digits.csv; then \
	  echo "bin/meshnode demo --data ../shared/data/digits.csv --rounds 10 --json"; \
	  bin/meshnode demo --data ../shared/data/digits.csv --rounds 10 --json; \
	else echo "no real digits at hand: drawn ones only"; fi

# The verifier of the log in Python, which shares no code with ours, has to come to the same on every
# log that the tests of audit and consensus make, on ten thousand random changes of bytes, and on
# leaves that were changed and signed again. MESHNODE_SEED=N repeats a run.
second-verifier:
	python3 -c 'import cryptography'
	cd python && MESHNODE_SECOND_VERIFIER=1 MESHNODE_SPOILED=10000 MESHNODE_FORGED=600 python3 -m unittest -v test_audit

# Every form of every case in which a published log is tampered with, as processes: meshnode, and the
# verifier in Python where that can run, name entry, cause and exit code. And random histories of whoever
# has every key, which an audit has to find, unless seats could have written them. Three minutes on two cores.
tamper:
	$(GO) test -count 1 -timeout 15m ./internal/tamper -all
	$(GO) test -count 1 -timeout 15m -run '^TestHostilePublisher$$' -v ./audit -hostile.tries 600

# Private inference with real processes, and the search for canaries (examples/inference).
inference:
	$(GO) test -count 1 -v ./examples/inference

bin/meshnode: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./cmd/meshnode
FORCE:

# Ratios in one run, printed as "ratio NAME VALUE"; docs/PERFORMANCE.md says what they
# should be. One package at a time: two would measure each other. What fails is printed
# whole and fails the target. Tessera, for comparison, is in a module of its own.
bench:
	@pkgs=$$(grep -rl --include='*_test.go' --exclude-dir=tesserabench '^func BenchmarkRatio' . | xargs -n1 dirname | sort -u); \
	out=$$($(GO) test -p 1 -run '^$$' -bench '^BenchmarkRatio' -benchtime 1x -count 1 -timeout 3m $$pkgs 2>&1) || { echo "$$out"; exit 1; }; \
	echo "$$out" | grep '^ratio '
	@cd internal/tesserabench && { $(GO) mod download >/dev/null 2>&1 || { echo "log.append_vs_tessera: its modules cannot be downloaded here"; exit 0; }; \
	out=$$($(GO) test -run '^$$' -bench '^BenchmarkRatio' -benchtime 1x -count 1 -timeout 3m . 2>&1) || { echo "$$out"; exit 1; }; \
	echo "$$out" | grep '^ratio '; }

# A thousand half-open connections a second for ten seconds, of four kinds, at a node in a
# network namespace that the test makes; needs iproute2 and the right to make namespaces.
flood:
	MESHNODE_FLOOD=1 $(GO) test -count 1 -timeout 5m -run '^TestFlood$$' -v ./mesh

# A long log, audited by a process that is killed in the middle and by one that goes on from what it
# has saved, each in less than 300 MiB. A million entries take 1.8 GB below TMPDIR, which are removed,
# and one minute on two idle cores: .ci/run tries a fifth of them, the whole is for hands.
ENTRIES ?= 1000000
million: bin/meshnode
	$(GO) run ./internal/loggen -entries $(ENTRIES) -audit bin/meshnode

# Each system call of a log's writer failed once and the writer killed at each, then audited (needs
# strace and the right to trace); a log and a witness that are down for an hour of virtual time.
crash:
	MESHNODE_CRASH=all $(GO) test -count 1 -timeout 15m -run '^(TestL6LogDownForAnHour|TestL7SystemCalls|TestWitnessDownForAnHour)$$' -v ./node

# Every fuzz target for a short while.
FUZZTIME ?= 10s
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg >/dev/null; \
	  done; done

# What evidence is bound to, checked by Spin: complete, and with every field left out once.
model:
	model/run.sh

# Every check of the verifiers left out once: a mutant that passes all their tests fails this.
# The forger and the TPM of the tests check nothing. Needs swtpm; takes minutes.
mutants:
	$(GO) run ./internal/mutants $$($(GO) list -f '{{if .GoFiles}}./{{.Dir}}{{end}}' ./attest/... ./measure | sed "s|^\./$$PWD|.|" | grep -Ev '(attesttest|vtpmtest)$$')

# Static, reproducible: users measure this file.
dist:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o dist/meshnode ./cmd/meshnode
