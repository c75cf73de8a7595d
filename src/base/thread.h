/* thread.h: starting a thread that signals leave alone. Any thread. */
#ifndef QW_BASE_THREAD_H
#define QW_BASE_THREAD_H

#include <pthread.h>

/* As pthread_create (0, or an errno value). Signals go to the program's own threads, which know what to do about them; all
 * but those that the thread's own instruction raises are blocked in it: a fault in a mapped file must reach its handler. */
int qw_thread_create(pthread_t *thread, void *(*main)(void *), void *arg);

#endif
