/* fit.c: the search behind the quantiser (see fit.h).
 *
 * Two stages. First each sub-block alone: for a number of ranges, from slightly wider than the data to
 * clipping its ends, round to levels, solve for the best scale and minimum given these levels (weighted
 * least squares, two unknowns), round again; keep the best. Then the block: round the sub-blocks' scales
 * to multiples of d and dmin, try the neighbours of each integer with fresh levels, solve for d and dmin
 * given all the integers, and repeat while the error falls. Sums are double, so that neither huge nor
 * tiny blocks overflow. Pure functions, any thread.
 */
#include "kernels/ref/fit.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/ref/half.h"

enum { FIT_RANGES = 10, FIT_SUB_ROUNDS = 2, FIT_BLOCK_ROUNDS = 6 };

#define FIT_SPREAD_HI 1.05f /* widest range tried */
#define FIT_SECOND_START 1.05f
#define FIT_HALF_MAX 65504.0f

/* Weighted sums over the elements of a sub-block: of 1, level, level^2, x, level * x. */
typedef struct fit_sums {
    double w, q, qq, x, qx;
} fit_sums;

static float level_of(const fit_shape *shape, int code)
{
    return (float)(shape->codebook ? shape->codebook[code] : code);
}

/* Nearest code of t = x / scale. NaN becomes the lowest. */
static inline int16_t code_uniform(const fit_shape *shape, float t)
{
    float lo = (float)shape->q_lo, hi = (float)shape->q_hi;
    t = t > lo ? t : lo;
    t = t < hi ? t : hi;
    return (int16_t)rintf(t);
}

/* The same with a codebook: how many middles of neighbouring levels t is above. Level by level over the
 * whole sub-block, because that is vector code and a search per element is not. */
static void codes_in_book(const int8_t *book, const float *t, int n, int16_t *q)
{
    int32_t above[FIT_SUB_MAX] = {0};
    for (int i = 1; i < 16; i++) {
        float middle = 0.5f * (float)(book[i - 1] + book[i]);
        for (int j = 0; j < n; j++) above[j] += t[j] > middle;
    }
    for (int j = 0; j < n; j++) q[j] = (int16_t)above[j];
}

/* Codes of a sub-block under (scale, minimum), and the weighted squared error they leave. */
static double assign(const fit_shape *shape, const float *x, const float *w, float scale, float minimum,
                     int16_t *q)
{
    float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    float rest[FIT_SUB_MAX];
    int n = shape->sub_n;
    if (shape->codebook) {
        for (int i = 0; i < n; i++) rest[i] = x[i] * inverse; /* such formats have no minimum */
        codes_in_book(shape->codebook, rest, n, q);
    } else {
        for (int i = 0; i < n; i++) q[i] = code_uniform(shape, (x[i] + minimum) * inverse);
    }
    for (int i = 0; i < n; i++) rest[i] = x[i] - (scale * level_of(shape, q[i]) - minimum);
    double error[2] = {0, 0}; /* two chains: twice the speed */
    for (int i = 0; i + 1 < n; i += 2) {
        error[0] += (double)w[i] * ((double)rest[i] * (double)rest[i]);
        error[1] += (double)w[i + 1] * ((double)rest[i + 1] * (double)rest[i + 1]);
    }
    return error[0] + error[1];
}

static fit_sums sums_of(const fit_shape *shape, const float *x, const float *w, const int16_t *q)
{
    fit_sums s = {0};
    for (int i = 0; i < shape->sub_n; i++) {
        double level = (double)level_of(shape, q[i]), weight = (double)w[i], value = (double)x[i];
        s.w += weight;
        s.q += weight * level;
        s.qq += weight * level * level;
        s.x += weight * value;
        s.qx += weight * level * value;
    }
    return s;
}

/* ---- stage 1: one sub-block with any real scale and minimum ------------------------------------ */

/* Best (scale, minimum) for fixed levels; false when the levels do not determine it. */
static bool solve_sub(const fit_shape *shape, const fit_sums *s, float *scale, float *minimum)
{
    if (s->qq <= 0) return false;
    double a = s->qx / s->qq, b = 0;
    if (shape->m_hi > 0) {
        double det = s->w * s->qq - s->q * s->q;
        bool is_free = shape->m_lo > 0; /* dmin of either sign */
        if (det > 1e-9 * s->w * s->qq) {
            double a2 = (s->w * s->qx - s->q * s->x) / det, b2 = (a2 * s->q - s->x) / s->w;
            if (is_free || b2 >= 0) a = a2, b = b2;
        } else if (is_free) {
            return false;
        }
        if (a <= 0) return false;
    }
    *scale = (float)a;
    *minimum = (float)b;
    return true;
}

/* Improves a start by turns of rounding and solving; takes over the best seen. */
static void refine_sub(const fit_shape *shape, const float *x, const float *w, float scale, float minimum,
                       double *best, float *best_scale, float *best_minimum)
{
    int16_t q[FIT_SUB_MAX];
    for (int round = 0; round <= FIT_SUB_ROUNDS; round++) {
        double error = assign(shape, x, w, scale, minimum, q);
        if (error < *best) {
            *best = error;
            *best_scale = scale;
            *best_minimum = minimum;
        }
        fit_sums sums = sums_of(shape, x, w, q);
        if (!solve_sub(shape, &sums, &scale, &minimum)) return;
    }
}

static void fit_sub(const fit_shape *shape, const float *x, const float *w, float *scale, float *minimum)
{
    float lo = x[0], hi = x[0];
    for (int i = 1; i < shape->sub_n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *scale = 0.0f;
    *minimum = 0.0f;
    double best = INFINITY;
    if (shape->m_hi > 0) {
        bool is_free = shape->m_lo > 0;
        if (!is_free && lo > 0) lo = 0; /* a minimum is subtracted, so it cannot lift */
        *minimum = is_free || lo < 0 ? -lo : 0.0f;
        for (int k = 0; k < FIT_RANGES && hi > lo; k++) {
            float part = FIT_SPREAD_HI - (FIT_SPREAD_HI - shape->spread_lo) * (float)k / (FIT_RANGES - 1);
            float range = (hi - lo) * part, start = lo + ((hi - lo) - range) * 0.5f;
            if (!is_free && start > 0) start = 0;
            refine_sub(shape, x, w, range / (float)shape->q_hi, -start, &best, scale, minimum);
        }
        return;
    }
    float extreme = -lo > hi ? lo : hi;
    float level_lo = level_of(shape, shape->q_lo), level_hi = level_of(shape, shape->q_hi);
    for (int k = 0; k < FIT_RANGES && extreme != 0.0f; k++) {
        float part = FIT_SPREAD_HI - (FIT_SPREAD_HI - shape->spread_lo) * (float)k / (FIT_RANGES - 1);
        refine_sub(shape, x, w, extreme * part / level_lo, 0.0f, &best, scale, minimum);
        refine_sub(shape, x, w, extreme * part / level_hi, 0.0f, &best, scale, minimum);
    }
}

/* ---- stage 2: integers of the sub-blocks, halves of the block ---------------------------------- */

static uint16_t finite_half(float f)
{
    f = f > -FIT_HALF_MAX ? f : -FIT_HALF_MAX;
    f = f < FIT_HALF_MAX ? f : FIT_HALF_MAX;
    uint16_t half = half_from_f32(f);
    return half == 0x8000 ? 0 : half; /* a block of zeros decodes to +0 */
}

static int nearest_int(float value, float unit, int lo, int hi)
{
    float t = unit != 0.0f ? value / unit : 0.0f;
    t = t > (float)lo ? t : (float)lo;
    t = t < (float)hi ? t : (float)hi;
    return (int)rintf(t);
}

/* Integers and codes of one sub-block for the block's d and dmin: the nearest ones to the wanted
 * scale and minimum, and their neighbours, judged by the error with fresh codes. */
static double settle_sub(const fit_shape *shape, const float *x, const float *w, float scale, float minimum,
                         fit_result *r, int sub)
{
    float d = half_to_f32(r->d), dmin = half_to_f32(r->dmin);
    int s_mid = nearest_int(scale, d, shape->s_lo, shape->s_hi);
    int m_mid = nearest_int(minimum, dmin, shape->m_lo, shape->m_hi);
    static const int STEPS[3] = {0, -1, 1}; /* the nearest first: it stays on a tie */
    int16_t q[FIT_SUB_MAX];
    double best = INFINITY;
    for (int i = 0; i < 3; i++) {
        int s = s_mid + STEPS[i];
        if (s < shape->s_lo || s > shape->s_hi) continue;
        for (int j = 0; j < 3; j++) {
            int m = m_mid + STEPS[j];
            if (m < shape->m_lo || m > shape->m_hi) continue;
            double error = assign(shape, x, w, d * (float)s, dmin * (float)m, q);
            if (error < best || best == INFINITY) {
                best = error;
                r->s[sub] = (int16_t)s;
                r->m[sub] = (int16_t)m;
                memcpy(r->q + sub * shape->sub_n, q, shape->sub_n * sizeof *q);
            }
        }
    }
    return best;
}

/* d and dmin that suit all the integers best; false when nothing is to be gained. */
static bool solve_block(const fit_shape *shape, const float *x, const float *w, fit_result *r)
{
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0; /* a = s * level, b = -m */
    for (int sub = 0; sub < shape->n_subs; sub++) {
        int at = sub * shape->sub_n;
        fit_sums t = sums_of(shape, x + at, w + at, r->q + at);
        double s = r->s[sub], m = r->m[sub];
        aa += s * s * t.qq;
        ab -= s * m * t.q;
        bb += m * m * t.w;
        ax += s * t.qx;
        bx -= m * t.x;
    }
    double d, dmin = 0, det = aa * bb - ab * ab;
    if (det > 1e-9 * aa * bb) {
        d = (ax * bb - bx * ab) / det;
        dmin = (bx * aa - ax * ab) / det;
        if (shape->m_lo == 0 && dmin < 0) dmin = 0, d = ax / aa;
    } else if (aa > 0) {
        d = ax / aa;
    } else {
        return false;
    }
    uint16_t d_half = finite_half((float)d), dmin_half = finite_half((float)dmin);
    if (d_half == r->d && dmin_half == r->dmin) return false;
    r->d = d_half;
    r->dmin = dmin_half;
    return true;
}

/* From a start (d, dmin) by turns of settling the integers and solving; takes over the best seen. */
static void refine_block(const fit_shape *shape, const float *x, const float *w, const float *scale,
                         const float *minimum, uint16_t d, uint16_t dmin, double *best, fit_result *out)
{
    fit_result r = {.d = d, .dmin = dmin};
    double last = INFINITY;
    for (int round = 0; round < FIT_BLOCK_ROUNDS; round++) {
        double error = 0;
        for (int sub = 0; sub < shape->n_subs; sub++) {
            int at = sub * shape->sub_n;
            error += settle_sub(shape, x + at, w + at, scale[sub], minimum[sub], &r, sub);
        }
        if (error < *best || *best == INFINITY) {
            *best = error;
            *out = r;
        }
        if (!(error < last) || !solve_block(shape, x, w, &r)) return;
        last = error;
    }
}

void qw_fit_block(const fit_shape *shape, const float *x, const float *w, fit_result *out)
{
    float scale[FIT_SUBS_MAX], minimum[FIT_SUBS_MAX];
    float scale_max = 0, minimum_max = 0; /* of the largest magnitude, with its sign */
    for (int sub = 0; sub < shape->n_subs; sub++) {
        int at = sub * shape->sub_n;
        fit_sub(shape, x + at, w + at, &scale[sub], &minimum[sub]);
        if (fabsf(scale[sub]) > fabsf(scale_max)) scale_max = scale[sub];
        if (fabsf(minimum[sub]) > fabsf(minimum_max)) minimum_max = minimum[sub];
    }
    int s_far = -shape->s_lo > shape->s_hi ? shape->s_lo : shape->s_hi;
    float d = scale_max / (float)s_far;
    float dmin = shape->m_hi > 0 ? minimum_max / (float)shape->m_hi : 0.0f;
    uint16_t d_half = finite_half(d), dmin_half = finite_half(dmin);
    double best = INFINITY;
    refine_block(shape, x, w, scale, minimum, d_half, dmin_half, &best, out);
    /* A second start with other integers, from a larger d; more starts gain little. A step of one half at
     * least: small blocks have subnormal halves with few bits, and a d rounded down clips the largest. */
    uint16_t d_next = finite_half(d * FIT_SECOND_START);
    if (d_next == d_half && (d_half & 0x7fff) < 0x7bff) d_next++;
    refine_block(shape, x, w, scale, minimum, d_next, dmin_half, &best, out);
}
