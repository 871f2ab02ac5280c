/* sse.h - one stream of server-sent events, pulled by whoever has room to send.
 *
 * The writer appends events; the reader takes bytes when the socket has room. When nothing is there
 * the reader's connection sleeps until the next write.
 * Thread: the loop's.
 * Bound:  the writer looks at sse_waiting() and gives the client up when it is too much, or too
 * old.
 */
#ifndef GAZE_SERVER_SSE_H
#define GAZE_SERVER_SSE_H

#include "json_out.h"

struct sse { /* zeroed is ready */
    struct buf buf;
    size_t taken;        /* bytes of buf that were read */
    bool ended;          /* nothing will be added */
    uint64_t waiting_us; /* clock when bytes began to wait for the reader; 0: none wait */
    uint64_t written_us; /* clock of the last event or comment */
    bool deaf;           /* nobody reads any more: nothing is kept for it */
    /* Hears of each event as it was written, and of the end (text NULL); NULL: nobody does. */
    void (*heard)(void *arg, const char *text, size_t n);
    void *heard_arg;
};

void sse_data(struct sse *s, const struct buf *json);                    /* "data: <json>\n\n" */
void sse_event(struct sse *s, const char *name, const struct buf *json); /* named */
void sse_text(struct sse *s, const char *data);                          /* e.g. "[DONE]" */
void sse_raw(struct sse *s, const char *text, size_t n);                 /* an event as heard */
void sse_comment(struct sse *s, const char *text); /* ": text\n\n"; clients skip it */
void sse_end(struct sse *s);
size_t sse_waiting(const struct sse *s); /* bytes */

/* Copies up to max bytes; 0: none now; -1: the end; -2: memory ran out, the stream is broken. */
long sse_read(struct sse *s, char *to, size_t max);
void sse_free(struct sse *s);

#endif
