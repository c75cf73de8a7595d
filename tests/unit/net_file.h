/* net_file.h: small model files for tests of binding, planned, changed and written; and what opening them says.
 *
 * All tensors are zeros, or random numbers from a seed. Included once by a test program; needs cmocka before it.
 */
#ifndef NET_FILE_H
#define NET_FILE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "model/net.h"
#include "small_vocab.h"
#include "temp_dir.h"

typedef struct file_tensor {
    char name[64];
    uint32_t n_dims;
    uint64_t ne[4];
    uint32_t type;
} file_tensor;

typedef struct file_key {
    const char *name;
    char kind; /* u: u32, f: f32, s: text, l: list of i64 */
    double number;
    const char *text;
    int64_t list[16];
    size_t n_list;
} file_key;

/* What a file will hold; tests change it before it is written. */
typedef struct file_plan {
    file_tensor tensors[96];
    size_t n_tensors;
    file_key keys[48];
    size_t n_keys;
    const small_vocab *vocab; /* or NULL: no tokenizer */
    size_t n_vocab;           /* tokens written of it */
    uint32_t seed;            /* of the tensors' values, which are F32 then; 0: they are zeros */
} file_plan;

static inline void add_tensor(file_plan *f, const char *fmt, int layer, uint64_t rows, uint64_t k)
{
    file_tensor *t = &f->tensors[f->n_tensors++];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(t->name, sizeof t->name, fmt, layer);
#pragma GCC diagnostic pop
    t->n_dims = rows ? 2 : 1;
    t->ne[0] = k;
    t->ne[1] = rows;
}

/* Experts: a matrix for each of n. */
static inline void add_stack(file_plan *f, const char *fmt, int layer, uint64_t n, uint64_t rows, uint64_t k)
{
    add_tensor(f, fmt, layer, rows, k);
    f->tensors[f->n_tensors - 1].n_dims = 3;
    f->tensors[f->n_tensors - 1].ne[2] = n;
}

static inline void add_number(file_plan *f, const char *name, char kind, double number)
{
    f->keys[f->n_keys++] = (file_key){.name = name, .kind = kind, .number = number};
}

static inline void add_list(file_plan *f, const char *name, const int64_t *list, size_t n)
{
    file_key *k = &f->keys[f->n_keys++];
    *k = (file_key){.name = name, .kind = 'l', .n_list = n};
    memcpy(k->list, list, n * sizeof *list);
}

static inline void add_text(file_plan *f, const char *name, const char *text)
{
    f->keys[f->n_keys++] = (file_key){.name = name, .kind = 's', .text = text};
}

static inline file_tensor *tensor(file_plan *f, const char *name)
{
    for (size_t i = 0; i < f->n_tensors; i++) {
        if (strcmp(f->tensors[i].name, name) == 0) return &f->tensors[i];
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void drop_tensor(file_plan *f, const char *name)
{
    file_tensor *t = tensor(f, name), *last = &f->tensors[--f->n_tensors];
    memmove(t, t + 1, (size_t)(last - t) * sizeof *t);
}

static inline file_key *key(file_plan *f, const char *name)
{
    for (size_t i = 0; i < f->n_keys; i++) {
        if (strcmp(f->keys[i].name, name) == 0) return &f->keys[i];
    }
    fail_msg("no key %s", name);
    return NULL;
}

static inline void drop_key(file_plan *f, const char *name)
{
    file_key *k = key(f, name), *last = &f->keys[--f->n_keys];
    memmove(k, k + 1, (size_t)(last - k) * sizeof *k);
}

static inline void put_vocab(gw *w, const file_plan *f)
{
    gw_kv_str(w, "tokenizer.ggml.model", "gpt2");
    gw_kv_str(w, "tokenizer.ggml.pre", "qwen2");
    gw_kv_array(w, "tokenizer.ggml.tokens", 8, f->n_vocab);
    for (size_t i = 0; i < f->n_vocab; i++) gw_bytes(w, f->vocab->tokens[i].s, f->vocab->tokens[i].n);
    gw_kv_array(w, "tokenizer.ggml.token_type", 5, f->n_vocab);
    for (size_t i = 0; i < f->n_vocab; i++) gw_le(w, f->vocab->types[i], 4, true);
    gw_kv_array(w, "tokenizer.ggml.merges", 8, N_SMALL_MERGES);
    for (size_t i = 0; i < N_SMALL_MERGES; i++) gw_bytes(w, f->vocab->merges[i].s, f->vocab->merges[i].n);
}

static inline void put_list(gw *w, const file_key *k)
{
    gw_kv_array(w, k->name, 11, k->n_list);
    for (size_t i = 0; i < k->n_list; i++) gw_le(w, (uint64_t)k->list[i], 8, true);
}

/* From -1 to 1. */
static inline float next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

/* Matrices keep the size of what they multiply, norms are near one, and decays (the last name) below zero. */
static inline void put_random(gw *w, const file_tensor *t, uint64_t *state)
{
    uint64_t n = t->ne[0];
    float scale = 1.7f / sqrtf((float)t->ne[0]);
    for (uint32_t d = 1; d < t->n_dims; d++) n *= t->ne[d];
    for (uint64_t i = 0; i < n; i++) {
        float x = next_random(state), value = t->n_dims > 1 ? scale * x : 1 + 0.3f * x;
        uint32_t bits;
        if (strstr(t->name, "ssm_a")) value = -value;
        memcpy(&bits, &value, sizeof bits);
        gw_le(w, bits, 4, true);
    }
    gw_pad(w, 32);
}

static inline const char *save(const file_plan *f)
{
    static const size_t type_bytes[] = {[0] = 4, [1] = 2, [30] = 2}; /* F32, F16, BF16; Q8_0 is 34 for 32 */
    const char *path = temp_path("model.gguf");
    uint64_t at = 0;
    gw w = {0};
    gw_header(&w, 3, f->n_tensors, f->n_keys + (f->vocab ? 5 : 0));
    for (size_t i = 0; i < f->n_keys; i++) {
        const file_key *k = &f->keys[i];
        if (k->kind == 'u') gw_kv_u32(&w, k->name, (uint32_t)k->number);
        else if (k->kind == 'f') gw_kv_f32(&w, k->name, (float)k->number);
        else if (k->kind == 'l') put_list(&w, k);
        else gw_kv_str(&w, k->name, k->text);
    }
    if (f->vocab) put_vocab(&w, f);
    for (size_t i = 0; i < f->n_tensors; i++) {
        const file_tensor *t = &f->tensors[i];
        uint64_t n = 1;
        gw_str(&w, t->name);
        gw_u32(&w, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims; d++) {
            gw_u64(&w, t->ne[d]);
            n *= t->ne[d];
        }
        gw_u32(&w, t->type);
        gw_u64(&w, at);
        uint64_t bytes = t->type == 8 ? n / 32 * 34 : n * type_bytes[t->type];
        at += (bytes + 31) / 32 * 32;
    }
    gw_pad(&w, 32);
    uint64_t state = f->seed;
    for (size_t i = 0; f->seed && i < f->n_tensors; i++) put_random(&w, &f->tensors[i], &state);
    if (!f->seed) gw_fill(&w, at, 0);
    gw_save(&w, path);
    gw_free(&w);
    return path;
}

/* Opens the container and the network; the error's text without the path in front. */
static inline qw_status try_open(const file_plan *f, char text[QW_ERR_TEXT_MAX])
{
    const char *path = save(f);
    qw_err err = {0};
    qw_gguf *g;
    qw_net *net = NULL;
    if (qw_gguf_open(path, &g, &err) != QW_OK) fail_msg("the container: %s", err.text);
    qw_status status = qw_net_open(g, &net, &err);
    text[0] = 0;
    if (status != QW_OK) {
        assert_null(net);
        assert_int_equal(err.status, status);
        assert_memory_equal(err.text, path, strlen(path));
        assert_memory_equal(err.text + strlen(path), ": ", 2);
        assert_null(strpbrk(err.text, "\n\r\t"));
        snprintf(text, QW_ERR_TEXT_MAX, "%s", err.text + strlen(path) + 2);
        if (strstr(text, path)) fail_msg("the path is there twice: %s", err.text);
    }
    qw_net_close(net);
    qw_gguf_close(g);
    return status;
}

static inline void assert_opens(const file_plan *f)
{
    char text[QW_ERR_TEXT_MAX];
    if (try_open(f, text) != QW_OK) fail_msg("%s", text);
}

static inline void assert_refused(const file_plan *f, qw_status status, const char *want)
{
    char text[QW_ERR_TEXT_MAX];
    qw_status got = try_open(f, text);
    if (got != status || strcmp(text, want) != 0) {
        fail_msg("status %d '%s', want %d '%s'", (int)got, text, (int)status, want);
    }
}

static inline void assert_says(const file_plan *f, qw_status status, const char *part)
{
    char text[QW_ERR_TEXT_MAX];
    qw_status got = try_open(f, text);
    if (got != status || !strstr(text, part)) {
        fail_msg("status %d '%s', want %d and '%s'", (int)got, text, (int)status, part);
    }
}

#endif
