/* link.h - the connections behind a meeting of several processes. Private to engine/comm.
 *
 * Process 0 listens until all others have said who they are; then each has one connection to it,
 * and a thread in each process reads, sends a word a second, and notices who is silent.
 *
 * Thread: open and close by one; pin and fail by any.
 */
#ifndef GAZE_COMM_LINK_H
#define GAZE_COMM_LINK_H

#include "comm/meeting.h"

#include <stdbool.h>
#include <sys/socket.h>

struct link;

struct link_options {
    struct meeting_watch watch;
    /* The link's thread: a note from another process. One that is not kept loses the launch. */
    enum err_code (*pinned)(void *board, const char *name, const void *note, size_t bytes,
                            struct err *e);
    void *board;
};

MUST_CHECK enum err_code link_open(struct link **out, const struct launch *l,
                                   const struct link_options *o, struct err *e);
void link_pin(struct link *k, const char *name, const void *note, size_t bytes);
void link_fail(struct link *k, const char *why);
void link_close(struct link *k); /* NULL: nothing */

/* From now on nobody who leaves is lost. */
void link_part(struct link *k);
uint32_t link_process(const struct link *k); /* this one's number */
/* This end's address, as process 0 and this process reach each other, or process 0's; false: the
 * connection is gone. On process 0 the own one is that of its connection to process 1. */
bool link_address(struct link *k, bool own, struct sockaddr_storage *out, socklen_t *size);
/* The link of a meeting; NULL: one process. */
struct link *meeting_link(struct meeting *m);

#endif
