# Two commands matter: `make demo` and `make test`. Everything else serves them.
CARGO ?= cargo
VENV  := .venv
PY    := $(VENV)/bin/python
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: demo test test-rust test-clients test-vm nightly build release deb lint doc fuzz goldens check-goldens plans clean help

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t16

demo: release ## Start the daemon on the bundled model and stream a story
	@target/release/omnictl demo

test: test-rust test-clients ## All tests: the library's, then real clients against real processes

test-rust: ## Unit, property and integration tests
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --lib --bins --tests
else
	@echo "cargo-nextest is not installed; using cargo test (slower)"
	$(CARGO) test --lib --bins --tests
endif
	$(CARGO) test --doc

test-clients: $(VENV)/.ready ## OpenAI, httpx, npm clients, schemathesis, soak: needs Python 3 (and Node.js for the npm client)
	$(CARGO) test --no-run --lib --bins --tests # binaries with the features that the tests have: built but once
	$(PY) -m pytest -q tests/clients

$(VENV)/.ready: tests/clients/requirements.txt
	@python3 -m venv $(VENV) || { echo "make test needs Python 3 with the venv module (Debian: apt install python3-venv)"; exit 1; }
	$(PY) -m pip install -q --disable-pip-version-check -r $<
	@touch $@

build: ## Debug binaries
	$(CARGO) build --bins

release: ## Optimised binaries in target/release
	$(CARGO) build --release --bins

deb: release ## The Debian package: target/deb/omni-inferd_VERSION_amd64.deb
	scripts/deb.sh target/deb

DEB = target/deb/omni-inferd_$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)_amd64.deb

test-vm: deb ## The package under a real systemd and on a kernel of its own: install to purge, boots, NUMA, huge pages, short memory (root, lintian, mmdebstrap, systemd-container, qemu-system-x86)
	tests/vm/all.sh $(DEB)

# Emulated machines take longer than continuous integration has, so this is for the night.
nightly: deb ## test-vm, its log left in tests/vm/last-run.log, to be committed
	@tests/vm/all.sh $(DEB) >tests/vm/last-run.log 2>&1; status=$$?; cat tests/vm/last-run.log; exit $$status

lint: ## Formatting, clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings

doc: ## API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

fuzz: ## Each fuzz target for FUZZ_SECONDS (60)
	scripts/fuzz.sh $${FUZZ_SECONDS:-60}

# Python with the referees' packages: an environment made for it unless another is named.
ifndef GOLDENS_PYTHON
GOLDENS_PYTHON := .venv-goldens/bin/python
GOLDENS_READY := .venv-goldens/.ready
endif

goldens: $(GOLDENS_READY) ## Make the goldens anew with transformers and llama.cpp, in a virtual environment
	GOLDENS_PYTHON=$(GOLDENS_PYTHON) scripts/goldens/all.sh

plans: ## Make the committed plans of tests/data/plans anew
	OMNI_UPDATE_PLANS=1 $(CARGO) test --lib ctl::plan

check-goldens: $(GOLDENS_READY) ## Compare what transformers and llama.cpp say today with the goldens that are committed
	GOLDENS_PYTHON=$(GOLDENS_PYTHON) scripts/goldens/all.sh --check

.venv-goldens/.ready: scripts/goldens/requirements.txt scripts/goldens/environment.sh scripts/goldens/cpu_torch.py
	scripts/goldens/environment.sh .venv-goldens
	@touch $@

clean: ## Remove what builds and tests left
	$(CARGO) clean
	rm -rf $(VENV) .venv-goldens fuzz/target fuzz/corpus fuzz/artifacts node_modules
