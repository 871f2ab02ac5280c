/* fault.c - see fault.h. */
#include "base/fault.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

bool fault_armed;
static pthread_mutex_t lock =
    PTHREAD_MUTEX_INITIALIZER; /* of what is armed: tests arm at any time */
static char armed_name[64];
static uint64_t armed_at, armed_to; /* passages, both included */
static _Atomic uint64_t matching_passages;

static void set(const char *spec)
{
    const char *colon = strrchr(spec, ':');
    size_t n = colon ? (size_t)(colon - spec) : strlen(spec);
    if (n >= sizeof armed_name)
        n = sizeof armed_name - 1;
    memcpy(armed_name, spec, n);
    armed_name[n] = '\0';
    char *end = NULL;
    armed_at = armed_to = colon ? strtoull(colon + 1, &end, 10) : 1;
    if (end && *end == '-')
        armed_to = strtoull(end + 1, NULL, 10);
}

void fault_arm(const char *spec)
{
    bool armed = spec && *spec;
    pthread_mutex_lock(&lock);
    atomic_store(&matching_passages, 0);
    if (armed)
        set(spec);
    __atomic_store_n(&fault_armed, armed, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&lock);
}

bool fault_hit(const char *name)
{
    pthread_mutex_lock(&lock);
    bool matches = !strcmp(armed_name, "*") || !strcmp(armed_name, name);
    uint64_t passage = matches ? atomic_fetch_add(&matching_passages, 1) + 1 : 0;
    bool hit = matches && passage >= armed_at && passage <= armed_to;
    pthread_mutex_unlock(&lock);
    return hit;
}

uint64_t fault_passages(void)
{
    return atomic_load(&matching_passages);
}
