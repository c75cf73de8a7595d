/* isa_cap.h: test programs that compute as a processor of a lower instruction-set level would.
 *
 * Programs linked with isa_cap.c (Makefile: CAPPED) ask it instead of the processor: the linker puts it in the way of
 * qw_cpu_isa(). The level comes from the option --isa of a test program or from QW_TEST_ISA in the environment; neither
 * is known to qw itself. Set it before anything is computed.
 */
#ifndef QW_TESTS_ISA_CAP_H
#define QW_TESTS_ISA_CAP_H

#include <stdbool.h>

#include "base/cpu.h"

/* Reads `--isa LEVEL`, the only option of a test program. False after a sentence on standard error: an unknown level,
 * one that this processor does not have, or another option. */
bool isa_cap_options(int argc, char **argv);
/* From now on qw_cpu_isa() is this level, which this processor has. */
void isa_cap_set(qw_isa isa);

#endif
