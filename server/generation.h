/* generation.h - what a call has asked the engine for, from its JSON to the last event.
 *
 * The same for all endpoints that generate; an api_shape says how their answers look. A call with
 * several prompts is several engine requests; choices are numbered prompt * n + choice.
 *
 *   body -> params_read (here, or on a text worker when it is long) -> engine submit -> events
 *        -> chunks of a stream, or one answer at the end
 *
 * Thread: the loop's.
 */
#ifndef GAZE_SERVER_GENERATION_H
#define GAZE_SERVER_GENERATION_H

#include "params.h"
#include "reply.h"
#include "server.h"

enum block { BLOCK_NONE, BLOCK_THINKING, BLOCK_TEXT, BLOCK_TOOL };
struct choice {
    struct reply said;            /* in a stream: since the last chunk */
    struct output_parser *parser; /* chat only; else all text is content */
    struct sample_out *out; /* one a token where log-probabilities or ids go into a whole answer */
    uint32_t n_out, max_out;
    uint32_t n_tokens, n_reasoning;
    uint32_t text_chars; /* given so far: text_offset */
    double sum_logprob;
    enum gen_finish finish;
    int32_t stop_reason; /* as in struct gen_event */
    bool begun, ended;
    enum block block;  /* messages, in a stream: the open one */
    uint32_t n_blocks; /* that have ended */
    bool thought;      /* </think> was among the tokens, though its text may still be held back */
};

struct piece { /* what one event adds to one choice */
    const struct reply *said;
    const struct sample_out *out;
    uint32_t n_out;
    bool last;   /* of its choice: the finish goes with it */
    bool closes; /* of the whole stream: the timings are known */
};

struct api_shape {
    enum api_kind api;
    const char *id_prefix; /* "chatcmpl-" */
    /* Stream: the events for one piece. */
    void (*chunk)(struct generation *g, uint32_t index, const struct piece *piece);
    void (*usage_chunk)(struct generation *g);
    void (*progress_chunk)(struct generation *g);
    void (*begin)(struct generation *g); /* NULL: nothing before the first piece */
    void (*end)(struct generation *g);   /* NULL: usage_chunk where it was asked for, then [DONE] */
    /* NULL: the error as one event. */
    void (*fail)(struct generation *g, const struct api_error *ae);
    void (*release)(struct generation *g); /* of own; NULL: there is none */
    /* Not a stream: the whole answer into call->answer. */
    void (*answer)(struct generation *g);
};
extern const struct api_shape shape_chat, shape_completions;

struct prompt_run { /* one engine request */
    struct req_id id;
    bool live;
    struct gen_usage usage;
    struct sample_out *prompt_out; /* [prompt.n - 1] when prompt log-probabilities were asked for */
    uint32_t n_prompt_out, prompt_done;
};

struct generation {
    struct call *call;
    const struct api_shape *shape;
    struct param_env env;
    struct params p;
    struct api_error ae;
    bool was_read, ok;            /* ok: all that was done so far went well */
    struct gen_request **request; /* until submitted */
    struct prompt_run *run;       /* [n_prompts] */
    uint32_t n_live;
    struct choice *choice;                    /* [n_prompts * best_of] */
    uint32_t n_choices, n_ended, last_choice; /* last_choice: ended after all others */
    uint32_t think_end_id;                    /* of "</think>"; UINT32_MAX: none */
    struct gen_usage usage;                   /* of all prompts, as far as it has come */
    char id[40];
    uint64_t created_s, submitted_us;
    uint32_t prompt_tokens; /* given to the engine */
    void *own;              /* the shape's */
};

void generation_begin(struct call *c, const struct api_shape *shape); /* a route's handler */
void generation_event(struct server *sv, struct gen_event *ev);       /* borrows ev */
/* The call ends with an error: its status when nothing was sent yet, else an event in the stream.
 */
void generation_fail(struct call *c, const struct api_error *ae);
void generation_cancel(struct call *c); /* its engine requests; harmless without any */
void generation_stop(struct call *c);   /* no more tokens: the client gets what there is */
void generation_ping(struct call *c);   /* a comment into a silent stream */
void generation_free(struct call *c);
struct param_env server_env(const struct server *sv);
uint64_t generation_owner(const struct call *c); /* by the client's key; 0: without one */

/* answer.c: parts that the shapes share. */
void answer_usage(struct jo *j, const struct generation *g);
void answer_timings(struct jo *j, const struct generation *g);
void answer_head(struct jo *j, const struct generation *g, const char *object);
void answer_token_text(struct jo *j, const struct generation *g, uint32_t id, bool bytes_form);
void answer_chat_logprobs(struct jo *j, const struct generation *g, const struct sample_out *out,
                          uint32_t n);
/* The value of `prompt_logprobs`: null for the first token, then {id: {logprob, rank, token}}. */
void answer_prompt_logprobs(struct jo *j, const struct generation *g, uint32_t prompt);
void answer_ids(struct jo *j, const struct sample_out *out, uint32_t n);
/* finish_reason and stop_reason; null while more of the choice comes. */
void answer_finish(struct jo *j, const struct generation *g, const struct choice *ch, bool last);
/* The timings, where the stream ends without a chunk for its usage. */
void answer_closing(struct jo *j, const struct generation *g, const struct piece *piece);
uint32_t utf8_chars(const char *s, size_t n);
float clamp_logprob(float v); /* JSON has no infinity */
/* Which choices of a prompt are given: order[0 .. n), best first when best_of > n. */
void answer_order(const struct generation *g, uint32_t prompt, uint32_t *order);
/* A chunk is written to *b; this sends and frees it. */
void answer_send(struct generation *g, struct buf *b);

#endif
