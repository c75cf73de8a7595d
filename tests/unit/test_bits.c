/* test_bits.c: logits are the same bits for any number of columns, on any number of threads, however a prompt was cut,
 * and on every instruction-set level.
 *
 * The model is made here: small, its matrices of every type there is in turn, so that each packed form is multiplied,
 * and its vocabulary no multiple of a group of rows. The yardstick is the level "ref", one token at a time on one
 * thread. The level under test is the machine's, or that of --isa. Deterministic; says its seed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "isa_cap.h"
#include "kernels/kernels.h"
#include "model/runtime.h"
#include "model/weights.h"
#include "temp_dir.h"

enum { SEED = 20261124, LAYERS = 4, HIDDEN = 256, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, FFN = 256, VOCAB = 603 };
enum {
    N_TOKENS = 512,
    N_SHORT = 70,  /* tokens that go through in small pieces: more than one tile of attention */
    N_BESIDE = 12, /* tokens of each of several sequences side by side */
    SEQS_MAX = 17
};
static const uint32_t counts[] = {1, 2, 3, 7, 8, 9, 16, 17, 512};
enum { N_COUNTS = sizeof counts / sizeof counts[0] };

static qw_gguf *file;
static qw_net *net;
static qw_weights *weights;
static qw_isa isa;                          /* under test */
static int32_t tokens[N_TOKENS];
static float want[N_TOKENS * VOCAB], got[N_TOKENS * VOCAB];

static uint32_t rng_state = SEED;
static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * 1664525u + 1013904223u;
    return (rng_state >> 8) % below;
}

/* ---- the model ------------------------------------------------------------------------------------------------- */

typedef struct made_tensor {
    char name[48];
    size_t rows, k; /* rows 0: a vector */
    qw_type type;
} made_tensor;

typedef struct made_model {
    made_tensor tensors[16 * LAYERS];
    size_t n, n_matrices;
} made_model;

/* The type of the next matrix: all that are implemented, in turn. */
static qw_type next_type(size_t i)
{
    qw_type all[QW_TYPE_LIMIT];
    size_t n = 0;
    for (uint32_t t = 0; t < QW_TYPE_LIMIT; t++)
        if (qw_type_get(t)->name) all[n++] = (qw_type)t;
    assert_true(n <= 7 * LAYERS + 1); /* else a type would not be used: more layers, please */
    return all[i % n];
}

static void add(made_model *m, int layer, const char *name, size_t rows, size_t k)
{
    made_tensor *t = &m->tensors[m->n++];
    if (layer < 0) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
    t->rows = rows;
    t->k = k;
    t->type = rows ? next_type(m->n_matrices++) : QW_TYPE_F32;
}

static void plan_model(made_model *m)
{
    memset(m, 0, sizeof *m);
    for (int i = 0; i < LAYERS; i++) {
        add(m, i, "attn_norm.weight", 0, HIDDEN);
        add(m, i, "attn_q.weight", HEADS * HEAD_DIM, HIDDEN);
        add(m, i, "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN);
        add(m, i, "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN);
        add(m, i, "attn_q.bias", 0, HEADS * HEAD_DIM);
        add(m, i, "attn_k.bias", 0, KV_HEADS * HEAD_DIM);
        add(m, i, "attn_v.bias", 0, KV_HEADS * HEAD_DIM);
        add(m, i, "attn_output.weight", HIDDEN, HEADS * HEAD_DIM);
        add(m, i, "ffn_norm.weight", 0, HIDDEN);
        add(m, i, "ffn_gate.weight", FFN, HIDDEN);
        add(m, i, "ffn_up.weight", FFN, HIDDEN);
        add(m, i, "ffn_down.weight", HIDDEN, FFN);
    }
    add(m, -1, "output_norm.weight", 0, HIDDEN);
    add(m, -1, "output.weight", VOCAB, HIDDEN);
    add(m, -1, "token_embd.weight", VOCAB, HIDDEN);
}

static size_t tensor_bytes(const made_tensor *t)
{
    return qw_type_row_bytes(t->type, t->k) * (t->rows ? t->rows : 1);
}

/* Where a type that is only read keeps its half scale; -1: in pieces or bytes, -2: it is a type that is made as well. */
static int half_at(qw_type type)
{
    switch (type) {
    case QW_TYPE_IQ1_S:
    case QW_TYPE_IQ2_XXS:
    case QW_TYPE_IQ2_XS:
    case QW_TYPE_IQ2_S:
    case QW_TYPE_IQ3_XXS:
    case QW_TYPE_IQ3_S: return 0;
    case QW_TYPE_TQ1_0: return offsetof(qw_block_tq1_0, d);
    case QW_TYPE_TQ2_0: return offsetof(qw_block_tq2_0, d);
    case QW_TYPE_IQ1_M:
    case QW_TYPE_NVFP4: return -1;
    default: return -2;
    }
}

/* Random blocks of a type that is only read, with scales that keep weights small. */
static void make_blocks(qw_type type, int at, uint8_t *row, size_t k)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    const qw_half d = qw_f32_to_half(0x1p-10f);
    for (size_t b = 0; b < k / info->block_n; b++, row += info->block_bytes) {
        for (size_t i = 0; i < info->block_bytes; i++) row[i] = (uint8_t)rng(256);
        if (at >= 0) memcpy(row + at, &d, sizeof d);
        for (int i = 0; i < 4 && type == QW_TYPE_NVFP4; i++) row[i] = (uint8_t)(8 + rng(8));
        uint8_t *words = row + offsetof(qw_block_iq1_m, scales);
        for (int i = 0; i < 4 && type == QW_TYPE_IQ1_M; i++)
            words[2 * i + 1] = (uint8_t)((words[2 * i + 1] & 15) | (d >> (4 * i) & 15) << 4);
    }
}

/* Weights about as large as those of a trained model: rows keep the size of what they multiply. Norms are near 1. */
static void put_tensor(gw *w, const made_tensor *t)
{
    float row[HIDDEN];
    uint8_t stored[HIDDEN * sizeof(float)];
    assert_true(t->k <= HIDDEN);
    for (size_t r = 0; r < (t->rows ? t->rows : 1); r++) {
        for (size_t i = 0; i < t->k; i++) {
            float x = (float)((int)rng(2001) - 1000) * 1e-3f;
            row[i] = t->rows ? x * 0.1f : 1.0f + x * 0.2f;
        }
        int at = half_at(t->type);
        if (at == -2)
            qw_quantize_row(t->type, row, stored, t->k, NULL);
        else
            make_blocks(t->type, at, stored, t->k);
        gw_put(w, stored, qw_type_row_bytes(t->type, t->k), true);
    }
    gw_pad(w, 32);
}

static void write_model(const char *path)
{
    made_model m;
    gw w = {0};
    size_t at = 0;
    plan_model(&m);
    gw_header(&w, 3, m.n, 9);
    gw_kv_str(&w, "general.architecture", "qwen2");
    gw_kv_u32(&w, "qwen2.block_count", LAYERS);
    gw_kv_u32(&w, "qwen2.context_length", 1024);
    gw_kv_u32(&w, "qwen2.embedding_length", HIDDEN);
    gw_kv_u32(&w, "qwen2.feed_forward_length", FFN);
    gw_kv_u32(&w, "qwen2.attention.head_count", HEADS);
    gw_kv_u32(&w, "qwen2.attention.head_count_kv", KV_HEADS);
    gw_kv_f32(&w, "qwen2.rope.freq_base", 1e6f);
    gw_kv_f32(&w, "qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
    for (size_t i = 0; i < m.n; i++) {
        const made_tensor *t = &m.tensors[i];
        gw_info(&w, t->name, t->k, t->rows, (uint32_t)t->type, at);
        at += (tensor_bytes(t) + 31) / 32 * 32;
    }
    gw_pad(&w, 32);
    for (size_t i = 0; i < m.n; i++) put_tensor(&w, &m.tensors[i]);
    gw_save(&w, path);
    gw_free(&w);
}

/* ---- passes ---------------------------------------------------------------------------------------------------- */

static void open_runtime(qw_runtime *rt, int n_threads, qw_isa at)
{
    qw_err err = {0};
    qw_runtime_options o = {.n_threads = n_threads, .n_rows_max = N_TOKENS, .n_seqs = SEQS_MAX,
                            .seq_tokens_max = N_TOKENS};
    isa_cap_set(at);
    if (qw_runtime_create(net, &o, rt, &err)) fail_msg("%s", err.text);
    isa_cap_set(isa);
}

static qw_seq *new_seq(qw_runtime *rt)
{
    qw_seq *seq;
    assert_int_equal(qw_seq_create(rt->seqs, &seq, NULL), QW_OK);
    return seq;
}

/* Appends the next n tokens in one pass and stores their logits by position. */
static void append(qw_runtime *rt, qw_seq *seq, uint32_t n, float *logits)
{
    static qw_row rows[N_TOKENS];
    static uint32_t all[N_TOKENS];
    uint32_t first = seq->n_tokens;
    assert_int_equal(qw_seq_reserve(seq, first + n, NULL), QW_OK);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (qw_row){.seq = seq, .pos = first + i, .token = tokens[first + i]};
        all[i] = i;
    }
    qw_forward(rt->pass, rows, n);
    qw_seq_advance(seq, tokens + first, n);
    qw_pass_logits(rt->pass, all, n, logits + first * VOCAB, VOCAB);
}

/* Logits of the first n_tokens positions are those of the reference. */
static void check_bits(uint32_t n_tokens, const char *what, uint32_t number, int n_threads)
{
    for (uint32_t i = 0; i < n_tokens; i++)
        if (memcmp(got + i * VOCAB, want + i * VOCAB, VOCAB * sizeof(float)) != 0)
            fail_msg("level %s, %d threads, %s %u: logits at position %u differ from the reference's", qw_isa_name(isa),
                     n_threads, what, number, i);
    memset(got, 0, sizeof got);
}

static int setup(void **state)
{
    qw_err err = {0};
    qw_runtime rt;
    if (temp_dir_setup(state) != 0) return -1;
    const char *path = temp_path("bits.gguf");
    isa = qw_cpu_isa();
    qw_kernels_get(isa); /* the tables of all levels are made now, while the level under test counts */
    write_model(path);
    if (qw_gguf_open(path, &file, &err) || qw_net_open(file, &net, &err)) fail_msg("%s", err.text);
    open_runtime(&rt, 1, QW_ISA_REF);
    if (qw_weights_create(net, NULL, rt.pool, &weights, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)rng(VOCAB);
    qw_seq *seq = new_seq(&rt);
    while (seq->n_tokens < N_TOKENS) append(&rt, seq, 1, want);
    qw_seq_release(seq);
    qw_runtime_destroy(&rt);
    print_message("level %s, seed %d\n", qw_isa_name(isa), SEED);
    return 0;
}

static int teardown(void **state)
{
    qw_weights_destroy(weights);
    qw_net_close(net);
    qw_gguf_close(file);
    return temp_dir_teardown(state);
}

/* ---- tests ----------------------------------------------------------------------------------------------------- */

/* The reference means something: logits are finite, of ordinary size and of each position its own. */
static void test_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_TOKENS * VOCAB; i++) assert_true(want[i] > -100.0f && want[i] < 100.0f);
    for (size_t i = 1; i < N_TOKENS; i++)
        assert_memory_not_equal(want, want + i * VOCAB, VOCAB * sizeof(float));
    for (qw_pack form = QW_PACK_NONE + 1; form < QW_PACK_COUNT; form++) {
        size_t found = 0;
        for (uint32_t il = 0; il < LAYERS; il++) {
            const qw_layer *l = &net->layers[il];
            const qw_weight *all[] = {&l->attn.q, &l->attn.k, &l->attn.v, &l->attn.o,
                                      &l->swiglu.gate, &l->swiglu.up, &l->swiglu.down};
            for (size_t i = 0; i < sizeof all / sizeof *all; i++) found += all[i]->pack == form;
        }
        if (net->head.pack == form) found++;
        if (found == 0) fail_msg("no matrix has the packed form %s", qw_pack_name(form));
    }
}

/* So many columns in each pass, of one sequence: a prompt cut into equal pieces. */
static void test_columns(void **state)
{
    (void)state;
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        qw_runtime rt;
        open_runtime(&rt, n_threads, isa);
        for (size_t c = 0; c < N_COUNTS; c++) {
            uint32_t n_tokens = counts[c] > N_SHORT ? N_TOKENS : N_SHORT;
            qw_seq *seq = new_seq(&rt);
            while (seq->n_tokens < n_tokens) {
                uint32_t left = n_tokens - seq->n_tokens;
                append(&rt, seq, left < counts[c] ? left : counts[c], got);
            }
            qw_seq_release(seq);
            check_bits(n_tokens, "columns", counts[c], n_threads);
        }
        qw_runtime_destroy(&rt);
    }
}

/* So many columns in each pass, each of another sequence. Sequence s begins s passes later than the first, so that no
 * two columns are equal. */
static void test_sequences(void **state)
{
    (void)state;
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        qw_runtime rt;
        open_runtime(&rt, n_threads, isa);
        for (size_t c = 0; c < N_COUNTS && counts[c] <= SEQS_MAX; c++) {
            uint32_t n = counts[c];
            qw_seq *seqs[SEQS_MAX];
            for (uint32_t s = 0; s < n; s++) {
                seqs[s] = new_seq(&rt);
                assert_int_equal(qw_seq_reserve(seqs[s], N_BESIDE, NULL), QW_OK);
            }
            for (uint32_t pass = 0; pass < N_BESIDE + n - 1; pass++) {
                static float logits[SEQS_MAX * VOCAB];
                qw_row rows[SEQS_MAX];
                uint32_t all[SEQS_MAX], n_rows = 0;
                for (uint32_t s = 0; s < n && s <= pass; s++) {
                    if (pass - s >= N_BESIDE) continue;
                    all[n_rows] = n_rows;
                    rows[n_rows++] = (qw_row){.seq = seqs[s], .pos = pass - s, .token = tokens[pass - s]};
                }
                qw_forward(rt.pass, rows, n_rows);
                qw_pass_logits(rt.pass, all, n_rows, logits, VOCAB);
                for (uint32_t r = 0; r < n_rows; r++) {
                    qw_seq_advance(rows[r].seq, &rows[r].token, 1);
                    memcpy(got + rows[r].pos * VOCAB, logits + r * VOCAB, VOCAB * sizeof(float));
                    if (memcmp(got + rows[r].pos * VOCAB, want + rows[r].pos * VOCAB, VOCAB * sizeof(float)) != 0)
                        fail_msg("level %s, %d threads, %u sequences: logits at position %u differ from the "
                                 "reference's", qw_isa_name(isa), n_threads, n, rows[r].pos);
                }
            }
            for (uint32_t s = 0; s < n; s++) qw_seq_release(seqs[s]);
        }
        memset(got, 0, sizeof got);
        qw_runtime_destroy(&rt);
    }
}

/* A prompt in two pieces, cut about the border of an attention tile and at its ends; then in random pieces. */
static void test_splits(void **state)
{
    (void)state;
    static const uint32_t cuts[] = {1, 63, 64, 65, 511};
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        qw_runtime rt;
        open_runtime(&rt, n_threads, isa);
        for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
            uint32_t n_tokens = cuts[c] > N_SHORT ? N_TOKENS : N_SHORT;
            qw_seq *seq = new_seq(&rt);
            append(&rt, seq, cuts[c], got);
            append(&rt, seq, n_tokens - cuts[c], got);
            qw_seq_release(seq);
            check_bits(n_tokens, "cut at", cuts[c], n_threads);
        }
        qw_seq *seq = new_seq(&rt);
        while (seq->n_tokens < 3 * N_SHORT) {
            uint32_t n = 1 + rng(90), left = 3 * N_SHORT - seq->n_tokens;
            append(&rt, seq, n < left ? n : left, got);
        }
        qw_seq_release(seq);
        check_bits(3 * N_SHORT, "random pieces, seed", SEED, n_threads);
        qw_runtime_destroy(&rt);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_sequences),
        cmocka_unit_test(test_splits),
    };
    if (!isa_cap_options(argc, argv)) return 2;
    return cmocka_run_group_tests(tests, setup, teardown);
}
