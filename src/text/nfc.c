/* nfc.c: NFC, region by region.
 *
 * A code point without the STOP bit neither changes nor joins what stands before it, so only regions of
 * "one code point, then STOP code points" are worked on and everything between is copied. utf8proc gives
 * decompositions, combining classes and pairs, but only for code points that the official normaliser
 * knows (its Unicode version is older; Unicode's stability rules make the values of those the same in
 * every later version). Ordering is ours because utf8proc's exchanges neighbours and is quadratic on a
 * long run of marks. Scratch belongs to one thread.
 */
#include "text/nfc.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/unicode_tables.h"

/* An item is a code point with its combining class in the top byte. */
#define CP(item) ((item) & 0x1FFFFFu)
#define CLASS(item) ((item) >> 24)

enum { EXPANSION_MAX = 8, SORT_SMALL = 16 };

void qw_nfc_free(qw_nfc *w)
{
    qw_buf_free(&w->text);
    free(w->items);
    free(w->spare);
    *w = (qw_nfc){0};
}

/* Room for n items. */
static qw_status reserve(qw_nfc *w, size_t n, qw_err *err)
{
    if (n <= w->cap) return QW_OK;
    size_t cap = w->cap ? w->cap : 64;
    while (cap < n) cap *= 2;
    QW_TRY(qw_grow(&w->items, w->cap, cap, sizeof *w->items, "normalising text", err));
    QW_TRY(qw_grow(&w->spare, w->cap, cap, sizeof *w->spare, "normalising text", err));
    w->cap = cap;
    return QW_OK;
}

/* Appends the full decomposition of cp to items[*n]. */
static qw_status decompose(qw_nfc *w, uint32_t cp, size_t *n, qw_err *err)
{
    QW_TRY(reserve(w, *n + EXPANSION_MAX, err));
    if (!(qw_unicode(cp) & QW_UNI_NFC_KNOWN)) {
        w->items[(*n)++] = cp;
        return QW_OK;
    }
    utf8proc_int32_t parts[EXPANSION_MAX];
    int bound = 0;
    utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)cp, parts, EXPANSION_MAX,
                                                     UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &bound);
    if (count < 1 || count > EXPANSION_MAX)
        return qw_fail(err, QW_E_INTERNAL, "utf8proc cannot decompose U+%04X", (unsigned)cp);
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        uint32_t part = (uint32_t)parts[i];
        uint32_t class = (uint32_t)utf8proc_get_property(parts[i])->combining_class;
        w->items[(*n)++] = part | class << 24;
    }
    return QW_OK;
}

/* Sorts items[begin, end), all of a class above 0, by class; equal ones keep their order. Linear. */
static void sort_marks(qw_nfc *w, size_t begin, size_t end)
{
    uint32_t *a = w->items;
    if (end - begin <= SORT_SMALL) {
        for (size_t i = begin + 1; i < end; i++) {
            uint32_t item = a[i];
            size_t j = i;
            for (; j > begin && CLASS(a[j - 1]) > CLASS(item); j--) a[j] = a[j - 1];
            a[j] = item;
        }
        return;
    }
    size_t at[257] = {0}; /* at[c]: where the next mark of class c goes */
    for (size_t i = begin; i < end; i++) at[CLASS(a[i]) + 1]++;
    for (size_t c = 1; c < 257; c++) at[c] += at[c - 1];
    for (size_t i = begin; i < end; i++) w->spare[at[CLASS(a[i])]++] = a[i];
    memcpy(a + begin, w->spare, (end - begin) * sizeof *a);
}

static void order(qw_nfc *w, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (CLASS(w->items[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < n && CLASS(w->items[end]) != 0) end++;
        sort_marks(w, i, end);
        i = end;
    }
}

/* True when a and b are one composed code point, which becomes *out. */
static bool pair(uint32_t a, uint32_t b, uint32_t *out)
{
    if (!(qw_unicode(a) & qw_unicode(b) & QW_UNI_NFC_KNOWN)) return false;
    utf8proc_int32_t both[2] = {(utf8proc_int32_t)a, (utf8proc_int32_t)b};
    if (utf8proc_normalize_utf32(both, 2, UTF8PROC_STABLE | UTF8PROC_COMPOSE) != 1) return false;
    *out = (uint32_t)both[0];
    return true;
}

/* Composes items[0, n) in place; returns how many are left. */
static size_t compose(qw_nfc *w, size_t n)
{
    uint32_t *a = w->items;
    size_t kept = 0, starter = SIZE_MAX;
    uint32_t last = 0; /* class of a[kept - 1]; 0 means that it is the starter itself */
    for (size_t i = 0; i < n; i++) {
        uint32_t class = CLASS(a[i]), joined;
        if (starter != SIZE_MAX && (last == 0 || last < class) && pair(CP(a[starter]), CP(a[i]), &joined)) {
            a[starter] = joined;
            continue;
        }
        if (class == 0) starter = kept;
        last = class;
        a[kept++] = a[i];
    }
    return kept;
}

/* Normalises s[begin, end) onto the end of w->text. */
static qw_status do_region(qw_nfc *w, const char *s, size_t begin, size_t end, qw_err *err)
{
    size_t n = 0;
    for (size_t pos = begin, len; pos < end; pos += len)
        QW_TRY(decompose(w, qw_unicode_read(s + pos, &len), &n, err));
    order(w, n);
    n = compose(w, n);
    char chunk[256];
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (used + 4 > sizeof chunk) {
            QW_TRY(qw_buf_add(&w->text, chunk, used, err));
            used = 0;
        }
        used += (size_t)qw_utf8_encode(CP(w->items[i]), chunk + used);
    }
    return qw_buf_add(&w->text, chunk, used, err);
}

/* Next STOP code point at or after pos, or n; *before becomes the start of the code point before it (or
 * of the STOP itself at the beginning of the text). */
static size_t find_stop(const char *s, size_t n, size_t pos, size_t *before)
{
    *before = pos;
    while (pos < n) {
        size_t len;
        uint32_t cp = qw_unicode_read(s + pos, &len);
        if (cp >= 0x300 && (qw_unicode(cp) & QW_UNI_NFC_STOP)) return pos;
        *before = pos;
        pos += len;
    }
    return n;
}

qw_status qw_nfc_run(qw_nfc *w, qw_text s, qw_text *out, qw_err *err)
{
    size_t begin, stop = find_stop(s.s, s.n, 0, &begin);
    *out = s;
    if (stop == s.n) return QW_OK;
    if (s.n > SIZE_MAX / 8) return qw_fail(err, QW_E_LIMIT, "text of %zu bytes is too long", s.n);
    if (!w->text.name) qw_buf_init(&w->text, SIZE_MAX / 2, "normalised text");
    qw_buf_clear(&w->text);
    size_t done = 0;
    while (stop < s.n) {
        QW_TRY(qw_buf_add(&w->text, s.s + done, begin - done, err));
        size_t end = stop;
        while (end < s.n) {
            size_t len;
            if (!(qw_unicode(qw_unicode_read(s.s + end, &len)) & QW_UNI_NFC_STOP)) break;
            end += len;
        }
        QW_TRY(do_region(w, s.s, begin, end, err));
        done = end;
        stop = find_stop(s.s, s.n, end, &begin);
    }
    QW_TRY(qw_buf_add(&w->text, s.s + done, s.n - done, err));
    *out = (qw_text){qw_buf_str(&w->text), w->text.n};
    return QW_OK;
}
