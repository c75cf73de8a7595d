/* bytes.h: sizes as people write them. Any thread. */
#ifndef QW_BASE_BYTES_H
#define QW_BASE_BYTES_H

#include <stdbool.h>
#include <stdint.h>

/* "20G", "1500M", "512kB", "0": decimal units, as sizes are printed. */
bool qw_parse_bytes(const char *text, uint64_t *out);

#endif
