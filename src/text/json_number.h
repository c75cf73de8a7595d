/* json_number.h: JSON numbers to doubles and back, whatever the locale. Any thread. Internal to src/text. */
#ifndef QW_TEXT_JSON_NUMBER_H
#define QW_TEXT_JSON_NUMBER_H

#include <stdbool.h>
#include <stddef.h>

enum { QW_JSON_DOUBLE_MAX = 40 };

/* Writes value as Python's json.dumps does; returns the length. */
size_t qw_json_double_text(double value, char out[QW_JSON_DOUBLE_MAX]);
/* The nearest double of a number in JSON's grammar, any length; beyond all doubles it is infinite. */
double qw_json_double_value(const char *s, size_t n);

#endif
