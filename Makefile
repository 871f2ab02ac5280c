# gaze - one Makefile, one build folder per flavour: build/release build/asan build/ubsan build/tsan.
# `make help` lists the targets; V=1 shows the commands; FLAVOUR=asan picks another build.

FLAVOUR ?= release
B := build/$(FLAVOUR)
ifeq ($(origin CC),default)
CC := gcc
endif
PREFIX ?= /usr/local
Q := $(if $(V),,@)

VERSION := 0.1.0
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

PKGS := libmicrohttpd libuv libcjson libpcre2-8
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

.PHONY: all help run test test-all asan ubsan tsan bench fuzz lint format install cuda clean
.SECONDARY:

all: $(B)/gaze ## build the server, build/release/gaze

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(B)/gaze ## serve the bundled model on 127.0.0.1:8000
	$(Q)scripts/run

test: all test-bins ## unit, sim, golden and http tests
	$(Q)scripts/run_tests $(B)

test-bins: $(TEST_BIN)
	@:
.PHONY: test-bins

asan ubsan tsan: ## the same tests in a sanitizer build
	$(Q)$(MAKE) --no-print-directory FLAVOUR=$@ test

bench: all $(BENCH_BIN) ## timed rows: tokens/s, tokenizer, start-up, memory
	$(Q)scripts/bench $(B)

fuzz: ## build the libFuzzer targets (clang) and run each FUZZ_SECONDS (60)
	$(Q)scripts/fuzz

lint: ## include directions, line length, stray words
	$(Q)scripts/lint

format: ## clang-format over our C files
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h')

install: all ## copy the binary, the bundled model and the settings under PREFIX
	install -D -m 755 $(B)/gaze $(DESTDIR)$(PREFIX)/bin/gaze
	install -D -m 644 config/gaze.json $(DESTDIR)$(PREFIX)/share/gaze/gaze.json
	for f in config/models/*/*; do [ ! -f "$$f" ] || \
	    install -D -m 644 "$$f" "$(DESTDIR)$(PREFIX)/share/gaze/$${f#config/}"; done

cuda: ## build the GPU back end (needs nvcc)
	@echo "cuda: no GPU back end to build yet; the CPU back end is complete"

clean: ## remove build/
	rm -rf build

# An archive, so that a test links only what it uses.
$(B)/libgaze.a: $(LIB_OBJ)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

$(B)/gaze: $(SERVER_OBJ) $(B)/libgaze.a
	@echo "  link  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/%_avx512.o: CFLAGS += $(CFLAGS_AVX512)
$(B)/%_avx2.o: CFLAGS += $(CFLAGS_AVX2)
$(B)/engine/cpu/%.o: CFLAGS += $(if $(filter release,$(FLAVOUR)),-O3)
$(B)/tests/%.o: CFLAGS += -Itests/unit -Itests/fakes -I.
# What the program says of itself; the commit changes often, so only this file sees it.
$(B)/server/version.o: CFLAGS += -DGAZE_VERSION='"$(VERSION)"' -DGAZE_COMMIT='"$(COMMIT)"'

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc    $<"
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<

$(FAKE_LIB): $(FAKE_OBJ)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

# A test of the server links the server's objects but not its main().
$(B)/tests/http/%: $(B)/tests/http/%.o $(B)/tests/unit/frame.o $(FAKE_LIB) \
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
