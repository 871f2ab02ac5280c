/* line.h - connections between threads that know each other by name: of one process or of several
 * (meeting.h), over TCP.
 *
 * One side opens a door, which is a port of its own, and pins where it is under the door's name;
 * callers read that, call, and say who they are. A caller has to know a number that is on the
 * board alone, so a stranger at the port is turned away, and holds up nobody for long.
 *
 * Thread: a door is its opener's. On a line one thread may send while another receives;
 * line_shut() from any, and both end.
 */
#ifndef GAZE_COMM_LINE_H
#define GAZE_COMM_LINE_H

#include "comm/meeting.h"

#include <stdbool.h>

struct line_door {
    int fd; /* the listening socket */
    uint64_t key;
    struct meeting *meeting;
    char name[MEETING_NAME_BYTES];
};

/* ERR_IO, ERR_INVALID (the name is taken), ERR_NOMEM. */
MUST_CHECK enum err_code line_open_door(struct line_door *out, struct meeting *m, const char *name,
                                        struct err *e);
/* Waits until n callers have come whose numbers are below n_numbers: line[number] = the
 * connection, each of which was -1 before. Lines that have come stay the caller's on an error:
 * ERR_COMM, who did not come within timeout_ms, or that a process is lost. */
MUST_CHECK enum err_code line_answer(struct line_door *d, int *line, uint32_t n_numbers, uint32_t n,
                                     uint32_t timeout_ms, struct err *e);
void line_close_door(struct line_door *d);

/* Calls the door `name` as number `who`. ERR_COMM: it is not there within timeout_ms. */
MUST_CHECK enum err_code line_call(int *out, struct meeting *m, const char *name, uint32_t who,
                                   uint32_t timeout_ms, struct err *e);

/* All of it; false: the other side is gone, takes nothing for two seconds, or the line was shut. */
MUST_CHECK bool line_send(int line, const void *bytes, size_t n);
/* Waits for all of it, however long. */
MUST_CHECK bool line_receive(int line, void *bytes, size_t n);
/* Waits until the other side has ended its line, for timeout_ms at most. */
void line_await_end(int line, uint32_t timeout_ms);
void line_shut(int line); /* ends both directions; line_close() follows */
void line_close(int line);

#endif
