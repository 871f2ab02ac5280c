/* output_parser.h - what a model wrote, taken apart: reasoning, content and tool calls.
 *
 * A byte-level state machine per chat format. It is fed the text after the prompt, markup included,
 * in pieces of any size (one token, one byte, everything), and tells a sink what each byte was as
 * soon as that is certain. The text of the events, put together, does not depend on how the input
 * was cut.
 *
 *   hm</think>Looking.<tool_call>ping</tool_call>
 *   REASONING "hm", CONTENT "Looking.", CALL_BEGIN "ping", CALL_ARGUMENTS "{}", CALL_END
 *
 * Formats: those of chat_format.h, by name.
 *   deepseek-v3, -r1, -r1-0528  function<sep>name, arguments in a ```json fence   markup_json.c
 *   deepseek-v3.1, -v3.2-exp    name<sep>arguments                                markup_json.c
 *   kimi-k2                     functions.name:index, arguments                   markup_json.c
 *   deepseek-v3.2               DSML: parameters with string="true|false"         markup_dsml.c
 *   glm-4.6, glm-5, glm-5.2     arg_key, arg_value; the tool's schema types them  markup_glm.c
 * A model that writes a neighbour's shape (V3's in V3.1, a call without its wrapper, a JSON body in
 * DSML or GLM) is understood.
 *
 * Promises:
 * - Order. Per call BEGIN, then ARGUMENTS (0 or more), then END; calls are numbered from 0 and do
 *   not interleave. The fragments of a call's arguments make one JSON text.
 * - Held back is only what may still become a marker, up to 64 bytes of white space that may belong
 *   to one, and a value whose type is not decided yet. A delta never ends inside a UTF-8 character
 *   of a valid input.
 * - Nothing is lost but markup, white space next to it, text between the tags of one call, and a
 *   call without a name. Tool markers outside a call are swallowed; `</think>` outside reasoning is
 *   text; text after a call is content. Tools that the request does not have are reported too.
 * - JSON that the model writes goes out as written, without the white space around it; when it is
 *   not JSON, END says so. Where the arguments are put together here they are always JSON, with
 *   ", " and ": " between: a value that does not read as its type is a string. A parameter given
 *   twice is written twice (readers take the last). No arguments at all are "{}".
 * - A tool marker in open reasoning ends it.
 *
 * Thread: any, one at a time.
 * Memory: 8 KiB, plus one waiting value of at most OUTPUT_MAX_VALUE bytes.
 */
#ifndef GAZE_TEXT_OUTPUT_PARSER_H
#define GAZE_TEXT_OUTPUT_PARSER_H

#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    OUTPUT_MAX_NAME = 256,      /* bytes of a tool's name; what is longer is content, no call */
    OUTPUT_MAX_KEY = 1024,      /* bytes of a parameter's name or tag; what is longer is cut off */
    OUTPUT_MAX_VALUE = 1 << 20, /* bytes of a value that waits for its type; beyond: a string */
};

enum output_event_kind {
    OUTPUT_REASONING,      /* text */
    OUTPUT_CONTENT,        /* text */
    OUTPUT_CALL_BEGIN,     /* call; text is the tool's name, whole */
    OUTPUT_CALL_ARGUMENTS, /* call; text is the next fragment of the arguments */
    OUTPUT_CALL_END,       /* call; complete, valid_json */
};

struct output_event {
    enum output_event_kind kind;
    uint32_t call;    /* which call, from 0 */
    const char *text; /* borrowed for the callback, not NUL-terminated; never empty in a delta */
    size_t bytes;
    bool complete; /* END: the model finished the call; false: cut off, arguments may be a prefix */
    bool valid_json; /* END: the fragments make one JSON value */
};

/* Called from within put and finish; must not call the parser. */
struct output_sink {
    void (*event)(void *arg, const struct output_event *ev);
    void *arg;
};

enum output_markup {
    OUTPUT_MARKUP_CALLS,    /* it is reported as calls */
    OUTPUT_MARKUP_LEFT_OUT, /* it is read in the same way, and nothing is said of it */
    OUTPUT_MARKUP_TEXT, /* it is ordinary content: whoever chose the tokens let no marker come */
};

struct output_parser_config {
    const char *format;        /* chat_format_name() */
    bool thinking_open;        /* the prompt ended inside reasoning (chat_prompt.thinking_open) */
    enum output_markup markup; /* what becomes of tool markup */
    const cJSON *tools;        /* for types: the request's array or NULL; borrowed until destroy */
    struct output_sink sink;
};

struct output_parser;

/* ERR_INVALID: unknown format; ERR_NOMEM. */
MUST_CHECK enum err_code output_parser_create(struct output_parser **out,
                                              const struct output_parser_config *cfg,
                                              struct err *e);
void output_parser_destroy(struct output_parser *p); /* NULL is allowed */

/* Takes the next bytes. ERR_NOMEM (a waiting value could not grow): the parser takes no more, only
 * destroy is left. */
MUST_CHECK enum err_code output_parser_put(struct output_parser *p, const char *text, size_t bytes,
                                           struct err *e);

/* The end of the output, once. cut: it ended by a limit or a cancel, not by the model. What was
 * held back as a possible marker comes out as text. A call that was being written ends with
 * complete false, its arguments a prefix; when the model itself stopped and the arguments are
 * whole, complete is true. A call whose name was not finished is not reported (GLM: unless the
 * model stopped behind the name of one of the tools). */
MUST_CHECK enum err_code output_parser_finish(struct output_parser *p, bool cut, struct err *e);

/* Where the next byte would go: for reasoning token counts and thinking budgets. */
bool output_parser_in_reasoning(const struct output_parser *p);
uint32_t output_parser_calls(const struct output_parser *p); /* begun so far */

#endif
