/* plan.c: the memory plan, computed before anything is allocated. See qw.h. */
#include <stdio.h>
#include <string.h>

#include "engine/engine_private.h"
#include "model/forward.h"

/* A number of a line "Key:   123 kB" of /proc/meminfo, in bytes; 0 when absent. */
static uint64_t meminfo(const char *key)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) == 0 && line[n] == ':' && sscanf(line + n + 1, "%llu", &kib) == 1) break;
        kib = 0;
    }
    fclose(f);
    return (uint64_t)kib << 10;
}

static uint64_t file_number(const char *path)
{
    unsigned long long v = 0;
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%llu", &v) != 1) v = 0;
    fclose(f);
    return v;
}

/* Limit of the control group that this process is in, when it has one of its own. Both versions of the
 * interface; the root group has no limit file or a huge number. */
static uint64_t cgroup_left(void)
{
    static const char *const files[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
    };
    for (size_t i = 0; i < 2; i++) {
        uint64_t limit = file_number(files[i][0]), used = file_number(files[i][1]);
        if (limit > 0 && limit < (1ull << 50)) return limit > used ? limit - used : 0;
    }
    return UINT64_MAX;
}

static uint64_t available_bytes(void)
{
    uint64_t machine = meminfo("MemAvailable"), group = cgroup_left();
    if (machine == 0) machine = UINT64_MAX >> 1;
    return machine < group ? machine : group;
}

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 30);
}

qw_runtime_options qw_engine_runtime_options(const qw_model *m, const qw_engine_options *o, uint32_t context)
{
    return (qw_runtime_options){.n_threads = o->n_threads, .exact = m->exact, .n_rows_max = QW_BATCH_ROWS,
                                .n_seqs = 1, .seq_tokens_max = context};
}

qw_status qw_engine_plan(const qw_model *m, const qw_engine_options *o, qw_plan *out, qw_err *err)
{
    uint32_t trained = m->net->hp.context_length;
    *out = (qw_plan){.context = o->context ? o->context : trained < QW_CONTEXT_DEFAULT ? trained : QW_CONTEXT_DEFAULT};
    if (out->context > trained) {
        return qw_fail(err, QW_E_ARG, "context %u is more than the %u tokens the model was trained for", out->context,
                       trained);
    }
    qw_model_weight_bytes(m, &out->weights_bytes, &out->packed_bytes);
    qw_runtime_options ro = qw_engine_runtime_options(m, o, out->context);
    qw_runtime_bytes(m->net, &ro, &out->kv_bytes, &out->scratch_bytes);
    out->scratch_bytes += (uint64_t)m->net->hp.n_vocab * QW_SAMPLER_BYTES_PER_TOKEN;
    out->total_bytes = out->weights_bytes + out->packed_bytes + out->kv_bytes + out->scratch_bytes;
    out->available_bytes = o->memory_bytes_max ? o->memory_bytes_max : available_bytes();
    if (out->total_bytes <= out->available_bytes) return QW_OK;
    uint64_t fixed = out->total_bytes - out->kv_bytes;
    uint64_t n_tiles = ((uint64_t)out->context + QW_KV_TILE - 1) / QW_KV_TILE, per_tile = out->kv_bytes / n_tiles;
    uint64_t fits = out->available_bytes > fixed ? (out->available_bytes - fixed) / per_tile * QW_KV_TILE : 0;
    if (fits == 0) {
        return qw_fail(err, QW_E_MEMORY,
                       "the model needs %.2f GiB without any context and %.2f GiB are free: take a smaller model",
                       gib(fixed), gib(out->available_bytes));
    }
    return qw_fail(err, QW_E_MEMORY,
                   "%.2f GiB are needed (%.2f of them for a context of %u tokens) and %.2f GiB are free: a context of "
                   "%llu fits (-c %llu)",
                   gib(out->total_bytes), gib(out->kv_bytes), out->context, gib(out->available_bytes),
                   (unsigned long long)fits, (unsigned long long)fits);
}
