/* kernels_private.h: the parts of the kernel table, one init function a part and level. Private to
 * src/kernels; each raises the slots it has and leaves the others. Any thread, no state.
 */
#ifndef QW_KERNELS_KERNELS_PRIVATE_H
#define QW_KERNELS_KERNELS_PRIVATE_H

#include "kernels/kernels.h"

/* Float slots: dot_f32 to rope. Bit-equal on every level. */
void qw_float_init_ref(qw_kernels *t);
void qw_float_init_avx2(qw_kernels *t);
void qw_float_init_avx512(qw_kernels *t);
void qw_float_init_neon(qw_kernels *t);

/* Attention, in floats and in integers, with the quantisation to 16 bits. Bit-equal on every level. */
void qw_attn_init_ref(qw_kernels *t);
void qw_attn_f32_init_avx2(qw_kernels *t);
void qw_attn_f32_init_avx512(qw_kernels *t);
void qw_attn_f32_init_neon(qw_kernels *t);
void qw_attn_i16_init_avx2(qw_kernels *t);
void qw_attn_i16_init_avx512(qw_kernels *t);
void qw_attn_i16_init_avx512_vnni(qw_kernels *t);
void qw_attn_i16_init_neon(qw_kernels *t);

/* Convolution and recurrence of delta-nets. Bit-equal on every level. */
void qw_delta_init_ref(qw_kernels *t);
void qw_delta_init_avx2(qw_kernels *t);
void qw_delta_init_avx512(qw_kernels *t);
void qw_delta_init_neon(qw_kernels *t);

/* Matrix products, those with float weights apart, and the quantisation of their activations (on AArch64 with the
 * products). Bit-equal on every level. */
void qw_act_init_ref(qw_kernels *t);
void qw_act_init_avx2(qw_kernels *t);
void qw_gemm_float_init_ref(qw_kernels *t);
void qw_gemm_float_init_avx2(qw_kernels *t);
void qw_gemm_float_init_avx512(qw_kernels *t);
void qw_gemm_float_init_neon(qw_kernels *t);
void qw_gemm_init_ref(qw_kernels *t);
void qw_gemm_32_init_avx2(qw_kernels *t);  /* forms with blocks of 32 */
void qw_gemm_256_init_avx2(qw_kernels *t); /* of 256 */
void qw_gemm_book_init_avx2(qw_kernels *t); /* with a book of levels */
void qw_gemm_init_avx512_vnni(qw_kernels *t);
void qw_gemm_init_neon(qw_kernels *t);
void qw_gemm_init_dotprod(qw_kernels *t);
void qw_gemm_init_i8mm(qw_kernels *t);

#endif
