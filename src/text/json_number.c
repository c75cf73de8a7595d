/* json_number.c: numbers as Python prints them.
 *
 * The shortest digits that read back as the same double, by trying precisions; printf and strtod are used
 * in forms without a decimal point, because that follows the locale. Any thread; no state.
 */
#include "text/json_number.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DIGITS_KEPT = 800,       /* no double needs more than 767 digits to be decided */
    EXPONENT_MAX = 1000000,  /* beyond every double, within every sum made here */
    FIXED_BELOW = 16,        /* Python writes 1e16 and above with an exponent */
    FIXED_FROM = -4          /* and what is below 0.0001 */
};

/* Value of digits * 10^exponent. */
static double scaled(uint64_t digits, int exponent)
{
    char text[48];
    snprintf(text, sizeof text, "%llue%d", (unsigned long long)digits, exponent);
    return strtod(text, NULL);
}

/* Finds n digits that read back as value > 0, with *exponent of the last one. The nearest n-digit decimal
 * is tried, then its neighbour above: at a power of two the room below is only half as wide. */
static int try_digits(double value, int n, uint64_t *digits, int *exponent)
{
    char text[64];
    uint64_t d = 0;
    snprintf(text, sizeof text, "%.*e", n - 1, value);
    const char *e = strchr(text, 'e');
    for (const char *p = text; p < e; p++)
        if (*p >= '0' && *p <= '9') d = d * 10 + (uint64_t)(*p - '0');
    int tens = (int)strtol(e + 1, NULL, 10) - (n - 1);
    for (uint64_t candidate = d; candidate <= d + 1; candidate++)
        if (scaled(candidate, tens) == value) {
            *digits = candidate;
            *exponent = tens;
            return 1;
        }
    return 0;
}

size_t qw_json_double_text(double value, char out[QW_JSON_DOUBLE_MAX])
{
    if (isnan(value)) return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "NaN");
    const char *sign = signbit(value) ? "-" : "";
    value = fabs(value);
    if (isinf(value)) return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%sInfinity", sign);
    if (value == 0.0) return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%s0.0", sign);

    uint64_t digits = 0;
    int exponent = 0;
    /* A normal number of 15 digits or fewer shows them at precision 15, followed by zeros. */
    int n = value >= DBL_MIN ? 15 : 1;
    while (n < 17 && !try_digits(value, n, &digits, &exponent)) n++;
    if (n == 17) try_digits(value, 17, &digits, &exponent);
    for (; digits % 10 == 0; digits /= 10) exponent++;

    char text[24];
    int count = snprintf(text, sizeof text, "%llu", (unsigned long long)digits);
    int point = count + exponent; /* place of the decimal point, counted from the first digit */
    if (point - 1 < FIXED_FROM || point - 1 >= FIXED_BELOW)
        return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%s%c%s%se%c%02d", sign, text[0], count > 1 ? "." : "",
                                text + 1, point - 1 < 0 ? '-' : '+', abs(point - 1));
    if (point <= 0) return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%s0.%.*s%s", sign, -point, "0000", text);
    if (point >= count)
        return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%s%s%.*s.0", sign, text, point - count,
                                "0000000000000000");
    return (size_t)snprintf(out, QW_JSON_DOUBLE_MAX, "%s%.*s.%s", sign, point, text, text + point);
}

double qw_json_double_value(const char *s, size_t n)
{
    char text[DIGITS_KEPT + 32];
    size_t used = 0, i = 0;
    int64_t exponent = 0;
    bool negative = n > 0 && s[0] == '-', fraction = false, dropped = false;
    for (i = negative; i < n && s[i] != 'e' && s[i] != 'E'; i++) {
        if (s[i] == '.') {
            fraction = true;
            continue;
        }
        if (fraction) exponent--;
        if (used == 0 && s[i] == '0') continue;
        if (used < DIGITS_KEPT) {
            text[used++] = s[i];
        } else {
            exponent++;
            dropped |= s[i] != '0';
        }
    }
    if (used == 0) return negative ? -0.0 : 0.0;
    if (dropped) { /* keeps what was dropped on the right side of every halfway point */
        text[used++] = '1';
        exponent--;
    }
    int64_t given = 0;
    bool minus = i + 1 < n && s[i + 1] == '-';
    for (i += i < n; i < n; i++)
        if (s[i] >= '0' && s[i] <= '9' && given < ((int64_t)1 << 40)) given = given * 10 + (s[i] - '0');
    exponent += minus ? -given : given;
    if (exponent > EXPONENT_MAX) exponent = EXPONENT_MAX;
    if (exponent < -EXPONENT_MAX) exponent = -EXPONENT_MAX;
    snprintf(text + used, sizeof text - used, "e%d", (int)exponent);
    double value = strtod(text, NULL);
    return negative ? -value : value;
}
