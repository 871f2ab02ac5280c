/* ranks_place.c - tests of ranks run on the CPU. */
#include "tests/golden/ranks_rig.h"

void ranks_rig_place(struct ranks_options *o)
{
    o->device = -1;
}

void ranks_rig_read(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

void ranks_rig_write(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
