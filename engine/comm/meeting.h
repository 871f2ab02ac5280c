/* meeting.h - how ranks find each other: a board of named notes that each rank may pin and read.
 *
 * A note is pinned once under a name and stays. Readers wait for it. Ranks of one process share a
 * board in memory; meeting_join() (launch.h) extends it over the nodes of a launch.
 *
 * Thread: any.
 */
#ifndef GAZE_COMM_MEETING_H
#define GAZE_COMM_MEETING_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct meeting;

enum { MEETING_NAME_BYTES = 64, MEETING_NOTE_BYTES = 256 }; /* a name with its end, a note */

/* A board for the threads of this process. ERR_NOMEM. Destroy it once nobody waits. */
MUST_CHECK enum err_code meeting_create(struct meeting **out, struct err *e);
void meeting_destroy(struct meeting *m);

/* Pins note[bytes] under name. ERR_INVALID (the name is taken, or too long), ERR_NOMEM. */
MUST_CHECK enum err_code meeting_pin(struct meeting *m, const char *name, const void *note,
                                     size_t bytes, struct err *e);
/* Waits for the note under name, which must have `bytes`. ERR_COMM: nobody pinned it in time. */
MUST_CHECK enum err_code meeting_read(struct meeting *m, const char *name, void *note, size_t bytes,
                                      uint32_t timeout_ms, struct err *e);

/* Two ranks of one process see the same number here, ranks of two processes do not. */
uint64_t meeting_process(void);

#endif
