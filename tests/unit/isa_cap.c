/* isa_cap.c: see isa_cap.h. Not for several threads at once; it is set before any is started. */
#include "isa_cap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The linker's names (--wrap=qw_cpu_isa): all callers come to __wrap_, __real_ is the function itself. */
qw_isa __real_qw_cpu_isa(void);
qw_isa __wrap_qw_cpu_isa(void);

static bool is_set;
static qw_isa level;

static bool set_by_name(const char *name)
{
    qw_isa isa;
    if (!qw_isa_parse(name, &isa) || isa > __real_qw_cpu_isa()) {
        fprintf(stderr, "no instruction-set level %s here; this machine has %s and those below it\n", name,
                qw_isa_name(__real_qw_cpu_isa()));
        return false;
    }
    isa_cap_set(isa);
    return true;
}

qw_isa __wrap_qw_cpu_isa(void)
{
    if (!is_set) {
        const char *name = getenv("QW_TEST_ISA");
        if (!name || !*name) isa_cap_set(__real_qw_cpu_isa());
        else if (!set_by_name(name)) exit(2);
    }
    return level;
}

bool isa_cap_options(int argc, char **argv)
{
    if (argc == 1) return true;
    if (argc == 3 && strcmp(argv[1], "--isa") == 0) return set_by_name(argv[2]);
    fprintf(stderr, "usage: %s [--isa LEVEL]\n", argv[0]);
    return false;
}

void isa_cap_set(qw_isa isa)
{
    is_set = true;
    level = isa;
}
