/* divergence.h: how far a model's predictions are from those of a reference, on the same text.
 *
 * Both models read the text side by side, and their logits are compared position by position and forgotten: of a reference's
 * logits a text of a thousand tokens would be hundreds of megabytes. The divergence of a position is that of Kullback and
 * Leibler, sum of p (log p - log q) over the vocabulary, p being the reference's probabilities, in nats. One thread calls.
 */
#ifndef QW_TOOLS_DIVERGENCE_H
#define QW_TOOLS_DIVERGENCE_H

#include "tools/compute.h"

/* Sums over all positions; zero-initialise. */
typedef struct qw_divergence {
    size_t n, cap;
    double *kl;                   /* [n], owns: of each position, in order until qw_divergence_sort */
    double sum, sum_squared;      /* of kl */
    double nll, nll_squared, nll_reference; /* of the text's tokens */
    double change, change_squared; /* of the probability of the text's token */
    size_t n_same_top;            /* positions where both think the same token the most probable */
} qw_divergence;

/* Adds the scored positions (windows.h) of one window. Both models have the same vocabulary and room for a window.
 * QW_E_CORRUPT: a logit is no number. */
qw_status qw_divergence_add(qw_divergence *d, qw_compute *model, qw_compute *reference, const int32_t *ids, size_t window,
                            qw_err *err) QW_MUST_CHECK;
void qw_divergence_sort(qw_divergence *d);
/* After qw_divergence_sort: what a share of all positions is at most, between two of them in proportion. n > 0. */
double qw_divergence_quantile(const qw_divergence *d, double share);
void qw_divergence_free(qw_divergence *d);

#endif
