/* bytes.c: see bytes.h. */
#include "base/bytes.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

bool qw_parse_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    if (!isdigit((unsigned char)*text)) return false;
    errno = 0;
    uint64_t v = strtoull(text, &end, 10), unit = 1;
    const char *at = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    for (ptrdiff_t i = at ? at - units : -1; i >= 0; i--) unit *= 1000;
    if (unit > 1) end++;
    if (unit > 1 && toupper((unsigned char)*end) == 'B') end++;
    return errno == 0 && *end == '\0' && !__builtin_mul_overflow(v, unit, out);
}
