/* act_ref.c: the quantisation of activations in plain C: its definition. Records: pack_layout.h; rounding and special
 * values: docs/kernels.md. Pure functions, any thread.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/pack_layout.h"
#include "kernels/ref/float_ref.h"

/* Quantises n floats with one scale, which it returns. Rounding to nearest even by adding 1.5 * 2^23:
 * |x * 127 / amax| stays below 2^22 by far. */
static float quantize_group(const float *x, size_t n, int8_t *q)
{
    const float magic = 0x1.8p23f;
    float amax = 0.0f;
    for (size_t i = 0; i < n; i++) {
        float v = fabsf(qw_ref_finite(x[i]));
        amax = v > amax ? v : amax;
    }
    if (amax < QW_ACT_AMAX_MIN) {
        memset(q, 0, n);
        return 0.0f;
    }
    float inverse = 127.0f / amax;
    for (size_t i = 0; i < n; i++) q[i] = (int8_t)(int)((qw_ref_finite(x[i]) * inverse + magic) - magic);
    return amax / 127.0f;
}

static void lane_sums(const int8_t *q, size_t n, int lane[2])
{
    lane[0] = lane[1] = 0;
    for (size_t i = 0; i < n; i += 4) {
        lane[0] += q[i] + q[i + 1];
        lane[1] += q[i + 2] + q[i + 3];
    }
}

static void quantize_q8_32(const float *x, size_t k, void *record)
{
    qw_act32 *a = record;
    size_t n = k / 32;
    for (size_t b = 0; b < n; b++, a++, x += 32) {
        int lane[2];
        a->d = quantize_group(x, 32, a->q);
        lane_sums(a->q, 32, lane);
        a->neg_sum = -(lane[0] + lane[1]);
        a->neg_lane[0] = (int16_t)-lane[0];
        a->neg_lane[1] = (int16_t)-lane[1];
        a->d_sum = a->d * (float)(lane[0] + lane[1]);
    }
    memset(a, 0, qw_act_bytes(QW_ACT_Q8_32, k) - n * sizeof *a);
}

static void find_most(qw_act256 *a)
{
    a->most16 = a->most32 = 0;
    for (size_t i = 0; i < 256; i += 16) {
        int all = 0, positive = 0, negative = 0;
        for (size_t j = i; j < i + 16; j++) all += abs(a->q[j]);
        for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++)
            *(a->q[j] > 0 ? &positive : &negative) += abs(a->q[j]);
        if (all > a->most16) a->most16 = (int16_t)all;
        if (positive > a->most32) a->most32 = (int16_t)positive;
        if (negative > a->most32) a->most32 = (int16_t)negative;
    }
}

static void quantize_q8_256(const float *x, size_t k, void *record)
{
    qw_act256 *a = record;
    for (size_t b = 0; b < k / 256; b++, a++, x += 256) {
        int sum[16];
        a->d = quantize_group(x, 256, a->q);
        for (size_t s = 0; s < 16; s++) {
            int lane[2];
            lane_sums(a->q + s * 16, 16, lane);
            sum[s] = lane[0] + lane[1];
            a->neg_sum16[s] = -32 * sum[s];
            a->neg_lane16[s][0] = (int16_t)(-32 * lane[0]);
            a->neg_lane16[s][1] = (int16_t)(-32 * lane[1]);
        }
        for (size_t i = 0; i < QW_SUBS; i++) {
            size_t s = qw_sum32_order[i];
            a->sum32[i / 2][i % 2] = (int16_t)(sum[2 * s] + sum[2 * s + 1]);
        }
        for (size_t i = 0; i < 16; i++) a->sum16[i / 2][i % 2] = (int16_t)sum[qw_sum16_order(i)];
        find_most(a);
        memset(a->pad, 0, sizeof a->pad);
    }
}

static void copy_f32(const float *x, size_t k, void *record)
{
    memcpy(record, x, k * sizeof *x);
    memset((float *)record + k, 0, qw_act_bytes(QW_ACT_F32, k) - k * sizeof *x);
}

void qw_act_init_ref(qw_kernels *t)
{
    t->quantize_act[QW_ACT_Q8_32] = quantize_q8_32;
    t->quantize_act[QW_ACT_Q8_256] = quantize_q8_256;
    t->quantize_act[QW_ACT_F32] = copy_f32;
}
