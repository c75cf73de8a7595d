/* checksum.h: a fast 64-bit sum over bytes, for damage that nobody intended: torn writes, bad disks, cut files.
 *
 * Not cryptographic: whoever can write the bytes can make a sum fit. Damage within one 8-byte word is always found; other
 * damage, unless it is made to fit, is missed once in 2^64. Words are read in the machine's own order: sums compare on
 * machines of one byte order. Any thread.
 */
#ifndef QW_BASE_CHECKSUM_H
#define QW_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t qw_checksum(const void *data, size_t n);

#endif
