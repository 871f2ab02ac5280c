/* split.h - reasoning and answer, told apart at </think>, whatever the borders of the pieces.
 *
 * Thread: the loop's. Bytes that may be the beginning of the mark are held back until the next
 * piece.
 */
#ifndef GAZE_SERVER_SPLIT_H
#define GAZE_SERVER_SPLIT_H

#include "json_out.h"

struct split {
    bool thinking; /* still before the mark */
    unsigned held; /* bytes of the mark seen so far */
};

/* Appends text's reasoning and answer to the two buffers. last: nothing follows. */
void split_put(struct split *s, const char *text, size_t n, bool last, struct buf *reasoning,
               struct buf *content);

#endif
