/* markup_out.h - the way out of an output parser: bytes gathered into deltas, calls numbered.
 *
 * Bytes of one kind that follow each other leave as one delta when the input piece ends, when the
 * kind changes or when the buffer is full. The bytes of an unfinished UTF-8 character stay for the
 * next delta, unless the kind changes (then the input was invalid).
 *
 * Thread: the parser's. No memory is taken.
 */
#ifndef GAZE_TEXT_MARKUP_OUT_H
#define GAZE_TEXT_MARKUP_OUT_H

#include "text/markup_json_check.h"
#include "text/output_parser.h"

enum { MARKUP_DELTA_BYTES = 1024 }; /* the longest delta */

struct markup_out {
    struct output_sink sink;
    bool no_calls;               /* nothing is said of calls */
    enum output_event_kind kind; /* of what is gathered */
    uint32_t n;
    uint32_t n_calls; /* begun, and said */
    bool in_call;
    size_t argument_bytes;   /* of the open call */
    struct json_check check; /* over the open call's arguments */
    char gathered[MARKUP_DELTA_BYTES];
};

/* kind: OUTPUT_REASONING or OUTPUT_CONTENT, outside a call. */
void markup_out_text(struct markup_out *o, enum output_event_kind kind, char c);

void markup_out_call_begin(struct markup_out *o, const char *name, size_t bytes);
void markup_out_argument(struct markup_out *o, char c);
void markup_out_arguments(struct markup_out *o, const char *s, size_t bytes);
void markup_out_call_end(struct markup_out *o, bool complete);

/* How many of the n bytes end with a whole character. Bytes that cannot be UTF-8 count as whole. */
size_t markup_whole_characters(const char *s, size_t n);

void markup_out_flush(struct markup_out *o, bool all); /* all: half characters too */

#endif
