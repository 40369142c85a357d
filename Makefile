# The verbs of this repo. `make video` and `make test` need Python 3.11 and a C++ compiler; the rest goes into .venv.

PYTHON ?= python3
PROMPT ?= a red circle moving left
OUT ?= out.mp4
SEED ?= 0
MODEL ?= sample
BENCH ?=
FUZZ ?=
DRY ?=
ASK ?=
MICRO := -q --benchmark-only --benchmark-max-time=0.3 --benchmark-columns=median,iqr,ops,rounds --benchmark-sort=name
# the package index that pytorch.org/get-started names for your CUDA version or for CPU-only builds (README, "Install")
TORCH_INDEX ?=
export PROMPT OUT

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# an editable install maps folders and holds the native kernels, so it is renewed when an op comes or goes, or they change
INSTALLED := $(VENV)/installed-$(shell ls -d kernels/*/ benchmarks/ | cksum | cut -d' ' -f1)
NATIVE := CMakeLists.txt $(wildcard csrc/*.cpp csrc/include/* csrc/cpu/*)
CPP = git ls-files '*.c' '*.cpp' '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format

.PHONY: video test test-quick test-all test-slow test-gpu gpu-session mutants mutants-native sanitize tsan aot aot-update
.PHONY: native bench fuzz tools lint format types clean

video: $(INSTALLED)
	@$(BIN)/kinema generate "$$PROMPT" --model "$(MODEL)" --output "$$OUT" --seed $(SEED)

PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"
test: $(VENV)/test-tools
	$(PYTEST)

# for while one works: the processor's best native kernels alone, and no interpreted Triton (tests/conftest.py)
test-quick: $(VENV)/test-tools
	KINEMA_TESTS=quick $(PYTEST)

# with every table of native kernels, also where it has no code of its own, and every matrix as long as it gets
test-all: $(VENV)/test-tools
	KINEMA_TESTS=all $(PYTEST)
	$(BIN)/pytest -m slow

test-slow: $(VENV)/test-tools
	$(BIN)/pytest -m slow

test-gpu: $(VENV)/test-tools
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/pytest -m "not slow" tests/ops tests/triton tests/pipeline; \
	else echo "skipped: torch sees no GPU on this machine (docs/gpu.md)"; fi

# questions to a GPU, with the Python that has its torch and nothing installed; DRY=1 rehearses them on a CPU (docs/gpu.md)
gpu-session:
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/source_tree.py build/gpu_session/tree bench gpu-session \
	$(if $(DRY),--dry-run) $(ASK)

# hours: wrong edits of every Triton kernel, which the tests must notice
mutants: $(VENV)/test-tools
	$(BIN)/python tests/mutants/run.py

# the same of the native kernels, each mutant a build of its own
mutants-native: $(VENV)/test-tools
	$(BIN)/python tests/mutants/native_run.py

# every Triton kernel compiled for every GPU, without one, and compared with tests/aot/table.json (an hour, then seconds)
aot: $(VENV)/test-tools
	$(BIN)/python tests/aot/ladder.py

# the same, and what it finds becomes the table, docs/aot.md and the expectations in docs/gpu.md
aot-update: $(VENV)/test-tools
	$(BIN)/python tests/aot/ladder.py --update

# the native kernels alone, in place, while working on them
native:
	@cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release > /dev/null
	@cmake --build build/native --parallel
	@install build/native/libkinema_cpu.so kernels/common/ # a new file: programs that run hold on to the old one

# the contract tests of the native kernels and 2,000 random calls of each op, on a build that watches every address and
# every overflow: by each table of kernels that this processor has
WATCHED = KINEMA_CPU_LIBRARY=$(CURDIR)/build/sanitize/libkinema_cpu.so PYTHONMALLOC=malloc \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
sanitize: $(VENV)/test-tools
	@cmake -S . -B build/sanitize -DKINEMA_SANITIZE=address,undefined > /dev/null
	@cmake --build build/sanitize --parallel
	@for isa in $$($(BIN)/python -c 'from kinema.ops.common import native; print(*native.instruction_sets())'); do \
	echo "contract tests: $$isa"; KINEMA_CPU_ISA=$$isa $(WATCHED) $(BIN)/pytest -q -p no:cacheprovider \
	tests/ops tests/native -k "cpu-cpu or direct-cpu or native" || exit; done
	$(WATCHED) $(BIN)/python tests/native/random_calls.py

# the native kernels' threads, driven by tests/native/pool.cpp and threads.cpp: ThreadSanitizer must have nothing to report
tsan:
	@cmake -S . -B build/tsan -DKINEMA_SANITIZE=thread -DKINEMA_TABLES=avx2 > /dev/null
	@cmake --build build/tsan --parallel
	@$(CXX) -std=c++17 -g -O1 -fsanitize=thread -pthread -Icsrc/include tests/native/threads.cpp \
	build/tsan/libkinema_cpu.so -Wl,-rpath,$(CURDIR)/build/tsan -o build/tsan/threads
	@$(CXX) -std=c++17 -g -O1 -fsanitize=thread -pthread -Icsrc/include -Icsrc/cpu tests/native/pool.cpp \
	csrc/cpu/pool.cpp csrc/cpu/job.cpp csrc/cpu/call.cpp -o build/tsan/pool
	TSAN_OPTIONS="halt_on_error=1" build/tsan/pool
	TSAN_OPTIONS="halt_on_error=1 die_after_fork=0" build/tsan/threads

# micro-benchmarks of the ops; make bench BENCH="peers --rounds 5" is one of kinema bench's verbs instead
bench: $(VENV)/test-tools
	$(if $(BENCH),$(BIN)/kinema bench $(BENCH),$(BIN)/pytest tests/bench/test_micro.py $(MICRO))

# damaged files and odd requests by the thousand (docs/reliability.md); goes on where it was stopped (minutes)
fuzz: $(VENV)/test-tools
	$(BIN)/python tests/fuzz/fuzz_run.py $(FUZZ)

# what single verbs want beside the rest: scikit-learn, matplotlib, diffusers, sentencepiece
tools: $(INSTALLED)
	@$(PIP) --editable '.[sentencepiece,train,plots,peers]'

lint: $(VENV)/lint-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CPP) --dry-run --Werror

format: $(VENV)/lint-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CPP) -i

# mypy and editors follow files, not import hooks: this is the installed package as a tree of links to its sources
types: $(VENV)/lint-tools
	@$(BIN)/python benchmarks/source_tree.py $(VENV)/types
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kinema needs Python 3.11: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml setup.py constraints.txt $(NATIVE) | $(BIN)/python
	@echo "installing kinema and its libraries into $(VENV), once ..."
	@$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) --editable .
	@rm -f $(VENV)/installed-* && touch $@

$(VENV)/test-tools: $(INSTALLED)
	@echo "installing what the tests need, once ..."
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/lint-tools: $(INSTALLED)
	@echo "installing ruff, mypy and clang-format, once ..."
	@$(PIP) --editable '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info out.mp4
