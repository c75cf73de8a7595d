/* gguf_layout.c: where the tensors of one GGUF file lie.
 *
 * The opening thread alone. Tensors follow each other in the order of the list, each on a multiple of
 * the alignment, and nothing else is in the file: that is how every writer lays them out, and it makes
 * one wrong bit in a count, a size, a type or an offset visible. Sums are checked before use.
 */
#include "formats/gguf_private.h"

#include "base/mem.h"

/* 21: n rounded up to a multiple of the alignment (a power of two); false when that overflows. */
static bool round_up(uint64_t n, uint64_t alignment, uint64_t *out)
{
    uint64_t sum;
    if (__builtin_add_overflow(n, alignment - 1, &sum)) return false;
    *out = sum & ~(alignment - 1);
    return true;
}

/* 29, 32: the alignment of every offset, and what all tensors need against what the file has. */
static qw_status check_sum(const gguf_part *part, qw_err *err)
{
    uint64_t used = 0, end = 0;
    for (size_t i = 0; i < part->n_tensors; i++) {
        const qw_tensor *t = &part->tensors[i];
        if (part->offsets[i] % part->alignment != 0)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' begins at offset %llu: want a multiple of %u",
                           part->path, t->name, (unsigned long long)part->offsets[i], part->alignment);
        if (__builtin_add_overflow(used, t->bytes, &end) || !round_up(end, part->alignment, &used) ||
            used > INT64_MAX)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: the tensors up to '%s' have more than 2^63 bytes together", part->path,
                           t->name);
    }
    if (part->n_tensors == 0) return QW_OK;
    uint64_t bytes = part->file_bytes, need;
    if (__builtin_add_overflow(part->data_start, end, &need) || need > bytes)
        return qw_fail(err, QW_E_FORMAT, "%s: the file is cut short: %llu bytes, the header asks for %llu",
                       part->path, (unsigned long long)bytes, (unsigned long long)need);
    return QW_OK;
}

/* 30, 31: inside the file; after the tensor before it, without overlap or gap. *end is set to the first
 * byte of the data section behind all tensors and their padding. */
static qw_status place(gguf_part *part, uint64_t *end, qw_err *err)
{
    uint64_t file_bytes = part->file_bytes, want = 0, last;
    for (size_t i = 0; i < part->n_tensors; i++) {
        qw_tensor *t = &part->tensors[i];
        uint64_t at = part->offsets[i], room = file_bytes - part->data_start; /* check_sum: not negative */
        if (at > room || t->bytes > room - at)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: tensor '%s' lies outside the file: offset %llu and %zu bytes, "
                           "the data has %llu",
                           part->path, t->name, (unsigned long long)at, t->bytes,
                           (unsigned long long)room);
        if (at < want)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: tensor '%s' begins at offset %llu and overlaps the tensors before it, "
                           "which reach to %llu",
                           part->path, t->name, (unsigned long long)at, (unsigned long long)want);
        if (at > want)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: tensor '%s' begins at offset %llu and leaves a gap: want %llu", part->path,
                           t->name, (unsigned long long)at, (unsigned long long)want);
        if (part->map) t->data = part->bytes + part->data_start + at; /* else the folder has it */
        last = at + t->bytes;
        if (!round_up(last, part->alignment, &want)) want = last; /* check_sum: does not happen */
    }
    *end = want;
    return QW_OK;
}

qw_status qw_gguf_part_layout(gguf_part *part, qw_err *err)
{
    uint64_t bytes = part->file_bytes, start, end = 0, all;
    if (!round_up(part->infos_end, part->alignment, &start))
        return qw_fail(err, QW_E_FORMAT, "%s: the end of the header overflows", part->path);
    part->data_start = (size_t)start;
    QW_TRY(check_sum(part, err));
    QW_TRY(place(part, &end, err));
    if (__builtin_add_overflow(start, end, &all)) all = UINT64_MAX;
    if (bytes > all) /* 33: a list that lost its last tensor would look like this */
        return qw_fail(err, QW_E_FORMAT, "%s: %llu bytes follow the last tensor: want none", part->path,
                       (unsigned long long)(bytes - all));
    return QW_OK;
}
