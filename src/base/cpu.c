/* cpu.c: which instruction sets this machine has.
 *
 * Any thread; asked once, because CPUID is slow under virtual machines. An AVX level counts only when
 * the operating system saves its registers (XGETBV): a processor flag alone is not enough. On AArch64 the
 * kernel tells (HWCAP).
 */
#include "base/cpu.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static qw_isa found_isa = QW_ISA_REF;
static char found_name[64] = "unknown";

static const char *const isa_names[QW_ISA_COUNT] = {
    [QW_ISA_REF] = "ref",
#if defined(__x86_64__)
    [QW_ISA_AVX2] = "avx2",
    [QW_ISA_AVX512] = "avx512",
    [QW_ISA_AVX512_VNNI] = "avx512vnni",
#elif defined(__aarch64__)
    [QW_ISA_NEON] = "neon",
    [QW_ISA_DOTPROD] = "dotprod",
    [QW_ISA_I8MM] = "i8mm",
#endif
};

/* Without spaces at either end: some processors pad their name on the left. */
static void set_name(const char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    size_t n = strlen(s);
    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\n')) n--;
    if (n == 0) return;
    if (n >= sizeof found_name) n = sizeof found_name - 1;
    memcpy(found_name, s, n);
    found_name[n] = '\0';
}

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0: which register states the operating system switches. Only after OSXSAVE was seen. */
static uint64_t read_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static int has_all(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

static qw_isa detect_isa(void)
{
    enum { XMM_YMM = 0x6, ZMM = 0xe0 };
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return QW_ISA_REF;
    if (!has_all(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return QW_ISA_REF;
    uint64_t xcr0 = read_xcr0();
    if ((xcr0 & XMM_YMM) != XMM_YMM) return QW_ISA_REF;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return QW_ISA_REF;
    if (!has_all(b, bit_AVX2 | bit_BMI | bit_BMI2)) return QW_ISA_REF;
    if ((xcr0 & ZMM) != ZMM) return QW_ISA_AVX2;
    if (!has_all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) return QW_ISA_AVX2;
    return has_all(c, bit_AVX512VNNI) ? QW_ISA_AVX512_VNNI : QW_ISA_AVX512;
}

static void detect_name(void)
{
    uint32_t words[13] = {0}, max = (uint32_t)__get_cpuid_max(0x80000000u, NULL);
    if (max < 0x80000004u) return;
    for (uint32_t i = 0; i < 3; i++)
        __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                    &words[4 * i + 3]);
    char text[sizeof words];
    memcpy(text, words, sizeof words);
    set_name(text);
}

#else

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

static qw_isa detect_isa(void)
{
    unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    if (!(caps & HWCAP_ASIMD)) return QW_ISA_REF;
    if (!(caps & HWCAP_ASIMDDP)) return QW_ISA_NEON;
    return caps2 & HWCAP2_I8MM ? QW_ISA_I8MM : QW_ISA_DOTPROD;
}

#else

static qw_isa detect_isa(void)
{
    return QW_ISA_REF;
}

#endif

static void detect_name(void)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (f == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (colon != NULL && (strncmp(line, "model name", 10) == 0 || strncmp(line, "Model", 5) == 0)) {
            set_name(colon + 1);
            break;
        }
    }
    fclose(f);
}

#endif

static void detect(void)
{
    found_isa = detect_isa();
    detect_name();
}

qw_isa qw_cpu_isa(void)
{
    pthread_once(&once, detect);
    return found_isa;
}

const char *qw_isa_name(qw_isa isa)
{
    return (size_t)isa < QW_ISA_COUNT ? isa_names[isa] : "unknown";
}

int qw_isa_parse(const char *name, qw_isa *out)
{
    for (int i = 0; i < QW_ISA_COUNT; i++) {
        if (strcmp(name, isa_names[i]) != 0) continue;
        *out = (qw_isa)i;
        return 1;
    }
    return 0;
}

const char *qw_cpu_name(void)
{
    pthread_once(&once, detect);
    return found_name;
}
