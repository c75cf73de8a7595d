/* sampler.c: see sampler.h. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define BIAS_MAX 1e6f /* sums and penalties on it stay finite */

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct qw_sampler {
    uint32_t n_vocab;
    candidate *candidates; /* [n_vocab] */
    double *weights;       /* [n_vocab]: of the candidates, relative to the best one */
    float *raw;            /* [n_vocab]: the model's own logits, while log-probabilities are wanted */
};

/* A token that penalties look at. */
typedef struct seen_token {
    int32_t id;
    uint32_t n_generated; /* in the answer; 0: only in the prompt */
} seen_token;

struct qw_sampling_run {
    qw_sampling p;
    qw_logit_bias *bias;   /* owns */
    bool penalised;        /* else nothing is noted */
    seen_token *seen;      /* [n_seen], owns; in order of first sight */
    size_t n_seen, n_seen_max;
    uint32_t *table;       /* [n_table], owns: a power of two; index into seen + 1, or 0 */
    size_t n_table;
};

qw_status qw_sampler_create(uint32_t n_vocab, qw_sampler **out, qw_err *err)
{
    qw_sampler *s = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "sampler", err));
    s->n_vocab = n_vocab;
    QW_TRY_GOTO(qw_alloc(&s->candidates, n_vocab, sizeof *s->candidates, "sampler", err));
    QW_TRY_GOTO(qw_alloc(&s->weights, n_vocab, sizeof *s->weights, "sampler", err));
    QW_TRY_GOTO(qw_alloc(&s->raw, n_vocab, sizeof *s->raw, "sampler", err));
    *out = s;
    return QW_OK;
fail:
    qw_sampler_destroy(s);
    return status;
}

void qw_sampler_destroy(qw_sampler *s)
{
    if (!s) return;
    free(s->candidates);
    free(s->weights);
    free(s->raw);
    free(s);
}

typedef struct range_rule {
    const char *name;
    size_t offset; /* of a float in qw_sampling */
    float min, max;
} range_rule;

static const range_rule ranges[] = {
    {"temperature", offsetof(qw_sampling, temperature), 0, 100},
    {"top_p", offsetof(qw_sampling, top_p), 0, 1},
    {"min_p", offsetof(qw_sampling, min_p), 0, 1},
    {"repetition_penalty", offsetof(qw_sampling, repetition_penalty), 0.01f, 100},
    {"presence_penalty", offsetof(qw_sampling, presence_penalty), -100, 100},
    {"frequency_penalty", offsetof(qw_sampling, frequency_penalty), -100, 100},
};

qw_status qw_sampling_check(const qw_sampling *p, uint32_t n_vocab, qw_err *err)
{
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        float v;
        memcpy(&v, (const char *)p + ranges[i].offset, sizeof v);
        if (!(v >= ranges[i].min && v <= ranges[i].max)) {
            return qw_fail(err, QW_E_ARG, "%s is %g, want %g to %g", ranges[i].name, (double)v,
                           (double)ranges[i].min, (double)ranges[i].max);
        }
    }
    if (p->top_k < 0) return qw_fail(err, QW_E_ARG, "top_k is %d, want 0 (off) or more", p->top_k);
    if (p->top_logprobs < -1 || p->top_logprobs > QW_TOP_LOGPROBS_MAX) {
        return qw_fail(err, QW_E_ARG, "top_logprobs is %d, want 0 to %d", p->top_logprobs, QW_TOP_LOGPROBS_MAX);
    }
    if (p->n_bias > QW_LOGIT_BIAS_MAX) {
        return qw_fail(err, QW_E_ARG, "logit_bias has %zu entries, at most %d are allowed", p->n_bias,
                       QW_LOGIT_BIAS_MAX);
    }
    for (size_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].token < 0 || (uint32_t)p->bias[i].token >= n_vocab) {
            return qw_fail(err, QW_E_ARG, "logit_bias names token %d, the vocabulary has 0 to %u", p->bias[i].token,
                           n_vocab - 1);
        }
        if (!(fabsf(p->bias[i].bias) <= BIAS_MAX)) {
            return qw_fail(err, QW_E_ARG, "logit_bias of token %d is %g, want -%g to %g", p->bias[i].token,
                           (double)p->bias[i].bias, (double)BIAS_MAX, (double)BIAS_MAX);
        }
    }
    return QW_OK;
}

/* ---- what an answer has seen ------------------------------------------------------------------ */

/* The token's entry, made when there is none. */
static seen_token *see(qw_sampling_run *run, int32_t token)
{
    size_t at = ((uint32_t)token * 0x9E3779B1u >> 7) & (run->n_table - 1);
    for (; run->table[at]; at = (at + 1) & (run->n_table - 1)) {
        seen_token *t = &run->seen[run->table[at] - 1];
        if (t->id == token) return t;
    }
    QW_ASSERT(run->n_seen < run->n_seen_max);
    run->seen[run->n_seen++] = (seen_token){.id = token};
    run->table[at] = (uint32_t)run->n_seen;
    return &run->seen[run->n_seen - 1];
}

size_t qw_sampling_run_bytes(uint32_t n_vocab, size_t n_tokens)
{
    size_t n_seen = n_tokens < n_vocab ? n_tokens : n_vocab, n_table = 1;
    while (n_table < 2 * n_seen) n_table *= 2;
    return sizeof(qw_sampling_run) + QW_LOGIT_BIAS_MAX * sizeof(qw_logit_bias) + n_seen * sizeof(seen_token) +
           n_table * sizeof(uint32_t);
}

qw_status qw_sampling_run_create(const qw_sampling *p, uint32_t n_vocab, const int32_t *prompt, size_t n_prompt,
                                 size_t n_answer_max, qw_sampling_run **out, qw_err *err)
{
    qw_sampling_run *run = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&run, 1, sizeof *run, "sampling", err));
    run->p = *p;
    run->penalised = p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    run->n_seen_max = !run->penalised ? 0 : n_prompt + n_answer_max < n_vocab ? n_prompt + n_answer_max : n_vocab;
    for (run->n_table = 1; run->n_table < 2 * run->n_seen_max; run->n_table *= 2) {}
    QW_TRY_GOTO(qw_alloc(&run->bias, p->n_bias, sizeof *run->bias, "logit bias", err));
    QW_TRY_GOTO(qw_alloc(&run->seen, run->n_seen_max, sizeof *run->seen, "sampling", err));
    QW_TRY_GOTO(qw_alloc(&run->table, run->n_table, sizeof *run->table, "sampling", err));
    if (p->n_bias) memcpy(run->bias, p->bias, p->n_bias * sizeof *run->bias);
    run->p.bias = run->bias;
    for (size_t i = 0; run->penalised && i < n_prompt; i++)
        if (prompt[i] >= 0 && (uint32_t)prompt[i] < n_vocab) see(run, prompt[i]);
    *out = run;
    return QW_OK;
fail:
    qw_sampling_run_destroy(run);
    return status;
}

void qw_sampling_run_destroy(qw_sampling_run *run)
{
    if (!run) return;
    free(run->bias);
    free(run->seen);
    free(run->table);
    free(run);
}

void qw_sampling_run_accept(qw_sampling_run *run, int32_t token)
{
    if (run->penalised) see(run, token)->n_generated++;
}

/* ---- draws ------------------------------------------------------------------------------------ */

/* splitmix64 of the pair; its top 53 bits make a double. */
double qw_sampler_uniform(uint64_t seed, uint64_t position)
{
    uint64_t z = seed * 0x9E3779B97F4A7C15u + (position + 1) * 0xD1B54A32D192ED03u;
    for (int i = 0; i < 2; i++) {
        z ^= z >> 30;
        z *= 0xBF58476D1CE4E5B9u;
        z ^= z >> 27;
        z *= 0x94D049BB133111EBu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) * 0x1.0p-53;
}

static void apply_bias(const qw_sampling *p, float *logits)
{
    for (size_t i = 0; i < p->n_bias; i++) {
        float *l = &logits[p->bias[i].token];
        *l = p->bias[i].bias <= -100 ? -INFINITY : *l + p->bias[i].bias;
    }
}

/* Repetition as in the CTRL paper (divide a positive logit, multiply a negative one); presence and frequency as
 * the OpenAI interface defines them, over generated tokens. */
static void apply_penalties(const qw_sampling_run *run, float *logits)
{
    const qw_sampling *p = &run->p;
    for (const seen_token *t = run->seen; t < run->seen + run->n_seen; t++) {
        float l = logits[t->id];
        l = l > 0 ? l / p->repetition_penalty : l * p->repetition_penalty;
        if (t->n_generated) l -= p->presence_penalty + p->frequency_penalty * (float)t->n_generated;
        logits[t->id] = l;
    }
}

static bool before(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int compare(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return before(*x, *y) ? -1 : before(*y, *x) ? 1 : 0;
}

static void sift_down(candidate *heap, size_t n, size_t i)
{
    for (;;) {
        size_t worst = i, l = 2 * i + 1;
        if (l < n && before(heap[worst], heap[l])) worst = l;
        if (l + 1 < n && before(heap[worst], heap[l + 1])) worst = l + 1;
        if (worst == i) return;
        candidate t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

/* The k best of logits into out, best first; -INFINITY never counts. A heap keeps the worst of the best at its
 * root, so almost every logit costs one comparison. Returns how many there are. */
static size_t select_best(const float *logits, size_t n, size_t k, candidate *out)
{
    size_t n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        candidate c = {logits[i], (int32_t)i};
        if (n_heap == k) {
            if (!(c.logit > out[0].logit)) continue; /* of equals the earlier id is already in */
            out[0] = c;
            sift_down(out, k, 0);
        } else if (c.logit > -INFINITY) {
            out[n_heap++] = c;
            if (n_heap == k) {
                for (size_t j = k / 2; j-- > 0;) sift_down(out, k, j);
            }
        }
    }
    qsort(out, n_heap, sizeof *out, compare);
    return n_heap;
}

/* 0 when nothing is above -INFINITY; what is no number (damaged weights) never wins. */
static int32_t argmax(const float *logits, size_t n)
{
    size_t best = 0;
    float most = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        if (logits[i] > most) most = logits[best = i];
    }
    return (int32_t)best;
}

/* Sum of exp((l - max) * scale). */
static double sum_exp(const float *logits, size_t n, double scale, float max)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)(logits[i] - max) * scale);
    return sum;
}

/* Nothing is cut: all candidates, in the order of their ids, since sorting a vocabulary costs more than a token. */
static size_t keep_all(qw_sampler *s, const float *logits, double inv_t)
{
    size_t n = 0;
    float max = logits[argmax(logits, s->n_vocab)];
    for (size_t i = 0; i < s->n_vocab; i++) {
        if (!(logits[i] > -INFINITY)) continue;
        s->candidates[n] = (candidate){logits[i], (int32_t)i};
        s->weights[n++] = exp((double)(logits[i] - max) * inv_t);
    }
    return n;
}

/* Candidates that top-k, top-p and min-p leave, best first, with weights relative to the best one. Without
 * top-k the nucleus is found by taking more and more of the best until their share reaches top_p. */
static size_t keep(qw_sampler *s, const qw_sampling *p, const float *logits)
{
    double inv_t = 1 / (double)p->temperature; /* finite for the smallest float there is */
    size_t n = 0, n_kept = 0;
    size_t k = p->top_k > 0 && (uint32_t)p->top_k < s->n_vocab ? (size_t)p->top_k : s->n_vocab;
    bool by_k = k < s->n_vocab;
    double total = 0;
    if (!by_k && p->top_p >= 1 && p->min_p == 0) return keep_all(s, logits, inv_t);
    for (size_t take = by_k ? k : 128;; take = take * 16 < k ? take * 16 : k) {
        n = select_best(logits, s->n_vocab, take < k ? take : k, s->candidates);
        if (n == 0) return 0;
        float max = s->candidates[0].logit;
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            s->weights[i] = exp((double)(s->candidates[i].logit - max) * inv_t);
            sum += s->weights[i];
        }
        if (by_k) total = sum; /* top-p is over what top-k left */
        else if (total == 0) total = sum_exp(logits, s->n_vocab, inv_t, max);
        if (by_k || n < take || take >= k) break;
        bool nucleus_inside = sum >= (double)p->top_p * total && p->top_p < 1;
        bool floor_inside = p->min_p > 0 && s->weights[n - 1] < (double)p->min_p;
        if (nucleus_inside || floor_inside) break;
    }
    double cumulative = 0;
    for (; n_kept < n; n_kept++) {
        if (n_kept > 0 && p->top_p < 1 && cumulative >= (double)p->top_p * total) break;
        if (s->weights[n_kept] < (double)p->min_p) break; /* the best has weight 1 and always stays */
        cumulative += s->weights[n_kept];
    }
    return n_kept;
}

static int32_t draw(qw_sampler *s, const qw_sampling *p, const float *logits, uint64_t position)
{
    size_t n = keep(s, p, logits), i = 0;
    double sum = 0, cumulative = 0;
    if (n == 0) return argmax(logits, s->n_vocab); /* everything is banned: still answer, deterministically */
    for (size_t j = 0; j < n; j++) sum += s->weights[j];
    double target = qw_sampler_uniform(p->seed, position) * sum;
    for (; i + 1 < n; i++) {
        cumulative += s->weights[i];
        if (target < cumulative) break;
    }
    return s->candidates[i].id;
}

/* Log of the sum of exp over the model's own logits, and the most probable tokens. */
static double model_logprobs(qw_sampler *s, int32_t n_top, const float *logits, qw_sample *out)
{
    float max = logits[argmax(logits, s->n_vocab)];
    double log_total = (double)max + log(sum_exp(logits, s->n_vocab, 1, max));
    out->n_top = n_top > 0 ? select_best(logits, s->n_vocab, (size_t)n_top, s->candidates) : 0;
    for (size_t i = 0; i < out->n_top; i++) {
        out->top[i].token = s->candidates[i].id;
        out->top[i].logprob = (float)((double)s->candidates[i].logit - log_total);
    }
    return log_total;
}

void qw_sampler_draw(qw_sampler *s, const qw_sampling_run *run, float *logits, uint64_t position, qw_sample *out)
{
    const qw_sampling *p = &run->p;
    bool want_logprobs = p->top_logprobs >= 0;
    double log_total = 0;
    *out = (qw_sample){0};
    if (want_logprobs) {
        memcpy(s->raw, logits, s->n_vocab * sizeof *logits);
        log_total = model_logprobs(s, p->top_logprobs, s->raw, out);
    }
    apply_bias(p, logits);
    apply_penalties(run, logits);
    out->token = p->temperature == 0 ? argmax(logits, s->n_vocab) : draw(s, p, logits, position);
    if (want_logprobs) out->logprob = (float)((double)s->raw[out->token] - log_total);
}
