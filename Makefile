# What people and CI call. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Test builds have the named crash points, at which a test makes a process end itself. Release builds do not.
TEST_FEATURES := pvelet-agent/crash-points,pvelet-agent/fakes,pvelet-controller/crash-points
# The same features for all test targets, so that nothing is built twice.
REAL_FEATURES := $(TEST_FEATURES),pvelet-tests/guests,pvelet-tests/kubernetes,pvelet-tests/packages
export CARGO_TERM_COLOR ?= auto

.PHONY: help setup build demo test test-quick test-guests test-health test-volumes test-network test-rollout test-kubernetes test-deb test-versions test-full guest-image kubernetes-programs image deb deb-tools check fmt clippy deny docs lint lint-ansible bench bench-network bench-network-here clean clean-guests clean-kubernetes

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks (Debian packages, Rust where there is none)
	@tests/setup.sh

build: setup ## Build all programs
	@tests/with-rust.sh $(CARGO) build --workspace --bins --features $(TEST_FEATURES)

demo: build ## Three simulated PVE hosts, a controller, three machines: the main path
	@target/debug/pvelet-demo

test-quick: build ## Unit tests only: the daily loop
	@tests/with-rust.sh $(CARGO) test --workspace --features $(TEST_FEATURES) --lib --bins

test: build ## All tests; of the rollout its main way, of the long ones a part
	@tests/with-rust.sh $(CARGO) test --workspace --features $(TEST_FEATURES)
	@$(MAKE) --no-print-directory test-deb
	@PVELET_CONTROLLER_KILLS=12 $(MAKE) --no-print-directory test-kubernetes
	@$(MAKE) --no-print-directory test-guests
	@$(MAKE) --no-print-directory test-rollout

test-deb: build deb-tools ## The Debian packages: contents, and their life in a Debian 12
	@tests/with-rust.sh $(CARGO) test --quiet --workspace --features $(REAL_FEATURES) --test deb

# Its tests write what they counted to a file, which is shown at the end: libtest shows nothing of a test that passes.
test-kubernetes: build kubernetes-programs ## What needs programs in Go: a real Kubernetes API, a kubelet, containerd 2.x; and the version before
	@PVELET_COUNTS=$$(mktemp) && export PVELET_COUNTS && trap 'rm -f "$$PVELET_COUNTS"' EXIT; \
	export PVELET_CONTROLLER_KILLS=$${PVELET_CONTROLLER_KILLS:-100}; \
	tests/with-rust.sh $(CARGO) test --workspace --features $(REAL_FEATURES) --test kubernetes --test kubelet -- $(KUBERNETES_TESTS); \
	tests/with-rust.sh $(CARGO) test --workspace --features $(REAL_FEATURES) --test containerd -- $(or $(KUBERNETES_TESTS),v2::); \
	if [ -z "$(KUBERNETES_TESTS)" ]; then $(MAKE) --no-print-directory test-versions; fi; \
	sort "$$PVELET_COUNTS"

test-versions: build kubernetes-programs ## Agents and controllers of this version and of the one before it together, where history has it
	@if tests/versions/build.sh --known; then tests/with-rust.sh $(CARGO) test --workspace --features $(REAL_FEATURES) --test versions; fi

test-guests: build guest-image ## What needs a kernel of its own: LVM-thin, btrfs and the network, in Debian 13 guests
	@tests/with-rust.sh $(CARGO) test --workspace --features $(REAL_FEATURES) --test guests -- $(GUEST_TESTS)
	@$(MAKE) --no-print-directory test-network

test-network: build guest-image ## Network changes in three guests at once: kills, power cuts, tagged frames
	@tests/with-rust.sh $(CARGO) test --quiet --workspace --features $(REAL_FEATURES) --test network -- $(NETWORK_TESTS)

test-rollout: build guest-image ## The packages and the Ansible playbooks on three guests: install, manage, rotate, remove
	@tests/setup.sh ansible
	@PROFILE=dev $(MAKE) --no-print-directory deb
	@tests/with-rust.sh $(CARGO) test --quiet --workspace --features $(REAL_FEATURES) --test rollout -- $(ROLLOUT_TESTS)

test-health: build ## A real containerd with every fault: found, repaired, and no false alarm
	@PVELET_FAULTS=$$(mktemp) && export PVELET_FAULTS && trap 'rm -f "$$PVELET_FAULTS"' EXIT; bad=0; \
	tests/with-rust.sh $(CARGO) test --quiet --workspace --features $(TEST_FEATURES) --test containerd || bad=1; \
	tests/with-rust.sh $(CARGO) test --quiet --workspace --features $(TEST_FEATURES) --test health || bad=1; \
	exit $$bad

test-volumes: build ## All tests of volumes, 200 random sequences and the guests included
	@PVELET_MODEL_SEQUENCES=200 tests/with-rust.sh $(CARGO) test --workspace --features $(TEST_FEATURES) --test volumes -- --nocapture
	@$(MAKE) --no-print-directory test-guests

guest-image: ## Build the Debian 13 image of the test guests, where it is missing
	@tests/setup.sh guests
	@tests/guest/build-image.sh >/dev/null

kubernetes-programs: ## Build the programs of Kubernetes and the containerd 2.x that tests run, where they are missing
	@tests/setup.sh kubernetes
	@tests/kubernetes/build.sh >/dev/null
	@tests/helm/build.sh >/dev/null
	@tests/helm/definitions.sh >/dev/null
	@tests/monitoring/fetch.sh >/dev/null
	@tests/containerd/v2/build.sh >/dev/null

image: setup ## The controller's container image, as an OCI archive
	@tests/with-rust.sh $(CARGO) build --release --package pvelet-controller --bins
	@packaging/container/build.sh target/release target/pvelet-controller-image.tar

deb: setup deb-tools ## The Debian packages, in target/debian (PROFILE=dev: of the test builds)
	@if [ "$(PROFILE)" = dev ]; then $(MAKE) --no-print-directory build; \
	else tests/with-rust.sh $(CARGO) build --release --package pvelet-agent --package pvelet-controller --bins; fi
	@packaging/debian/build.sh $(if $(filter dev,$(PROFILE)),debug,release) $(DEB_VERSION)

deb-tools: setup
	@tests/setup.sh deb
	@packaging/debian/cargo-deb.sh >/dev/null

test-full: build ## All tests, with many more random cases, and every step of a network change with every fault
	@PROPTEST_CASES=20000 PVELET_MODEL_SEQUENCES=200 tests/with-rust.sh $(CARGO) test --workspace --features $(TEST_FEATURES)
	@$(MAKE) --no-print-directory test-deb
	@$(MAKE) --no-print-directory test-kubernetes
	@PVELET_NETWORK_MATRIX=full $(MAKE) --no-print-directory test-guests
	@PVELET_ROLLOUT=full $(MAKE) --no-print-directory test-rollout

check: setup fmt clippy deny docs lint lint-ansible ## Format, clippy, licences, docs, house rules, Ansible

fmt:
	@tests/with-rust.sh $(CARGO) fmt --all --check

clippy:
	@tests/with-rust.sh $(CARGO) clippy --workspace --all-targets --features $(REAL_FEATURES) -- -D warnings

deny:
	@tests/with-rust.sh tests/deny.sh

docs:
	@RUSTDOCFLAGS="-D warnings" tests/with-rust.sh $(CARGO) doc --workspace --no-deps --quiet

lint:
	@tests/lint.sh

lint-ansible: ## ansible-lint (production profile), the playbooks' syntax, and the collection's plugins
	@tests/setup.sh ansible
	@tests/ansible/lint.sh

bench: setup ## Benchmarks: a table, and target/bench.json
	@tests/setup.sh kubernetes
	@tests/with-rust.sh $(CARGO) build --release --workspace --bins
	@tests/with-rust.sh $(CARGO) run --release --package pvelet-tests --bin pvelet-bench

bench-network: guest-image ## What a network change costs beside ifupdown2, in a guest
	@tests/with-rust.sh $(CARGO) build --release --workspace --bins --features $(REAL_FEATURES)
	@tests/with-rust.sh $(CARGO) test --quiet --release --workspace --features $(REAL_FEATURES) --test network -- --bench

bench-network-here: setup ## The same without emulation: beside a systemd of its own on this machine's kernel (as root)
	@tests/setup.sh guests
	@tests/with-rust.sh $(CARGO) build --release --workspace --bins --features $(REAL_FEATURES)
	@tests/with-rust.sh $(CARGO) --config "target.'cfg(all())'.runner='$(CURDIR)/tests/bench/network.sh'" test --quiet --release --workspace --features $(REAL_FEATURES) --test network -- --bench-here

clean: ## Remove what was built
	@$(CARGO) clean

clean-guests: ## Remove the images and kept states of the test guests
	@rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/pvelet/guests"

clean-kubernetes: ## Remove the programs of Kubernetes, helm, containerd and former versions that were built (the go command's own caches stay)
	@rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/pvelet/"{kubernetes,helm,definitions,promtool,containerd-v2,versions}
