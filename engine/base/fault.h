/* fault.h - places that can be made to fail, so that failure paths are tested like any other.
 *
 *   if (FAULT("kv_pool.create")) return err_set(e, ERR_NOMEM, ...);
 *
 * GAZE_FAULT="name:n" in the environment makes the n-th passage (1-based) of that place fail; "*:n"
 * counts passages of all places together; "name:n-m" makes all from the n-th to the m-th
 * fail. Without it a passage costs one relaxed load.
 * Thread: any.
 */
#ifndef GAZE_BASE_FAULT_H
#define GAZE_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

extern bool fault_armed; /* read and written with __atomic alone */
bool fault_hit(const char *name);
void fault_arm(const char *spec); /* NULL disarms; tests call it, main() gives it GAZE_FAULT */
uint64_t fault_passages(void);    /* since the last arming: how many places were passed */

#define FAULT(name) (__atomic_load_n(&fault_armed, __ATOMIC_RELAXED) && fault_hit(name))

#endif
