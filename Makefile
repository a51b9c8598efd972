# SPDX-License-Identifier: LGPL-3.0-or-later

GO    ?= go
BASE  := $(shell cat patches/BASE)
GETH  := github.com/ethereum/go-ethereum
MDCS  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# staticcheck and devp2p bring requirements of their own: they are installed at a version, and stay out of go.mod.
STATICCHECK := v0.8.2

# With -trimpath the unchanged packages of geth are compiled once for the stock geth, the patched one and our tests.
# Nothing here needs a C compiler. The version is set below, so Go need not look for it in git.
export GOFLAGS     := $(strip $(GOFLAGS) -trimpath -buildvcs=false)
export CGO_ENABLED := 0

# Our tools for tests: ./... does not reach into a dot directory.
CITOOLS := ./.ci/testrun ./.ci/conformance

# Tests that run in guests alone.
GUESTTESTS := ./.ci/kernels

# Debian's kernels for make test-kernels: 6.1 is that of Debian 12, 6.12 that of Debian 13. KERNELFLAGS=-short leaves out
# what takes long.
KERNELS     ?= 6.1 6.12
KERNELFLAGS ?=

# What `make test` runs; PKGS=./rp/... limits it (and then no test is required), TESTFLAGS goes to go test.
PKGS      ?=
TESTFLAGS ?= -count=1 -timeout=20m

# A go command with this sees the patched tree in place of the module.
PATCHED := -modfile=build/geth.mod

# The Go files that are linked into geth.
LINKED := go.mod go.sum $(shell find ethmcast -name '*.go' ! -name '*_test.go' 2>/dev/null)

.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^## / {printf "\n%s\n", substr($$0, 4)} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

## Programs, all in build/

.PHONY: all
all: geth geth-stock rpd mdcs ## build geth, geth-stock, rpd and mdcs

.PHONY: deps
deps: ## install the system's tools that are missing (as root, by apt-get; else only name them)
	@.ci/deps

.PHONY: deps-net
deps-net:
	@.ci/deps git bird

.PHONY: deps-kernels
deps-kernels:
	@.ci/deps debootstrap qemu-system-x86_64 mke2fs

.PHONY: geth
geth: build/geth ## build geth with our patches

build/go-ethereum.done: patches/BASE $(wildcard patches/*.patch patches/testdata/*/*.go) go.mod
	@test "$$($(GO) list -m -f '{{.Version}}' $(GETH))" = "$(BASE)" || { echo "go.mod and patches/BASE name different versions of go-ethereum" >&2; exit 1; }
	$(GO) mod download $(GETH)
	rm -rf build/go-ethereum && mkdir -p build
	cp -r "$$($(GO) list -m -f '{{.Dir}}' $(GETH))" build/go-ethereum && chmod -R u+w build/go-ethereum
	cd build/go-ethereum && GIT_CEILING_DIRECTORIES=$(CURDIR)/build git apply $(CURDIR)/patches/*.patch
	cp -r patches/testdata/* build/go-ethereum/
	touch $@

build/geth.mod: go.mod go.sum
	@mkdir -p build
	cp go.sum build/geth.sum
	$(GO) mod edit -replace=$(GETH)=./build/go-ethereum -print > $@

build/geth: build/go-ethereum.done build/geth.mod $(LINKED)
	$(GO) build $(PATCHED) -o $@ $(GETH)/cmd/geth

.PHONY: geth-stock
geth-stock: build/geth-stock ## build geth without our patches

build/geth-stock: go.mod go.sum
	$(GO) build -o $@ $(GETH)/cmd/geth

.PHONY: geth-direct
geth-direct: build/geth-direct ## build geth that sends each transaction to all peers, a control of make evaluate

build/go-ethereum-direct.done: testnet/geth-direct.patch go.mod
	$(GO) mod download $(GETH)
	rm -rf build/go-ethereum-direct && mkdir -p build
	cp -r "$$($(GO) list -m -f '{{.Dir}}' $(GETH))" build/go-ethereum-direct && chmod -R u+w build/go-ethereum-direct
	cd build/go-ethereum-direct && GIT_CEILING_DIRECTORIES=$(CURDIR)/build git apply $(CURDIR)/$<
	touch $@

build/geth-direct.mod: go.mod go.sum
	@mkdir -p build
	cp go.sum build/geth-direct.sum
	$(GO) mod edit -replace=$(GETH)=./build/go-ethereum-direct -print > $@

build/geth-direct: build/go-ethereum-direct.done build/geth-direct.mod
	$(GO) build -modfile=build/geth-direct.mod -o $@ $(GETH)/cmd/geth

.PHONY: rpd
rpd: ## build the replication point
	$(GO) build -ldflags '-X main.version=$(MDCS)' -o build/rpd ./cmd/rpd

.PHONY: mdcs
mdcs: ## build the operator's tool (status, bench, testnet)
	$(GO) build -ldflags '-X main.version=$(MDCS)' -o build/mdcs ./cmd/mdcs

.PHONY: devp2p
devp2p: build/devp2p ## build geth's devp2p tool, with its own versions of everything

build/devp2p: patches/BASE
	GOBIN=$(CURDIR)/build $(GO) install $(GETH)/cmd/devp2p@$(BASE)
	touch $@

## Evaluation

.PHONY: compare
compare: deps-net all ## compare mDCS with gossip and ideal multicast in ten ASes (root)
	build/mdcs testnet compare $(COMPAREFLAGS)

.PHONY: evaluate
evaluate: deps-net all geth-direct ## compare in all modes, with several seeds, and once more at half the rate (root)
	build/mdcs testnet compare --preset full --name full $(COMPAREFLAGS)

## Tests

.PHONY: test
test: deps all build/testrun ## run all tests; PKGS=./rp/... for some
ifeq ($(PKGS),)
	build/testrun -required .ci/required-tests.txt \
		-- $(TESTFLAGS) ./... $(CITOOLS) \
		-- $(TESTFLAGS) $(PATCHED) -run '^TestTxRouter' $(GETH)/eth
else
	build/testrun -- $(TESTFLAGS) $(PKGS)
endif

.PHONY: test-kernels
test-kernels: deps-kernels ## run the tests of the XDP engine on Debian's kernels, in guests of qemu (root; half an hour)
	.ci/kernels/run $(KERNELFLAGS) $(KERNELS)

build/testrun: $(wildcard .ci/testrun/*.go)
	$(GO) build -o $@ ./.ci/testrun

.PHONY: conformance
conformance: geth rpd devp2p build/testrun ## run geth's own protocol suites and tests against the patched geth
	$(GO) run ./.ci/conformance
	build/testrun -- $(TESTFLAGS) $(PATCHED) $(addprefix $(GETH)/,eth eth/protocols/eth cmd/geth p2p)

.PHONY: lint
lint: build/staticcheck-$(STATICCHECK) ## go vet, staticcheck, gofmt, go mod tidy: report only
	$(GO) vet ./... $(CITOOLS) $(GUESTTESTS)
	build/staticcheck-$(STATICCHECK) ./... $(CITOOLS) $(GUESTTESTS)
	@unformatted=$$(find . -path ./build -prune -o -name '*.go' -print | xargs gofmt -l); \
		test -z "$$unformatted" || { echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; }
	$(GO) mod tidy -diff

build/staticcheck-$(STATICCHECK):
	GOBIN=$(CURDIR)/build $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
	mv build/staticcheck $@

.PHONY: generate
generate: ## compile the kernel programs again (clang-19, llvm-19, libbpf-dev)
	$(GO) generate ./bpf ./testnet/bench/bpf

.PHONY: generated
generated: deps generate ## check that the committed kernel programs are those of the sources
	git diff --exit-code --stat -- bpf testnet/bench/bpf

.PHONY: ci
ci: ## what every change must pass: deps, generated, test and lint
	.ci/run

## Upkeep

.PHONY: fmt
fmt: ## format the Go sources
	find . -path ./build -prune -o -name '*.go' -print | xargs gofmt -w

.PHONY: clean
clean: ## remove build/
	rm -rf build
