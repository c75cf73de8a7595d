/* exp_const.h: the constants of the one exponential that all float kernels use.
 *
 * exp(x) = 2^n * P(r), n = x * log2(e) rounded to nearest, r = x - n * ln 2 in two fused steps, P the
 * degree-6 minimax polynomial of e^r on |r| <= ln 2 / 2 by Horner with fma. Error below 0.9 ulp on
 * [QW_EXP_MIN, QW_EXP_MAX]. Below QW_EXP_MIN the result is 0 (results stay normal numbers), above
 * QW_EXP_MAX it is infinity, NaN stays NaN, exp(0) = 1 exactly. ref, avx2 and avx512 run these very
 * steps, so their bits are equal. n is found by adding QW_EXP_MAGIC: the sum's low bits hold n.
 */
#ifndef QW_KERNELS_EXP_CONST_H
#define QW_KERNELS_EXP_CONST_H

#define QW_EXP_MIN (-0x1.5d589p+6f)   /* -87.3364..: just above ln 2^-126 */
#define QW_EXP_MAX 0x1.62e42ep+6f     /* 88.7228..: largest x with a finite result */
#define QW_EXP_LOG2E 0x1.715476p+0f
#define QW_EXP_MAGIC 0x1.8p+23f
#define QW_EXP_LN2_HI 0x1.62e4p-1f
#define QW_EXP_LN2_LO 0x1.7f7d1cp-20f
#define QW_EXP_C6 0x1.6a23dp-10f
#define QW_EXP_C5 0x1.123a2p-7f
#define QW_EXP_C4 0x1.5558f2p-5f
#define QW_EXP_C3 0x1.555492p-3f
#define QW_EXP_C2 0x1.fffffcp-2f

#endif
