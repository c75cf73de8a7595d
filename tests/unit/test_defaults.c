/* test_defaults.c: what a request leaves open about sampling: the table of model cards, a file's own values, and which of
 * them counts.
 *
 * The files are made here; they hold keys and a tensor, nothing that could compute.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "engine/model.h"
#include "engine/request.h"

#include "net_file.h"

static void assert_sampling(const qw_sampling *s, float temperature, float top_p, int top_k, float presence,
                            float repetition)
{
    assert_true(s->temperature == temperature && s->top_p == top_p && s->presence_penalty == presence &&
                s->repetition_penalty == repetition && s->min_p == 0 && s->frequency_penalty == 0);
    assert_int_equal(s->top_k, top_k);
}

/* A row of the table of docs/chat.md each. */
static void test_cards(void **state)
{
    (void)state;
    static const struct {
        qw_chat_format format;
        bool thinks, experts;
        float temperature, top_p;
        int top_k;
        float presence, repetition;
    } rows[] = {
        {QW_CHAT_NONE, false, false, 0.7f, 0.8f, 20, 0, 1.05f},
        {QW_CHAT_QWEN2, false, false, 0.7f, 0.8f, 20, 0, 1.05f},
        {QW_CHAT_QWEN25, false, false, 0.7f, 0.8f, 20, 0, 1.05f},
        {QW_CHAT_QWQ, true, false, 0.6f, 0.95f, 40, 0, 1},
        {QW_CHAT_QWEN3, true, false, 0.6f, 0.95f, 20, 0, 1},
        {QW_CHAT_QWEN3, false, true, 0.7f, 0.8f, 20, 0, 1},
        {QW_CHAT_QWEN3_THINKING, true, true, 0.6f, 0.95f, 20, 0, 1},
        {QW_CHAT_QWEN3_INSTRUCT, false, true, 0.7f, 0.8f, 20, 0, 1},
        {QW_CHAT_QWEN3_CODER, false, true, 0.7f, 0.8f, 20, 0, 1.05f},
        {QW_CHAT_QWEN3_CODER_NEXT, false, true, 1, 0.95f, 40, 0, 1},
        {QW_CHAT_QWEN35, true, true, 1, 0.95f, 20, 1.5f, 1},
        {QW_CHAT_QWEN35, false, false, 0.7f, 0.8f, 20, 1.5f, 1},
        {QW_CHAT_QWEN36, true, false, 1, 0.95f, 20, 0, 1},
        {QW_CHAT_QWEN36, true, true, 1, 0.95f, 20, 1.5f, 1},
        {QW_CHAT_QWEN36, false, false, 0.7f, 0.8f, 20, 1.5f, 1},
        {QW_CHAT_QWEN38, true, true, 1, 0.95f, 20, 0, 1},
        {QW_CHAT_QWEN38, false, false, 0.7f, 0.8f, 20, 1.5f, 1},
        {QW_CHAT_QWEN38_MAX, true, true, 1, 0.95f, 20, 0, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_sampling(qw_sampling_recommended(rows[i].format, rows[i].thinks, rows[i].experts), rows[i].temperature,
                        rows[i].top_p, rows[i].top_k, rows[i].presence, rows[i].repetition);
    }
    for (int f = 0; f < QW_CHAT_FORMATS; f++) { /* nothing is left open, whatever is asked for */
        for (int k = 0; k < 4; k++) {
            qw_err err;
            assert_int_equal(qw_sampling_check(qw_sampling_recommended((qw_chat_format)f, k & 1, k & 2), 10, &err), QW_OK);
        }
    }
}

/* Reads what a file with these keys says. */
static qw_status read_file(const file_plan *f, qw_sampling *out, qw_err *err)
{
    qw_gguf *g;
    if (qw_gguf_open(save(f), &g, err) != QW_OK) fail_msg("%s", err->text);
    qw_status status = qw_sampling_read(g, out, err);
    qw_gguf_close(g);
    return status;
}

static void test_file(void **state)
{
    (void)state;
    qw_sampling s;
    qw_err err;
    file_plan f = {0};
    add_tensor(&f, "token_embd.weight", 0, 2, 32);
    assert_int_equal(read_file(&f, &s, &err), QW_OK);
    assert_true(isnan(s.temperature) && isnan(s.top_p) && isnan(s.min_p) && isnan(s.repetition_penalty));
    assert_int_equal(s.top_k, QW_TOP_K_MODEL);
    add_number(&f, "general.sampling.temp", 'f', 0.5);
    add_number(&f, "general.sampling.top_k", 'u', 33);
    add_number(&f, "general.sampling.top_p", 'f', 0.75);
    add_number(&f, "general.sampling.min_p", 'f', 0.125);
    add_number(&f, "general.sampling.penalty_repeat", 'f', 1.25);
    assert_int_equal(read_file(&f, &s, &err), QW_OK);
    assert_true(s.temperature == 0.5f && s.top_p == 0.75f && s.min_p == 0.125f && s.repetition_penalty == 1.25f);
    assert_true(isnan(s.presence_penalty) && isnan(s.frequency_penalty));
    assert_int_equal(s.top_k, 33);
    static const struct {
        const char *key;
        double bad;
    } rows[] = {{"general.sampling.temp", -1}, {"general.sampling.top_p", 1.5}, {"general.sampling.min_p", -0.5},
                {"general.sampling.penalty_repeat", 0}, {"general.sampling.top_k", 4e9}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        file_key *k = key(&f, rows[i].key);
        double good = k->number;
        k->number = rows[i].bad;
        assert_int_equal(read_file(&f, &s, &err), QW_E_FORMAT);
        assert_non_null(strstr(err.text, rows[i].key));
        k->number = good;
    }
}

static qw_sampling resolve(const qw_model *m, qw_request r)
{
    r.sampling = qw_sampling_open;
    return qw_request_sampling(m, &r);
}

/* A file's values count in the mode that the model is in by itself; what is given counts always. */
static void test_order(void **state)
{
    (void)state;
    qw_net net = {0};
    qw_model m = {.chat = QW_CHAT_QWEN3, .net = &net, .sampling = qw_sampling_open};
    m.sampling.temperature = 0.25f;
    m.sampling.top_k = 7;
    qw_sampling s = resolve(&m, (qw_request){.kind = QW_PROMPT_CHAT});
    assert_sampling(&s, 0.25f, 0.95f, 7, 0, 1);
    s = resolve(&m, (qw_request){.kind = QW_PROMPT_CHAT, .chat.thinking = QW_SWITCH_ON});
    assert_sampling(&s, 0.25f, 0.95f, 7, 0, 1);
    s = resolve(&m, (qw_request){.kind = QW_PROMPT_CHAT, .chat.thinking = QW_SWITCH_OFF});
    assert_sampling(&s, 0.7f, 0.8f, 20, 0, 1);
    s = resolve(&m, (qw_request){.kind = QW_PROMPT_RAW, .chat.thinking = QW_SWITCH_OFF}); /* raw text does not switch */
    assert_sampling(&s, 0.25f, 0.95f, 7, 0, 1);
    m.chat = QW_CHAT_QWEN3_THINKING; /* cannot be switched off: it still thinks */
    s = resolve(&m, (qw_request){.kind = QW_PROMPT_CHAT, .chat.thinking = QW_SWITCH_OFF});
    assert_sampling(&s, 0.25f, 0.95f, 7, 0, 1);
    qw_request given = {.sampling = qw_sampling_open};
    given.sampling.temperature = 0;
    given.sampling.top_k = 0;
    given.sampling.presence_penalty = 0.5f;
    s = qw_request_sampling(&m, &given);
    assert_sampling(&s, 0, 0.95f, 0, 0.5f, 1);
    qw_request fresh = qw_request_default(&m);
    s = qw_request_sampling(&m, &fresh);
    assert_sampling(&s, 0.25f, 0.95f, 7, 0, 1);
    assert_int_equal(s.top_logprobs, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cards),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_order),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
