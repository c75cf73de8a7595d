/* vocab.c: building a vocabulary's tables.
 *
 * Tokens are taken out of the GPT-2 byte mapping once. Two open-addressing tables follow: token by text,
 * and (left id, right id) by merge. Vocabularies list merges in the order of the tokens they make, so the
 * result of a merge is first looked for right after that of the one before; the two halves are looked up
 * in batches whose slots were prefetched, because each is a cache miss. Owner: the thread that opens.
 */
#include "text/vocab.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "base/utf8.h"

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_MERGES "tokenizer.ggml.merges"

enum { ALPHABET_END = 0x144, BATCH = 32, SHOWN_MAX = 60 };
#define ID_MASK ((uint64_t)QW_VOCAB_MAX)
#define SLOT_EMPTY UINT64_MAX

/* Bytes of a text to print in a message, at most SHOWN_MAX. */
static int shown(size_t n)
{
    return n < SHOWN_MAX ? (int)n : SHOWN_MAX;
}

/* ---- the GPT-2 byte mapping ------------------------------------------------------------------- */

/* byte[cp]: what the code point stands for, or -1. Printable Latin-1 stands for itself; the 68 other
 * bytes, in order, are U+0100 and up. */
static void alphabet_fill(int16_t byte[ALPHABET_END])
{
    int next = 0x100;
    for (int cp = 0; cp < ALPHABET_END; cp++) byte[cp] = -1;
    for (int b = 0; b < 256; b++) {
        bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
        byte[itself ? b : next++] = (int16_t)b;
    }
}

/* Takes s out of the mapping into out (room for n bytes); SIZE_MAX when some character is not in it. */
static size_t unmap(const int16_t byte[ALPHABET_END], const char *s, size_t n, char *out)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t used = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = u[i++];
        if (cp > 0x20 && cp < 0x7F) { /* itself */
            out[used++] = (char)cp;
            continue;
        }
        if (cp >= 0x80) {
            if (cp < 0xC2 || cp > 0xC5 || i == n || (u[i] & 0xC0) != 0x80) return SIZE_MAX;
            cp = (cp & 0x1F) << 6 | (u[i++] & 0x3Fu);
        }
        if (cp >= ALPHABET_END || byte[cp] < 0) return SIZE_MAX;
        out[used++] = (char)byte[cp];
    }
    return used;
}

/* ---- token by text ---------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_text(const qw_vocab *v, const char *s, size_t n)
{
    uint64_t h = v->secret[0] ^ n;
    for (; n > 8; s += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = mix(h ^ word, v->secret[1]);
    }
    uint64_t tail = 0;
    if (n >= 4) { /* two loads that may overlap: quicker than a copy of n bytes */
        uint32_t a, b;
        memcpy(&a, s, 4);
        memcpy(&b, s + n - 4, 4);
        tail = (uint64_t)a << 32 | b;
    } else if (n > 0) {
        const unsigned char *u = (const unsigned char *)s;
        tail = (uint64_t)u[0] << 16 | (uint64_t)u[n / 2] << 8 | u[n - 1];
    }
    return mix(h ^ tail, v->secret[1]);
}

static int32_t find_hashed(const qw_vocab *v, uint64_t hash, const char *s, size_t n)
{
    uint64_t mask = ((uint64_t)1 << v->slot_bits) - 1;
    for (uint64_t i = hash >> (64 - v->slot_bits);; i = (i + 1) & mask) {
        uint64_t slot = v->slots[i];
        if (slot == SLOT_EMPTY) return -1;
        if ((slot ^ hash << QW_VOCAB_BITS) >> QW_VOCAB_BITS) continue;
        uint32_t id = (uint32_t)(slot & ID_MASK);
        qw_text text = qw_vocab_text(v, id);
        if (text.n == n && memcmp(text.s, s, n) == 0) return (int32_t)id;
    }
}

int32_t qw_vocab_find(const qw_vocab *v, const char *s, size_t n)
{
    return find_hashed(v, hash_text(v, s, n), s, n);
}

/* Bits of a table whose load stays below 2/3. */
static unsigned table_bits(size_t n)
{
    unsigned bits = 9;
    while (((size_t)1 << bits) * 2 < n * 3) bits++;
    return bits;
}

static qw_status table_create(uint64_t **out, unsigned bits, const char *what, qw_err *err)
{
    QW_TRY(qw_alloc(out, (size_t)1 << bits, sizeof **out, what, err));
    memset(*out, 0xFF, sizeof **out << bits);
    return QW_OK;
}

/* True for the padding rows that converters add, "[PAD151665]". */
static bool is_padding(qw_text s)
{
    if (s.n < 6 || memcmp(s.s, "[PAD", 4) != 0 || s.s[s.n - 1] != ']') return false;
    for (size_t i = 4; i < s.n - 1; i++)
        if (s.s[i] < '0' || s.s[i] > '9') return false;
    return true;
}

static qw_row row_of(uint8_t type, qw_text text)
{
    switch (type) {
    case 3: return QW_ROW_CONTROL;
    case 4: return is_padding(text) ? QW_ROW_UNUSED : QW_ROW_USER;
    case 5: return QW_ROW_UNUSED;
    default: return QW_ROW_NORMAL;
    }
}

/* Checks the text of token i and appends its bytes to the arena at *used. */
static qw_status add_token(qw_vocab *v, const int16_t byte[ALPHABET_END], size_t i, qw_text text,
                           uint8_t type, size_t *used, qw_err *err)
{
    if (type > 6)
        return qw_fail(err, QW_E_FORMAT, "tokenizer.ggml.token_type[%zu] is %u; types go from 0 to 6", i,
                       (unsigned)type);
    qw_row row = row_of(type, text);
    v->row[i] = (uint8_t)row;
    if (text.n == 0 && row != QW_ROW_UNUSED)
        return qw_fail(err, QW_E_FORMAT, KEY_TOKENS "[%zu] is empty", i);
    size_t limit = row == QW_ROW_CONTROL || row == QW_ROW_USER ? QW_ADDED_BYTES_MAX : QW_TOKEN_BYTES_MAX;
    if (text.n > limit)
        return qw_fail(err, QW_E_FORMAT, KEY_TOKENS "[%zu] has %zu bytes; the limit is %zu", i, text.n, limit);
    size_t n = row == QW_ROW_NORMAL ? unmap(byte, text.s, text.n, v->bytes + *used) : SIZE_MAX;
    if (n == SIZE_MAX) { /* an added token, or text outside the mapping, stands for itself */
        if (!qw_utf8_valid(text.s, text.n))
            return qw_fail(err, QW_E_FORMAT, KEY_TOKENS "[%zu] is not UTF-8", i);
        memcpy(v->bytes + *used, text.s, text.n);
        n = text.n;
    }
    *used += n;
    if (row == QW_ROW_NORMAL && n > v->token_bytes_max) v->token_bytes_max = n;
    return QW_OK;
}

static qw_status add_tokens(qw_vocab *v, const int16_t byte[ALPHABET_END], const qw_text *tokens,
                            const uint8_t *types, qw_err *err)
{
    size_t total = 0, used = 0;
    for (size_t i = 0; i < v->n; i++)
        if (qw_add_overflows(total, tokens[i].n, &total) || total > UINT32_MAX)
            return qw_fail(err, QW_E_FORMAT, KEY_TOKENS " holds more than 4 GiB of text");
    QW_TRY(qw_alloc(&v->bytes, total, 1, "the vocabulary", err));
    for (size_t i = 0; i < v->n; i++) {
        v->begin[i] = (uint32_t)used;
        QW_TRY(add_token(v, byte, i, tokens[i], types ? types[i] : 1, &used, err));
    }
    v->begin[v->n] = (uint32_t)used;
    return QW_OK;
}

/* Fills the table of texts; of two equal tokens the first stays. */
static void index_tokens(qw_vocab *v)
{
    uint64_t mask = ((uint64_t)1 << v->slot_bits) - 1, hashes[BATCH];
    for (size_t from = 0; from < v->n; from += BATCH) {
        size_t to = from + BATCH < v->n ? from + BATCH : v->n;
        for (size_t i = from; i < to; i++) {
            qw_text text = qw_vocab_text(v, (uint32_t)i);
            hashes[i - from] = hash_text(v, text.s, text.n);
            __builtin_prefetch(&v->slots[hashes[i - from] >> (64 - v->slot_bits)], 1);
        }
        for (size_t i = from; i < to; i++) {
            uint64_t hash = hashes[i - from];
            qw_text text = qw_vocab_text(v, (uint32_t)i);
            if (v->row[i] != QW_ROW_NORMAL || find_hashed(v, hash, text.s, text.n) >= 0) continue;
            uint64_t at = hash >> (64 - v->slot_bits);
            while (v->slots[at] != SLOT_EMPTY) at = (at + 1) & mask;
            v->slots[at] = hash << QW_VOCAB_BITS | i;
        }
    }
}

/* ---- merges ----------------------------------------------------------------------------------- */

/* One merge on its way into the table. */
struct merge {
    char *text;            /* both halves, unmapped */
    size_t left_n, right_n;
    uint64_t left_hash, right_hash;
    uint64_t key;          /* of the pair */
};

/* Splits merge i at its space and unmaps both halves into m->text. */
static qw_status read_merge(const qw_vocab *v, const int16_t byte[ALPHABET_END], size_t i, qw_text text,
                            struct merge *m, qw_err *err)
{
    const char *space = text.n ? memchr(text.s, ' ', text.n) : NULL;
    size_t left = space ? (size_t)(space - text.s) : 0;
    if (!space || left == 0 || left + 1 == text.n)
        return qw_fail(err, QW_E_FORMAT, KEY_MERGES "[%zu] \"%.*s\" is not two tokens and a space", i,
                       shown(text.n), text.s);
    if (text.n > 2 * QW_TOKEN_BYTES_MAX)
        return qw_fail(err, QW_E_FORMAT, KEY_MERGES "[%zu] has %zu bytes, more than two tokens can", i, text.n);
    m->left_n = unmap(byte, text.s, left, m->text);
    if (m->left_n != SIZE_MAX) m->right_n = unmap(byte, space + 1, text.n - left - 1, m->text + m->left_n);
    if (m->left_n == SIZE_MAX || m->right_n == SIZE_MAX)
        return qw_fail(err, QW_E_FORMAT, KEY_MERGES "[%zu] \"%.*s\" is outside the byte alphabet", i,
                       shown(text.n), text.s);
    m->left_hash = hash_text(v, m->text, m->left_n);
    m->right_hash = hash_text(v, m->text + m->left_n, m->right_n);
    __builtin_prefetch(&v->slots[m->left_hash >> (64 - v->slot_bits)]);
    __builtin_prefetch(&v->slots[m->right_hash >> (64 - v->slot_bits)]);
    return QW_OK;
}

/* Id of the merged text, looked for at `guess` first, or -1. */
static int32_t find_merged(const qw_vocab *v, const struct merge *m, size_t guess)
{
    size_t n = m->left_n + m->right_n;
    if (guess < v->n && v->row[guess] == QW_ROW_NORMAL) {
        qw_text text = qw_vocab_text(v, (uint32_t)guess);
        if (text.n == n && memcmp(text.s, m->text, n) == 0) return (int32_t)guess;
    }
    return qw_vocab_find(v, m->text, n);
}

/* Finds the three tokens of merge i. *guess: see find_merged. */
static qw_status resolve_merge(qw_vocab *v, size_t i, qw_text text, struct merge *m, size_t *guess, qw_err *err)
{
    int32_t left = find_hashed(v, m->left_hash, m->text, m->left_n);
    int32_t right = find_hashed(v, m->right_hash, m->text + m->left_n, m->right_n);
    int32_t whole = find_merged(v, m, *guess);
    if (left < 0 || right < 0 || whole < 0)
        return qw_fail(err, QW_E_FORMAT, KEY_MERGES "[%zu] \"%.*s\": %s is not a token", i, shown(text.n),
                       text.s, left < 0 ? "its left part" : right < 0 ? "its right part" : "what it gives");
    *guess = (size_t)whole + 1;
    v->merged[i] = (uint32_t)whole;
    m->key = (uint64_t)left << QW_VOCAB_BITS | (uint64_t)right;
    __builtin_prefetch(&v->pairs[m->key * v->secret[0] >> (64 - v->pair_bits)], 1);
    return QW_OK;
}

/* Enters merge i under its pair. */
static qw_status enter_merge(qw_vocab *v, size_t i, qw_text text, uint64_t key, qw_err *err)
{
    uint64_t mask = ((uint64_t)1 << v->pair_bits) - 1, at = key * v->secret[0] >> (64 - v->pair_bits);
    for (; v->pairs[at] != SLOT_EMPTY; at = (at + 1) & mask)
        if (v->pairs[at] >> 20 == key)
            return qw_fail(err, QW_E_FORMAT, KEY_MERGES "[%zu] \"%.*s\" is the same pair as merge %zu", i,
                           shown(text.n), text.s, (size_t)(v->pairs[at] & (QW_MERGES_MAX - 1)));
    v->pairs[at] = key << 20 | i;
    return QW_OK;
}

static qw_status add_merges(qw_vocab *v, const int16_t byte[ALPHABET_END], const qw_text *merges, qw_err *err)
{
    struct merge batch[BATCH];
    char *scratch = NULL;
    size_t longest = 0, guess = v->n;
    for (size_t i = 0; i < v->n_merges; i++)
        if (merges[i].n > longest) longest = merges[i].n;
    if (longest > 2 * QW_TOKEN_BYTES_MAX) longest = 2 * QW_TOKEN_BYTES_MAX;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&scratch, BATCH, longest, "the merges", err));
    for (size_t from = 0; from < v->n_merges; from += BATCH) {
        size_t to = from + BATCH < v->n_merges ? from + BATCH : v->n_merges;
        for (size_t i = from; i < to; i++) {
            batch[i - from].text = scratch + (i - from) * longest;
            QW_TRY_GOTO(read_merge(v, byte, i, merges[i], &batch[i - from], err));
        }
        for (size_t i = from; i < to; i++)
            QW_TRY_GOTO(resolve_merge(v, i, merges[i], &batch[i - from], &guess, err));
        for (size_t i = from; i < to; i++)
            QW_TRY_GOTO(enter_merge(v, i, merges[i], batch[i - from].key, err));
    }
fail:
    free(scratch);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static qw_status fill_secret(qw_vocab *v, qw_err *err)
{
    if (getrandom(v->secret, sizeof v->secret, 0) != (ssize_t)sizeof v->secret)
        return qw_fail_errno(err, "the system gives no random numbers");
    v->secret[0] |= 1; /* both are multipliers */
    v->secret[1] |= 1;
    return QW_OK;
}

static qw_status fill_bytes(qw_vocab *v, qw_err *err)
{
    for (unsigned b = 0; b < 256; b++) {
        char c = (char)b;
        int32_t id = qw_vocab_find(v, &c, 1);
        if (id < 0) return qw_fail(err, QW_E_FORMAT, KEY_TOKENS ": no token stands for the byte 0x%02X", b);
        v->byte_id[b] = (uint32_t)id;
    }
    return QW_OK;
}

static qw_status create_tables(qw_vocab *v, qw_err *err)
{
    v->slot_bits = table_bits(v->n);
    v->pair_bits = table_bits(v->n_merges);
    QW_TRY(fill_secret(v, err));
    QW_TRY(qw_alloc(&v->begin, v->n + 1, sizeof *v->begin, "the vocabulary", err));
    QW_TRY(qw_alloc(&v->row, v->n, 1, "the vocabulary", err));
    QW_TRY(qw_alloc(&v->whole, v->n, 1, "the vocabulary", err));
    QW_TRY(qw_alloc(&v->merged, v->n_merges, sizeof *v->merged, "the merges", err));
    QW_TRY(table_create(&v->slots, v->slot_bits, "the vocabulary", err));
    return table_create(&v->pairs, v->pair_bits, "the merges", err);
}

qw_status qw_vocab_build(qw_vocab *v, const qw_text *tokens, const uint8_t *types, size_t n,
                         const qw_text *merges, size_t n_merges, qw_err *err)
{
    int16_t byte[ALPHABET_END];
    *v = (qw_vocab){.n = n, .n_merges = n_merges};
    if (n == 0) return qw_fail(err, QW_E_FORMAT, KEY_TOKENS " is empty");
    if (n >= QW_VOCAB_MAX)
        return qw_fail(err, QW_E_FORMAT, KEY_TOKENS " has %zu tokens; the limit is %d", n, QW_VOCAB_MAX - 1);
    if (n_merges > QW_MERGES_MAX)
        return qw_fail(err, QW_E_FORMAT, KEY_MERGES " has %zu merges; the limit is %d", n_merges,
                       QW_MERGES_MAX);
    alphabet_fill(byte);
    qw_status status;
    QW_TRY_GOTO(create_tables(v, err));
    QW_TRY_GOTO(add_tokens(v, byte, tokens, types, err));
    index_tokens(v);
    QW_TRY_GOTO(fill_bytes(v, err));
    QW_TRY_GOTO(add_merges(v, byte, merges, err));
    return QW_OK;
fail:
    qw_vocab_free(v);
    return status;
}

void qw_vocab_free(qw_vocab *v)
{
    free(v->bytes);
    free(v->begin);
    free(v->row);
    free(v->slots);
    free(v->pairs);
    free(v->merged);
    free(v->whole);
    *v = (qw_vocab){0};
}
