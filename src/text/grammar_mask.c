/* grammar_mask.c: which tokens may come next.
 *
 * The vocabulary is a tree of bytes, laid out depth first: one walk tries every token, and what a prefix rules out is
 * skipped with all that begins with it. Two things make a step cheap. Most tokens are ordinary characters, and most of
 * the time is spent where those are all allowed (inside strings, in free text): they are kept apart, by their number
 * of characters, and only the few thousand others are walked. And a mask that was computed is kept under the
 * matcher's place, its counters cut off where no token can reach their ends; then a step is a look-up.
 *
 * Trie: immutable, any thread. Masker: one thread.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/grammar_private.h"

enum {
    KEY_BYTES_MAX = 1024, /* places that need more to be told apart are not kept */
    WAYS = 4,
    WALK_NODES = MATCH_NODES_MAX + 64 * 1024,
    WALK_HEADS = QW_MASKED_TOKEN_BYTES_MAX * QW_GRAMMAR_HEADS_MAX + MATCH_WORK_MAX,
    FAR = QW_MASKED_TOKEN_BYTES_MAX, /* no token takes more of anything */
    N_ROWS = 256,
    STEPS_MAX = 2 << 20, /* of a mask; from there on only tokens of one byte are tried */
    CROWD = QW_GRAMMAR_HEADS_MAX / 2
};
#define ROW_NONE 0u
#define ROW_HARD UINT32_MAX

/* A byte of the tree. */
typedef struct trie_node {
    uint32_t skip;   /* the node behind all that begin with this one */
    uint32_t before; /* tokens of the nodes before this one */
    int32_t token;   /* that ends here, -1: none */
    uint8_t byte;
    uint8_t depth;   /* 0: the first byte of a token */
    bool plain;      /* all tokens from here to skip are */
} trie_node;

typedef struct trie_part {
    trie_node *nodes; /* owns: [n + 1] */
    int32_t *order;   /* owns: the tokens in the order of their nodes */
    uint32_t n;
} trie_part;

struct qw_token_trie {
    const qw_tokenizer *tokenizer; /* borrows */
    size_t n_vocab, n_words;
    trie_part all;       /* every token of bytes */
    trie_part others;    /* those that are not plain */
    trie_part longs;     /* plain ones of more than GRAMMAR_ROOM_MIN characters */
    uint32_t *plain;     /* owns: [n_lengths][n_words], plain tokens of at most so many characters */
    uint16_t *lengths;   /* owns: [n_lengths], rising */
    uint32_t n_lengths;
    int32_t *ends;       /* owns: end tokens */
    uint32_t n_ends;
};

/* ---- the tree --------------------------------------------------------------------------------- */

typedef struct token_text {
    const uint8_t *s;
    uint32_t n;
    int32_t id;
} token_text;

static int compare_texts(const void *x, const void *y)
{
    const token_text *a = x, *b = y;
    int order = memcmp(a->s, b->s, a->n < b->n ? a->n : b->n);
    if (order) return order;
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static void end_nodes(trie_part *part, const uint32_t *open, uint32_t from, uint32_t to)
{
    for (uint32_t d = from; d < to; d++) part->nodes[open[d]].skip = part->n;
}

/* Lays out texts[0, n), which are sorted. A token with the same bytes as the one before gets a last byte of its own. */
static void lay_tree(trie_part *part, const token_text *texts, size_t n)
{
    uint32_t open[QW_MASKED_TOKEN_BYTES_MAX], depth = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t same = 0;
        while (i > 0 && same < depth && same < texts[i].n && texts[i].s[same] == texts[i - 1].s[same]) same++;
        if (same == texts[i].n) same--;
        end_nodes(part, open, same, depth);
        for (depth = same; depth < texts[i].n; depth++) {
            open[depth] = part->n;
            part->nodes[part->n++] = (trie_node){.token = -1, .byte = texts[i].s[depth], .depth = (uint8_t)depth};
        }
        part->nodes[part->n - 1].token = texts[i].id;
    }
    end_nodes(part, open, 0, depth);
}

/* Number of characters of a token of ordinary ones (grammar_prune.c has the same list); 0: it holds others. */
static uint32_t plain_length(const token_text *t)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n; n++) {
        uint32_t cp;
        int len = qw_utf8_decode((const char *)t->s + i, t->n - i, &cp);
        if (len == 0 || cp < ' ' || cp == '"' || cp == '\\' || cp == '<' || cp == 0x2028 || cp == 0x2029) return 0;
        i += (uint32_t)len;
    }
    return n;
}

/* Marks the nodes below which all tokens are plain, and puts the tokens in order. */
static void mark_plain(trie_part *part, const token_text *texts, size_t n)
{
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < part->n; i++) {
        part->nodes[i].before = tokens;
        if (part->nodes[i].token >= 0) part->order[tokens++] = part->nodes[i].token;
    }
    part->nodes[part->n].before = tokens;
    for (uint32_t i = part->n; i-- > 0;) { /* texts are in the same order as the nodes that end them */
        trie_node *t = &part->nodes[i];
        t->plain = t->token < 0 || plain_length(&texts[t->before]) > 0;
        for (uint32_t child = i + 1; t->plain && child < t->skip; child = part->nodes[child].skip)
            t->plain = part->nodes[child].plain;
    }
    QW_ASSERT(tokens == n);
}

static qw_status make_tree(trie_part *part, const token_text *texts, size_t n, qw_err *err)
{
    size_t bytes = 1;
    for (size_t i = 0; i < n; i++) bytes += texts[i].n;
    QW_TRY(qw_alloc(&part->nodes, bytes, sizeof *part->nodes, "the tree of tokens", err));
    QW_TRY(qw_alloc(&part->order, n, sizeof *part->order, "the tree of tokens", err));
    lay_tree(part, texts, n);
    mark_plain(part, texts, n);
    return QW_OK;
}

/* Masks of plain tokens by length; counts[k]: tokens of k characters. */
static qw_status make_plain(qw_token_trie *trie, const token_text *texts, size_t n, const uint32_t *counts, qw_err *err)
{
    uint32_t row_of[QW_MASKED_TOKEN_BYTES_MAX + 1] = {0};
    for (uint32_t k = 1; k <= QW_MASKED_TOKEN_BYTES_MAX; k++) trie->n_lengths += counts[k] > 0;
    QW_TRY(qw_alloc(&trie->lengths, trie->n_lengths, sizeof *trie->lengths, "the tree of tokens", err));
    QW_TRY(qw_alloc(&trie->plain, trie->n_lengths * trie->n_words, sizeof *trie->plain, "the tree of tokens", err));
    for (uint32_t k = 1, row = 0; k <= QW_MASKED_TOKEN_BYTES_MAX; k++)
        if (counts[k] > 0) {
            trie->lengths[row] = (uint16_t)k;
            row_of[k] = row++;
        }
    for (size_t i = 0; i < n; i++) {
        uint32_t length = plain_length(&texts[i]), id = (uint32_t)texts[i].id;
        if (length > 0) trie->plain[row_of[length] * trie->n_words + id / 32] |= UINT32_C(1) << id % 32;
    }
    for (size_t i = trie->n_words; i < trie->n_lengths * trie->n_words; i++)
        trie->plain[i] |= trie->plain[i - trie->n_words];
    return QW_OK;
}

static qw_status find_ends(qw_token_trie *trie, qw_err *err)
{
    for (size_t i = 0; i < trie->n_vocab; i++) trie->n_ends += qw_tokenizer_is_end(trie->tokenizer, (int32_t)i);
    QW_TRY(qw_alloc(&trie->ends, trie->n_ends, sizeof *trie->ends, "the end tokens", err));
    for (size_t i = 0, n = 0; i < trie->n_vocab; i++)
        if (qw_tokenizer_is_end(trie->tokenizer, (int32_t)i)) trie->ends[n++] = (int32_t)i;
    return QW_OK;
}

static bool is_in_tree(const qw_tokenizer *t, int32_t id, token_text *out)
{
    qw_text bytes = qw_tokenizer_bytes(t, id);
    if (qw_tokenizer_is_added(t, id) || qw_tokenizer_is_unused(t, id) || qw_tokenizer_is_end(t, id)) return false;
    *out = (token_text){(const uint8_t *)bytes.s, (uint32_t)bytes.n, id};
    return bytes.n > 0 && bytes.n <= QW_MASKED_TOKEN_BYTES_MAX;
}

static size_t collect(const qw_tokenizer *t, size_t n_vocab, token_text *texts)
{
    size_t n = 0;
    for (size_t i = 0; i < n_vocab; i++) n += is_in_tree(t, (int32_t)i, &texts[n]);
    return n;
}

/* Of n tokens of so many bytes together. */
static size_t tree_bytes(size_t n, size_t bytes)
{
    return (bytes + 1) * sizeof(trie_node) + n * sizeof(int32_t);
}

size_t qw_token_trie_bytes(const qw_tokenizer *t)
{
    bool lengths[QW_MASKED_TOKEN_BYTES_MAX + 1] = {false};
    size_t n_vocab = qw_tokenizer_n_vocab(t), n[3] = {0}, bytes[3] = {0}, total = sizeof(qw_token_trie);
    for (size_t i = 0; i < n_vocab; i++) {
        token_text one;
        if (!is_in_tree(t, (int32_t)i, &one)) {
            total += qw_tokenizer_is_end(t, (int32_t)i) ? sizeof(int32_t) : 0;
            continue;
        }
        uint32_t length = plain_length(&one);
        bool is_part[3] = {true, length == 0, length > GRAMMAR_ROOM_MIN};
        if (length > 0 && !lengths[length]) total += sizeof(uint16_t) + (n_vocab + 31) / 32 * sizeof(uint32_t);
        lengths[length] = true;
        for (int k = 0; k < 3; k++) {
            n[k] += is_part[k];
            bytes[k] += is_part[k] ? one.n : 0;
        }
    }
    for (int k = 0; k < 3; k++) total += tree_bytes(n[k], bytes[k]);
    return total;
}

qw_status qw_token_trie_create(const qw_tokenizer *t, qw_token_trie **out, qw_err *err)
{
    uint32_t counts[QW_MASKED_TOKEN_BYTES_MAX + 1] = {0};
    qw_token_trie *trie = NULL;
    token_text *texts = NULL, *chosen = NULL;
    size_t n_vocab = qw_tokenizer_n_vocab(t), n, n_others = 0, n_longs = 0;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&trie, 1, sizeof *trie, "the tree of tokens", err));
    trie->tokenizer = t;
    trie->n_vocab = n_vocab;
    trie->n_words = (n_vocab + 31) / 32;
    QW_TRY_GOTO(qw_alloc(&texts, n_vocab, sizeof *texts, "the tree of tokens", err));
    n = collect(t, n_vocab, texts);
    qsort(texts, n, sizeof *texts, compare_texts);
    for (size_t i = 0; i < n; i++) counts[plain_length(&texts[i])]++;
    QW_TRY_GOTO(make_tree(&trie->all, texts, n, err));
    QW_TRY_GOTO(make_plain(trie, texts, n, counts, err));
    QW_TRY_GOTO(qw_alloc(&chosen, n, sizeof *chosen, "the tree of tokens", err));
    for (size_t i = 0; i < n; i++)
        if (plain_length(&texts[i]) == 0) chosen[n_others++] = texts[i];
    QW_TRY_GOTO(make_tree(&trie->others, chosen, n_others, err));
    for (size_t i = 0; i < n; i++)
        if (plain_length(&texts[i]) > GRAMMAR_ROOM_MIN) chosen[n_longs++] = texts[i];
    QW_TRY_GOTO(make_tree(&trie->longs, chosen, n_longs, err));
    QW_TRY_GOTO(find_ends(trie, err));
    free(texts);
    free(chosen);
    *out = trie;
    return QW_OK;
fail:
    free(texts);
    free(chosen);
    qw_token_trie_destroy(trie);
    return status;
}

void qw_token_trie_destroy(qw_token_trie *trie)
{
    if (!trie) return;
    trie_part *parts[] = {&trie->all, &trie->others, &trie->longs};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        free(parts[i]->nodes);
        free(parts[i]->order);
    }
    free(trie->plain);
    free(trie->lengths);
    free(trie->ends);
    free(trie);
}

size_t qw_token_trie_n_vocab(const qw_token_trie *trie)
{
    return trie->n_vocab;
}

/* ---- the masker ------------------------------------------------------------------------------- */

/* A mask that was computed, and the place it belongs to. */
typedef struct kept_mask {
    uint64_t hash, used;   /* used: 0 when free, else when it was last asked for */
    uint32_t n_key;
    uint8_t key[KEY_BYTES_MAX];
} kept_mask;

/* Where a state's own edges lead: states, ROW_NONE, or ROW_HARD when it takes more than a state to
 * say. A look-up in place of match_byte. */
typedef struct walk_row {
    uint64_t serial;       /* of the grammar; 0: free */
    uint32_t state;
    uint32_t need;         /* the most frames that a state of the row needs */
    uint32_t to[256];
} walk_row;

struct qw_masker {
    const qw_token_trie *trie; /* borrows */
    match_node *nodes;         /* owns: [WALK_NODES] */
    match_head *heads;         /* owns: [WALK_HEADS], those of each byte of a token behind the other */
    kept_mask *kept;           /* owns: [n_kept] */
    uint32_t *bits;            /* owns: [n_kept][n_words] */
    size_t n_kept;             /* a multiple of WAYS, or 0 */
    uint64_t clock;
    walk_row *rows;            /* owns: [N_ROWS] */
    bool crowded;              /* so many readings that the matcher may leave some out */
    uint32_t *below;           /* owns: [MATCH_NODES_MAX], bytes from the frames of a matcher to the end */
    uint32_t *near;            /* owns: [n_words], what is left of a mask on the way to the end */
    bool exact;                /* the walk does as the matcher does, byte by byte */
    uint8_t key[KEY_BYTES_MAX];
    uint32_t n_key;
};

size_t qw_masker_bytes(size_t n_vocab, size_t n_kept)
{
    size_t n = (n_kept + WAYS - 1) / WAYS * WAYS, n_words = (n_vocab + 31) / 32;
    return sizeof(qw_masker) + WALK_NODES * sizeof(match_node) + WALK_HEADS * sizeof(match_head) + N_ROWS * sizeof(walk_row) +
           (MATCH_NODES_MAX + n_words) * sizeof(uint32_t) + n * (sizeof(kept_mask) + n_words * sizeof(uint32_t));
}

qw_status qw_masker_create(const qw_token_trie *trie, size_t n_kept, qw_masker **out, qw_err *err)
{
    qw_masker *w = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&w, 1, sizeof *w, "a masker", err));
    w->trie = trie;
    w->n_kept = (n_kept + WAYS - 1) / WAYS * WAYS;
    QW_TRY_GOTO(qw_alloc(&w->nodes, WALK_NODES, sizeof *w->nodes, "a masker", err));
    QW_TRY_GOTO(qw_alloc(&w->heads, WALK_HEADS, sizeof *w->heads, "a masker", err));
    QW_TRY_GOTO(qw_alloc(&w->rows, N_ROWS, sizeof *w->rows, "a masker", err));
    QW_TRY_GOTO(qw_alloc(&w->near, trie->n_words, sizeof *w->near, "a masker", err));
    QW_TRY_GOTO(qw_alloc(&w->below, MATCH_NODES_MAX, sizeof *w->below, "a masker", err));
    QW_TRY_GOTO(qw_alloc(&w->kept, w->n_kept, sizeof *w->kept, "kept masks", err));
    QW_TRY_GOTO(qw_alloc(&w->bits, w->n_kept * trie->n_words, sizeof *w->bits, "kept masks", err));
    *out = w;
    return QW_OK;
fail:
    qw_masker_destroy(w);
    return status;
}

void qw_masker_destroy(qw_masker *w)
{
    if (!w) return;
    free(w->nodes);
    free(w->heads);
    free(w->rows);
    free(w->below);
    free(w->near);
    free(w->kept);
    free(w->bits);
    free(w);
}

size_t qw_masker_n_words(const qw_masker *w)
{
    return w->trie->n_words;
}

/* ---- a place as a key ------------------------------------------------------------------------- */

static void key_add(qw_masker *w, uint64_t value, uint32_t bytes)
{
    if (w->n_key + bytes <= KEY_BYTES_MAX) memcpy(w->key + w->n_key, &value, bytes);
    w->n_key += bytes;
}

static uint32_t near(uint32_t value)
{
    return value < FAR ? value : FAR;
}

/* A state and its counters, as far as a token can notice them. */
static void key_add_state(qw_masker *w, const qw_grammar *g, uint32_t state, uint32_t a, uint32_t b)
{
    const grammar_state *s = &g->states[state];
    key_add(w, state, 4);
    if (s->object) {
        const grammar_object *o = &g->objects[s->object - 1];
        bool counts = o->min > 0 || o->max < GRAMMAR_UNLIMITED;
        key_add(w, a, 2);
        key_add(w, counts ? b : 0, 2);
    } else if (s->hi || s->lo) {
        key_add(w, a < s->lo ? near(s->lo - a) : 0, 2);
        key_add(w, s->hi == GRAMMAR_UNLIMITED || a >= s->hi ? FAR + (a >= s->hi) : near((uint32_t)s->hi - a), 2);
    }
}

static void make_key(qw_masker *w, const match_run *r, const match_head *heads, uint32_t n)
{
    w->n_key = 0;
    key_add(w, r->g->serial, 8);
    key_add(w, (uint64_t)r->key_is_new << 1 | r->keys_full, 1);
    for (uint32_t i = 0; i < n; i++) {
        key_add_state(w, r->g, heads[i].state, heads[i].a, heads[i].b);
        for (uint32_t at = heads[i].node; at && w->n_key <= KEY_BYTES_MAX; at = r->nodes[at].parent)
            key_add_state(w, r->g, r->nodes[at].ret, r->nodes[at].a, r->nodes[at].b);
        key_add(w, near((uint32_t)(QW_GRAMMAR_DEPTH_MAX - r->nodes[heads[i].node].depth)), 2);
        key_add(w, UINT32_MAX, 4);
    }
}

/* The kept mask of this place, or where to keep it (*found false). NULL: it is not kept. */
static kept_mask *look_up(qw_masker *w, bool *found)
{
    uint64_t hash = 1;
    *found = false;
    if (w->n_kept == 0 || w->n_key > KEY_BYTES_MAX) return NULL;
    for (uint32_t i = 0; i < w->n_key; i++) {
        hash = (hash ^ w->key[i]) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 29;
    }
    kept_mask *set = w->kept + (hash >> 32) % (w->n_kept / WAYS) * WAYS, *oldest = set;
    for (kept_mask *k = set; k < set + WAYS; k++) {
        if (k->used && k->hash == hash && k->n_key == w->n_key && memcmp(k->key, w->key, w->n_key) == 0) {
            *found = true;
            k->used = ++w->clock;
            return k;
        }
        if (k->used < oldest->used) oldest = k;
    }
    oldest->hash = hash;
    oldest->n_key = w->n_key;
    oldest->used = ++w->clock;
    memcpy(oldest->key, w->key, w->n_key);
    return oldest;
}

/* ---- the walk --------------------------------------------------------------------------------- */

static void fill_row(walk_row *row, const qw_grammar *g, uint32_t state)
{
    const grammar_state *s = &g->states[state];
    memset(row->to, 0, sizeof row->to);
    row->serial = g->serial;
    row->state = state;
    row->need = 0;
    for (uint32_t k = 0; k < s->n_edges; k++) {
        const grammar_edge *e = &g->edges[s->edges + k];
        const grammar_state *to = &g->states[e->to];
        bool hard = e->guard != GUARD_NONE || (to->flags & (STATE_COUNT | STATE_OPENED));
        if (to->need > row->need) row->need = to->need;
        for (unsigned c = e->lo; c <= e->hi; c++) row->to[c] = hard ? ROW_HARD : e->to;
    }
}

static bool calls_admit(const qw_grammar *g, const grammar_state *s, uint8_t byte)
{
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &g->calls[s->calls + k];
        if (!c->token && match_admits(g, c->what, byte)) return true;
    }
    return false;
}

/* Where a byte leads from the one head that there is. ROW_HARD: ask match_byte. */
static inline uint32_t look_ahead(qw_masker *w, const match_run *r, const match_head *h, uint8_t byte)
{
    const qw_grammar *g = r->g;
    const grammar_state *s = &g->states[h->state];
    walk_row *row = &w->rows[h->state % N_ROWS];
    if ((s->flags & STATE_CALLS) && calls_admit(g, s, byte)) return ROW_HARD;
    if ((s->flags & STATE_ACCEPT) && h->node && match_admits(g, r->nodes[h->node].ret, byte)) return ROW_HARD;
    if (row->state != h->state || row->serial != g->serial) fill_row(row, g, h->state);
    if (r->nodes[h->node].depth + row->need > QW_GRAMMAR_DEPTH_MAX) return ROW_HARD;
    return row->to[byte];
}

/* The heads behind each byte on the way to a token lie behind those of the byte before, unless they are the same. */
typedef struct walk_levels {
    uint32_t begin[QW_MASKED_TOKEN_BYTES_MAX + 2], end[QW_MASKED_TOKEN_BYTES_MAX + 2];
    uint32_t nodes[QW_MASKED_TOKEN_BYTES_MAX + 2];
} walk_levels;

/* Heads behind a byte at depth d; false: there are none. */
static inline bool step(qw_masker *w, match_run *r, walk_levels *l, uint32_t d, uint8_t byte)
{
    uint32_t from = l->begin[d], to = l->end[d], ahead = ROW_HARD;
    if (d > 0 && to - from == 1) ahead = look_ahead(w, r, &w->heads[from], byte);
    if (ahead == ROW_NONE) return false;
    l->nodes[d + 1] = l->nodes[d];
    l->begin[d + 1] = ahead == w->heads[from].state ? from : to;
    l->end[d + 1] = l->begin[d + 1] + 1;
    if (ahead != ROW_HARD) {
        if (l->begin[d + 1] == to) {
            w->heads[to] = w->heads[from];
            w->heads[to].state = ahead;
        }
        return true;
    }
    r->n_nodes = l->nodes[d];
    r->at_begin = r->closed = d == 0;
    l->begin[d + 1] = to;
    l->end[d + 1] = to + match_byte(r, w->heads + from, to - from, byte, w->heads + to);
    l->nodes[d + 1] = r->n_nodes;
    return l->end[d + 1] > to;
}

/* Ordinary characters that a head takes for sure. */
static uint32_t room_of(const qw_grammar *g, const match_head *h)
{
    const grammar_state *s = &g->states[h->state];
    if (!(s->flags & STATE_ABSORBS)) return 0;
    return !(s->flags & STATE_COUNT) ? s->room : s->hi == GRAMMAR_UNLIMITED ? FAR : (uint32_t)s->hi - h->a;
}

/* Does one of the heads behind a byte at depth d take any ordinary characters? */
static inline bool takes_plain(const qw_masker *w, const match_run *r, const walk_levels *l, uint32_t d)
{
    for (uint32_t i = l->begin[d + 1]; i < l->end[d + 1]; i++)
        if (room_of(r->g, &w->heads[i]) >= FAR) return true;
    return false;
}

/* What is known of the way to the end while tokens are tried: instead of the bits of all that fit, those of a mask that lead
 * to a place from which it is not too far are set. */
typedef struct nearness {
    const uint32_t *mask;
    uint32_t room;    /* more than it is to the end */
    uint32_t least;   /* that was seen */
    uint32_t n_below; /* frames of the matcher itself */
} nearness;

static void set_near(const qw_masker *w, const match_run *r, nearness *n, int32_t id, const match_head *heads,
                     uint32_t n_heads, uint32_t *bits)
{
    uint32_t least = UINT32_MAX;
    if (!(n->mask[id / 32] >> id % 32 & 1)) return;
    for (uint32_t i = 0; i < n_heads; i++) {
        uint32_t own = match_to_end(r->g, r->nodes, w->below, n->n_below, &heads[i]);
        if (own < least) least = own;
    }
    if (least < n->least) n->least = least;
    if (least < n->room) bits[id / 32] |= UINT32_C(1) << id % 32;
}

/* Sets the bits of the tokens of a tree that heads[0, n) can take; of those that lead near the end, if it is asked for. */
static void walk(qw_masker *w, match_run *r, const trie_part *part, uint32_t n, nearness *end, uint32_t *bits)
{
    walk_levels l;
    l.begin[0] = 0;
    l.end[0] = n;
    l.nodes[0] = r->n_nodes;
    for (uint32_t i = 0; i < part->n;) {
        const trie_node *t = &part->nodes[i];
        if ((t->depth > 0 && r->steps > STEPS_MAX) || !step(w, r, &l, t->depth, t->byte)) {
            i = t->skip;
            continue;
        }
        w->crowded |= l.end[t->depth + 1] - l.begin[t->depth + 1] > CROWD;
        if (!w->exact && t->plain && takes_plain(w, r, &l, t->depth)) { /* all that begin with this */
            for (uint32_t k = t->before; k < part->nodes[t->skip].before; k++)
                bits[part->order[k] / 32] |= UINT32_C(1) << part->order[k] % 32;
            i = t->skip;
        } else {
            const uint32_t d = t->depth + 1u;
            if (t->token >= 0 && end) set_near(w, r, end, t->token, w->heads + l.begin[d], l.end[d] - l.begin[d], bits);
            else if (t->token >= 0) bits[t->token / 32] |= UINT32_C(1) << t->token % 32;
            i++;
        }
    }
    r->n_nodes = l.nodes[0];
    r->closed = r->at_begin = false;
}

/* Plain tokens of at most n characters. */
static void set_plain(const qw_token_trie *trie, uint32_t n, uint32_t *bits)
{
    uint32_t row = trie->n_lengths;
    while (row > 0 && trie->lengths[row - 1] > n) row--;
    if (row == 0) return;
    const uint32_t *plain = trie->plain + (row - 1) * trie->n_words;
    for (size_t i = 0; i < trie->n_words; i++) bits[i] |= plain[i];
}

/* Tokens of their own. */
static void set_specials(const qw_grammar *g, const match_head *heads, uint32_t n, uint32_t *bits)
{
    for (uint32_t i = 0; i < n; i++) {
        const grammar_state *s = &g->states[heads[i].state];
        for (uint32_t k = 0; k < s->n_calls; k++) {
            const grammar_call *c = &g->calls[s->calls + k];
            if (c->token) bits[c->what / 32] |= UINT32_C(1) << c->what % 32;
        }
    }
}

/* Which part of the tokens a head is tried with, beside the plain ones that it takes for sure. */
typedef enum tried { TRIED_ALL = 0, TRIED_OTHERS, TRIED_OTHERS_AND_LONGS } tried;

static tried tried_with(const qw_grammar *g, const match_head *h)
{
    const grammar_state *s = &g->states[h->state];
    if (!(s->flags & STATE_ABSORBS)) return TRIED_ALL;
    return (s->flags & STATE_COUNT) || s->room >= FAR ? TRIED_OTHERS : TRIED_OTHERS_AND_LONGS;
}

/* Walks one tree with those of heads[0, n) that are tried with it. */
static void walk_with(qw_masker *w, match_run *r, const trie_part *part, const match_head *heads, uint32_t n, tried from,
                      tried to, uint32_t *bits)
{
    uint32_t chosen = 0;
    for (uint32_t i = 0; i < n; i++) {
        tried kind = tried_with(r->g, &heads[i]);
        if (kind >= from && kind <= to) w->heads[chosen++] = heads[i];
    }
    if (chosen > 0) walk(w, r, part, chosen, NULL, bits);
}

/* With many readings the matcher leaves some out, and which ones depends on all of them: then all are walked together,
 * byte by byte. */
static void compute_exactly(qw_masker *w, match_run *r, const match_head *heads, uint32_t n, uint32_t *bits)
{
    memset(bits, 0, w->trie->n_words * sizeof *bits);
    set_specials(r->g, heads, n, bits);
    memcpy(w->heads, heads, n * sizeof *heads);
    w->exact = true;
    walk(w, r, &w->trie->all, n, NULL, bits);
    w->exact = false;
}

/* All that calls and returns lead to is looked up once, at the beginning of the tokens. Heads to which ordinary
 * characters make no difference are tried with the other tokens alone. */
static void compute(qw_masker *w, match_run *r, const qw_matcher *m, uint32_t *bits)
{
    match_head heads[MATCH_WORK_MAX];
    uint32_t n = match_closure(r, m->heads, m->n_heads, heads);
    w->crowded = n > CROWD;
    memset(bits, 0, w->trie->n_words * sizeof *bits);
    set_specials(m->g, heads, n, bits);
    for (uint32_t i = 0; i < n; i++) set_plain(w->trie, room_of(m->g, &heads[i]), bits);
    walk_with(w, r, &w->trie->all, heads, n, TRIED_ALL, TRIED_ALL, bits);
    walk_with(w, r, &w->trie->others, heads, n, TRIED_OTHERS, TRIED_OTHERS_AND_LONGS, bits);
    walk_with(w, r, &w->trie->longs, heads, n, TRIED_OTHERS_AND_LONGS, TRIED_OTHERS_AND_LONGS, bits);
    r->steps = 0;
    if (w->crowded) compute_exactly(w, r, heads, n, bits);
}

void qw_masker_fill(qw_masker *w, const qw_matcher *m, uint32_t *bits)
{
    match_run r;
    bool found = false;
    size_t bytes = w->trie->n_words * sizeof *bits;
    if (m->ended) {
        memset(bits, 0, bytes);
    } else {
        match_run_begin(&r, m, w->nodes, WALK_NODES);
        make_key(w, &r, m->heads, m->n_heads);
        kept_mask *kept = look_up(w, &found);
        uint32_t *own = kept ? w->bits + (size_t)(kept - w->kept) * w->trie->n_words : bits;
        if (!found) compute(w, &r, m, own);
        if (own != bits) memcpy(bits, own, bytes);
        if (!qw_matcher_may_end(m)) return;
    }
    for (uint32_t i = 0; i < w->trie->n_ends; i++)
        bits[w->trie->ends[i] / 32] |= UINT32_C(1) << w->trie->ends[i] % 32;
}

/* ---- the way to the end ----------------------------------------------------------------------- */

static void set_near_specials(const qw_masker *w, const match_run *r, nearness *end, const match_head *heads, uint32_t n,
                              uint32_t *bits)
{
    for (uint32_t i = 0; i < n; i++) {
        const grammar_state *s = &r->g->states[heads[i].state];
        for (uint32_t k = 0; k < s->n_calls; k++) {
            const grammar_call *c = &r->g->calls[s->calls + k];
            match_head behind = heads[i];
            behind.state = c->to;
            if (c->token) set_near(w, r, end, (int32_t)c->what, &behind, 1, bits);
        }
    }
}

/* The tokens behind which it is less than end->room to the end, into w->near. */
static void find_near(qw_masker *w, const qw_matcher *m, nearness *end)
{
    match_head heads[MATCH_WORK_MAX];
    match_run r;
    match_run_begin(&r, m, w->nodes, WALK_NODES);
    match_frames_to_end(m->g, m->nodes, m->n_nodes, w->below);
    end->n_below = m->n_nodes;
    uint32_t n = match_closure(&r, m->heads, m->n_heads, heads);
    memset(w->near, 0, w->trie->n_words * sizeof *w->near);
    set_near_specials(w, &r, end, heads, n, w->near);
    memcpy(w->heads, heads, n * sizeof *heads);
    w->exact = true;
    walk(w, &r, &w->trie->all, n, end, w->near);
    w->exact = false;
}

void qw_masker_close(qw_masker *w, const qw_matcher *m, uint32_t room, uint32_t *bits)
{
    nearness end = {.mask = bits, .room = room, .least = UINT32_MAX};
    if (m->ended) return;
    find_near(w, m, &end);
    if (end.least >= room && !qw_matcher_may_end(m)) {
        if (end.least == UINT32_MAX) return;
        end.room = end.least + 1;
        find_near(w, m, &end);
    }
    for (uint32_t i = 0; i < w->trie->n_ends; i++) /* they are set where the text may end */
        w->near[w->trie->ends[i] / 32] |= bits[w->trie->ends[i] / 32] & UINT32_C(1) << w->trie->ends[i] % 32;
    memcpy(bits, w->near, w->trie->n_words * sizeof *bits);
}
