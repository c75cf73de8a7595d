# qw: an engine for the open Qwen models. `make help` lists the targets.
# No configure step: pkg-config finds the libraries, scripts/setup installs what is missing.

CC      ?= gcc
BUILD   ?= build
DEPS    := libevent_core libevent_extra libevent_pthreads jansson libcurl libutf8proc libcrypto libedit

ifneq ($(SAN),)
  BUILD := build/san
  SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

WARN    := -Wall -Wextra -Wconversion -Wshadow -Wvla -Wcast-qual -Wstrict-prototypes -Wformat=2
OPT     ?= -O2
# x86-64-v2 is the floor; kernel files are compiled for their own level (see LEVEL_* below).
ARCH    := $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v2)
HARDEN  := -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
CFLAGS_ALL = -std=c17 -D_GNU_SOURCE -Iinclude -Isrc $(OPT) -g $(ARCH) $(WARN) $(HARDEN) -MMD -MP \
             -ffp-contract=off $(SANFLAGS) $(CFLAGS)
LDFLAGS_ALL = -pie -Wl,-z,relro,-z,now,-z,noexecstack $(SANFLAGS) $(LDFLAGS)
PKG_CFLAGS := $(shell pkg-config --cflags $(DEPS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(DEPS) 2>/dev/null)
LIBS    = $(PKG_LIBS) -lpthread -lm

LEVEL_avx2       := -mavx2 -mfma -mf16c -mbmi -mbmi2
LEVEL_avx512     := $(LEVEL_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
LEVEL_avx512vnni := $(LEVEL_avx512) -mavx512vnni

LIB_DIRS := base kernels kernels/ref kernels/x86 formats backend/cpu model text engine hub store
LIB_SRC  := $(foreach d,$(LIB_DIRS),$(wildcard src/$(d)/*.c))
PROG_SRC := $(wildcard src/cli/*.c src/server/*.c src/tools/*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
PROG_OBJ := $(PROG_SRC:%.c=$(BUILD)/%.o)

.DEFAULT_GOAL := all
.PHONY: all clean help

all: $(BUILD)/qw

$(BUILD)/libqw.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/qw: $(PROG_OBJ) $(BUILD)/libqw.a
	$(CC) $(LDFLAGS_ALL) -o $@ $(PROG_OBJ) $(BUILD)/libqw.a $(LIBS)

# src/kernels/x86/NAME_LEVEL.c is compiled for LEVEL; everything else for the floor.
level = $(LEVEL_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

$(BUILD)/src/kernels/%.o: src/kernels/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -O3 $(call level,$<) -c -o $@ $<

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(PKG_CFLAGS) -c -o $@ $<

-include $(LIB_OBJ:.o=.d) $(PROG_OBJ:.o=.d)

clean:
	rm -rf build
