/* test_blocks.c: the type table, the half conversions and the reference codecs.
 *
 * Bit-equality with the `gguf` package is the task of tests/parity/blocks.py; here stand the properties
 * that need no judge: round trips, error bounds on normal data, and blocks at the edges.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/blocks.h"

enum { SEED = 20240607, ROW = 16384, ROW_BYTES_MAX = ROW * 4, BLOCK_MAX = 256, GUARD = 64 };

static const qw_type ALL[] = {
    QW_TYPE_F32,  QW_TYPE_F16,  QW_TYPE_BF16, QW_TYPE_Q8_0, QW_TYPE_Q4_0, QW_TYPE_Q4_1,   QW_TYPE_Q5_0,   QW_TYPE_Q5_1,
    QW_TYPE_Q2_K, QW_TYPE_Q3_K, QW_TYPE_Q4_K, QW_TYPE_Q5_K, QW_TYPE_Q6_K, QW_TYPE_IQ4_NL, QW_TYPE_IQ4_XS, QW_TYPE_MXFP4,
};
enum { N_ALL = sizeof ALL / sizeof *ALL };

/* Deterministic numbers: xorshift64*, and the sum of twelve uniforms would be too thin in the tails,
 * so normals come from Box and Muller. */
static uint64_t random_state = SEED;

static double random_unit(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return ((double)(random_state * 0x2545f4914f6cdd1dull >> 11) + 0.5) * 0x1p-53;
}

static float random_normal(void)
{
    return (float)(sqrt(-2 * log(random_unit())) * cos(6.283185307179586 * random_unit()));
}

static float bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void test_table(void **state)
{
    (void)state;
    static const struct { qw_type type; const char *name; uint32_t n, bytes; } WANT[] = {
        {QW_TYPE_F32, "F32", 1, 4},        {QW_TYPE_F16, "F16", 1, 2},        {QW_TYPE_BF16, "BF16", 1, 2},
        {QW_TYPE_Q8_0, "Q8_0", 32, 34},    {QW_TYPE_Q4_0, "Q4_0", 32, 18},    {QW_TYPE_Q4_1, "Q4_1", 32, 20},
        {QW_TYPE_Q5_0, "Q5_0", 32, 22},    {QW_TYPE_Q5_1, "Q5_1", 32, 24},    {QW_TYPE_Q2_K, "Q2_K", 256, 84},
        {QW_TYPE_Q3_K, "Q3_K", 256, 110},  {QW_TYPE_Q4_K, "Q4_K", 256, 144},  {QW_TYPE_Q5_K, "Q5_K", 256, 176},
        {QW_TYPE_Q6_K, "Q6_K", 256, 210},  {QW_TYPE_IQ4_NL, "IQ4_NL", 32, 18}, {QW_TYPE_IQ4_XS, "IQ4_XS", 256, 136},
        {QW_TYPE_MXFP4, "MXFP4", 32, 17},       {QW_TYPE_IQ1_S, "IQ1_S", 256, 50},  {QW_TYPE_IQ1_M, "IQ1_M", 256, 56},
        {QW_TYPE_IQ2_XXS, "IQ2_XXS", 256, 66}, {QW_TYPE_IQ2_XS, "IQ2_XS", 256, 74}, {QW_TYPE_IQ2_S, "IQ2_S", 256, 82},
        {QW_TYPE_IQ3_XXS, "IQ3_XXS", 256, 98}, {QW_TYPE_IQ3_S, "IQ3_S", 256, 110}, {QW_TYPE_TQ1_0, "TQ1_0", 256, 54},
        {QW_TYPE_TQ2_0, "TQ2_0", 256, 66},     {QW_TYPE_NVFP4, "NVFP4", 64, 36},
    };
    size_t n_named = 0;
    for (uint32_t type = 0; type < QW_TYPE_LIMIT; type++) n_named += qw_type_get(type)->name != NULL;
    assert_int_equal(n_named, sizeof WANT / sizeof *WANT);
    for (size_t i = 0; i < sizeof WANT / sizeof *WANT; i++) {
        const qw_type_info *info = qw_type_get((uint32_t)WANT[i].type);
        assert_string_equal(info->name, WANT[i].name);
        assert_int_equal(info->block_n, WANT[i].n);
        assert_int_equal(info->block_bytes, WANT[i].bytes);
        assert_int_equal(qw_type_row_bytes(WANT[i].type, 768), 768 / WANT[i].n * WANT[i].bytes);
        qw_type parsed = QW_TYPE_LIMIT;
        assert_true(qw_type_parse(WANT[i].name, &parsed));
        assert_int_equal(parsed, WANT[i].type);
    }
    static const uint32_t NO_TYPE[] = {4, 5, 9, 15, 24, 38, 63, QW_TYPE_LIMIT, QW_TYPE_LIMIT + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof NO_TYPE / sizeof *NO_TYPE; i++) assert_null(qw_type_get(NO_TYPE[i])->name);
    qw_type parsed;
    assert_true(qw_type_parse("q4_k", &parsed) && parsed == QW_TYPE_Q4_K);
    assert_true(qw_type_parse("Iq4_nL", &parsed) && parsed == QW_TYPE_IQ4_NL);
    assert_false(qw_type_parse("Q4_K_M", &parsed));
    assert_false(qw_type_parse("", &parsed));
}

/* What a half means, in double arithmetic from its three fields. */
static double half_meaning(unsigned h)
{
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void test_half_exhaustive(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        float f = qw_half_to_f32((qw_half)h);
        bool special = (h & 0x7c00) == 0x7c00, nan = special && (h & 0x3ff);
        if (nan) {
            assert_true(isnan(f));
            assert_int_equal(qw_f32_to_half(f), h | 0x200); /* quiet, payload and sign kept */
            continue;
        }
        if (special)
            assert_true(isinf(f) && (f < 0) == (h >> 15));
        else
            assert_true((double)f == half_meaning(h) && !!signbit(f) == (int)(h >> 15));
        assert_int_equal(qw_f32_to_half(f), h);
    }
}

/* Between every two neighbouring halves: below, on and above the middle. */
static void test_half_rounding(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x7c00; h++) {
        double low = half_meaning(h), high = h == 0x7bff ? 65536.0 : half_meaning(h + 1);
        float middle = (float)((low + high) / 2); /* exact: a half has 11 bits, the middle 12 */
        unsigned even = h & 1 ? h + 1 : h;
        assert_int_equal(qw_f32_to_half(middle), even);
        assert_int_equal(qw_f32_to_half(nextafterf(middle, 0)), h);
        assert_int_equal(qw_f32_to_half(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(qw_f32_to_half(-middle), even | 0x8000);
    }
    assert_int_equal(qw_f32_to_half(FLT_MAX), 0x7c00);
    assert_int_equal(qw_f32_to_half(-FLT_MAX), 0xfc00);
    assert_int_equal(qw_f32_to_half(65536.0f), 0x7c00);
    assert_int_equal(qw_f32_to_half(FLT_MIN), 0);
    assert_int_equal(qw_f32_to_half(bits_f32(0x80000001)), 0x8000);
    assert_int_equal(qw_f32_to_half(bits_f32(0x7f800001)) & 0x7e00, 0x7e00); /* signalling NaN */
}

static void test_bf16(void **state)
{
    (void)state;
    for (unsigned b = 0; b < 65536; b++) {
        float f = qw_bf16_to_f32((uint16_t)b);
        assert_int_equal(f32_bits(f), b << 16);
        bool nan = (b & 0x7f80) == 0x7f80 && (b & 0x7f);
        assert_int_equal(qw_f32_to_bf16(f), nan ? b | 0x40 : b);
        if ((b & 0x7f80) == 0x7f80) continue;
        uint32_t low = (uint32_t)b << 16; /* rounding by magnitude, up to infinity */
        assert_int_equal(qw_f32_to_bf16(bits_f32(low + 0x7fff)), b);
        assert_int_equal(qw_f32_to_bf16(bits_f32(low + 0x8000)), b & 1 ? b + 1 : b);
        assert_int_equal(qw_f32_to_bf16(bits_f32(low + 0x8001)), b + 1);
    }
    assert_int_equal(qw_f32_to_bf16(bits_f32(0x7f800001)), 0x7fc0);
    assert_int_equal(qw_f32_to_bf16(bits_f32(0xffffffff)), 0xffff);
}

/* Weighted relative error of a round trip: sqrt(sum w (x-y)^2 / sum w x^2). Guards both buffers' ends. */
static double round_trip(qw_type type, const float *x, float *y, size_t n, const float *weights, const float *judge)
{
    static uint8_t row[ROW_BYTES_MAX + GUARD];
    size_t bytes = qw_type_row_bytes(type, n);
    memset(row, 0xa5, sizeof row);
    qw_quantize_row(type, x, row, n, weights);
    for (int i = 0; i < GUARD; i++) assert_int_equal(row[bytes + (size_t)i], 0xa5);
    assert_true(qw_row_finite(type, row, n));
    qw_dequantize_row(type, row, y, n);
    double error = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        double w = judge ? (double)judge[i] : 1, e = (double)x[i] - (double)y[i];
        error += w * e * e;
        total += w * (double)x[i] * (double)x[i];
    }
    return total > 0 ? sqrt(error / total) : sqrt(error);
}

/* Largest relative error on normal data, in the order of ALL: measured, plus about 2%. */
static const double BOUND[N_ALL] = {
    0, 0.00022, 0.0017, 0.0054, 0.0875, 0.0797, 0.0436, 0.0386, 0.265, 0.147, 0.072, 0.0355, 0.0172, 0.075, 0.0755,
    0.114,
};
/* The same with importances, here all one: the one-scale formats are searched too and gain. */
static const double BOUND_SEARCHED[N_ALL] = {
    0, 0.00022, 0.0017, 0.00485, 0.0823, 0.0716, 0.0409, 0.0346, 0.265, 0.147, 0.072, 0.0355, 0.0172, 0.075, 0.0755,
    0.114,
};

static void test_error_bounds(void **state)
{
    (void)state;
    static float x[ROW], y[ROW], ones[ROW];
    static const float SCALE[] = {1.0f, 0.02f, 0.002f};
    for (int s = 0; s < 3; s++) {
        for (int i = 0; i < ROW; i++) x[i] = random_normal() * SCALE[s], ones[i] = 1.0f;
        for (int t = 0; t < N_ALL; t++) {
            double error = round_trip(ALL[t], x, y, ROW, NULL, NULL);
            double searched = round_trip(ALL[t], x, y, ROW, ones, NULL);
            if (error > BOUND[t] || searched > BOUND_SEARCHED[t])
                fail_msg("%s, scale %g, seed %d: errors %.5f and %.5f, bounds %.5f and %.5f",
                         qw_type_get((uint32_t)ALL[t])->name, (double)SCALE[s], SEED, error, searched, BOUND[t],
                         BOUND_SEARCHED[t]);
        }
    }
}

/* A tenth of the elements counts a hundred times: their error must fall against equal weights. */
static void test_importances(void **state)
{
    (void)state;
    static float x[ROW], y[ROW], w[ROW], ones[ROW], zeros[ROW], bad[ROW];
    for (int i = 0; i < ROW; i++) {
        x[i] = random_normal();
        w[i] = random_unit() < 0.1 ? 100.0f : 1.0f;
        ones[i] = 1.0f;
        bad[i] = (const float[]){NAN, -1.0f, INFINITY, 0.0f}[i & 3];
    }
    for (int t = 3; t < N_ALL; t++) {
        double plain = round_trip(ALL[t], x, y, ROW, ones, w);
        double weighted = round_trip(ALL[t], x, y, ROW, w, w);
        if (weighted > plain * 0.99)
            fail_msg("%s, seed %d: weighted error %.5f, without importances %.5f",
                     qw_type_get((uint32_t)ALL[t])->name, SEED, weighted, plain);
        /* Importances that say nothing count as equal ones. */
        static float y_ones[ROW];
        round_trip(ALL[t], x, y_ones, ROW, ones, NULL);
        round_trip(ALL[t], x, y, ROW, zeros, NULL);
        assert_memory_equal(y, y_ones, sizeof y);
        round_trip(ALL[t], x, y, ROW, bad, NULL);
        assert_memory_equal(y, y_ones, sizeof y);
    }
}

/* A row is quantised block by block: a block's bytes do not depend on its neighbours, nor on the call. */
static void test_blocks_stand_alone(void **state)
{
    (void)state;
    static float x[4 * BLOCK_MAX];
    static uint8_t row[4 * BLOCK_MAX * 4], one[BLOCK_MAX * 4];
    for (int i = 0; i < 4 * BLOCK_MAX; i++) x[i] = random_normal();
    for (int t = 0; t < N_ALL; t++) {
        const qw_type_info *info = qw_type_get((uint32_t)ALL[t]);
        qw_quantize_row(ALL[t], x, row, 4 * BLOCK_MAX, NULL);
        for (size_t at = 0; at < 4 * BLOCK_MAX; at += info->block_n) {
            qw_quantize_row(ALL[t], x + at, one, info->block_n, NULL);
            assert_memory_equal(one, row + at / info->block_n * info->block_bytes, info->block_bytes);
        }
        qw_dequantize_row(ALL[t], row, x, 0); /* no elements: nothing is touched */
        assert_true(qw_row_finite(ALL[t], row, 0));
    }
}

static void test_zeros(void **state)
{
    (void)state;
    static float x[BLOCK_MAX], y[BLOCK_MAX];
    for (int t = 0; t < N_ALL; t++) {
        for (int sign = 0; sign < 2; sign++) {
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = sign ? -0.0f : 0.0f;
            round_trip(ALL[t], x, y, BLOCK_MAX, NULL, NULL);
            for (int i = 0; i < BLOCK_MAX; i++) assert_true(y[i] == 0.0f);
            if (ALL[t] == QW_TYPE_F32 || ALL[t] == QW_TYPE_F16 || ALL[t] == QW_TYPE_BF16)
                for (int i = 0; i < BLOCK_MAX; i++) assert_int_equal(!!signbit(y[i]), sign);
        }
    }
}

/* Rows of one value: every format can hold them to the precision of its scale, which is few bits where the
 * half is subnormal (-3e-3), and to that of a power of two for MXFP4. */
static void test_constant_rows(void **state)
{
    (void)state;
    static float x[BLOCK_MAX], y[BLOCK_MAX];
    static const struct { float x; double bound; } VALUES[] = {
        {1.0f, 0.0011}, {-1.0f, 0.0011}, {0.37f, 0.0011}, {-0.37f, 0.0011}, {12.5f, 0.0011}, {1000.0f, 0.0011},
        {-1000.0f, 0.0011}, {-3e-3f, 0.02},
    };
    for (int t = 0; t < N_ALL; t++) {
        for (size_t v = 0; v < sizeof VALUES / sizeof *VALUES; v++) {
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = VALUES[v].x;
            double error = round_trip(ALL[t], x, y, BLOCK_MAX, NULL, NULL);
            double bound = ALL[t] == QW_TYPE_MXFP4 ? 0.2 : ALL[t] == QW_TYPE_BF16 ? 0x1p-8 : VALUES[v].bound;
            if (error > bound)
                fail_msg("%s: constant %g comes back with error %g", qw_type_get((uint32_t)ALL[t])->name,
                         (double)VALUES[v].x, error);
            for (int i = 1; i < BLOCK_MAX; i++) assert_true(y[i] == y[0]);
        }
    }
}

/* One huge value among small ones: it must survive, whatever the others lose. */
static void test_one_huge_value(void **state)
{
    (void)state;
    static float x[BLOCK_MAX], y[BLOCK_MAX];
    for (int t = 0; t < N_ALL; t++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = random_normal() * 0.01f;
            x[77] = (float)sign * 5000.0f;
            round_trip(ALL[t], x, y, BLOCK_MAX, NULL, NULL);
            double bound = ALL[t] == QW_TYPE_MXFP4 ? 0.2 : 0.005;
            if (fabs((double)y[77] / (double)x[77] - 1) > bound)
                fail_msg("%s: %g comes back as %g", qw_type_get((uint32_t)ALL[t])->name, (double)x[77], (double)y[77]);
        }
    }
}

/* Values beyond what a binary16 scale can reach, and below: searched formats stay finite. */
static void test_out_of_range(void **state)
{
    (void)state;
    static float x[BLOCK_MAX], y[BLOCK_MAX], ones[BLOCK_MAX];
    static const float SCALE[] = {1e10f, 1e30f, 1e38f, 1e-9f, 1e-30f, 1e-44f};
    for (int i = 0; i < BLOCK_MAX; i++) ones[i] = 1.0f;
    for (int t = 3; t < N_ALL; t++) {
        for (size_t s = 0; s < sizeof SCALE / sizeof *SCALE; s++) {
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = (float)(random_unit() * 2 - 1) * SCALE[s];
            round_trip(ALL[t], x, y, BLOCK_MAX, ones, NULL); /* checks qw_row_finite */
            for (int i = 0; i < BLOCK_MAX; i++) assert_true(isfinite(y[i]));
        }
    }
}

/* Numbers that are not finite must do no harm (the sanitised build watches), though their block is lost. */
static void test_not_finite_input(void **state)
{
    (void)state;
    static float x[BLOCK_MAX];
    static uint8_t row[BLOCK_MAX * 4];
    static const float BAD[] = {NAN, INFINITY, -INFINITY};
    for (int t = 0; t < N_ALL; t++) {
        for (int b = 0; b < 3; b++) {
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = random_normal();
            x[40] = BAD[b];
            qw_quantize_row(ALL[t], x, row, BLOCK_MAX, NULL);
            if (t < 3) assert_false(qw_row_finite(ALL[t], row, BLOCK_MAX));
            for (int i = 0; i < BLOCK_MAX; i++) x[i] = BAD[b];
            qw_quantize_row(ALL[t], x, row, BLOCK_MAX, x);
        }
    }
}

/* Each number of a block that can be NaN or infinite, made so in the first, a middle and the last block. */
static void test_row_finite(void **state)
{
    (void)state;
    static const struct { qw_type type; int n; uint32_t at[2]; uint32_t bytes, bad[3], good[2]; } CASES[] = {
        {QW_TYPE_F32, 1, {0, 0}, 4, {0x7f800000, 0xff800000, 0x7fc00001}, {0x7f7fffff, 0x80000001}},
        {QW_TYPE_F16, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_BF16, 1, {0, 0}, 2, {0x7f80, 0xff80, 0x7fc1}, {0x7f7f, 0x7c00}},
        {QW_TYPE_Q8_0, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q4_0, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q4_1, 2, {0, 2}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q5_0, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q5_1, 2, {0, 2}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q2_K, 2, {80, 82}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q3_K, 1, {108, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q4_K, 2, {0, 2}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q5_K, 2, {0, 2}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_Q6_K, 1, {208, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ4_NL, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ4_XS, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_MXFP4, 1, {0, 0}, 1, {255, 254, 253}, {252, 0}},
        {QW_TYPE_IQ1_S, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ2_XXS, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ2_XS, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ2_S, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ3_XXS, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_IQ3_S, 1, {0, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_TQ1_0, 1, {52, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
        {QW_TYPE_TQ2_0, 1, {64, 0}, 2, {0x7c00, 0xfc00, 0x7e01}, {0x7bff, 0x8001}},
    };
    static uint8_t row[5 * 256];
    for (size_t c = 0; c < sizeof CASES / sizeof *CASES; c++) {
        const qw_type_info *info = qw_type_get((uint32_t)CASES[c].type);
        /* Quants of all ones must not be taken for a scale; where there are none, finite filling. */
        for (int field = 0; field < CASES[c].n; field++) {
            for (int block = 0; block < 5; block += 2) {
                memset(row, info->block_n > 1 ? 0xff : 0, sizeof row);
                for (int k = 0; k < 5; k++)
                    for (int f = 0; f < CASES[c].n; f++)
                        memset(row + (uint32_t)k * info->block_bytes + CASES[c].at[f], 0, CASES[c].bytes);
                uint8_t *at = row + (uint32_t)block * info->block_bytes + CASES[c].at[field];
                for (int v = 0; v < 3; v++) {
                    memcpy(at, &CASES[c].bad[v], CASES[c].bytes);
                    assert_false(qw_row_finite(CASES[c].type, row, 5 * (size_t)info->block_n));
                }
                for (int v = 0; v < 2; v++) {
                    memcpy(at, &CASES[c].good[v], CASES[c].bytes);
                    assert_true(qw_row_finite(CASES[c].type, row, 5 * (size_t)info->block_n));
                }
            }
        }
    }
}

/* The half of IQ1_M lies in the upper four bits of four words; what is below must not be taken for it. */
static void test_row_finite_iq1_m(void **state)
{
    (void)state;
    static const struct { qw_half d; bool finite; } CASES[] = {
        {0x7c00, false}, {0xfc00, false}, {0x7e01, false}, {0x7bff, true}, {0xfbff, true}, {0x8001, true}, {0x3fff, true},
    };
    static qw_block_iq1_m blocks[3];
    for (size_t c = 0; c < sizeof CASES / sizeof *CASES; c++) {
        memset(blocks, 0xff, sizeof blocks);
        for (int b = 0; b < 3; b++)
            for (int i = 0; i < 4; i++) {
                unsigned d = b == 1 ? CASES[c].d : 0;
                blocks[b].scales[i] = (uint16_t)(0x0fff | (d >> (4 * i) & 15) << 12);
            }
        assert_int_equal(qw_row_finite(QW_TYPE_IQ1_M, blocks, 768), CASES[c].finite);
    }
}

int main(void)
{
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_half_exhaustive),
        cmocka_unit_test(test_half_rounding),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_error_bounds),
        cmocka_unit_test(test_importances),
        cmocka_unit_test(test_blocks_stand_alone),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_constant_rows),
        cmocka_unit_test(test_one_huge_value),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_not_finite_input),
        cmocka_unit_test(test_row_finite),
        cmocka_unit_test(test_row_finite_iq1_m),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
