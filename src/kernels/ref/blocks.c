/* blocks.c: the table of element types, and conversions of single halves.
 *
 * Everything that must know how long a block is asks this table: the file reader, the memory plan, the
 * codecs. Pure functions over constant data; any thread.
 */
#include "kernels/blocks.h"

#include <strings.h>

#include "base/status.h"
#include "kernels/ref/half.h"

/* The structs are read straight from mapped files: no padding, little-endian fields. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "block fields are stored little-endian");
_Static_assert(sizeof(qw_block_q4_0) == 18 && sizeof(qw_block_q4_1) == 20, "Q4_0, Q4_1");
_Static_assert(sizeof(qw_block_q5_0) == 22 && sizeof(qw_block_q5_1) == 24, "Q5_0, Q5_1");
_Static_assert(sizeof(qw_block_q8_0) == 34, "Q8_0");
_Static_assert(sizeof(qw_block_q2_k) == 84 && sizeof(qw_block_q3_k) == 110, "Q2_K, Q3_K");
_Static_assert(sizeof(qw_block_q4_k) == 144 && sizeof(qw_block_q5_k) == 176, "Q4_K, Q5_K");
_Static_assert(sizeof(qw_block_q6_k) == 210, "Q6_K");
_Static_assert(sizeof(qw_block_iq4_nl) == 18 && sizeof(qw_block_iq4_xs) == 136, "IQ4_NL, IQ4_XS");
_Static_assert(sizeof(qw_block_mxfp4) == 17 && sizeof(qw_block_nvfp4) == 36, "MXFP4, NVFP4");
_Static_assert(sizeof(qw_block_iq2_xxs) == 66 && sizeof(qw_block_iq2_xs) == 74, "IQ2_XXS, IQ2_XS");
_Static_assert(sizeof(qw_block_iq2_s) == 82, "IQ2_S");
_Static_assert(sizeof(qw_block_iq3_xxs) == 98 && sizeof(qw_block_iq3_s) == 110, "IQ3_XXS, IQ3_S");
_Static_assert(sizeof(qw_block_iq1_s) == 50 && sizeof(qw_block_iq1_m) == 56, "IQ1_S, IQ1_M");
_Static_assert(sizeof(qw_block_tq1_0) == 54 && sizeof(qw_block_tq2_0) == 66, "TQ1_0, TQ2_0");

static const qw_type_info TYPES[QW_TYPE_LIMIT + 1] = { /* the last entry stands for unknown numbers */
    [QW_TYPE_F32] = {"F32", 1, 4},
    [QW_TYPE_F16] = {"F16", 1, 2},
    [QW_TYPE_Q4_0] = {"Q4_0", 32, sizeof(qw_block_q4_0)},
    [QW_TYPE_Q4_1] = {"Q4_1", 32, sizeof(qw_block_q4_1)},
    [QW_TYPE_Q5_0] = {"Q5_0", 32, sizeof(qw_block_q5_0)},
    [QW_TYPE_Q5_1] = {"Q5_1", 32, sizeof(qw_block_q5_1)},
    [QW_TYPE_Q8_0] = {"Q8_0", 32, sizeof(qw_block_q8_0)},
    [QW_TYPE_Q2_K] = {"Q2_K", 256, sizeof(qw_block_q2_k)},
    [QW_TYPE_Q3_K] = {"Q3_K", 256, sizeof(qw_block_q3_k)},
    [QW_TYPE_Q4_K] = {"Q4_K", 256, sizeof(qw_block_q4_k)},
    [QW_TYPE_Q5_K] = {"Q5_K", 256, sizeof(qw_block_q5_k)},
    [QW_TYPE_Q6_K] = {"Q6_K", 256, sizeof(qw_block_q6_k)},
    [QW_TYPE_IQ4_NL] = {"IQ4_NL", 32, sizeof(qw_block_iq4_nl)},
    [QW_TYPE_IQ4_XS] = {"IQ4_XS", 256, sizeof(qw_block_iq4_xs)},
    [QW_TYPE_BF16] = {"BF16", 1, 2},
    [QW_TYPE_MXFP4] = {"MXFP4", 32, sizeof(qw_block_mxfp4)},
    [QW_TYPE_IQ2_XXS] = {"IQ2_XXS", 256, sizeof(qw_block_iq2_xxs)},
    [QW_TYPE_IQ2_XS] = {"IQ2_XS", 256, sizeof(qw_block_iq2_xs)},
    [QW_TYPE_IQ2_S] = {"IQ2_S", 256, sizeof(qw_block_iq2_s)},
    [QW_TYPE_IQ3_XXS] = {"IQ3_XXS", 256, sizeof(qw_block_iq3_xxs)},
    [QW_TYPE_IQ3_S] = {"IQ3_S", 256, sizeof(qw_block_iq3_s)},
    [QW_TYPE_IQ1_S] = {"IQ1_S", 256, sizeof(qw_block_iq1_s)},
    [QW_TYPE_IQ1_M] = {"IQ1_M", 256, sizeof(qw_block_iq1_m)},
    [QW_TYPE_TQ1_0] = {"TQ1_0", 256, sizeof(qw_block_tq1_0)},
    [QW_TYPE_TQ2_0] = {"TQ2_0", 256, sizeof(qw_block_tq2_0)},
    [QW_TYPE_NVFP4] = {"NVFP4", 64, sizeof(qw_block_nvfp4)},
};

const qw_type_info *qw_type_get(uint32_t type)
{
    return &TYPES[type < QW_TYPE_LIMIT ? type : QW_TYPE_LIMIT];
}

bool qw_type_parse(const char *name, qw_type *out)
{
    for (uint32_t type = 0; type < QW_TYPE_LIMIT; type++) {
        if (TYPES[type].name && strcasecmp(TYPES[type].name, name) == 0) {
            *out = (qw_type)type;
            return true;
        }
    }
    return false;
}

size_t qw_type_row_bytes(qw_type type, size_t n)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    QW_ASSERT(info->name && n % info->block_n == 0);
    return n / info->block_n * info->block_bytes;
}

float qw_half_to_f32(qw_half h)
{
    return half_to_f32(h);
}

qw_half qw_f32_to_half(float f)
{
    return half_from_f32(f);
}

float qw_bf16_to_f32(uint16_t b)
{
    return bf16_to_f32(b);
}

uint16_t qw_f32_to_bf16(float f)
{
    return bf16_from_f32(f);
}
