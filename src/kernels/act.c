/* act.c: records of activations: their sizes, and what quantisation lost. Layouts: pack_layout.h. Pure functions, any
 * thread.
 */
#include "base/status.h"
#include "kernels/pack_layout.h"

static const size_t act_group[QW_ACT_COUNT] = {[QW_ACT_Q8_32] = 32, [QW_ACT_Q8_256] = 256, [QW_ACT_F32] = 1};
static const size_t act_size[QW_ACT_COUNT] = {
    [QW_ACT_Q8_32] = sizeof(qw_act32),
    [QW_ACT_Q8_256] = sizeof(qw_act256),
    [QW_ACT_F32] = sizeof(float),
};

/* Records so far apart, or a multiple, meet in the same few lines of an L1 cache, which has 8 to 12 places for them. */
enum { CROWDED = 1024 };

size_t qw_act_bytes(qw_act act, size_t k)
{
    QW_ASSERT(act < QW_ACT_COUNT && k % act_group[act] == 0);
    size_t bytes = (k / act_group[act] * act_size[act] + QW_LINE - 1) / QW_LINE * QW_LINE;
    return bytes % CROWDED == 0 ? bytes + QW_LINE : bytes;
}

size_t qw_act_record_bytes(qw_act act)
{
    QW_ASSERT(act < QW_ACT_COUNT);
    return act_size[act];
}

size_t qw_act_group(qw_act act)
{
    QW_ASSERT(act < QW_ACT_COUNT);
    return act_group[act];
}

static void residual(const float *x, const int8_t *q, float d, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        float kept = d * (float)q[i];
        out[i] = x[i] - kept;
    }
}

void qw_act_residual(qw_act act, const float *x, size_t k, const void *record, float *out)
{
    QW_ASSERT(act != QW_ACT_F32);
    if (act == QW_ACT_Q8_32) {
        const qw_act32 *r = record;
        for (size_t i = 0; i < k; i += 32, r++) residual(x + i, r->q, r->d, 32, out + i);
    } else {
        const qw_act256 *r = record;
        for (size_t i = 0; i < k; i += 256, r++) residual(x + i, r->q, r->d, 256, out + i);
    }
}
