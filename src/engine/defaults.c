/* defaults.c: see defaults.h. The numbers are those of the model cards; docs/chat.md has the table for people. */
#include "engine/defaults.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

const qw_sampling qw_sampling_open = {.temperature = NAN, .top_k = QW_TOP_K_MODEL, .top_p = NAN, .min_p = NAN,
                                      .repetition_penalty = NAN, .presence_penalty = NAN, .frequency_penalty = NAN,
                                      .top_logprobs = -1};

/* ---- the table -------------------------------------------------------------------------------- */

typedef enum mode { ANSWERS = 1, THINKS = 2, EITHER = 3 } mode;
typedef enum layers { DENSE = 1, EXPERTS = 2, ANY = 3 } layers;

#define CARD(t, p, k, presence, repetition)                                                            \
    {.temperature = (t), .top_p = (p), .top_k = (k), .presence_penalty = (presence), .repetition_penalty = (repetition)}

/* The first row that fits. */
static const struct {
    qw_chat_format format;
    mode mode;
    layers layers;
    qw_sampling sampling;
} cards[] = {
    {QW_CHAT_QWQ, EITHER, ANY, CARD(0.6f, 0.95f, 40, 0, 1)},
    {QW_CHAT_QWQ_LAST, EITHER, ANY, CARD(0.6f, 0.95f, 40, 0, 1)},
    {QW_CHAT_QWEN3, THINKS, ANY, CARD(0.6f, 0.95f, 20, 0, 1)},
    {QW_CHAT_QWEN3, ANSWERS, ANY, CARD(0.7f, 0.8f, 20, 0, 1)},
    {QW_CHAT_QWEN3_THINKING, EITHER, ANY, CARD(0.6f, 0.95f, 20, 0, 1)},
    {QW_CHAT_QWEN3_INSTRUCT, EITHER, ANY, CARD(0.7f, 0.8f, 20, 0, 1)},
    {QW_CHAT_QWEN3_SPLITS, EITHER, ANY, CARD(0.7f, 0.8f, 20, 0, 1)},
    {QW_CHAT_QWEN3_CODER_NEXT, EITHER, ANY, CARD(1, 0.95f, 40, 0, 1)},
    {QW_CHAT_QWEN35, THINKS, ANY, CARD(1, 0.95f, 20, 1.5f, 1)},
    {QW_CHAT_QWEN35, ANSWERS, ANY, CARD(0.7f, 0.8f, 20, 1.5f, 1)},
    {QW_CHAT_QWEN36, THINKS, EXPERTS, CARD(1, 0.95f, 20, 1.5f, 1)},
    {QW_CHAT_QWEN36, THINKS, DENSE, CARD(1, 0.95f, 20, 0, 1)},
    {QW_CHAT_QWEN36, ANSWERS, ANY, CARD(0.7f, 0.8f, 20, 1.5f, 1)},
    {QW_CHAT_QWEN38, THINKS, ANY, CARD(1, 0.95f, 20, 0, 1)},
    {QW_CHAT_QWEN38, ANSWERS, ANY, CARD(0.7f, 0.8f, 20, 1.5f, 1)},
    {QW_CHAT_QWEN38_MAX, EITHER, ANY, CARD(1, 0.95f, 20, 0, 1)},
};
/* Qwen2, Qwen2.5 with its siblings, Qwen3-Coder; and models without a chat format. */
static const qw_sampling other_card = CARD(0.7f, 0.8f, 20, 0, 1.05f);

const qw_sampling *qw_sampling_recommended(qw_chat_format format, bool thinks, bool experts)
{
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        if (cards[i].format == format && cards[i].mode & (thinks ? THINKS : ANSWERS) &&
            cards[i].layers & (experts ? EXPERTS : DENSE))
            return &cards[i].sampling;
    }
    return &other_card;
}

/* ---- open values ------------------------------------------------------------------------------ */

static const size_t floats[] = {
    offsetof(qw_sampling, temperature),       offsetof(qw_sampling, top_p),
    offsetof(qw_sampling, min_p),             offsetof(qw_sampling, repetition_penalty),
    offsetof(qw_sampling, presence_penalty),  offsetof(qw_sampling, frequency_penalty)};

void qw_sampling_fill(qw_sampling *to, const qw_sampling *from)
{
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        float have;
        memcpy(&have, (const char *)to + floats[i], sizeof have);
        if (isnan(have)) memcpy((char *)to + floats[i], (const char *)from + floats[i], sizeof have);
    }
    if (to->top_k == QW_TOP_K_MODEL) to->top_k = from->top_k;
}

/* ---- the file --------------------------------------------------------------------------------- */

static const struct {
    const char *key;
    size_t offset;
    double min, max;
} keys[] = {
    {"general.sampling.temp", offsetof(qw_sampling, temperature), 0, 100},
    {"general.sampling.top_p", offsetof(qw_sampling, top_p), 0, 1},
    {"general.sampling.min_p", offsetof(qw_sampling, min_p), 0, 1},
    {"general.sampling.penalty_repeat", offsetof(qw_sampling, repetition_penalty), 0.01, 100},
};
static const char top_k_key[] = "general.sampling.top_k";

qw_status qw_sampling_read(const qw_gguf *file, qw_sampling *out, qw_err *err)
{
    *out = qw_sampling_open;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double v;
        if (!qw_gguf_has(file, keys[i].key)) continue;
        QW_TRY(qw_gguf_get_f64(file, keys[i].key, &v, err));
        if (!(v >= keys[i].min && v <= keys[i].max)) {
            return qw_fail(err, QW_E_FORMAT, "%s: %s is %g, want %g to %g", qw_gguf_path(file), keys[i].key, v,
                           keys[i].min, keys[i].max);
        }
        memcpy((char *)out + keys[i].offset, &(float){(float)v}, sizeof(float));
    }
    if (!qw_gguf_has(file, top_k_key)) return QW_OK;
    uint64_t k;
    QW_TRY(qw_gguf_get_u64(file, top_k_key, &k, err));
    if (k > INT32_MAX) return qw_fail(err, QW_E_FORMAT, "%s: %s is too large", qw_gguf_path(file), top_k_key);
    out->top_k = (int32_t)k;
    return QW_OK;
}
