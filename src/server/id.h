/* id.h: random names for requests and answers. Any thread. */
#ifndef QW_SERVER_ID_H
#define QW_SERVER_ID_H

enum { QW_ID_BYTES = 40, QW_ID_RANDOM_BYTES = 12 };

/* prefix (at most 12 bytes) and 24 random hexadecimal digits. */
void qw_id_make(char out[QW_ID_BYTES], const char *prefix);

#endif
