/* fault.c - see fault.h. */
#include "base/fault.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

bool fault_armed;
static char armed_name[64];
static uint64_t armed_at, armed_to; /* passages, both included */
static _Atomic uint64_t matching_passages;

void fault_arm(const char *spec)
{
    fault_armed = false;
    atomic_store(&matching_passages, 0);
    if (!spec || !*spec)
        return;
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
    fault_armed = true;
}

bool fault_hit(const char *name)
{
    if (strcmp(armed_name, "*") != 0 && strcmp(armed_name, name) != 0)
        return false;
    uint64_t passage = atomic_fetch_add(&matching_passages, 1) + 1;
    return passage >= armed_at && passage <= armed_to;
}

uint64_t fault_passages(void)
{
    return atomic_load(&matching_passages);
}
