PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
ROUNDS ?= 1000
PARALLEL ?= -n auto --dist worksteal
# Tests of what stands above the engine and has no kernels of its own, or kills and damages it however it computes.
ABOVE := bench crash datasets faults golden integrations migrate server simulation \
	$(addprefix filters/test_,$(addsuffix .py,page qdrant text text_index)) \
	$(addprefix test_,$(addsuffix .py,backup beside bench budget cli compact_beside demo disk docs faults lifecycle \
	memory plan resume retraining root snapshot stress structure upgrade))
SECONDS ?= 60
OPERATIONS ?= 1000000
# The standard comparison: HDF5 files of ann-benchmarks, or made vectors where there are none.
DATA_DIR ?= ../shared/data
OUT ?= bench-results/standard
MILLION ?= bench-results/synthetic-1m.hdf5
COUNT ?= 50000
# A build that takes longer is given up, and reported as such.
BUILD_SECONDS ?= 900
SYSTEMS ?= corenn,corenn-disk,hnswlib,faiss-hnsw-sq8,faiss-ivfpq,svs
PEERS := 'hnswlib>=0.8' 'faiss-cpu>=1.9' 'scalable-vs>=0.0.10'
# The whole comparison: every system that the harness knows. An hour on two cores.
ALL_SYSTEMS := $(SYSTEMS),hnswlib:M=32,faiss-hnsw,usearch,usearch:dtype=i8,vsag,ngt,pynndescent,voyager,zvec,lancedb,chroma,milvus-lite,qdrant,sqlite-vec,corenn-py
ALL_PEERS := $(PEERS) 'usearch>=2.16' 'pyvsag>=0.18' 'ngt>=2.5' 'pynndescent>=0.6' 'voyager>=2.1' 'zvec>=0.8' 'lancedb>=0.40' 'chromadb>=1.5' 'milvus-lite>=3.2' 'pymilvus>=2.6' 'qdrant-client>=1.20' 'sqlite-vec>=0.1.9' pysqlite3-binary 'corenn-py>=0.3'
# Where memory is limited; DiskANN's package has wheels for Python 3.8 to 3.11, and wants a NumPy of its own.
LIMIT_DATA ?= bench-results/synthetic-1m-128.hdf5
LIMIT_ROWS ?= 1000000
LIMIT_DIM ?= 128
LIMIT_OUT ?= bench-results/limit.json
DISKANN ?= $(VENV)-diskann
# Filtered searches: those that filter, and the one data set that has payloads.
FILTER_PEERS := 'hnswlib>=0.8' 'faiss-cpu>=1.9' 'usearch>=2.16' 'zvec>=0.8' 'lancedb>=0.40' 'chromadb>=1.5' 'milvus-lite>=3.2' 'pymilvus>=2.6' 'qdrant-client>=1.20'
PACKAGES := $(DATA_DIR)/debian-packages-40k
COMMA := ,
SETS := $(or $(wildcard $(DATA_DIR)/*.hdf5),$(OUT)/synthetic.hdf5)
FILTERED ?= $(filter-out $(PACKAGES)%,$(SETS)) $(addprefix $(PACKAGES)-384-angular.hdf5$(COMMA),$(wildcard $(PACKAGES).jsonl.gz))

.PHONY: setup demo test warm test-jit test-nojit lint crash simulate long bench bench-all bench-million bench-core bench-served bench-filters bench-live bench-limit bench-ten-million soak clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'hnswlib>=0.8' # no compiler: its tests are skipped
	touch $@

demo: setup
	$(BIN)/corenn demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Checks of the source use one processor: kernels are compiled beside them.
test: setup
	$(MAKE) --jobs 2 lint warm
	$(MAKE) test-jit test-nojit

warm: setup
	printf '%s\n' f32 u8 | xargs -P 2 -n 1 $(BIN)/corenn warmup --dtype

# One worker more than processors: some tests wait for another process, and each worker imports and collects everything.
test-jit: setup
	$(BIN)/python -m pytest -n $$((1 + $$(getconf _NPROCESSORS_ONLN))) --dist worksteal -m 'not slow'

# The suite once more with the kernels as plain Python, on small data: what the compiler may hide.
test-nojit: setup
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow and not compiled' $(ABOVE:%=--ignore=tests/%)

crash: setup
	$(BIN)/python -m pytest -q $(PARALLEL) -m slow tests/faults
	$(BIN)/python -m tests.crash.harness --rounds $(ROUNDS)
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m tests.crash.harness --rounds 5
	$(BIN)/python -m tests.crash.readers --seconds $(SECONDS)
	$(BIN)/python -m tests.crash.stress --seconds $(SECONDS)

# Everything that may happen at once, in an order that a seed decides: five minutes of it with SECONDS=300.
simulate: setup
	$(BIN)/python -m tests.simulation --seconds $(SECONDS)

# What is too long for every change, and should run every night: an hour on two cores.
long:
	$(MAKE) crash
	$(BIN)/python -m pytest -q $(PARALLEL) -m slow --ignore=tests/faults
	$(MAKE) simulate SECONDS=300

bench-core: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' 'hnswlib>=0.8'
	$(BIN)/python -m corenn.bench.core $(if $(DATA),--data $(DATA)) --json bench-results/core.json

# What serving costs, what a server bears, and Chroma and pgvector beside it. Twenty minutes on two cores.
bench-served: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,server]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'chromadb>=1.5'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pgserver>=0.1.4'
	$(BIN)/python -m corenn.bench.served $(if $(DATA),--data $(DATA)) --keep bench-results/servers --json bench-results/served.json

# What becomes of a database whose rows come and go. Half an hour on two cores.
bench-live: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m corenn.bench.live $(if $(DATA),--data $(DATA)) --json bench-results/live.json

# Data larger than memory: held to 15 % of vectors and edges, beside DiskANN and LanceDB. An hour on two cores.
bench-limit: setup $(if $(DATA),,$(LIMIT_DATA))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'lancedb>=0.40'
	-test -x $(DISKANN)/bin/python || $(PYTHON) -m venv $(DISKANN)
	-$(DISKANN)/bin/python -m pip install --quiet --disable-pip-version-check 'diskannpy==0.7.0'
	$(BIN)/python -m corenn.bench.limit --data $(or $(DATA),$(LIMIT_DATA)) --rows $(LIMIT_ROWS) $$(test -x $(DISKANN)/bin/python && echo --python diskann=$(DISKANN)/bin/python) --json $(LIMIT_OUT)

# The same for ten million made vectors of 96 dimensions: 15 GB of disk, and a night on two cores.
bench-ten-million:
	$(MAKE) bench-limit LIMIT_DATA=bench-results/synthetic-10m.hdf5 LIMIT_ROWS=10000000 LIMIT_DIM=96 LIMIT_OUT=bench-results/ten-million.json

$(LIMIT_DATA): | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/corenn dataset synthetic $@ --rows $(LIMIT_ROWS) --dim $(LIMIT_DIM) --intrinsic-dim 16 --queries 1000 --truth 10

# Resident memory over a long life.
soak: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m corenn.bench.soak $(if $(DATA),--data $(DATA)) --operations $(OPERATIONS) --json bench-results/soak.json

# A peer that cannot be installed is reported as such.
bench: setup $(filter $(OUT)/%,$(SETS))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	-for peer in $(PEERS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$peer"; done
	for set in $(SETS); do $(BIN)/corenn bench run "$$set" --systems $(SYSTEMS) --count $(COUNT) --repetitions 3 --build-timeout $(BUILD_SECONDS) --out $(OUT) --no-report || exit 1; done
	$(BIN)/corenn bench report $(OUT) --update docs/benchmarks.md
	$(BIN)/python -m corenn.bench.goals --data $(lastword $(SETS)) --rows $(COUNT)

# Filtered searches beside other systems, on one thread. Twenty-five minutes on two cores.
bench-filters: setup $(filter $(OUT)/%,$(SETS))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	-for peer in $(FILTER_PEERS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$peer"; done
	$(BIN)/python -m corenn.bench.filtered $(FILTERED) --json bench-results/filters.json

# A million made vectors of 96 dimensions: who is fastest there, and how distances grow. An hour on two cores.
bench-million: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' $(PEERS)
	test -f $(MILLION) || $(BIN)/corenn dataset synthetic $(MILLION) --rows 1000000 --dim 96 --intrinsic-dim 16 --queries 2000
	$(BIN)/corenn bench run $(MILLION) --systems corenn,hnswlib,faiss-ivfpq,svs:window_size=100 --repetitions 3 --out $(OUT) --no-report
	$(BIN)/corenn bench report $(OUT) --update docs/benchmarks.md
	$(BIN)/python -m corenn.bench.goals --data $(MILLION) --growing $(MILLION)

bench-all:
	$(MAKE) bench SYSTEMS=$(ALL_SYSTEMS) PEERS="$(ALL_PEERS)" COUNT=100000 OUT=bench-results/all

$(OUT)/synthetic.hdf5: | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/corenn dataset synthetic $@ --rows $(COUNT) --dim 96 --intrinsic-dim 16 --queries 2000

clean:
	rm -rf $(VENV) dist build bench-results
