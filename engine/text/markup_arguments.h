/* markup_arguments.h - a call's arguments on their way from markup to JSON text.
 *
 * Two ways. Raw: the model wrote JSON itself; it goes out as written, without the white space and
 * the fence around it. Typed: the model wrote names and bare values; the object is written here,
 * each value as the kinds it may have allow.
 *
 * A value that may only be a string streams. Any other waits for its end: it is written as it
 * stands when it is JSON of a kind that fits, else as a string. After OUTPUT_MAX_VALUE bytes it is
 * a string for good.
 *
 * Thread: the parser's. Only a waiting value takes memory; markup_typed_free() gives it back.
 */
#ifndef GAZE_TEXT_MARKUP_ARGUMENTS_H
#define GAZE_TEXT_MARKUP_ARGUMENTS_H

#include "text/markup_out.h"

enum { MARKUP_MAX_SPACE = 64 }; /* bytes of white space that wait; a longer run goes out */

bool markup_is_space(char c); /* JSON's white space */

struct raw_arguments { /* zeroed: ready */
    bool fenced;       /* a fence was opened, so one may close */
    bool begun;        /* something but white space came */
    uint8_t n;         /* bytes of tail: white space, then perhaps ```, then white space */
    uint8_t n_spaces;  /* at its end */
    uint8_t n_ticks;
    char tail[2 * MARKUP_MAX_SPACE + 3];
};
void markup_raw_put(struct raw_arguments *r, struct markup_out *o, char c);
/* The end marker came: what waits was layout. Nothing written at all becomes {}. */
void markup_raw_end(struct raw_arguments *r, struct markup_out *o);

struct typed_arguments { /* zeroed: ready */
    uint32_t n_written;  /* values begun */
    bool in_value, streams;
    uint8_t kinds;
    char *value; /* waiting */
    size_t n, max;
};
/* The next member's name, then its value: begin, put, end. put is false when memory has run out. */
void markup_typed_key(struct typed_arguments *t, struct markup_out *o, const char *key,
                      size_t bytes);
void markup_typed_begin(struct typed_arguments *t, struct markup_out *o, uint8_t kinds);
MUST_CHECK bool markup_typed_put(struct typed_arguments *t, struct markup_out *o, char c);
void markup_typed_end(struct typed_arguments *t, struct markup_out *o);
void markup_typed_close(struct typed_arguments *t, struct markup_out *o); /* the object's end */
void markup_typed_reset(struct typed_arguments *t);                       /* for the next call */
void markup_typed_free(struct typed_arguments *t);

/* The tool of that name in a request's tools (the object with "name", "parameters"); NULL when
 * there is none. */
const cJSON *markup_find_tool(const cJSON *tools, const char *name, size_t bytes);

/* JSON_KIND_ bits that the schema of a tool's parameters (may be NULL) allows for this one;
 * JSON_KIND_ANY when it does not say. Follows type, enum, const, anyOf, oneOf, allOf and $ref
 * within the schema. */
uint8_t markup_parameter_kinds(const cJSON *parameters, const char *key, size_t bytes);

#endif
