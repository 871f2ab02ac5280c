/* params.h - a request's JSON, checked field by field, and the engine requests it becomes.
 *
 * Reading touches nothing but its arguments, so it runs on the loop thread for short bodies and on
 * a text worker for long ones. Unknown fields are ignored; a wrong one is a 400 that names it.
 *
 * Ownership: everything lives in p->arena, but for p->tools; params_free() ends both.
 * params_request() gives a request with memory of its own. Bound:     a body may hold MAX_VALUES
 * JSON values and MAX_PROMPTS prompts.
 */
#ifndef GAZE_SERVER_PARAMS_H
#define GAZE_SERVER_PARAMS_H

#include "engine.h"
#include "errors.h"

enum { PARAMS_MAX_VALUES = 1000000, PARAMS_MAX_PROMPTS = 1024, PARAMS_MAX_CHOICES = 4096 };

enum api_kind {
    API_CHAT,
    API_COMPLETIONS,
    API_MESSAGES,
    API_RESPONSES /* these two are read as API_CHAT: messages.h, responses.h */
};

struct response_store; /* response_store.h */

/* What a request is checked against. */
struct param_env {
    const struct model_config *model;
    const struct tokenizer *tok;
    const struct chat_format *format;
    uint32_t max_context, max_seqs;
    uint64_t kv_tokens; /* of the whole pool; 0: no bound */
    bool (*knows_model)(const void *arg, const char *name);
    const void *knows_arg;
    const char *default_model;        /* when the request names none */
    struct response_store *responses; /* NULL: nothing is kept */
    uint64_t owner;                   /* of what is kept: who asks */
    struct guides *guides;            /* guide.h; NULL: no answer is held to a form */
};

struct params_prompt {
    const uint32_t *id;
    uint32_t n;
    const char *text; /* completions: as sent, or decoded from ids; not NUL-terminated */
    size_t text_bytes;
};

/* The form that an answer must have: guide.h. */
enum guide_kind { GUIDE_NONE, GUIDE_REGEX, GUIDE_CHOICE, GUIDE_EBNF, GUIDE_OBJECT, GUIDE_SCHEMA };
struct guide_spec {
    enum guide_kind kind;
    bool calls;         /* tool calls are held to their syntax */
    const char *param;  /* the field that asked for it */
    const cJSON *value; /* its value */
    cJSON *tree;        /* owned: value is in it */
    const char *key;    /* what the cache knows it by; NULL: no grammar */
    size_t key_bytes;
};

struct responses_params { /* of /v1/responses */
    bool store;
    const char *talk; /* where store: the conversation as an array of chat messages */
    const char *echo; /* fields that the answer repeats: ",\"tools\":[...],..." */
};

struct params {
    enum api_kind api;
    struct arena arena;
    const char *model; /* as the client calls it */
    bool stream, include_usage, continuous_usage, return_progress, return_token_ids;
    bool resumable; /* stream.h */
    bool echo, logprobs, prompt_logprobs;
    bool bounded; /* a prompt that cannot fit is refused before it is made tokens */
    uint32_t n_top, n_prompt_top;
    uint32_t n, best_of; /* best_of >= n choices are made, the n best are given */
    uint32_t max_tokens; /* UINT32_MAX: as many as fit */
    bool thinking_open;  /* the answer begins inside reasoning */
    cJSON *tools;        /* that the model sees; NULL: none, and its answer has no calls */
    bool no_calls, call_required, one_call; /* see tools.h */
    const char *call_name;                  /* of the tool that must be called */
    const char *opening;                    /* the beginning of the answer, in the prompt */
    enum output_markup markup;              /* of the answer: see tools.h */
    bool call_late; /* required, but the prompt cannot begin it: the grammar does */
    struct params_prompt *prompt;
    uint32_t n_prompts;
    struct responses_params responses;
    struct guide_spec guide;
    struct gen_request
        like; /* all that the prompts share; its arena is not used, but its grammar held */
};

/* Reads a body. false: *ae says why. p is zeroed by it and to be freed in any case. */
bool params_read(struct params *p, enum api_kind api, const char *body, size_t bytes,
                 const struct param_env *env, struct api_error *ae);
/* A request of its own for prompt i; NULL without memory. */
struct gen_request *params_request(const struct params *p, uint32_t i, const struct param_env *env);
void params_free(struct params *p);

/* The body as a tree, within the bounds above; its numbers keep their spelling. *out is the
 * caller's. */
bool params_parse_json(cJSON **out, const char *body, size_t bytes, struct api_error *ae);
/* The pieces below read one field each; false: *ae is set. A missing or null field leaves *out. */
struct field_reader {
    const cJSON *root;
    const char *prefix; /* "" or "stream_options." for the error's param */
    struct api_error *ae;
};
bool field_number(const struct field_reader *r, const char *key, double *out);
bool field_int(const struct field_reader *r, const char *key, int64_t *out);
bool field_u32(const struct field_reader *r, const char *key, uint32_t *out);
/* For bounds that are not known before; the others stand in schema.c's tables. */
bool field_u32_within(const struct field_reader *r, const char *key, uint32_t min, uint32_t max,
                      uint32_t *out);
bool field_bool(const struct field_reader *r, const char *key, bool *out);
bool field_text(const struct field_reader *r, const char *key, const char **out);
const cJSON *field_get(const struct field_reader *r, const char *key); /* NULL: missing or null */
bool field_fail(const struct field_reader *r, const char *key, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Whether so many prompt tokens, or (at_least) more, go into the context together with the answer.
 */
bool params_fits(const struct params *p, uint64_t prompt_tokens, bool at_least,
                 const struct param_env *env, struct api_error *ae);
/* prompt.c: the text of a request to tokens. */
bool prompt_from_chat(struct params *p, cJSON *root, const struct param_env *env,
                      struct api_error *ae); /* takes the tools out of root */
bool prompt_from_completion(struct params *p, const cJSON *root, const struct param_env *env,
                            struct api_error *ae);
/* Copies ids into the arena. */
bool prompt_encode(struct arena *a, const struct tokenizer *tok, const struct text_part *part,
                   size_t n_parts, bool add_bos, struct params_prompt *out, struct api_error *ae);

#endif
