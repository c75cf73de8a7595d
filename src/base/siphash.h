/* siphash.h: a keyed hash for tables whose keys come from strangers. Source: Aumasson and Bernstein, "SipHash: a fast
 * short-input PRF" (SipHash-2-4). Any thread.
 */
#ifndef QW_BASE_SIPHASH_H
#define QW_BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct qw_sip_key {
    uint64_t k[2];
} qw_sip_key;

/* Of n bytes that follow the 8 bytes of `seed`: a chain of hashes passes the one before. */
uint64_t qw_siphash(const qw_sip_key *key, uint64_t seed, const void *data, size_t n);

#endif
