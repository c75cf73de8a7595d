/* gemm_float_ref.c: matrix products with float weights in plain C: their definition. For each k in order, acc from 0:
 *     acc = fma(w, x, acc)
 * w is the weight as float32, which F16 and BF16 are exactly. An odd k has one more element, zero on both sides.
 * Pure functions, any thread.
 */
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/pack_layout.h"
#include "kernels/ref/fma_ref.h"
#include "kernels/ref/half.h"

enum { ROWS = QW_GROUP_ROWS };

/* Weights of element i of a group's rows. */
typedef void load_fn(const uint8_t *group, size_t i, float w[ROWS]);

static void load_f32(const uint8_t *group, size_t i, float w[ROWS])
{
    memcpy(w, group + i * ROWS * sizeof *w, ROWS * sizeof *w);
}

static void load_f16(const uint8_t *group, size_t i, float w[ROWS])
{
    qw_half h[ROWS];
    memcpy(h, group + i * sizeof h, sizeof h);
    for (size_t r = 0; r < ROWS; r++) w[r] = half_to_f32(h[r]);
}

static void load_bf16(const uint8_t *group, size_t i, float w[ROWS])
{
    uint16_t pairs[ROWS][2];
    memcpy(pairs, group + i / 2 * sizeof pairs, sizeof pairs);
    for (size_t r = 0; r < ROWS; r++) w[r] = bf16_to_f32(pairs[r][i % 2]);
}

static void gemm_float(load_fn *load, qw_pack form, const uint8_t *packed, size_t n_groups, size_t k,
                       const uint8_t *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t act_bytes = qw_act_bytes(QW_ACT_F32, k);
    float w[ROWS];
    for (size_t c = 0; c < n_cols; c++) memset(out + c * ld_out, 0, n_groups * ROWS * sizeof *out);
    for (size_t g = 0; g < n_groups; g++, packed += qw_pack_group_bytes(form, k), out += ROWS)
        for (size_t i = 0; i < qw_float_elements(k); i++) {
            load(packed, i, w);
            for (size_t c = 0; c < n_cols; c++) {
                float x = ((const float *)(const void *)(act + c * act_bytes))[i], *acc = out + c * ld_out;
                for (size_t r = 0; r < ROWS; r++) acc[r] = qw_ref_fma(w[r], x, acc[r]);
            }
        }
}

static void gemm_f32(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols, float *out,
                     size_t ld_out)
{
    gemm_float(load_f32, QW_PACK_F32, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_f16(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols, float *out,
                     size_t ld_out)
{
    gemm_float(load_f16, QW_PACK_F16, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_bf16(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols, float *out,
                      size_t ld_out)
{
    gemm_float(load_bf16, QW_PACK_BF16, packed, n_groups, k, act, n_cols, out, ld_out);
}

void qw_gemm_float_init_ref(qw_kernels *t)
{
    t->gemm[QW_PACK_F32] = gemm_f32;
    t->gemm[QW_PACK_F16] = gemm_f16;
    t->gemm[QW_PACK_BF16] = gemm_bf16;
}
