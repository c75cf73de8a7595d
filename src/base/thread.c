/* thread.c: see thread.h. */
#include "base/thread.h"

#include <signal.h>
#include <stddef.h>

int qw_thread_create(pthread_t *thread, void *(*main)(void *), void *arg)
{
    static const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t block, old;
    sigfillset(&block);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&block, own[i]);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    int rc = pthread_create(thread, NULL, main, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}
