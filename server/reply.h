/* reply.h - what one choice has said, sorted: reasoning, content, tool calls.
 *
 * The output parser's sink. A whole answer lets it grow until the end; a stream takes what is there
 * after each event and clears it, so `call` then holds this piece's part of each call: its name and
 * id where it began, and the next fragment of its arguments.
 *
 * Thread:    any, one at a time.
 * Ownership: of all its text; reply_free() ends it.
 * Errors:    no memory sets `failed`, which stays.
 */
#ifndef GAZE_SERVER_REPLY_H
#define GAZE_SERVER_REPLY_H

#include "engine.h"
#include "json_out.h"

enum { REPLY_ID_BYTES = 32 };

struct reply_call {
    uint32_t index;          /* of the choice's calls, from 0 */
    bool begun;              /* it began here: id and name are set */
    char id[REPLY_ID_BYTES]; /* "call_..." */
    struct buf name, arguments;
};

struct reply {
    struct buf reasoning, content;
    struct reply_call *call;
    uint32_t n_calls, max_calls; /* of call[] */
    uint32_t n_complete;         /* calls that have ended whole, since the start */
    uint64_t id_seed;            /* of the calls' ids; another one for each choice */
    bool one_call;               /* parallel_tool_calls false */
    bool full;                   /* the one call is over: nothing more is taken */
    bool failed;
};

struct output_sink reply_sink(struct reply *r);
bool reply_has_text(const struct reply *r); /* anything at all to send */
bool reply_failed(const struct reply *r);
void reply_clear(struct reply *r); /* what was sent; counts and flags stay */
void reply_free(struct reply *r);

/* "tool_calls": the whole calls of an answer, or the deltas of a chunk. Only where n_calls > 0. */
void reply_calls_json(const struct reply *r, struct jo *j, bool deltas);

#endif
