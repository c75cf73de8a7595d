/* blocks.h: tensor element types and their block layouts, as GGUF stores them.
 *
 * A quantised row is a sequence of blocks; a block holds `block_n` consecutive elements in
 * `block_bytes` bytes. Type numbers are those of the GGUF format. All multi-byte fields are
 * little-endian; `half` fields are IEEE binary16 bits. Source of the layouts: the GGUF specification
 * and the `gguf` Python package, which judges our dequantisation bit for bit.
 */
#ifndef QW_KERNELS_BLOCKS_H
#define QW_KERNELS_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum qw_type {
    QW_TYPE_F32 = 0,
    QW_TYPE_F16 = 1,
    QW_TYPE_Q4_0 = 2,
    QW_TYPE_Q4_1 = 3,
    QW_TYPE_Q5_0 = 6,
    QW_TYPE_Q5_1 = 7,
    QW_TYPE_Q8_0 = 8,
    QW_TYPE_Q2_K = 10,
    QW_TYPE_Q3_K = 11,
    QW_TYPE_Q4_K = 12,
    QW_TYPE_Q5_K = 13,
    QW_TYPE_Q6_K = 14,
    QW_TYPE_IQ2_XXS = 16,
    QW_TYPE_IQ2_XS = 17,
    QW_TYPE_IQ3_XXS = 18,
    QW_TYPE_IQ1_S = 19,
    QW_TYPE_IQ4_NL = 20,
    QW_TYPE_IQ3_S = 21,
    QW_TYPE_IQ2_S = 22,
    QW_TYPE_IQ4_XS = 23,
    QW_TYPE_IQ1_M = 29,
    QW_TYPE_BF16 = 30,
    QW_TYPE_TQ1_0 = 34,
    QW_TYPE_TQ2_0 = 35,
    QW_TYPE_MXFP4 = 39,
    QW_TYPE_NVFP4 = 40,
    QW_TYPE_LIMIT = 64 /* numbers at or above are not types */
} qw_type;

typedef uint16_t qw_half; /* IEEE binary16 bits */

typedef struct { qw_half d; uint8_t qs[16]; } qw_block_q4_0;                        /* 32: d*(q-8) */
typedef struct { qw_half d, m; uint8_t qs[16]; } qw_block_q4_1;                     /* 32: d*q+m */
typedef struct { qw_half d; uint8_t qh[4]; uint8_t qs[16]; } qw_block_q5_0;         /* 32: d*(q-16) */
typedef struct { qw_half d, m; uint8_t qh[4]; uint8_t qs[16]; } qw_block_q5_1;      /* 32: d*q+m */
typedef struct { qw_half d; int8_t qs[32]; } qw_block_q8_0;                         /* 32: d*q */
typedef struct { uint8_t scales[16]; uint8_t qs[64]; qw_half d, dmin; } qw_block_q2_k;  /* 256 */
typedef struct { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; qw_half d; } qw_block_q3_k;
typedef struct { qw_half d, dmin; uint8_t scales[12]; uint8_t qs[128]; } qw_block_q4_k; /* 256 */
typedef struct { qw_half d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; } qw_block_q5_k;
typedef struct { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; qw_half d; } qw_block_q6_k;
typedef struct { qw_half d; uint8_t qs[16]; } qw_block_iq4_nl;                      /* 32 */
typedef struct { qw_half d; uint16_t scales_h; uint8_t scales_l[4]; uint8_t qs[128]; } qw_block_iq4_xs;
typedef struct { uint8_t e; uint8_t qs[16]; } qw_block_mxfp4;                       /* 32 */
typedef struct { qw_half d; uint8_t qs[64]; } qw_block_iq2_xxs;                     /* 256, as all up to TQ2_0 */
typedef struct { qw_half d; uint16_t qs[32]; uint8_t scales[8]; } qw_block_iq2_xs;
typedef struct { qw_half d; uint8_t qs[32], signs[32], qh[8], scales[8]; } qw_block_iq2_s;
typedef struct { qw_half d; uint8_t qs[64], signs[32]; } qw_block_iq3_xxs;
typedef struct { qw_half d; uint8_t qs[64], qh[8], signs[32], scales[4]; } qw_block_iq3_s;
typedef struct { qw_half d; uint8_t qs[32]; uint16_t qh[8]; } qw_block_iq1_s;
typedef struct { uint8_t qs[32], qh[16]; uint16_t scales[4]; } qw_block_iq1_m;
typedef struct { uint8_t qs[48], qh[4]; qw_half d; } qw_block_tq1_0;
typedef struct { uint8_t qs[64]; qw_half d; } qw_block_tq2_0;
typedef struct { uint8_t d[4], qs[32]; } qw_block_nvfp4;                            /* 64 */

typedef struct qw_type_info {
    const char *name;     /* "Q4_K"; NULL: not a type qw implements */
    uint32_t block_n;     /* elements in a block */
    uint32_t block_bytes; /* bytes of a block */
} qw_type_info;

/* Never NULL; its name is NULL for numbers that are no implemented type. */
const qw_type_info *qw_type_get(uint32_t type);
/* Type of a name ("q4_k", any case); false when unknown. */
bool qw_type_parse(const char *name, qw_type *out);
/* Bytes of a row of n elements. n must be a multiple of the block and the type implemented. */
size_t qw_type_row_bytes(qw_type type, size_t n);

float qw_half_to_f32(qw_half h);
qw_half qw_f32_to_half(float f); /* round to nearest even */
float qw_bf16_to_f32(uint16_t b);
uint16_t qw_f32_to_bf16(float f); /* round to nearest even, NaN kept quiet */

/* Reference codecs. n is a multiple of the type's block. Dequantisation is bit-equal to the `gguf`
 * package. Quantisation of a finite row is the format's plain method (minimising the scale choice as
 * the public reference does where it is closed form); it is deterministic. `weights` may be NULL, or
 * holds n importances. Types of IQ1 to IQ3, TQ and NVFP4 are read only: quantising to them is an error of the caller.
 * Any thread. */
void qw_dequantize_row(qw_type type, const void *src, float *dst, size_t n);
void qw_quantize_row(qw_type type, const float *src, void *dst, size_t n, const float *weights);
/* Some types are only read: false for them, and qw_quantize_row must not be asked. */
bool qw_type_can_quantize(qw_type type);
/* False when a block's scale is NaN or infinite (reliability rule A3.46). */
bool qw_row_finite(qw_type type, const void *src, size_t n);

#endif
