/* id.c: random names (contract in id.h). 96 random bits: no two requests share one, none can be guessed. */
#include "server/id.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

void qw_id_make(char out[QW_ID_BYTES], const char *prefix)
{
    unsigned char bytes[QW_ID_RANDOM_BYTES] = {0};
    int n = snprintf(out, 13, "%s", prefix);
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        int64_t now = qw_clock_us(); /* never on Linux after boot; ids are then only unique, not secret */
        memcpy(bytes, &now, sizeof(now));
    }
    for (int i = 0; i < QW_ID_RANDOM_BYTES; i++) snprintf(out + n + 2 * i, 3, "%02x", bytes[i]);
}
