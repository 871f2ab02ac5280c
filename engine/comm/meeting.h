/* meeting.h - how ranks find each other: a board of named notes that each rank may pin and read.
 *
 * A note is pinned once under a name and stays. Readers wait for it. Ranks of one process share a
 * board in memory. The processes of a launch (launch.h) have a board each, on which all notes of
 * all appear: process 0 listens, the others connect to it, and it passes everything on.
 *
 * The processes also watch each other over these connections: a word a second. One whose connection
 * ends, or that is not heard for silence_ms, is lost, and so is a launch with it: process 0 tells
 * all others, `lost` is called once in each, and nobody comes back. Messages are in the machine's
 * byte order and neither secret nor signed: the port belongs into a private network.
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

struct launch;
enum { MEETING_OPEN_MS = 60000, MEETING_SILENCE_MS = 5000 };
struct meeting_watch {
    uint32_t open_ms;    /* for all processes to come; 0: MEETING_OPEN_MS */
    uint32_t silence_ms; /* 0: MEETING_SILENCE_MS */
    /* From a thread of the meeting's own, once, after comm_abort_all() with the same reason. */
    void (*lost)(void *arg, const struct err *why);
    void *arg;
};
/* A board for all processes of l; returns when all have come. ERR_COMM: who is missing, or why
 * process 0 refused; ERR_IO: an address or port that cannot be had; ERR_NOMEM. */
MUST_CHECK enum err_code meeting_join(struct meeting **out, const struct launch *l,
                                      const struct meeting_watch *w, struct err *e);
/* Tells the other processes that this one cannot go on; they are lost, for this reason. */
void meeting_fail(struct meeting *m, const char *why);

/* The end is agreed: from now on nobody who leaves is lost. */
void meeting_part(struct meeting *m);
/* ERR_OK, or why the launch is lost (ERR_COMM). */
MUST_CHECK enum err_code meeting_lost(struct meeting *m, struct err *why);

/* Leaves: to the others that is as if this process were lost, unless they leave, too. */
void meeting_destroy(struct meeting *m);

/* Pins note[bytes] under name. ERR_INVALID (the name is taken, or too long), ERR_NOMEM. */
MUST_CHECK enum err_code meeting_pin(struct meeting *m, const char *name, const void *note,
                                     size_t bytes, struct err *e);
/* Waits for the note under name, which must have `bytes`. ERR_COMM: nobody pinned it in time, or
 * a process was lost meanwhile. */
MUST_CHECK enum err_code meeting_read(struct meeting *m, const char *name, void *note, size_t bytes,
                                      uint32_t timeout_ms, struct err *e);

/* Boards of this process have different numbers, also those of the past. */
uint64_t meeting_number(const struct meeting *m);
/* Two ranks of one process see the same number here, ranks of two processes do not. */
uint64_t meeting_process(void);

#endif
