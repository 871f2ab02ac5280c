/* thread.h - named threads, and the few pthread calls we use, which assert instead of failing. */
#ifndef GAZE_BASE_THREAD_H
#define GAZE_BASE_THREAD_H

#include "base/err.h"

#include <pthread.h>

/* Starts fn(arg) in a thread called "gaze-<name>" (at most 9 letters of name are seen). */
MUST_CHECK enum err_code thread_start(pthread_t *out, const char *name, void *(*fn)(void *),
                                      void *arg, struct err *e);
void thread_join(pthread_t t);

void mutex_lock(pthread_mutex_t *m);
void mutex_unlock(pthread_mutex_t *m);
/* Waits on c; returns after timeout_us at the latest (0: no limit). m is held on return. */
void cond_wait_us(pthread_cond_t *c, pthread_mutex_t *m, unsigned long timeout_us);
void cond_init_monotonic(pthread_cond_t *c); /* what cond_wait_us() needs */

unsigned thread_n_cpus(void); /* that this process may use: affinity and cgroup quota; at least 1 */

#endif
