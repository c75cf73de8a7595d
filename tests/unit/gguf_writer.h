/* gguf_writer.h: makes small GGUF files for tests, good ones and any kind of bad one.
 *
 * It writes what it is told and checks nothing. Each byte is remembered as structure (counts, lengths,
 * types, sizes, offsets) or as content (names, values, padding, data), for tests that flip bits.
 */
#ifndef QW_TESTS_GGUF_WRITER_H
#define QW_TESTS_GGUF_WRITER_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct gw {
    uint8_t *data;  /* [n], owns */
    bool *content;  /* [n], owns; false: structure */
    size_t n, cap;
} gw;

static inline void gw_free(gw *w)
{
    free(w->data);
    free(w->content);
    *w = (gw){0};
}

static inline void gw_put(gw *w, const void *data, size_t n, bool content)
{
    if (n == 0) return;
    while (w->n + n > w->cap) {
        w->cap = w->cap ? 2 * w->cap : 1024;
        w->data = realloc(w->data, w->cap);
        w->content = realloc(w->content, w->cap * sizeof *w->content);
        assert(w->data != NULL && w->content != NULL);
    }
    memcpy(w->data + w->n, data, n);
    for (size_t i = 0; i < n; i++) w->content[w->n + i] = content;
    w->n += n;
}

static inline void gw_le(gw *w, uint64_t v, size_t bytes, bool content)
{
    uint8_t b[8];
    for (size_t i = 0; i < bytes; i++) b[i] = (uint8_t)(v >> (8 * i));
    gw_put(w, b, bytes, content);
}

static inline void gw_u32(gw *w, uint32_t v) { gw_le(w, v, 4, false); }
static inline void gw_u64(gw *w, uint64_t v) { gw_le(w, v, 8, false); }

static inline void gw_bytes(gw *w, const void *s, size_t n) /* a string: length and bytes */
{
    gw_u64(w, n);
    gw_put(w, s, n, true);
}

static inline void gw_str(gw *w, const char *s) { gw_bytes(w, s, strlen(s)); }

static inline void gw_header(gw *w, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    gw_put(w, "GGUF", 4, false);
    gw_u32(w, version);
    gw_u64(w, n_tensors);
    gw_u64(w, n_kv);
}

/* Key and value type; the value follows. */
static inline void gw_key(gw *w, const char *key, uint32_t type)
{
    gw_str(w, key);
    gw_u32(w, type);
}

static inline void gw_kv_int(gw *w, const char *key, uint32_t type, size_t bytes, uint64_t v)
{
    gw_key(w, key, type);
    gw_le(w, v, bytes, true);
}

static inline void gw_kv_u32(gw *w, const char *key, uint32_t v) { gw_kv_int(w, key, 4, 4, v); }
static inline void gw_kv_u16(gw *w, const char *key, uint16_t v) { gw_kv_int(w, key, 2, 2, v); }

static inline void gw_kv_f32(gw *w, const char *key, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    gw_kv_int(w, key, 6, 4, bits);
}

static inline void gw_kv_str(gw *w, const char *key, const char *v)
{
    gw_key(w, key, 8);
    gw_str(w, v);
}

/* Key, array type, element type and count; the elements follow. */
static inline void gw_kv_array(gw *w, const char *key, uint32_t elem, uint64_t n)
{
    gw_key(w, key, 9);
    gw_u32(w, elem);
    gw_u64(w, n);
}

/* A tensor of up to four dimensions; pass 0 for those that are not there. */
static inline void gw_info(gw *w, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset)
{
    gw_str(w, name);
    gw_u32(w, ne1 != 0 ? 2 : 1);
    gw_u64(w, ne0);
    if (ne1 != 0) gw_u64(w, ne1);
    gw_u32(w, type);
    gw_u64(w, offset);
}

static inline void gw_fill(gw *w, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++) gw_put(w, &value, 1, true);
}

static inline void gw_pad(gw *w, size_t alignment)
{
    while (w->n % alignment != 0) gw_fill(w, 1, 0);
}

static inline void gw_save(const gw *w, const char *path)
{
    FILE *f = fopen(path, "wb");
    assert(f != NULL);
    size_t n = w->n > 0 ? fwrite(w->data, 1, w->n, f) : 0;
    int rc = fclose(f);
    assert(n == w->n && rc == 0);
}

#endif
