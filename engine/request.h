/* request.h - what a client asked for, and what it hears back: the two messages of the engine.
 *
 * A gen_request is built by server/ (or a command-line tool), handed to engine_submit(), and
 * belongs to the scheduler from then on. A gen_event goes the other way. All memory of a request is
 * its arena.
 */
#ifndef GAZE_REQUEST_H
#define GAZE_REQUEST_H

#include "base/arena.h"
#include "base/mailbox.h"
#include "model/sample.h"

struct grammar;     /* grammar/grammar.h */
struct guide_vocab; /* text/guide_vocab.h */
struct event_pool;  /* event_pool.h */

struct req_id { /* a stale id finds nothing: gen differs */
    uint32_t slot, gen;
};
static inline bool req_id_equal(struct req_id a, struct req_id b)
{
    return a.slot == b.slot && a.gen == b.gen;
}

struct token_span { /* e.g. one bad word as tokens */
    const uint32_t *id;
    uint32_t n;
};

enum { REQUEST_MAX_STOP = 16, REQUEST_MAX_N = 128, REQUEST_TENANTS = 256 };

struct gen_request {
    struct mail mail;
    struct req_id id;   /* set by engine_submit() */
    struct arena arena; /* owns everything below */
    char name[64];      /* "chatcmpl-..." for logs */

    const uint32_t *prompt;
    uint32_t n_prompt;   /* >= 1 */
    uint32_t n;          /* choices, 1 .. REQUEST_MAX_N */
    uint32_t max_tokens; /* per choice; 0: only the prompt is run (its log-probabilities) */
    uint32_t min_tokens; /* end ids and stop strings wait until then */
    struct sample_params sample;
    bool ignore_eos;
    const uint32_t *stop_id; /* beside the model's end ids */
    uint32_t n_stop_id;
    const char *stop[REQUEST_MAX_STOP];
    size_t stop_bytes[REQUEST_MAX_STOP];
    uint32_t n_stop;
    bool include_stop; /* include_stop_str_in_output */
    /* Reasoning may be bounded: after max_thinking tokens of it comes think_end. */
    bool limit_thinking;
    bool thinking_open; /* the output begins inside it; else with think_begin */
    uint32_t max_thinking, think_begin, think_end;
    bool keep_special;     /* special tokens show in the text (skip_special_tokens false) */
    const uint32_t *never; /* ids that are chosen nowhere */
    uint32_t n_never;
    const struct token_span *bad_word;
    uint32_t n_bad_words;
    bool prompt_logprobs;  /* each prompt token but the first gets a sample_out */
    uint32_t n_prompt_top; /* alternatives with them, <= SAMPLE_MAX_TOP */
    uint32_t top_k_dsa;    /* 0: the model's own; TOP_K_DENSE: dense; else a smaller top-k */
    int32_t priority;      /* lower runs first, as in the field; 0 is usual */
    uint32_t tenant;       /* who asks, below REQUEST_TENANTS; waiting ones share by weight */
    uint32_t weight;       /* of the tenant; 0 is 1 */
    /* What the output must be, in the order of sched/guide.h. */
    struct grammar *grammar; /* NULL: anything; held by the request */
    const struct guide_vocab *guide_vocab;
    bool grammar_after_thinking; /* it begins behind `</think>` */
    uint32_t grammar_after_id; /* it begins behind this token, should that come; UINT32_MAX: none */
    uint64_t cache_salt;       /* prefixes are shared among equal salts only */
    uint64_t submitted_us;     /* set by engine_submit() */
};

/* A zeroed request with its arena; NULL when there is no memory. */
struct gen_request *gen_request_new(void);
void gen_request_free(struct gen_request *r);

enum gen_event_kind {
    GEN_PROGRESS, /* prompt_done of prompt tokens are in; at most one a step */
    GEN_PROMPT,   /* the prompt's log-probabilities: out[n_prompt - 1], for tokens 1 .. n_prompt - 1
                   */
    GEN_TOKENS,   /* tokens of one choice, with the text that can go out now (may be empty) */
    GEN_CHOICE,   /* this choice has ended: finish, and the rest of its text */
    GEN_DONE,     /* the whole request has ended; its id is stale from now on */
    GEN_ERROR     /* it ended by err; its id is stale from now on */
};

enum gen_finish { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

struct gen_usage {
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t queue_us, prefill_us, decode_us; /* waiting; first chunk to first token; after it */
    uint64_t ttft_us, total_us;               /* since submitted */
    uint64_t busy_us;                         /* its share of the steps it was part of */
    uint64_t kv_byte_seconds;
};

struct gen_event {
    struct mail mail;
    struct event_pool *home; /* NULL: its memory is its own */
    struct req_id id;
    enum gen_event_kind kind;
    uint32_t choice;
    uint32_t prompt_done;   /* GEN_PROGRESS */
    uint32_t n_tokens;      /* out[] holds so many */
    struct sample_out *out; /* log-probabilities where they were asked for */
    char *text;             /* valid UTF-8, NUL-terminated */
    size_t text_bytes;
    enum gen_finish finish; /* GEN_CHOICE */
    int32_t stop_reason; /* GEN_CHOICE by a stop id: the id; by a stop string: -2 - its index; else
                            -1 */
    struct gen_usage usage; /* GEN_CHOICE (so far), GEN_DONE */
    struct err err;         /* GEN_ERROR */
};

/* With room for n_tokens and text_bytes; NULL when there is no memory. */
struct gen_event *gen_event_new(enum gen_event_kind kind, struct req_id id, uint32_t n_tokens,
                                size_t text_bytes);
void gen_event_free(struct gen_event *ev);

#endif
