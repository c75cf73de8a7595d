/* cpu.h: which instruction sets this machine has, found once at run time. Any thread. */
#ifndef QW_BASE_CPU_H
#define QW_BASE_CPU_H

#include "base/status.h"

/* The levels of the processor family that the program is built for; each includes those before it. */
typedef enum qw_isa {
    QW_ISA_REF = 0,     /* portable C; the program is built for x86-64-v2 (or the plain target) */
#if defined(__x86_64__)
    QW_ISA_AVX2,        /* AVX2, FMA, F16C, BMI */
    QW_ISA_AVX512,      /* and AVX-512 F, BW, DQ, VL */
    QW_ISA_AVX512_VNNI, /* and AVX-512 VNNI */
#elif defined(__aarch64__)
    QW_ISA_NEON,        /* Advanced SIMD: every AArch64 processor that Linux runs on */
    QW_ISA_DOTPROD,     /* and FEAT_DotProd: SDOT */
    QW_ISA_I8MM,        /* and FEAT_I8MM: USMMLA */
#endif
    QW_ISA_COUNT
} qw_isa;

/* The highest level that the processor and the operating system support. */
qw_isa qw_cpu_isa(void);
const char *qw_isa_name(qw_isa isa); /* "ref", "avx2", "avx512", "avx512vnni"; "neon", "dotprod", "i8mm" */
/* Level of that name; false when unknown. */
int qw_isa_parse(const char *name, qw_isa *out);
/* The processor's own name ("AMD EPYC 9R14"), or "unknown". */
const char *qw_cpu_name(void);

#endif
