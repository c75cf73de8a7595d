/* kernels.c: builds the kernel table of an instruction-set level.
 *
 * A level's table starts as the reference and is raised level by level, so a slot that a level does not
 * have keeps the fastest implementation below it. All tables are built together, once, by whichever
 * thread asks first; afterwards they are constant. Any thread.
 */
#include "kernels/kernels.h"

#include <pthread.h>

#include "base/status.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static qw_kernels tables[QW_ISA_COUNT];

/* Forms that are another one's layout take its product. */
static void share(qw_kernels *t)
{
    t->gemm[QW_PACK_TQ1_0] = t->gemm[QW_PACK_TQ2_0] = t->gemm[QW_PACK_Q2_K];
    t->gemm[QW_PACK_NVFP4] = t->gemm[QW_PACK_BF16];
}

/* Only the levels this machine has: an init function is compiled for its level. */
static void build(void)
{
    static void (*const raise[QW_ISA_COUNT])(qw_kernels *) = {
        [QW_ISA_REF] = qw_kernels_init_ref,
#if defined(__x86_64__)
        [QW_ISA_AVX2] = qw_kernels_init_avx2,
        [QW_ISA_AVX512] = qw_kernels_init_avx512,
        [QW_ISA_AVX512_VNNI] = qw_kernels_init_avx512_vnni,
#elif defined(__aarch64__)
        [QW_ISA_NEON] = qw_kernels_init_neon,
        [QW_ISA_DOTPROD] = qw_kernels_init_dotprod,
        [QW_ISA_I8MM] = qw_kernels_init_i8mm,
#endif
    };
    for (int isa = 0; isa <= (int)qw_cpu_isa(); isa++) {
        if (isa > 0) tables[isa] = tables[isa - 1];
        if (raise[isa]) raise[isa](&tables[isa]);
        share(&tables[isa]);
        tables[isa].isa = (qw_isa)isa;
    }
}

const qw_kernels *qw_kernels_get(qw_isa isa)
{
    QW_ASSERT(isa >= QW_ISA_REF && isa <= qw_cpu_isa());
    int failed = pthread_once(&once, build);
    QW_ASSERT(!failed);
    return &tables[isa];
}
