/* top.h: the few most probable tokens of a row of logits, for little more than reading it once.
 *
 * Any thread.
 */
#ifndef QW_ENGINE_TOP_H
#define QW_ENGINE_TOP_H

#include <stddef.h>
#include <stdint.h>

enum { QW_TOP_MAX = 8 };

typedef struct qw_top {
    float logit;
    int32_t token;
} qw_top;

/* The k <= QW_TOP_MAX largest of logits [n] into out [k], largest first, of equals the lower id. -INFINITY and what is no
 * number never count. Returns how many there are. Allocates nothing. */
size_t qw_top_of(const float *logits, size_t n, size_t k, qw_top *out);

/* The first one's probability among these n >= 1, which is at least its probability among all. */
double qw_top_share(const qw_top *top, size_t n);

#endif
