# SPDX-License-Identifier: Apache-2.0

SHELL = bash
.SHELLFLAGS = -euo pipefail -c

# A clone of another user, as in a container, is fine.
git      = git -c safe.directory='*'
VERSION ?= $(shell $(git) describe --tags --always --dirty --abbrev=12 2>/dev/null || echo unknown)
COMMIT  ?= $(shell $(git) rev-parse HEAD 2>/dev/null || echo unknown)
BUILD   ?= build
TAGS    ?=
ARCH    ?= $(shell go env GOHOSTARCH)
DESTDIR ?=
PREFIX  ?= /usr

# Tests are compiled as the binary is, and share with it what has been compiled.
export CGO_ENABLED = 0
export GOFLAGS := $(shell go env GOFLAGS) -trimpath

# The vehicle's files have owners, and RAUC mounts: both want root. Go's caches stay those of the user.
ifneq ($(shell id -u),0)
root = sudo env "PATH=$$PATH" CGO_ENABLED=0 "GOCACHE=$(abspath $(BUILD))/gocache" \
	$$(go env GOMODCACHE GOPROXY GOSUMDB GOTOOLCHAIN GOFLAGS | paste -d= <(printf '%s\n' GOMODCACHE GOPROXY GOSUMDB GOTOOLCHAIN GOFLAGS) -) \
	$(foreach v,SDVBOX_CACHE SDVBOX_ACCEL DEBIAN_MIRROR KEEP PEER_UPDATE_MANAGER PEER_KANTO_CM PEER_KANTO_CLI http_proxy https_proxy no_proxy,$(if $($v),"$v=$($v)"))
endif

applet  = sdvbox/platform/applet
ldflags = -s -w -buildid= -X $(applet).Version=$(VERSION) -X $(applet).Commit=$(COMMIT)
# Who leaves the containers out is short of room. HTTP/2 is for them only, and nothing else is so quick that a call counts.
slim    = $(findstring omit_containers,$(TAGS))
comma   = ,
tags    = $(TAGS)$(if $(slim),$(comma)nethttpomithttp2)
gcflags = $(if $(slim),-gcflags=sdvbox/...=-l -gcflags=github.com/...=-l)
# What describes the applets must run here, also when installing for another machine.
box     = $(BUILD)/linux-$(shell go env GOHOSTARCH)/sdvbox

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: $(BUILD)/linux-amd64/sdvbox $(BUILD)/linux-arm64/sdvbox ## build the static binary for amd64 and arm64; TAGS=omit_containers leaves out the container engine

$(BUILD)/linux-%/sdvbox: always
	GOOS=linux GOARCH=$* GOAMD64=v1 GOARM64=v8.0 go build -buildvcs=false -tags '$(tags)' $(gcflags) -ldflags '$(ldflags)' -o $@.$$$$ . && mv $@.$$$$ $@

.PHONY: always
always:

# The files of an applet lie next to it: systemd units NAME.service, drop-ins
# UNIT.d/NAME.conf, and configuration in etc/ as it goes below /etc.
dirs    = $(filter-out $(if $(slim),applets/container-agent applets/kanto-cm),$(wildcard applets/*))
units   = $(wildcard $(foreach t,service target timer socket path mount preset network,$(dirs:=/*.$t)))
dropins = $(wildcard $(dirs:=/*.d/*.conf))
configs = $(shell find $(wildcard $(dirs:=/etc)) -type f)

bindir     = $(DESTDIR)$(PREFIX)/bin
compatdir  = $(DESTDIR)$(PREFIX)/lib/sdvbox/compat
systemddir = $(DESTDIR)$(PREFIX)/lib/systemd
mandir     = $(DESTDIR)$(PREFIX)/share/man/man1
bashdir    = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zshdir     = $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions
fishdir    = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.PHONY: install
install: $(BUILD)/linux-$(ARCH)/sdvbox $(box) ## install for ARCH below DESTDIR and PREFIX
	install -D -m 755 $< $(bindir)/sdvbox
	$(box) --install $(bindir) --target sdvbox
	$(box) --install-compat $(compatdir) --target ../../../bin/sdvbox
	for f in $(units) $(dropins); do \
		case $$f in *.preset) dir=system-preset;; *.network) dir=network;; *) dir=system;; esac; \
		sed 's,/usr/\(bin\|lib/sdvbox\)/,$(PREFIX)/\1/,g' $$f | install -D -m 644 /dev/stdin $(systemddir)/$$dir/$${f#applets/*/}; \
	done
	for f in $(configs); do \
		to=$(DESTDIR)/etc/$${f#applets/*/etc/}; \
		if [ -z "$(DESTDIR)" ] && [ -e $$to ]; then echo "keeping $$to"; else install -D -m 644 $$f $$to; fi; \
	done
	mkdir -p $(mandir) $(bashdir) $(zshdir) $(fishdir)
	$(box) --completion zsh >$(zshdir)/_sdvbox
	$(box) --completion bash >$(bashdir)/sdvbox
	$(box) --completion fish >$(fishdir)/sdvbox.fish
	for name in $$($(box) --list | cut -d ' ' -f 1); do \
		$(box) --man $$name >$(mandir)/$$name.1; \
		ln -sf sdvbox $(bashdir)/$$name; \
		ln -sf sdvbox.fish $(fishdir)/$$name.fish; \
	done
	$(box) --man sdvbox >$(mandir)/sdvbox.1

# By the user, before root would write into the user's module cache.
.PHONY: modules
modules:
	go mod download

.PHONY: demo
demo: modules ## update a virtual vehicle from nothing; KEEP=1 leaves it running
	go run ./testing/host vehicle
	$(root) go run ./testing/demo

.PHONY: test
test: modules ## run all tests, with real brokers, RAUC and virtual vehicles
	go run ./testing/host test vehicle
	$(MAKE) --no-print-directory -j 2 test-parts fuzz-targets
	$(MAKE) --no-print-directory -j 2 test-first-life test-second-life test-vehicles fuzz-run

# A virtual vehicle keeps one processor busy. The lives of vehicles have deadlines; whatever runs beside them gives way.
suite  = $(root) env SDVBOX_REQUIRE=1 go test $(TESTFLAGS)
beside = 2>&1 | sed -u 's/^/| /'

.PHONY: test-parts test-first-life test-second-life test-vehicles
test-parts: modules
	$(suite) -timeout 20m $$(go list ./... | grep -vE '/testing/(e2e|powercut|rescue|vehicle)$$')
test-first-life: modules
	$(suite) -timeout 30m -run FirstLife ./testing/e2e
test-second-life: modules
	$(suite) -timeout 30m -skip FirstLife ./testing/e2e
test-vehicles: modules
	nice -n 19 $(suite) -timeout 20m -p 1 ./testing/powercut ./testing/rescue ./testing/vehicle $(beside)

.PHONY: test-long
test-long: modules ## also run what takes hours: exhaustive power cuts, watchdog, a thousand updates, other versions of containerd
	go run ./testing/host test vehicle cgo
	$(root) env SDVBOX_REQUIRE=1 SDVBOX_LONG=1 go test -timeout 1h $(TESTFLAGS) ./platform/...
	for v in 1.7 2; do \
		$(root) env SDVBOX_REQUIRE=1 SDVBOX_LONG=1 SDVBOX_CONTAINERD=$$v go test -timeout 1h -p 1 $(TESTFLAGS) \
			$$(go list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | grep sdvbox/testing/ctrd | cut -d ' ' -f 1); \
	done
	$(root) env SDVBOX_REQUIRE=1 SDVBOX_LONG=1 go test -timeout 6h -p 1 $(TESTFLAGS) ./testing/...
	$(root) env SDVBOX_REQUIRE=1 SDVBOX_LONG=1 CGO_ENABLED=1 go test -timeout 2h -race $(TESTFLAGS) ./testing/soak

# Left alone, the fuzzer spends most of its time on making large inputs smaller; a target that finds nothing else then runs
# a few times only. It also fails now and then when its time is up, on a slow machine; then there is no failing input.
.PHONY: fuzz fuzz-targets fuzz-run
fuzz: fuzz-targets ## fuzz each target for FUZZTIME, by default all of them within a minute
	$(MAKE) --no-print-directory fuzz-run
fuzz-targets: modules
	@dir=$(abspath $(BUILD))/fuzz; mkdir -p $$dir; \
	grep -roE '^func Fuzz\w+' --include='*_test.go' --exclude-dir=$(notdir $(BUILD)) . | sed -E 's,/[^/]+:func , ,' | sort >$$dir/targets; \
	cut -d ' ' -f 1 $$dir/targets | uniq | while read -r pkg; do nice -n 19 go test -c -fuzz . -o $$dir/$$pkg/ $$pkg; done
fuzz-run:
	@dir=$(abspath $(BUILD))/fuzz; \
	export dir cache=$$(go env GOCACHE)/fuzz time=$(or $(FUZZTIME),$$((60000 * $$(nproc) / $$(wc -l <$$dir/targets)))ms); \
	nice -n 19 xargs -P $$(nproc) -L 1 bash -c ' \
		fuzz() { out=$$(cd $$1 && $$dir/$$1/*.test -test.run "^$$" -test.fuzz "^$$2$$" -test.fuzztime $$time -test.fuzzminimizetime 10x \
			-test.parallel 1 -test.fuzzcachedir $$cache/$$1 2>&1); }; \
		fuzz $$0 $$1 || { ! grep -q "Failing input" <<<"$$out" && grep -q "context deadline exceeded" <<<"$$out" && fuzz $$0 $$1; } || \
			{ echo "$$out"; exit 1; }; \
		echo "$$0 $$1: $$(grep ^fuzz: <<<"$$out" | tail -n 1)"' <$$dir/targets $(beside)

.PHONY: powercut
powercut: modules ## kill a virtual vehicle N times in the middle of updates, at moments chosen by SEED
	go run ./testing/host vehicle
	$(root) go run ./testing/powercut -n $(or $(N),4) -seed $(or $(SEED),1)

.PHONY: bench
bench: modules ## measure size, start-up, memory and throughput
	go run ./testing/host test vehicle
	$(root) env SDVBOX_REQUIRE=1 go test -timeout 1h -p 1 -run '^$$' -bench . ./...

.PHONY: interop
interop: modules ## test with the originals that PEER_UPDATE_MANAGER, PEER_KANTO_CM and PEER_KANTO_CLI name
	go run ./testing/host test $(if $(PEER_KANTO_CM)$(PEER_KANTO_CLI),interop)
	$(root) env SDVBOX_REQUIRE=1 go test -count=1 -timeout 10m -v -run Original ./testing/interop

.PHONY: lint
lint: ## check format, vet, shell scripts and licence headers
	go run ./testing/host lint
	@files=$$($(git) ls-files '*.go' | xargs gofmt -l); test -z "$$files" || { echo "gofmt would change:" $$files; exit 1; }
	go vet ./...
	$(git) grep -lE '^#! ?/.*sh$$' -- ':!*.go' ':!*.md' | xargs shellcheck
	@files=$$($(git) ls-files '*.go' '*.sh' '*.cfg' '*.wks' '*.conf' '*.service' '*.preset' Makefile .ci | grep -v /testdata/ | \
		xargs grep -L 'SPDX-License-Identifier: Apache-2.0' || true); test -z "$$files" || { echo "no licence header:" $$files; exit 1; }

.PHONY: clean
clean: ## remove what was built
	$(root) rm -rf $(BUILD)
