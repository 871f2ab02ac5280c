# gaze - one Makefile, one build folder per flavour: build/release build/asan build/ubsan build/tsan.
# `make help` lists the targets; V=1 shows the commands; FLAVOUR=asan picks another build.

FLAVOUR ?= release
B := build/$(FLAVOUR)
ifeq ($(origin CC),default)
CC := gcc
endif
PREFIX ?= /usr/local
Q := $(if $(V),,@)
comma := ,

VERSION := 0.1.0
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

PKGS := libmicrohttpd libuv libcjson libpcre2-8 gnutls
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

CFLAGS_release := -O2 -g
CFLAGS_asan := -O1 -g -fsanitize=address -fno-omit-frame-pointer -DGAZE_DEBUG
CFLAGS_ubsan := -O1 -g -fsanitize=undefined -fno-sanitize-recover=all -DGAZE_DEBUG
CFLAGS_tsan := -O1 -g -fsanitize=thread -DGAZE_DEBUG
WARN := -Wall -Wextra -Wshadow -Wconversion -Werror
CFLAGS := -std=c17 -D_GNU_SOURCE $(WARN) -fno-math-errno -ffp-contract=off \
          $(CFLAGS_$(FLAVOUR)) $(PKG_CFLAGS) -Iengine -MMD -MP $(EXTRA_CFLAGS)
LDFLAGS := $(filter -fsanitize=%,$(CFLAGS_$(FLAVOUR))) $(EXTRA_LDFLAGS)
LIBS := $(PKG_LIBS) -lm -lpthread

# The CPU ops come once per instruction set; which one runs is chosen when the program starts.
CFLAGS_AVX512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mavx512bf16 \
                 -mavx2 -mfma -mf16c -O3 -ffp-contract=off
CFLAGS_AVX2 := -mavx2 -mfma -mf16c -O3 -ffp-contract=off

ENGINE_SRC := $(sort $(wildcard engine/*.c engine/*/*.c))
SERVER_SRC := $(sort $(wildcard server/*.c))
LIB_OBJ := $(ENGINE_SRC:%.c=$(B)/%.o)
SERVER_OBJ := $(SERVER_SRC:%.c=$(B)/%.o)

UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
SIM_SRC := $(sort $(wildcard tests/sim/test_*.c))
GOLDEN_SRC := $(sort $(wildcard tests/golden/test_*.c))
HTTP_SRC := $(sort $(wildcard tests/http/test_*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_SRC := $(sort $(wildcard tests/bench/bench_*.c))
FAKE_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard tests/fakes/*.c)))
FAKE_LIB := $(B)/tests/libfakes.a
TEST_BIN := $(patsubst tests/%.c,$(B)/tests/%,$(UNIT_SRC) $(SIM_SRC) $(GOLDEN_SRC) $(HTTP_SRC))
BENCH_BIN := $(patsubst tests/%.c,$(B)/tests/%,$(BENCH_SRC))

# The GPU back end. Without HAVE_CUDA=1 (make cuda) nothing of it is compiled or linked. Which devices
# its code runs on: CUDA_ARCH="80 89 90a 100 120" for all of them.
NVCC ?= nvcc
CUDA_HOME ?= /usr/local/cuda
CUDA_ARCH ?= 90a
NVFLAGS := -std=c++17 -O3 -lineinfo -fmad=false -Xcompiler -Wall,-Wno-unknown-pragmas \
           $(if $(filter 90a,$(CUDA_ARCH)),-DGAZE_SM_90A) \
           $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a))
CUDA_INC := -Iengine -I. -Icuda
CUDA_SRC := $(sort $(wildcard cuda/*.cu))
CUDA_OBJ := $(CUDA_SRC:%.cu=$(B)/%.o)
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -ldl -lrt
CUDA_TESTS := $(addprefix $(B)/tests/kernel/test_cuda_,ops golden step comm pages parallel past)
CUDA_BENCH := $(addprefix $(B)/tests/bench/,cuda_kernels cuda_products comm_bench)
# The same sources for an emulated device: threads of a block are fibres of the host.
EMU_FLAGS := -std=c++20 -O2 -g -Wall -Wno-unknown-pragmas -Wno-unused-function \
             -Wno-deprecated-enum-enum-conversion -Wno-enum-compare -fno-strict-aliasing \
             -ffp-contract=off -fno-math-errno -Itests/kernel/emulated $(CUDA_INC)
# It has no NCCL.
EMU_OBJ := $(patsubst %.cu,$(B)/emulated/%.o,$(filter-out cuda/comm_nccl.cu,$(CUDA_SRC))) \
           $(B)/emulated/tests/kernel/device_memory.o \
           $(B)/emulated/tests/kernel/emulated/fibres.o
EMU_TESTS := $(addprefix $(B)/emulated/test_cuda_,ops golden step comm pages parallel past)
ifdef HAVE_CUDA
GAZE_CUDA_OBJ := $(CUDA_OBJ)
LIBS += $(CUDA_LIBS)
endif

.PHONY: all help run test test-all asan ubsan tsan bench fuzz lint format install cuda clean
.SECONDARY:

all: $(B)/gaze ## build the server, build/release/gaze

help: ## list the targets
	@grep -hE '^[a-z][a-z -]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(B)/gaze ## serve the bundled model on 127.0.0.1:8000
	$(Q)scripts/run

test: all test-bins ## unit, sim, golden and http tests
	$(Q)scripts/run_tests $(B)

test-bins: $(TEST_BIN)
	@:
.PHONY: test-bins

TP ?= 2
HTTP_BIN := $(patsubst tests/%.c,$(B)/tests/%,$(HTTP_SRC))
test-tp: $(HTTP_BIN) ## the http tests with the model cut over TP (2) ranks, threads of the server
	$(Q)for t in $^; do echo "== $$t"; GAZE_TEST_TP=$(TP) $$t || exit 1; done
.PHONY: test-tp

test-image: ## build the CPU image with buildah and serve from it (root)
	$(Q)scripts/image
.PHONY: test-image

asan ubsan tsan: ## the same tests in a sanitizer build
	$(Q)$(MAKE) --no-print-directory FLAVOUR=$@ test

SEEDS ?= 100000
sim: $(B)/tests/sim/test_chaos ## the simulation with SEEDS seeds (100000)
	$(Q)scripts/sim $(B) $(SEEDS)

mutants: ## break the scheduler on purpose: the simulation must find each defect
	$(Q)tests/sim/mutants
.PHONY: sim mutants

torture: all test-bins ## fail each allocation and system call in turn, TORTURE_SECONDS (300; 0: all)
	$(Q)scripts/torture $(B)
.PHONY: torture

bench: all $(BENCH_BIN) ## timed rows: tokens/s, tokenizer, start-up, memory
	$(Q)scripts/bench $(B)

fuzz: ## build the libFuzzer targets (clang) and run each FUZZ_SECONDS (60)
	$(Q)scripts/fuzz

lint: ## include directions, line length, stray words
	$(Q)scripts/lint

format: ## clang-format over our C files
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h')

install: all ## copy the binary, the manual, the bundled model and the settings under PREFIX
	install -D -m 755 $(B)/gaze $(DESTDIR)$(PREFIX)/bin/gaze
	install -D -m 644 server/gaze.1 $(DESTDIR)$(PREFIX)/share/man/man1/gaze.1
	install -D -m 644 config/gaze.json $(DESTDIR)$(PREFIX)/share/gaze/gaze.json
	for f in config/models/*/*; do [ ! -f "$$f" ] || \
	    install -D -m 644 "$$f" "$(DESTDIR)$(PREFIX)/share/gaze/$${f#config/}"; done

cuda: ## build the server with the GPU back end (needs nvcc)
	$(Q)rm -f $(B)/gaze
	$(Q)$(MAKE) --no-print-directory HAVE_CUDA=1 all

# With the libraries that are not in every system; the linker's own and the C library's are.
CARRY_LIBS = ldd build/cuda-carry/gaze | awk '$$3 ~ /^\// && \
    $$1 !~ /^(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so/ { print $$3 }'
cuda-carry: $(CUDA_TESTS) $(CUDA_BENCH) ## build/cuda-carry: server and tests for scripts/device_test
	$(Q)mkdir -p build/cuda-carry/lib
	$(Q)$(MAKE) --no-print-directory HAVE_CUDA=1 GAZE=build/cuda-carry/gaze build/cuda-carry/gaze
	$(Q)cp $(CUDA_TESTS) $(CUDA_BENCH) build/cuda-carry/
	$(Q)strip build/cuda-carry/gaze build/cuda-carry/test_* $(addprefix build/cuda-carry/,$(notdir $(CUDA_BENCH)))
	$(Q)cp -L $$($(CARRY_LIBS)) build/cuda-carry/lib/

# Fuzzers with their corpora and the simulation, for a machine without compilers.
CPU_CARRY := build/cpu-carry
cpu-carry: $(B)/tests/sim/test_chaos $(B)/commit ## build/cpu-carry: for scripts/prove_parallel (clang)
	$(Q)FUZZ_SECONDS=0 scripts/fuzz
	$(Q)rm -rf $(CPU_CARRY)
	$(Q)mkdir -p $(CPU_CARRY)/lib $(CPU_CARRY)/corpus
	$(Q)cp $(patsubst tests/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC)) $(B)/tests/sim/test_chaos $(CPU_CARRY)/
	$(Q)cp $(B)/commit $(CPU_CARRY)/
	$(Q)strip --strip-debug $(CPU_CARRY)/fuzz_* $(CPU_CARRY)/test_chaos
	$(Q)cp -r tests/fuzz/corpus $(CPU_CARRY)/
	$(Q)for f in $(CPU_CARRY)/fuzz_*; do ldd $$f; done | awk '$$3 ~ /^\// && \
	    $$1 !~ /^(libc|libm)\.so/ { print $$3 }' | sort -u | xargs -I{} cp -L {} $(CPU_CARRY)/lib/
	@du -sh $(CPU_CARRY)
.PHONY: cpu-carry

test-gpu: cuda-carry ## the GPU tests, here
	$(Q)scripts/device_test

test-multigpu: cuda-carry ## what several GPUs can do together, here: collectives, goldens, load, rows
	$(Q)scripts/multigpu_test

test-emulated: $(EMU_TESTS) ## the kernels on the emulated device: no GPU needed, slow
	$(Q)for t in $^; do $$t $(ONLY) || exit 1; done
.PHONY: cuda-carry test-gpu test-multigpu test-emulated

clean: ## remove build/
	rm -rf build

# An archive, so that a test links only what it uses.
$(B)/libgaze.a: $(LIB_OBJ)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

GAZE ?= $(B)/gaze
$(GAZE): $(SERVER_OBJ) $(GAZE_CUDA_OBJ) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/%_avx512.o: CFLAGS += $(CFLAGS_AVX512)
$(B)/%_avx2.o: CFLAGS += $(CFLAGS_AVX2)
$(B)/engine/%.o: CFLAGS += -I.
$(B)/engine/cpu/%.o: CFLAGS += $(if $(filter release,$(FLAVOUR)),-O3)
$(B)/tests/%.o: CFLAGS += -Itests/unit -Itests/fakes -I.
# What the program says of itself; the commit changes often, so only this file sees it, and it is
# built again when the commit has changed.
$(B)/commit: FORCE
	@mkdir -p $(@D)
	@[ "$$(cat $@ 2>/dev/null)" = "$(COMMIT)" ] || echo "$(COMMIT)" >$@
FORCE:
.PHONY: FORCE
$(B)/server/page.o: server/page/index.html
$(B)/server/version.o: $(B)/commit
$(B)/server/version.o: CFLAGS += -DGAZE_VERSION='"$(VERSION)"' -DGAZE_COMMIT='"$(COMMIT)"'

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc    $<"
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<

$(B)/cuda/%.o: cuda/%.cu
	@mkdir -p $(@D)
	@echo "  nvcc  $<"
	$(Q)$(NVCC) $(NVFLAGS) $(CUDA_INC) -MMD -MP -c -o $@ $<
$(B)/tests/%.o: tests/%.cu
	@mkdir -p $(@D)
	@echo "  nvcc  $<"
	$(Q)$(NVCC) $(NVFLAGS) $(CUDA_INC) -MMD -MP -c -o $@ $<
$(B)/emulated/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  c++   $<"
	$(Q)$(CXX) $(EMU_FLAGS) -MMD -MP -x c++ -c -o $@ $<
$(B)/emulated/%.o: %.cpp
	@mkdir -p $(@D)
	@echo "  c++   $<"
	$(Q)$(CXX) $(EMU_FLAGS) -MMD -MP -c -o $@ $<

TEST_CUDA_ops := $(B)/tests/kernel/test_cuda_ops.o
TEST_CUDA_golden := $(B)/tests/golden/test_models.o $(B)/tests/kernel/golden_cuda.o
TEST_REST := $(B)/tests/unit/frame.o $(FAKE_LIB) $(B)/libgaze.a
$(B)/tests/kernel/test_cuda_ops: $(TEST_CUDA_ops)
$(B)/tests/kernel/test_cuda_golden: $(TEST_CUDA_golden)
TEST_CUDA_step := $(B)/tests/kernel/test_cuda_step.o
$(B)/tests/kernel/test_cuda_step: $(TEST_CUDA_step)
TEST_CUDA_comm := $(B)/tests/kernel/test_cuda_comm.o
$(B)/tests/kernel/test_cuda_comm: $(TEST_CUDA_comm)
TEST_CUDA_pages := $(B)/tests/kernel/test_cuda_pages.o
$(B)/tests/kernel/test_cuda_pages: $(TEST_CUDA_pages)
TEST_CUDA_parallel := $(B)/tests/golden/test_ranks.o $(B)/tests/kernel/ranks_cuda.o
$(B)/tests/kernel/test_cuda_parallel: $(TEST_CUDA_parallel)
TEST_CUDA_past := $(B)/tests/kernel/test_cuda_past.o
$(B)/tests/kernel/test_cuda_past: $(TEST_CUDA_past)
$(CUDA_TESTS): $(B)/tests/kernel/device_memory.o $(CUDA_OBJ) $(TEST_REST)
	@echo "  link  $@"
	$(Q)$(CC) -o $@ $(filter-out $(TEST_REST),$^) $(TEST_REST) $(LIBS) $(CUDA_LIBS)
$(CUDA_BENCH): $(B)/tests/bench/%: $(B)/tests/bench/%.o $(B)/tests/kernel/device_memory.o \
               $(CUDA_OBJ) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) -o $@ $^ $(LIBS) $(CUDA_LIBS)
$(B)/emulated/test_cuda_ops: $(TEST_CUDA_ops)
$(B)/emulated/test_cuda_golden: $(TEST_CUDA_golden)
$(B)/emulated/test_cuda_step: $(TEST_CUDA_step)
$(B)/emulated/test_cuda_comm: $(TEST_CUDA_comm)
$(B)/emulated/test_cuda_pages: $(TEST_CUDA_pages)
$(B)/emulated/test_cuda_parallel: $(TEST_CUDA_parallel)
$(B)/emulated/test_cuda_past: $(TEST_CUDA_past)
$(EMU_TESTS): $(EMU_OBJ) $(TEST_REST)
	@echo "  link  $@"
	$(Q)$(CXX) -o $@ $(filter-out $(TEST_REST),$^) $(TEST_REST) $(LIBS)

$(FAKE_LIB): $(FAKE_OBJ)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

# This one counts what our code allocates.
COUNTED := malloc calloc realloc aligned_alloc strdup arena_alloc arena_zalloc arena_strndup
$(B)/tests/golden/test_allocations: LDFLAGS += $(addprefix -Wl$(comma)--wrap=,$(COUNTED))

# A test of the server links the server's objects but not its main().
$(B)/tests/http/%: $(B)/tests/http/%.o $(B)/tests/unit/frame.o $(FAKE_LIB) \
                   $(filter-out $(B)/server/main.o,$(SERVER_OBJ)) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(B)/tests/bench/bench_frontend: $(B)/tests/bench/bench_frontend.o \
                   $(filter-out $(B)/server/main.o,$(SERVER_OBJ)) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(B)/tests/bench/%: $(B)/tests/bench/%.o $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(B)/tests/%: $(B)/tests/%.o $(B)/tests/unit/frame.o $(FAKE_LIB) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

-include $(shell [ -d $(B) ] && find $(B) -name '*.d' 2>/dev/null)
