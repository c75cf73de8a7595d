/* test_net.c: a model file is bound exactly or refused, and everything that is wrong with it is in one message.
 *
 * Small files of the qwen2 family are made here: a good one, and variants with wrong shapes, missing and unknown
 * tensors, hyper-parameters outside their range, an unknown architecture, scaled positions, a vocabulary of another
 * length. Nothing here needs a real model.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qw.h"

#include "net_file.h"

enum { HIDDEN = 64, FFN = 96, LAYERS = 2, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 16, VOCAB = 10 };

static void good(file_plan *f)
{
    memset(f, 0, sizeof *f);
    add_text(f, "general.architecture", "qwen2");
    add_number(f, "qwen2.block_count", 'u', LAYERS);
    add_number(f, "qwen2.context_length", 'u', 128);
    add_number(f, "qwen2.embedding_length", 'u', HIDDEN);
    add_number(f, "qwen2.feed_forward_length", 'u', FFN);
    add_number(f, "qwen2.attention.head_count", 'u', HEADS);
    add_number(f, "qwen2.attention.head_count_kv", 'u', KV_HEADS);
    add_number(f, "qwen2.rope.freq_base", 'f', 1e6);
    add_number(f, "qwen2.attention.layer_norm_rms_epsilon", 'f', 1e-6);
    add_tensor(f, "token_embd.weight", 0, VOCAB, HIDDEN);
    for (int i = 0; i < LAYERS; i++) {
        add_tensor(f, "blk.%d.attn_norm.weight", i, 0, HIDDEN);
        add_tensor(f, "blk.%d.attn_q.weight", i, HEADS * HEAD_DIM, HIDDEN);
        add_tensor(f, "blk.%d.attn_q.bias", i, 0, HEADS * HEAD_DIM);
        add_tensor(f, "blk.%d.attn_k.weight", i, KV_HEADS * HEAD_DIM, HIDDEN);
        add_tensor(f, "blk.%d.attn_k.bias", i, 0, KV_HEADS * HEAD_DIM);
        add_tensor(f, "blk.%d.attn_v.weight", i, KV_HEADS * HEAD_DIM, HIDDEN);
        add_tensor(f, "blk.%d.attn_v.bias", i, 0, KV_HEADS * HEAD_DIM);
        add_tensor(f, "blk.%d.attn_output.weight", i, HIDDEN, HEADS * HEAD_DIM);
        add_tensor(f, "blk.%d.ffn_norm.weight", i, 0, HIDDEN);
        add_tensor(f, "blk.%d.ffn_gate.weight", i, FFN, HIDDEN);
        add_tensor(f, "blk.%d.ffn_up.weight", i, FFN, HIDDEN);
        add_tensor(f, "blk.%d.ffn_down.weight", i, HIDDEN, FFN);
    }
    add_tensor(f, "output_norm.weight", 0, 0, HIDDEN);
    add_tensor(f, "output.weight", 0, VOCAB, HIDDEN);
}

/* ---- good ------------------------------------------------------------------------------------- */

static void test_good(void **state)
{
    (void)state;
    file_plan f;
    qw_gguf *g;
    qw_net *net;
    good(&f);
    assert_int_equal(qw_gguf_open(save(&f), &g, NULL), QW_OK);
    assert_int_equal(qw_net_open(g, &net, NULL), QW_OK);
    assert_string_equal(net->hp.family->architecture, "qwen2");
    assert_int_equal(net->hp.n_layers, LAYERS);
    assert_int_equal(net->hp.head_dim, HEAD_DIM);
    assert_int_equal(net->hp.n_vocab, VOCAB);
    uint64_t layer = 2 * HIDDEN + HIDDEN * HIDDEN * 2 + HIDDEN + 2 * (32 * HIDDEN + 32) + 3 * HIDDEN * FFN;
    assert_int_equal(net->n_params, 2 * VOCAB * HIDDEN + HIDDEN + LAYERS * layer);
    assert_string_equal(net->quantization, "F32");
    assert_ptr_not_equal(net->head.data, net->embed.data);
    assert_int_equal(net->layers[1].swiglu.down.rows, HIDDEN);
    assert_int_equal(net->layers[1].swiglu.down.k, FFN);
    qw_net_close(net);
    qw_gguf_close(g);
    /* without output.weight the embedding is the head, counted once */
    drop_tensor(&f, "output.weight");
    assert_int_equal(qw_gguf_open(save(&f), &g, NULL), QW_OK);
    assert_int_equal(qw_net_open(g, &net, NULL), QW_OK);
    assert_ptr_equal(net->head.data, net->embed.data);
    assert_int_equal(net->n_params, VOCAB * HIDDEN + HIDDEN + LAYERS * layer);
    qw_net_close(net);
    qw_gguf_close(g);
}

/* ---- tensors ---------------------------------------------------------------------------------- */

/* Every tensor in turn is left out, given another length, or another number of dimensions. */
static void test_each_tensor(void **state)
{
    (void)state;
    file_plan all, f;
    char want[256];
    good(&all);
    for (size_t i = 0; i < all.n_tensors; i++) {
        const file_tensor *t = &all.tensors[i];
        bool head = strcmp(t->name, "output.weight") == 0, embed = strcmp(t->name, "token_embd.weight") == 0;
        f = all;
        drop_tensor(&f, t->name);
        snprintf(want, sizeof want, "%s is missing", t->name);
        if (!head) assert_refused(&f, QW_E_FORMAT, want);
        f = all;
        f.tensors[i].ne[0] = t->ne[0] + 32;
        if (t->n_dims == 2) {
            snprintf(want, sizeof want, "%s: want [%d,%d], file has [%d,%d]", t->name, (int)t->ne[1], (int)t->ne[0],
                     (int)t->ne[1], (int)t->ne[0] + 32);
        } else {
            snprintf(want, sizeof want, "%s: want [%d], file has [%d]", t->name, (int)t->ne[0], (int)t->ne[0] + 32);
        }
        assert_refused(&f, QW_E_FORMAT, want);
        f = all;
        if (t->n_dims == 1) { /* [n] as [1,n] */
            f.tensors[i].n_dims = 2;
            f.tensors[i].ne[1] = 1;
            snprintf(want, sizeof want, "%s: want [%d], file has [1,%d]", t->name, (int)t->ne[0], (int)t->ne[0]);
            assert_refused(&f, QW_E_FORMAT, want);
            continue;
        }
        f.tensors[i].ne[1]--; /* one row less; of the embedding this makes the head too long */
        snprintf(want, sizeof want, "%s: want [%d,%d], file has [%d,%d]", embed ? "output.weight" : t->name,
                 embed ? VOCAB - 1 : (int)t->ne[1], (int)t->ne[0], embed ? VOCAB : (int)t->ne[1] - 1, (int)t->ne[0]);
        assert_refused(&f, QW_E_FORMAT, want);
        f = all;
        f.tensors[i].n_dims = 3; /* [rows,k] as [1,rows,k] */
        f.tensors[i].ne[2] = 1;
        snprintf(want, sizeof want, "%s: want [%d,%d], file has [1,%d,%d]", t->name, (int)t->ne[1], (int)t->ne[0],
                 (int)t->ne[1], (int)t->ne[0]);
        if (!embed) assert_refused(&f, QW_E_FORMAT, want);
        else assert_says(&f, QW_E_FORMAT, "token_embd.weight: ");
    }
}

static void test_transposed(void **state)
{
    (void)state;
    file_plan f;
    good(&f);
    file_tensor *t = tensor(&f, "blk.1.ffn_up.weight");
    t->ne[0] = FFN;
    t->ne[1] = HIDDEN;
    assert_refused(&f, QW_E_FORMAT, "blk.1.ffn_up.weight: want [96,64], file has [64,96]");
}

static void test_unknown_tensors(void **state)
{
    (void)state;
    file_plan f;
    good(&f);
    add_tensor(&f, "blk.%d.attn_q_norm.weight", 0, 0, HEAD_DIM);
    assert_refused(&f, QW_E_FORMAT, "blk.0.attn_q_norm.weight is not part of the qwen2 architecture");
    add_tensor(&f, "rope_freqs.weight", 0, 0, HEAD_DIM / 2);
    add_tensor(&f, "a%%sb", 0, 0, 8);
    assert_refused(&f, QW_E_FORMAT,
                   "blk.0.attn_q_norm.weight is not part of the qwen2 architecture, nor are 2 other tensors");
    /* one layer more in the file than in the header */
    good(&f);
    key(&f, "qwen2.block_count")->number = LAYERS - 1;
    assert_refused(&f, QW_E_FORMAT,
                   "blk.1.attn_norm.weight is not part of the qwen2 architecture, nor are 11 other tensors");
}

static void test_types(void **state)
{
    (void)state;
    static const uint32_t fine[] = {0, 1, 30};
    file_plan f;
    for (size_t i = 0; i < 3; i++) {
        good(&f);
        tensor(&f, "blk.0.attn_norm.weight")->type = fine[i];
        tensor(&f, "blk.0.attn_q.weight")->type = fine[i];
        assert_opens(&f);
    }
    good(&f);
    tensor(&f, "blk.0.attn_q.weight")->type = 8;
    assert_opens(&f);
    tensor(&f, "blk.0.attn_norm.weight")->type = 8;
    tensor(&f, "blk.1.attn_k.bias")->type = 8;
    assert_refused(&f, QW_E_FORMAT, "2 faults: blk.0.attn_norm.weight: want F32, F16 or BF16, file has Q8_0; "
                                    "blk.1.attn_k.bias: want F32, F16 or BF16, file has Q8_0");
}

/* What is wrong in different ways is all in one message. */
static void test_several(void **state)
{
    (void)state;
    file_plan f;
    good(&f);
    tensor(&f, "blk.0.attn_q.weight")->ne[1] = 1;
    tensor(&f, "output_norm.weight")->ne[0] = 32;
    drop_tensor(&f, "blk.1.attn_v.bias");
    add_tensor(&f, "extra", 0, 3, 32);
    assert_refused(&f, QW_E_FORMAT,
                   "4 faults: output_norm.weight: want [64], file has [32]; blk.0.attn_q.weight: want [64,64], file "
                   "has [1,64]; blk.1.attn_v.bias is missing; extra is not part of the qwen2 architecture");
    /* without the embedding the size of the vocabulary is unknown; the rest is still checked */
    good(&f);
    drop_tensor(&f, "token_embd.weight");
    drop_tensor(&f, "blk.0.ffn_down.weight");
    add_tensor(&f, "extra", 0, 3, 32);
    assert_refused(&f, QW_E_FORMAT, "3 faults: token_embd.weight is missing; blk.0.ffn_down.weight is missing; extra "
                                    "is not part of the qwen2 architecture");
    /* more than a message holds: counted */
    good(&f);
    key(&f, "qwen2.block_count")->number = 100;
    char text[QW_ERR_TEXT_MAX];
    assert_int_equal(try_open(&f, text), QW_E_FORMAT);
    assert_memory_equal(text, "1176 faults: blk.2.attn_norm.weight is missing; ", 48);
    const char *more = strstr(text, "; and ");
    assert_non_null(more);
    size_t n_shown = 0;
    for (const char *p = text; (p = strstr(p, " is missing")); p++) n_shown++;
    assert_int_equal(n_shown + (size_t)atoi(more + 6), 1176);
    assert_true(n_shown >= 10);
}

/* ---- hyper-parameters ------------------------------------------------------------------------- */

static void test_ranges(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        double value;
        const char *want;
    } bad[] = {
        {"qwen2.block_count", 0, "qwen2.block_count is 0, want 1 to 1024"},
        {"qwen2.block_count", 1025, "qwen2.block_count is 1025, want 1 to 1024"},
        {"qwen2.block_count", 4294967295.0, "qwen2.block_count is 4294967295, want 1 to 1024"},
        {"qwen2.context_length", 0, "qwen2.context_length is 0, want 1 to 16777216"},
        {"qwen2.context_length", 4294967295.0, "qwen2.context_length is 4294967295, want 1 to 16777216"},
        {"qwen2.embedding_length", 31, "qwen2.embedding_length is 31, want 32 to 131072"},
        {"qwen2.embedding_length", 131073, "qwen2.embedding_length is 131073, want 32 to 131072"},
        {"qwen2.feed_forward_length", 0, "qwen2.feed_forward_length is 0, want 32 to 1048576"},
        {"qwen2.feed_forward_length", 1048577, "qwen2.feed_forward_length is 1048577, want 32 to 1048576"},
        {"qwen2.attention.head_count", 0, "qwen2.attention.head_count is 0, want 1 to 1024"},
        {"qwen2.attention.head_count", 1025, "qwen2.attention.head_count is 1025, want 1 to 1024"},
        {"qwen2.attention.head_count_kv", 0, "qwen2.attention.head_count_kv is 0, want 1 to 1024"},
        {"qwen2.rope.freq_base", 0, "qwen2.rope.freq_base is 0, want 1 to 1e+12"},
        {"qwen2.rope.freq_base", -1e6, "qwen2.rope.freq_base is -1e+06, want 1 to 1e+12"},
        {"qwen2.rope.freq_base", 1e13, "qwen2.rope.freq_base is 1e+13, want 1 to 1e+12"},
        {"qwen2.attention.layer_norm_rms_epsilon", 0,
         "qwen2.attention.layer_norm_rms_epsilon is 0, want 1e-12 to 0.01"},
        {"qwen2.attention.layer_norm_rms_epsilon", 1,
         "qwen2.attention.layer_norm_rms_epsilon is 1, want 1e-12 to 0.01"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        file_plan f;
        good(&f);
        key(&f, bad[i].key)->number = bad[i].value;
        char text[QW_ERR_TEXT_MAX];
        qw_status status = try_open(&f, text);
        if (status != QW_E_FORMAT || strcmp(text, bad[i].want) != 0) fail_msg("'%s', want '%s'", text, bad[i].want);
    }
}

/* Every hyper-parameter in turn: missing, of another type, not a number. */
static void test_each_key(void **state)
{
    (void)state;
    file_plan all, f;
    char part[128];
    good(&all);
    for (size_t i = 0; i < all.n_keys; i++) {
        const char *name = all.keys[i].name;
        f = all;
        drop_key(&f, name);
        snprintf(part, sizeof part, "key '%s' is missing", name);
        assert_says(&f, QW_E_FORMAT, part);
        if (all.keys[i].kind == 's') continue;
        f = all;
        f.keys[i].kind = 's';
        f.keys[i].text = "24";
        assert_says(&f, QW_E_FORMAT, name);
        f = all;
        f.keys[i].kind = all.keys[i].kind == 'u' ? 'f' : 'u';
        assert_says(&f, QW_E_FORMAT, name);
        if (all.keys[i].kind != 'f') continue;
        for (int v = 0; v < 3; v++) {
            f = all;
            f.keys[i].number = v == 0 ? (double)NAN : v == 1 ? (double)INFINITY : -(double)INFINITY;
            assert_says(&f, QW_E_FORMAT, name);
        }
    }
}

static void test_several_keys(void **state)
{
    (void)state;
    file_plan f;
    char text[QW_ERR_TEXT_MAX];
    good(&f);
    key(&f, "qwen2.block_count")->number = 0;
    key(&f, "qwen2.rope.freq_base")->number = 0.5;
    drop_key(&f, "qwen2.feed_forward_length");
    assert_int_equal(try_open(&f, text), QW_E_FORMAT);
    assert_memory_equal(text, "3 faults: qwen2.block_count is 0, want 1 to 1024; ", 50);
    assert_non_null(strstr(text, "qwen2.feed_forward_length"));
    assert_non_null(strstr(text, "qwen2.rope.freq_base is 0.5, want 1 to 1e+12"));
}

static void test_relations(void **state)
{
    (void)state;
    file_plan f;
    good(&f);
    key(&f, "qwen2.attention.head_count_kv")->number = 3;
    assert_refused(&f, QW_E_FORMAT, "4 heads over 3 KV heads: want a whole number up to 64");
    good(&f);
    key(&f, "qwen2.attention.head_count_kv")->number = 8;
    assert_says(&f, QW_E_FORMAT, "4 heads over 8 KV heads");
    good(&f);
    key(&f, "qwen2.embedding_length")->number = 66;
    assert_says(&f, QW_E_FORMAT, "embedding length 66 is no multiple of 4 heads");
    good(&f);
    key(&f, "qwen2.attention.head_count")->number = 16; /* 64 / 16 = 4 */
    assert_says(&f, QW_E_FORMAT, "head dimension 4: want a multiple of 8");
    good(&f);
    key(&f, "qwen2.embedding_length")->number = 4096; /* 4096 / 4 = 1024 */
    assert_says(&f, QW_E_FORMAT, "head dimension 1024: want a multiple of 8 up to");
    good(&f);
    add_number(&f, "qwen2.attention.key_length", 'u', HEAD_DIM);
    add_number(&f, "qwen2.attention.value_length", 'u', HEAD_DIM);
    add_number(&f, "qwen2.rope.dimension_count", 'u', HEAD_DIM);
    assert_opens(&f);
    key(&f, "qwen2.attention.value_length")->number = 8;
    assert_says(&f, QW_E_FORMAT, "attention.key_length and attention.value_length differ");
    key(&f, "qwen2.attention.value_length")->number = HEAD_DIM;
    key(&f, "qwen2.rope.dimension_count")->number = 8;
    assert_says(&f, QW_E_FORMAT, "rope.dimension_count differs from the head dimension");
    key(&f, "qwen2.rope.dimension_count")->number = HEAD_DIM;
    key(&f, "qwen2.attention.key_length")->number = key(&f, "qwen2.attention.value_length")->number = 24;
    assert_says(&f, QW_E_FORMAT, "rope.dimension_count differs from the head dimension");
}

/* Heads that together are wider than the residual stream: allowed, when the tensors agree. */
static void test_own_head_dim(void **state)
{
    (void)state;
    file_plan f;
    good(&f);
    add_number(&f, "qwen2.attention.key_length", 'u', 32);
    for (int i = 0; i < LAYERS; i++) {
        char name[64];
        static const struct {
            const char *fmt;
            int d;
            uint64_t n;
        } sizes[] = {{"blk.%d.attn_q.weight", 1, HEADS * 32}, {"blk.%d.attn_q.bias", 0, HEADS * 32},
                     {"blk.%d.attn_k.weight", 1, KV_HEADS * 32}, {"blk.%d.attn_k.bias", 0, KV_HEADS * 32},
                     {"blk.%d.attn_v.weight", 1, KV_HEADS * 32}, {"blk.%d.attn_v.bias", 0, KV_HEADS * 32},
                     {"blk.%d.attn_output.weight", 0, HEADS * 32}};
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            snprintf(name, sizeof name, sizes[s].fmt, i);
#pragma GCC diagnostic pop
            tensor(&f, name)->ne[sizes[s].d] = sizes[s].n;
        }
    }
    assert_opens(&f);
}

/* ---- what qw does not run --------------------------------------------------------------------- */

static void test_architecture(void **state)
{
    (void)state;
    static const char *const others[] = {"llama", "qwen3vl", "qwen", "qwen22", "QWEN2", "", "qwen2\n"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        file_plan f;
        good(&f);
        key(&f, "general.architecture")->text = others[i];
        assert_says(&f, QW_E_UNSUPPORTED, "is not supported; this version runs qwen2, qwen2moe, ");
        if (i < 5) assert_says(&f, QW_E_UNSUPPORTED, others[i]);
    }
    file_plan f;
    char text[QW_ERR_TEXT_MAX], long_name[300];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    good(&f);
    key(&f, "general.architecture")->text = long_name;
    assert_int_equal(try_open(&f, text), QW_E_UNSUPPORTED);
    assert_true(strlen(text) < 200);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    file_plan f;
    static const char *const types[] = {"linear", "longrope", "dynamic", ""};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        good(&f);
        add_text(&f, "qwen2.rope.scaling.type", types[i]);
        assert_says(&f, QW_E_UNSUPPORTED, "rope scaling");
        assert_says(&f, QW_E_UNSUPPORTED, types[i]);
    }
    good(&f);
    add_text(&f, "qwen2.rope.scaling.type", "none");
    add_number(&f, "qwen2.rope.scaling.factor", 'f', 4);
    assert_opens(&f);
    key(&f, "qwen2.rope.scaling.type")->text = "yarn";
    assert_says(&f, QW_E_FORMAT, "qwen2.rope.scaling.original_context_length' is missing");
    add_number(&f, "qwen2.rope.scaling.original_context_length", 'u', 64);
    assert_opens(&f);
    key(&f, "qwen2.rope.scaling.factor")->number = 0.5;
    assert_says(&f, QW_E_FORMAT, "qwen2.rope.scaling.factor is 0.5, want 1 to 1024");
    /* a factor alone means linear scaling */
    static const char *const factors[] = {"qwen2.rope.scaling.factor", "qwen2.rope.scale_linear"};
    for (size_t i = 0; i < 2; i++) {
        good(&f);
        add_number(&f, factors[i], 'f', 4);
        assert_says(&f, QW_E_UNSUPPORTED, "rope scaling");
        assert_says(&f, QW_E_UNSUPPORTED, factors[i]);
        key(&f, factors[i])->number = 1;
        assert_opens(&f);
        key(&f, factors[i])->number = 0;
        assert_opens(&f);
        key(&f, factors[i])->kind = 's';
        key(&f, factors[i])->text = "4";
        assert_says(&f, QW_E_FORMAT, factors[i]);
    }
}

/* ---- vocabulary ------------------------------------------------------------------------------- */

static void test_vocabulary_length(void **state)
{
    (void)state;
    static small_vocab vocab;
    file_plan f;
    qw_model_options o = qw_model_options_default();
    qw_model *model;
    qw_err err = {0};
    small_vocab_fill(&vocab);
    good(&f);
    f.vocab = &vocab;
    f.n_vocab = N_SMALL;
    tensor(&f, "token_embd.weight")->ne[1] = tensor(&f, "output.weight")->ne[1] = N_SMALL;
    o.path = save(&f);
    if (qw_model_open(&o, &model, &err) != QW_OK) fail_msg("%s", err.text);
    qw_model_close(model);
    static const int off[] = {1, -1};
    for (size_t i = 0; i < 2; i++) {
        char want[600];
        tensor(&f, "token_embd.weight")->ne[1] = tensor(&f, "output.weight")->ne[1] = (uint64_t)(N_SMALL + off[i]);
        o.path = save(&f);
        assert_int_equal(qw_model_open(&o, &model, &err), QW_E_FORMAT);
        assert_null(model);
        snprintf(want, sizeof want, "%s: tokenizer.ggml.tokens has %d tokens, but token_embd.weight has %d rows",
                 o.path, N_SMALL, N_SMALL + off[i]);
        assert_string_equal(err.text, want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),          cmocka_unit_test(test_each_tensor),
        cmocka_unit_test(test_transposed),    cmocka_unit_test(test_unknown_tensors),
        cmocka_unit_test(test_types),         cmocka_unit_test(test_several),
        cmocka_unit_test(test_ranges),        cmocka_unit_test(test_each_key),
        cmocka_unit_test(test_several_keys),  cmocka_unit_test(test_relations),
        cmocka_unit_test(test_own_head_dim),  cmocka_unit_test(test_architecture),
        cmocka_unit_test(test_rope_scaling),  cmocka_unit_test(test_vocabulary_length),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
