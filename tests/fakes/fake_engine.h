/* fake_engine.h - an engine without a model, in the place of the real one behind
 * server/engine_api.h.
 *
 * It has the tokenizer and configuration of tests/fixtures/v32-bf16, or of the model it is told,
 * and says what `fake` tells it to, token by token, at the pace it is told. One thread makes all
 * tokens.
 *
 * Thread: set `fake` before the server starts; the fields marked so may change at any time.
 */
#ifndef GAZE_FAKE_ENGINE_H
#define GAZE_FAKE_ENGINE_H

#include "server/engine_api.h"

#include <stdatomic.h>

struct fake_settings {
    const char *text;             /* said a few bytes at a time; NULL: "tok " again and again */
    _Atomic uint32_t piece_bytes; /* of text per token; 0: 4; any time between two requests */
    const char *format;           /* the chat format; NULL: deepseek-v3.1 */
    const char *model;            /* the directory of one; NULL: the fixture's */
    uint32_t token;               /* the id that every token has */
    _Atomic uint32_t token_us;    /* between two tokens; any time */
    _Atomic uint32_t prefill_us;  /* before the first token; any time */
    uint32_t load_us;
    bool load_fails;
    _Atomic bool busy;    /* submit says ERR_BUSY; any time */
    _Atomic bool stuck;   /* the stats say that a step hangs; any time */
    _Atomic bool lost;    /* a rank is lost; any time, heard of with the next event */
    uint32_t fail_at;     /* GEN_ERROR in place of this token, from 1; 0: never */
    uint32_t max_context; /* 0: 8192 */
};
extern struct fake_settings fake;

/* When the request's grammar begins. */
enum fake_guided { GUIDED_NEVER, GUIDED_AT_ONCE, GUIDED_BEHIND_THINKING, GUIDED_BEHIND_MARKER };

struct fake_counts { /* since the start */
    _Atomic uint32_t submitted, cancelled, done, running;
    _Atomic uint32_t priority, tenant, weight; /* of the last request */
    _Atomic uint64_t seed, salt;
    _Atomic uint32_t n_bias, n_bad_words, n_stop, n_stop_id, top_k_dsa, max_tokens, min_tokens;
    _Atomic uint32_t n_prompt;
    _Atomic bool has_allowed, keep_special, include_stop, ignore_eos;
    _Atomic enum fake_guided guided;
    _Atomic uint32_t think_budget; /* UINT32_MAX: none */
    _Atomic uint32_t n_never;
    _Atomic float temperature, top_p;
};
extern struct fake_counts fake_count;

extern const struct engine_api fake_engine_api;

#endif
