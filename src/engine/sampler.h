/* sampler.h: from logits to a token.
 *
 * Order of work: bias, penalties, temperature, top-k, top-p, min-p, draw. The random number of a draw is a
 * function of (seed, position), so the same request gives the same text on any thread count and in any batch.
 * Ties go to the lower id. A qw_sampling_run is what one answer has drawn so far, a qw_sampler the arrays that a draw needs,
 * shared by all answers of an engine. Draws do not allocate. Engine thread only; a run may be made by any thread.
 */
#ifndef QW_ENGINE_SAMPLER_H
#define QW_ENGINE_SAMPLER_H

#include "qw.h"

#include "base/status.h"

typedef struct qw_sampler qw_sampler;
typedef struct qw_sampling_run qw_sampling_run;

typedef struct qw_sample {
    int32_t token;
    float logprob;                           /* of the model's distribution; 0 unless logprobs were asked */
    qw_top_logprob top[QW_TOP_LOGPROBS_MAX];
    size_t n_top;
} qw_sample;

qw_status qw_sampler_create(uint32_t n_vocab, qw_sampler **out, qw_err *err) QW_MUST_CHECK;
void qw_sampler_destroy(qw_sampler *s);
/* Every number in range, every bias token in the vocabulary, or QW_E_ARG naming the field. */
qw_status qw_sampling_check(const qw_sampling *p, uint32_t n_vocab, qw_err *err) QW_MUST_CHECK;
/* An answer of at most n_answer_max tokens to a prompt. Copies the parameters, which were checked, with the bias array. */
qw_status qw_sampling_run_create(const qw_sampling *p, uint32_t n_vocab, const int32_t *prompt, size_t n_prompt,
                                 size_t n_answer_max, qw_sampling_run **out, qw_err *err) QW_MUST_CHECK;
size_t qw_sampling_run_bytes(uint32_t n_vocab, size_t n_tokens); /* at most, with prompt and answer of n_tokens together */
void qw_sampling_run_destroy(qw_sampling_run *run);
/* Chooses the token at `position` (its index in the sequence). logits [n_vocab] are overwritten; -INFINITY bans
 * a token. */
void qw_sampler_draw(qw_sampler *s, const qw_sampling_run *run, float *logits, uint64_t position, qw_sample *out);
/* Notes a token of the answer, for the penalties. */
void qw_sampling_run_accept(qw_sampling_run *run, int32_t token);

/* The uniform number in [0, 1) that a draw at a position uses. */
double qw_sampler_uniform(uint64_t seed, uint64_t position);

#endif
