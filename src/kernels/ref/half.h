/* half.h: binary16 and bfloat16 conversions, inline and without branches, so that loops over them
 * become vector code on any machine. Private to the kernels; others call qw_half_to_f32 and friends.
 *
 * A NaN stays a NaN: its leading payload bits survive and it becomes quiet, which is also what the F16C
 * instructions do. Rounding is to nearest, ties to even (the mode every thread of qw runs in).
 */
#ifndef QW_KERNELS_REF_HALF_H
#define QW_KERNELS_REF_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t half_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* All ones when the condition holds: selects without a branch. */
static inline uint32_t half_mask(int condition)
{
    return (uint32_t)-condition;
}

static inline float half_to_f32(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13; /* exponent and fraction at their float places */
    uint32_t normal = magnitude + (112u << 23);        /* bias 15 -> 127 */
    /* Subnormal: put the fraction under a 2^-14 and take that 2^-14 away again; both steps are exact. */
    uint32_t subnormal = half_f32_bits(half_bits_f32(magnitude + (113u << 23)) - 0x1p-14f);
    uint32_t special = magnitude | 0x7f800000u | (half_mask((h & 0x03ff) != 0) & 0x00400000u);
    uint32_t is_subnormal = half_mask((h & 0x7c00) == 0);
    uint32_t is_special = half_mask((h & 0x7c00) == 0x7c00);
    uint32_t bits = (normal & ~(is_subnormal | is_special)) | (subnormal & is_subnormal) |
                    (special & is_special);
    return half_bits_f32(bits | (uint32_t)(h & 0x8000) << 16);
}

static inline uint16_t half_from_f32(float f)
{
    uint32_t bits = half_f32_bits(f);
    uint32_t magnitude = bits & 0x7fffffffu;
    /* Add just under half a unit of the last kept bit, or exactly half when that bit is odd. */
    uint32_t normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    /* Beside 0.5 the float's last place is 2^-24, the step of binary16 subnormals: the adder rounds. */
    uint32_t subnormal = half_f32_bits(half_bits_f32(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
    uint32_t is_nan = half_mask(magnitude > 0x7f800000u);
    uint32_t is_big = half_mask(magnitude >= 0x47800000u) & ~is_nan; /* 65536 and above: infinity */
    uint32_t is_subnormal = half_mask(magnitude < 0x38800000u);      /* below 2^-14 */
    uint32_t half = (normal & ~(is_nan | is_big | is_subnormal)) | (subnormal & is_subnormal) |
                    (0x7c00u & is_big) | (nan & is_nan);
    return (uint16_t)(half | ((bits >> 16) & 0x8000u));
}

static inline float bf16_to_f32(uint16_t b)
{
    return half_bits_f32((uint32_t)b << 16);
}

static inline uint16_t bf16_from_f32(float f)
{
    uint32_t bits = half_f32_bits(f);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t nan = (bits >> 16) | 0x40u;
    uint32_t is_nan = half_mask((bits & 0x7fffffffu) > 0x7f800000u);
    return (uint16_t)((rounded & ~is_nan) | (nan & is_nan));
}

#endif
