/* name_set.c: names to numbers, for names that come from untrusted files. See name_set.h. */
#include "formats/name_set.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"

static inline uint64_t rotl(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = rotl(v[1], 13) ^ v[0], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] = rotl(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotl(v[1], 17) ^ v[2], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] = rotl(v[2], 32);
}

/* SipHash with one round a word and three at the end (Aumasson and Bernstein, 2012). */
static uint64_t hash(const uint64_t key[2], qw_text name)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    size_t i = 0;
    for (;;) {
        size_t left = name.n - i;
        uint64_t word = 0;
        memcpy(&word, name.s + i, left < 8 ? left : 8);
        word = le64toh(word);
        if (left < 8) word |= (uint64_t)name.n << 56;
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
        if (left < 8) break;
        i += 8;
    }
    v[2] ^= 0xff;
    for (int r = 0; r < 3; r++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

qw_status qw_name_set_init(name_set *set, size_t n_max, qw_err *err)
{
    *set = (name_set){.n_max = n_max};
    size_t n_slots = 8, want;
    if (qw_mul_overflows(n_max, 2, &want)) want = SIZE_MAX / 2;
    while (n_slots < want) n_slots *= 2; /* at most half full */
    if (getrandom(set->key, sizeof set->key, 0) != (ssize_t)sizeof set->key)
        return qw_fail_errno(err, "the system gives no random numbers");
    QW_TRY(qw_alloc(&set->slots, n_slots, sizeof *set->slots, "a table of names", err));
    set->mask = n_slots - 1;
    return QW_OK;
}

void qw_name_set_free(name_set *set)
{
    free(set->slots);
    *set = (name_set){0};
}

static struct name_slot *find(const name_set *set, qw_text name)
{
    for (size_t i = (size_t)hash(set->key, name);; i++) {
        struct name_slot *s = &set->slots[i & set->mask];
        if (s->name.s == NULL || (s->name.n == name.n && memcmp(s->name.s, name.s, name.n) == 0)) return s;
    }
}

bool qw_name_set_add(name_set *set, qw_text name, size_t value)
{
    struct name_slot *s = find(set, name);
    if (s->name.s != NULL) return false;
    QW_ASSERT(set->n < set->n_max);
    *s = (struct name_slot){.name = name, .value = value};
    set->n++;
    return true;
}

size_t qw_name_set_find(const name_set *set, qw_text name)
{
    if (set->slots == NULL) return SIZE_MAX;
    const struct name_slot *s = find(set, name);
    return s->name.s != NULL ? s->value : SIZE_MAX;
}
