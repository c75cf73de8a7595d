/* test_families.c: files of the families with experts, delta-nets, several streams and multi-token prediction are bound
 * exactly or refused: every key and every tensor in turn is left out, and given a value or a shape that does not fit.
 *
 * Nothing is computed here: tests/parity/families.py compares logits.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "family_file.h"

/* ---- whole files ------------------------------------------------------------------------------ */

static void qwen2moe(file_plan *f)
{
    common_keys(f, "qwen2moe", 1);
    expert_keys(f, "qwen2moe");
    add_number(f, "qwen2moe.expert_shared_feed_forward_length", 'u', SHARED_FFN);
    add_norms(f, 0, "blk.%d.ffn_norm.weight");
    add_attention(f, 0, false);
    add_biases(f, 0);
    add_experts(f, 0);
    add_shared_expert(f, 0);
    add_tensor(f, "output_norm.weight", 0, 0, HIDDEN);
}

static void add_connection(file_plan *f, const char *prefix, int il, bool inject)
{
    char name[4][48];
    static const char *const parts[] = {"norm", "down", "up", "inject"};
    for (int i = 0; i < 4; i++) snprintf(name[i], sizeof name[i], "%s%s.weight", prefix, parts[i]);
    add_tensor(f, name[0], il, 0, WIDE);
    add_tensor(f, name[1], il, RANK, WIDE);
    add_tensor(f, name[2], il, WIDE, RANK);
    if (inject) add_tensor(f, name[3], il, STREAMS, WIDE);
}

static void qwen4exp(file_plan *f)
{
    static const int64_t ratios[] = {0, 4}, layer[] = {0}, multipliers[] = {3, 5, 7}, offsets[] = {0, 20, 45, 70},
                         sizes[] = {20, 25, 25, 30};
    common_keys(f, "qwen4exp", 2);
    delta_keys(f, "qwen4exp");
    expert_keys(f, "qwen4exp");
    add_number(f, "qwen4exp.hyper_connection.count", 'u', STREAMS);
    add_number(f, "qwen4exp.hyper_connection.low_rank", 'u', RANK);
    add_number(f, "qwen4exp.attention.indexer.head_count", 'u', INDEX_HEADS);
    add_number(f, "qwen4exp.attention.indexer.key_length", 'u', INDEX_DIM);
    add_number(f, "qwen4exp.attention.indexer.top_k", 'u', 8);
    add_list(f, "qwen4exp.attention.compress_ratios", ratios, 2);
    add_list(f, "qwen4exp.ple.layers", layer, 1);
    add_number(f, "qwen4exp.ple.ngram_size", 'u', 3);
    add_number(f, "qwen4exp.ple.heads_per_ngram", 'u', 2);
    add_number(f, "qwen4exp.ple.conv_kernel", 'u', TAPS);
    add_number(f, "qwen4exp.ple.eos_token_id", 'u', 1);
    add_list(f, "qwen4exp.ple.layer_multipliers", multipliers, 3);
    add_list(f, "qwen4exp.ple.head_offsets", offsets, GRAM_HEADS);
    add_list(f, "qwen4exp.ple.head_vocab_sizes", sizes, GRAM_HEADS);
    add_number(f, "qwen4exp.embedding_length_per_layer_input", 'u', GRAM_ROW);
    for (int il = 0; il < 2; il++) {
        add_connection(f, "blk.%d.hc_attn_", il, true);
        add_connection(f, "blk.%d.hc_ffn_", il, true);
        add_experts(f, il);
    }
    add_delta(f, 0);
    add_attention(f, 1, true);
    add_head_norms(f, 1);
    add_tensor(f, "blk.%d.indexer.q_proj.weight", 1, INDEX_HEADS * INDEX_DIM, HIDDEN);
    add_tensor(f, "blk.%d.indexer.k_proj.weight", 1, INDEX_DIM, HIDDEN);
    add_tensor(f, "blk.%d.indexer.q_norm.weight", 1, 0, INDEX_DIM);
    add_tensor(f, "blk.%d.indexer.k_norm.weight", 1, 0, INDEX_DIM);
    add_tensor(f, "per_layer_token_embd.weight", 0, GRAMS, GRAM_ROW);
    add_tensor(f, "blk.%d.ple_key.weight", 0, WIDE, GRAM_HEADS * GRAM_ROW);
    add_tensor(f, "blk.%d.ple_value.weight", 0, HIDDEN, GRAM_HEADS * GRAM_ROW);
    add_tensor(f, "blk.%d.ple_norm_key.weight", 0, 0, WIDE);
    add_tensor(f, "blk.%d.ple_norm_query.weight", 0, 0, WIDE);
    add_tensor(f, "blk.%d.ple_norm_conv.weight", 0, 0, WIDE);
    add_tensor(f, "blk.%d.ple_conv1d.weight", 0, WIDE, TAPS);
    add_connection(f, "output_hc_", 0, false);
}

typedef void plan_fn(file_plan *f);
static plan_fn *const plans[] = {qwen2moe, qwen35, qwen4exp};
enum { N_PLANS = sizeof plans / sizeof *plans };

/* ---- tests ------------------------------------------------------------------------------------ */

static void test_good(void **state)
{
    (void)state;
    file_plan f;
    for (size_t i = 0; i < N_PLANS; i++) {
        plans[i](&f);
        assert_opens(&f);
    }
}

/* A key may be absent only where something else says what it would. */
static bool is_optional(const char *key)
{
    static const char *const keys[] = {
        "full_attention_interval",        /* 4: other layers then ask for other tensors */
        "expert_shared_feed_forward_length", /* no shared expert: its tensors are unknown */
        "nextn_predict_layers", "ple.layers", "attention.key_length", "attention.value_length", "rope.dimension_count",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strstr(key, keys[i])) return true;
    return false;
}

static void test_each_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_PLANS; i++) {
        file_plan all, f;
        char want[128];
        plans[i](&all);
        for (size_t k = 1; k < all.n_keys; k++) { /* after the architecture */
            const file_key *key = &all.keys[k];
            bool optional = is_optional(key->name);
            f = all;
            drop_key(&f, key->name);
            snprintf(want, sizeof want, "key '%s' is missing", key->name);
            if (!optional) assert_says(&f, QW_E_FORMAT, want);
            if (key->kind == 'l') continue;
            f = all;
            f.keys[k].number = key->kind == 'u' ? 4294967295.0 : 1e30; /* no parameter is so large */
            snprintf(want, sizeof want, "%s is ", key->name);
            assert_says(&f, QW_E_FORMAT, want);
        }
    }
}

static void test_each_tensor(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_PLANS; i++) {
        file_plan all, f;
        char want[160];
        plans[i](&all);
        for (size_t k = 0; k < all.n_tensors; k++) {
            const file_tensor *t = &all.tensors[k];
            /* without its projection a block for multi-token prediction is only a part of one, and left alone */
            bool whole = strstr(t->name, "nextn.eh_proj") == NULL;
            /* which block a layer gets is seen by its router */
            bool router = strstr(t->name, "ffn_gate_inp.weight") != NULL;
            f = all;
            drop_tensor(&f, t->name);
            snprintf(want, sizeof want, "%s is missing", t->name);
            if (whole && !router) assert_says(&f, QW_E_FORMAT, want);
            f = all;
            f.tensors[k].ne[t->n_dims - 1]++;
            if (strcmp(t->name, "token_embd.weight") == 0 || strcmp(t->name, "per_layer_token_embd.weight") == 0) {
                assert_opens(&f); /* a longer vocabulary, more n-grams */
                continue;
            }
            snprintf(want, sizeof want, "%s: want [", t->name);
            assert_says(&f, QW_E_FORMAT, want);
        }
    }
}

static void test_relations(void **state)
{
    (void)state;
    file_plan f;
    qwen35(&f);
    key(&f, "qwen35.ssm.time_step_rank")->number = 3;
    assert_says(&f, QW_E_FORMAT, "3 value heads over 2 key heads: want a whole number");
    qwen35(&f);
    key(&f, "qwen35.ssm.inner_size")->number = VALUE + 4;
    assert_says(&f, QW_E_FORMAT, "ssm.inner_size is 132: want a multiple of 16 for each of 4 value heads");
    qwen35(&f);
    key(&f, "qwen35.nextn_predict_layers")->number = 3;
    assert_says(&f, QW_E_FORMAT, "3 of 3 blocks are for multi-token prediction");
    qwen35(&f);
    key(&f, "qwen35.rope.dimension_count")->number = DIM + 2;
    assert_says(&f, QW_E_FORMAT, "rope.dimension_count is 18: want an even number up to the head dimension 16");
    qwen2moe(&f);
    key(&f, "qwen2moe.expert_used_count")->number = EXPERTS + 1;
    assert_says(&f, QW_E_FORMAT, "7 of 6 experts are used");
}

static void test_sparse_and_grams(void **state)
{
    (void)state;
    file_plan f;
    qwen4exp(&f);
    key(&f, "qwen4exp.attention.compress_ratios")->list[1] = 5;
    assert_says(&f, QW_E_FORMAT, "attention.compress_ratios are 5: want a divisor of 64");
    qwen4exp(&f);
    key(&f, "qwen4exp.attention.compress_ratios")->list[0] = 8;
    assert_says(&f, QW_E_FORMAT, "attention.compress_ratios differ: 8 and 4");
    qwen4exp(&f);
    key(&f, "qwen4exp.attention.indexer.top_k")->number = 3;
    assert_says(&f, QW_E_FORMAT, "attention.indexer.top_k is 3: want a block at least");
    qwen4exp(&f);
    key(&f, "qwen4exp.ple.head_offsets")->n_list = 3;
    assert_says(&f, QW_E_FORMAT, "have 3, 3 and 4 entries: want 3, 4 and 4");
    qwen4exp(&f);
    key(&f, "qwen4exp.ple.layers")->list[0] = 2;
    assert_says(&f, QW_E_FORMAT, "qwen4exp.ple.layers holds 2, want 0 to 1");
    qwen4exp(&f);
    key(&f, "qwen4exp.ple.head_vocab_sizes")->list[3] = 31;
    assert_says(&f, QW_E_FORMAT, "per_layer_token_embd.weight: want [101 or more,8], file has [100,8]");
    qwen4exp(&f);
    key(&f, "qwen4exp.ple.layer_multipliers")->list[2] = INT64_MAX / 16;
    assert_says(&f, QW_E_FORMAT, "leaves 63 bits");
}

/* Parts of a block for multi-token prediction do no harm; a whole one is found. */
static void test_mtp(void **state)
{
    (void)state;
    file_plan f;
    qw_gguf *g;
    qw_net *net;
    qwen35(&f);
    assert_int_equal(qw_gguf_open(save(&f), &g, NULL), QW_OK);
    assert_int_equal(qw_net_open(g, &net, NULL), QW_OK);
    assert_non_null(net->mtp);
    assert_int_equal(net->n_kv_layers, 1);
    assert_int_equal(net->mtp->layer.kv_index, 1);
    qw_net_close(net);
    qw_gguf_close(g);
    drop_tensor(&f, "blk.2.nextn.eh_proj.weight");
    assert_int_equal(qw_gguf_open(save(&f), &g, NULL), QW_OK);
    assert_int_equal(qw_net_open(g, &net, NULL), QW_OK);
    assert_null(net->mtp);
    qw_net_close(net);
    qw_gguf_close(g);
}

/* Gate and up rows in one tensor; q, k and v in one. */
static void test_joined(void **state)
{
    (void)state;
    file_plan f;
    qw_gguf *g;
    qw_net *net;
    qwen2moe(&f);
    drop_tensor(&f, "blk.0.ffn_gate_exps.weight");
    drop_tensor(&f, "blk.0.ffn_up_exps.weight");
    add_stack(&f, "blk.%d.ffn_gate_up_exps.weight", 0, EXPERTS, 2 * EXPERT_FFN, HIDDEN);
    static const char *const apart[] = {"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q.bias", "attn_k.bias",
                                        "attn_v.bias"};
    for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.0.%s", apart[i]);
        drop_tensor(&f, name);
    }
    add_tensor(&f, "blk.%d.attn_qkv.weight", 0, (HEADS + 2 * KV_HEADS) * DIM, HIDDEN);
    add_tensor(&f, "blk.%d.attn_qkv.bias", 0, 0, (HEADS + 2 * KV_HEADS) * DIM);
    assert_int_equal(qw_gguf_open(save(&f), &g, NULL), QW_OK);
    assert_int_equal(qw_net_open(g, &net, NULL), QW_OK);
    const qw_layer *l = &net->layers[0];
    size_t row = HIDDEN * sizeof(float);
    assert_ptr_equal(qw_weight_row(&l->moe.experts.up, 0, 0), qw_weight_row(&l->moe.experts.gate, 0, EXPERT_FFN));
    assert_ptr_equal(qw_weight_row(&l->moe.experts.gate, 1, 0), qw_weight_row(&l->moe.experts.up, 0, EXPERT_FFN));
    assert_ptr_equal(l->attn.k.data, l->attn.q.data + HEADS * DIM * row);
    assert_ptr_equal(l->attn.v.data, l->attn.k.data + KV_HEADS * DIM * row);
    assert_ptr_equal(l->attn.bv, l->attn.bq + (HEADS + KV_HEADS) * DIM);
    qw_net_close(net);
    qw_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),      cmocka_unit_test(test_each_key),         cmocka_unit_test(test_each_tensor),
        cmocka_unit_test(test_relations), cmocka_unit_test(test_sparse_and_grams), cmocka_unit_test(test_mtp),
        cmocka_unit_test(test_joined),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
