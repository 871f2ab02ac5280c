/* thread.c - see thread.h. */
#include "base/thread.h"

#include "base/fault.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum err_code thread_start(pthread_t *out, const char *name, void *(*fn)(void *), void *arg,
                           struct err *e)
{
    int rc = FAULT("thread.start") ? EAGAIN : pthread_create(out, NULL, fn, arg);
    if (rc)
        return err_set(e, ERR_NOMEM, "thread %s: %s", name, strerror(rc));
    char full[16];
    snprintf(full, sizeof full, "gaze-%.9s", name);
    pthread_setname_np(*out, full);
    return ERR_OK;
}

void thread_join(pthread_t t)
{
    int rc = pthread_join(t, NULL);
    assert(rc == 0);
}

void mutex_lock(pthread_mutex_t *m)
{
    int rc = pthread_mutex_lock(m);
    assert(rc == 0);
}

void mutex_unlock(pthread_mutex_t *m)
{
    int rc = pthread_mutex_unlock(m);
    assert(rc == 0);
}

void cond_init_monotonic(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    int rc = pthread_cond_init(c, &attr);
    assert(rc == 0);
    pthread_condattr_destroy(&attr);
}

void cond_wait_us(pthread_cond_t *c, pthread_mutex_t *m, unsigned long timeout_us)
{
    if (!timeout_us) {
        pthread_cond_wait(c, m);
        return;
    }
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += (time_t)(timeout_us / 1000000);
    ts.tv_nsec += (long)(timeout_us % 1000000) * 1000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(c, m, &ts);
}

/* cgroup v2: "max 100000" or "200000 100000"; a quota of 2 periods is 2 CPUs, rounded up. */
static unsigned cgroup_cpus(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    long quota = 0, period = 0;
    int n = f ? fscanf(f, "%ld %ld", &quota, &period) : 0;
    if (f)
        fclose(f);
    return n == 2 && quota > 0 && period > 0 ? (unsigned)((quota + period - 1) / period) : ~0u;
}

unsigned thread_n_cpus(void)
{
    cpu_set_t set;
    unsigned n = 1, limit = cgroup_cpus();
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        n = (unsigned)CPU_COUNT(&set);
    return n < limit ? n : limit;
}
