# qw: an engine for the open Qwen models. `make help` lists the targets.
# No configure step: pkg-config finds the libraries, scripts/setup installs what is missing.

CC     ?= gcc
AARCH64_CC := aarch64-linux-gnu-gcc
BUILD  := build
MODEL  := qwen2.5-coder:0.5b
DEPS   := libevent_core jansson libcurl libutf8proc libcrypto libedit libzip

ifneq ($(SAN),)
  BUILD    := build/san
  SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

# The processor family to build for is the compiler's. x86-64-v2 is the floor; kernel files are compiled for their own
# level (LEVEL_* below) and chosen at run time.
FAMILY := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
ARCH   := $(if $(filter x86_64,$(FAMILY)),-march=x86-64-v2)
OPT    := -O2
WARN   := -Wall -Wextra -Wconversion -Wshadow -Wvla -Wcast-qual -Wstrict-prototypes -Wformat=2
# The sanitizers bring their own checks; fortify would hide what they report.
HARDEN := $(if $(SAN),,-D_FORTIFY_SOURCE=2 -fstack-protector-strong) -fPIE
PKG_CFLAGS := $(shell pkg-config --cflags $(DEPS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(DEPS) 2>/dev/null)
CFLAGS_ALL  = -std=c17 -D_GNU_SOURCE -Iinclude -Isrc $(OPT) -g $(ARCH) $(WARN) $(HARDEN) -MMD -MP \
              -ffp-contract=off $(SANFLAGS) $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL = -pie -Wl,-z,relro,-z,now,-z,noexecstack $(SANFLAGS) $(LDFLAGS)
LIBS        = $(PKG_LIBS) -lpthread -lm

# clang tunes x86-64-v2 for processors before AVX2 and loads 32 bytes in two halves unless told otherwise.
LEVEL_avx2       := -mtune=generic -mavx2 -mfma -mf16c -mbmi -mbmi2
LEVEL_avx512     := $(LEVEL_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
LEVEL_avx512vnni := $(LEVEL_avx512) -mavx512vnni
# On AArch64 gcc schedules before it allocates registers, and then spills what the tiles were sized to keep.
NO_SPILLS        := $(if $(findstring clang,$(shell $(CC) --version)),,-fno-schedule-insns)
LEVEL_neon       := $(NO_SPILLS)
LEVEL_dotprod    := $(NO_SPILLS) -march=armv8.2-a+dotprod
LEVEL_i8mm       := $(NO_SPILLS) -march=armv8.2-a+dotprod+i8mm
# src/kernels/FAMILY/NAME_LEVEL.c is compiled for LEVEL, and only for its own family of processors.
level = $(LEVEL_$(lastword $(subst _, ,$(basename $(notdir $(1))))))
KERNELS_x86_64  := kernels/x86
KERNELS_aarch64 := kernels/arm
KERNEL_DIRS     := kernels kernels/ref $(KERNELS_$(FAMILY))

LIB_DIRS := base $(KERNEL_DIRS) formats backend backend/cpu model text engine hub store
LIB_SRC  := $(foreach d,$(LIB_DIRS),$(wildcard src/$(d)/*.c))
DOOR_SRC := $(wildcard src/cli/*.c src/server/*.c)
TOOL_SRC := $(wildcard src/tools/*.c)
# Files that become part of the program: C name, and where it comes from.
EMBED    := qw_catalog_json:share/catalog.json qw_web_index_html:web/index.html qw_web_app_js:web/app.js \
            qw_web_app_css:web/app.css
EMBED_OBJ := $(foreach e,$(EMBED),$(BUILD)/gen/$(firstword $(subst :, ,$(e))).o)

obj       = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJ  := $(call obj,$(LIB_SRC)) $(EMBED_OBJ)
PROG_OBJ := $(call obj,$(DOOR_SRC) $(TOOL_SRC))

UNIT     := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
HELPERS  := $(patsubst tests/parity/%.c,$(BUILD)/tests/%,$(wildcard tests/parity/*_tool.c))
CHECKASM := $(BUILD)/tests/checkasm
FAKE     := $(BUILD)/tests/qw-fake
# Test programs that can be told to compute at a lower instruction-set level (tests/unit/isa_cap.h), the whole program
# among them.
ISA_QW   := $(BUILD)/tests/qw-isa
ISA_CAP  := $(BUILD)/tests/unit/isa_cap.o
CAPPED   := $(ISA_QW) $(addprefix $(BUILD)/tests/,test_bits test_engine test_forward test_weights)
LIMITS   := $(BUILD)/bench/limits
STATE    := $(BUILD)/bench/state
ASK      := $(BUILD)/bench/ask
SIM      := $(BUILD)/tests/sim/sim
SIMS     := $(BUILD)/tests/sim_models/sim_models
HYBRID   := tests/fixtures/families/qwen35-r1
DRAFTS   := $(BUILD)/tests/drafts/drafts
KERNEL_BASE := cpu status utf8

.DEFAULT_GOAL := all
.PHONY: all chat test tests sim sim-models drafts checkasm-aarch64 parity perplexity quantizers convert-peer fixtures bench bench-kernels \
        bench-state bench-masks peers users speculation constrained clean help

## all: build the program build/qw and the library build/libqw.a (the default)
all: $(BUILD)/qw

## chat: install what is missing, build, fetch the default model, and chat (MODEL=name for another)
# Standard input belongs to the chat: nothing before it may read it, and everything before it talks on standard error.
chat:
	@scripts/setup build </dev/null >&2
	@$(MAKE) -q --no-print-directory all </dev/null >/dev/null 2>&1 || echo "building qw" >&2
	@$(MAKE) -s --no-print-directory -j$(shell nproc) all </dev/null >&2
	@$(BUILD)/qw pull --if-missing $(MODEL) </dev/null >&2
	@exec $(BUILD)/qw chat -m $(MODEL)

## test: run every test (SAN=1: with the sanitizers; ISA=avx2: as a processor of that level; ONLY=word: some suites)
test:
	@scripts/setup test </dev/null >&2
	@$(MAKE) --no-print-directory -s -j$(shell nproc) tests
	@python3 tests/run.py --build $(BUILD) $(if $(SAN),--san) $(if $(ISA),--isa $(ISA)) $(if $(ONLY),--only $(ONLY))

## tests: build the test programs without running them
tests: all $(UNIT) $(HELPERS) $(CHECKASM) $(FAKE) $(ISA_QW) $(LIMITS) $(STATE) $(ASK) $(SIM) $(SIMS) $(DRAFTS)

## checkasm-aarch64: the checks of the kernels for AArch64, cross-compiled (they run under qemu-aarch64)
checkasm-aarch64:
	@$(MAKE) --no-print-directory CC=$(AARCH64_CC) BUILD=$(BUILD)/aarch64 PKG_CFLAGS= LDFLAGS=-static-pie \
	    $(BUILD)/aarch64/tests/checkasm

## parity: logits of the whole 0.5B model against transformers and llama.cpp (several GB of packages, half an hour)
parity: all
	@scripts/setup test </dev/null >&2
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 tests/parity/logits.py --qw $(BUILD)/qw --model $(MODEL)

## fixtures: make tests/fixtures again from the reference implementation (several GB of packages)
fixtures: all
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 tests/parity/make_fixtures.py --model "$$($(BUILD)/qw show --json $(MODEL) | python3 -c 'import json,sys; print(json.load(sys.stdin)["path"])')"
	@python3 tests/parity/make_families.py

## perplexity: of a text, beside llama.cpp's on the same file (compiles llama.cpp first, many minutes)
perplexity: all
	@scripts/setup test </dev/null >&2
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 tests/parity/perplexity.py --qw $(BUILD)/qw --model $(MODEL)

## quantizers: errors and perplexity beside llama.cpp's quantiser, on a real model (compiles llama.cpp first, many minutes)
quantizers: all tests
	@scripts/setup test </dev/null >&2
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@$$(python3 scripts/venv.py test) tests/parity/quantizers.py --tool $(BUILD)/tests/blocks_tool \
	    --model "$$($(BUILD)/qw show --json $(MODEL) | python3 -c 'import json, sys; print(json.load(sys.stdin)["path"])')"
	@python3 tests/parity/quantizers_model.py --qw $(BUILD)/qw --model $(MODEL)

## convert-peer: converted and quantised files of every family, in llama.cpp and here (compiles it first, many minutes)
convert-peer: all
	@scripts/setup test </dev/null >&2
	@python3 tests/parity/convert_peer.py --qw $(BUILD)/qw

## bench: what this machine allows, and how near qw comes (the default model, and the 1.5B where it is installed)
bench: all $(LIMITS)
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 bench/bench.py --qw $(BUILD)/qw --limits $(LIMITS)

## bench-state: a past from disk, beside only reading its bytes (FOLDER=DIR for another disk)
bench-state: $(STATE)
	@$(STATE) $(or $(FOLDER),$(BUILD)/bench)

## bench-kernels: speed of every kernel at every instruction-set level of this machine
bench-kernels: $(CHECKASM)
	@$(CHECKASM) --bench

## bench-masks: what a JSON schema costs decoding (MODEL=name for another; minutes)
bench-masks: all $(ASK)
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 bench/masks.py --qw $(BUILD)/qw --ask $(ASK) --model $(MODEL)

## peers: the same table beside llama.cpp in one run (compiles it first, many minutes; LLAMA_SERVER=PATH: its server, too)
peers: all $(LIMITS)
	@scripts/setup test </dev/null >&2
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 bench/peers.py --qw $(BUILD)/qw --limits $(LIMITS) --model $(MODEL) --settle 20 --all \
	    $(if $(LLAMA_SERVER),--llama-server $(LLAMA_SERVER))

## users: many streams at once, and a new request among them (MODEL=name; LLAMA_SERVER=PATH: beside llama.cpp's server)
users: all
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 bench/users.py --qw $(BUILD)/qw --model $(MODEL) $(if $(LLAMA_SERVER),--llama-server $(LLAMA_SERVER))

## speculation: what guesses gain by kind of prompt, and that answers stay the same (MODEL=name DRAFT=name; many minutes)
speculation: all $(ASK)
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@python3 bench/speculation.py --qw $(BUILD)/qw --ask $(ASK) --model $(MODEL) $(if $(DRAFT),--draft $(DRAFT))

## constrained: 1000 outputs of a real model by the schemas of the official suite, judged by jsonschema (minutes)
constrained: all
	@scripts/setup test </dev/null >&2
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@$$(python3 scripts/venv.py test) tests/parity/constrained.py --qw $(BUILD)/qw --model $(MODEL)

## sim: the engine on a fake model and a fake clock, from seeds (SEEDS=10000 BASE=1)
sim: $(SIM)
	@$(SIM) --seeds $(or $(SEEDS),10000) --base $(or $(BASE),1)

## sim-models: the engine on real models in processes that are killed (SEEDS=20 BASE=1 MODEL=name HYBRID=file; minutes)
sim-models: all $(SIMS)
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@$(SIMS) --base $(or $(BASE),1) --seeds $(or $(SEEDS),100) --model $(HYBRID) --seeds $(or $(SEEDS),20) \
	    --model "$$($(BUILD)/qw show --json $(MODEL) | python3 -c 'import json, sys; print(json.load(sys.stdin)["path"])')"

## drafts: how many tokens a pass gives with drafts, on answers of the default model (MODEL=name for another; minutes)
drafts: all $(DRAFTS)
	@$(BUILD)/qw pull --quiet --if-missing $(MODEL) </dev/null >&2
	@$(DRAFTS) record "$$($(BUILD)/qw show --json $(MODEL) | python3 -c 'import json, sys; print(json.load(sys.stdin)["path"])')" \
	    tests/drafts/prompts.txt $(BUILD)/drafts.tape
	@$(DRAFTS) replay $(BUILD)/drafts.tape

## clean: remove build/
clean:
	rm -rf build

## help: this list
help:
	@sed -n 's/^## \([a-z0-9-]*\): /  make \1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

# ---- rules -------------------------------------------------------------------------------------

$(BUILD)/libqw.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/qw: $(PROG_OBJ) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $(PROG_OBJ) $(BUILD)/libqw.a $(LIBS)

# The program over an engine whose answers are known (tests/cli/fake_engine.c).
$(FAKE): $(call obj,$(DOOR_SRC)) $(BUILD)/tests/cli/fake_engine.o $(BUILD)/libqw.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

# Of kernels and what they stand on alone: it can be built for a machine that the program's libraries are not there for.
$(CHECKASM): $(call obj,$(wildcard tests/kernels/*.c $(KERNEL_DIRS:%=src/%/*.c)) $(KERNEL_BASE:%=src/base/%.c))
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lpthread -lm

# The simulation's store of computed pasts has to find what the one on disk finds.
$(BUILD)/tests/test_state: $(BUILD)/tests/sim/fake_state.o
$(BUILD)/tests/test_core: $(BUILD)/tests/sim/fake_model.o

$(SIM): $(call obj,$(wildcard tests/sim/*.c)) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

$(SIMS): $(call obj,$(wildcard tests/sim_models/*.c) tests/sim/fake_model.c tests/sim/real_model.c) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

$(DRAFTS): $(call obj,$(wildcard tests/drafts/*.c)) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

# Which sources of guesses there are is for it to choose.
$(ASK): LDFLAGS_ALL += -Wl,--wrap=qw_drafts_create
$(ASK): $(call obj,bench/ask.c) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

$(STATE): $(call obj,bench/state.c) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

$(LIMITS): $(call obj,bench/limits.c)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lpthread

$(CAPPED): $(ISA_CAP)
$(CAPPED): LDFLAGS_ALL += -Wl,--wrap=qw_cpu_isa

# No allocation goes uncounted.
$(addprefix $(BUILD)/tests/,test_drafts test_draft_models): LDFLAGS_ALL += -Wl,--wrap=malloc -Wl,--wrap=calloc -Wl,--wrap=realloc
$(BUILD)/tests/test_engine: LDFLAGS_ALL += -Wl,--wrap=qw_draft_cost_us
$(BUILD)/tests/test_plan: LDFLAGS_ALL += -Wl,--wrap=malloc -Wl,--wrap=calloc -Wl,--wrap=realloc -Wl,--wrap=free \
    -Wl,--wrap=posix_memalign

$(ISA_QW): $(PROG_OBJ) $(BUILD)/libqw.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(BUILD)/libqw.a $(LIBS)

$(UNIT): $(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(BUILD)/libqw.a $(LIBS) -lcmocka

$(HELPERS): $(BUILD)/tests/%: $(BUILD)/tests/parity/%.o $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

define embed_rule
$(BUILD)/gen/$(1).c: $(2) scripts/embed.py
	@mkdir -p $$(@D)
	python3 scripts/embed.py $(1) $$< > $$@.new && mv $$@.new $$@
endef
$(foreach e,$(EMBED),$(eval $(call embed_rule,$(firstword $(subst :, ,$(e))),$(lastword $(subst :, ,$(e))))))

$(BUILD)/gen/%.o: $(BUILD)/gen/%.c
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

$(BUILD)/src/kernels/%.o: src/kernels/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -O3 $(call level,$<) -c -o $@ $<

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

.SECONDARY:
-include $(shell find $(BUILD)/src $(BUILD)/tests $(BUILD)/bench -name '*.d' 2>/dev/null)
