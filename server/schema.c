/* schema.c - see schema.h. */
#include "schema.h"

#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MOST INT32_MAX
#define BIT63 9223372036854775808.0

static const struct field_rule stream_options[] = {
    {.name = "include_usage", .kinds = FIELD_BOOL, .help = "a last chunk with the usage"},
    {.name = "continuous_usage_stats", .kinds = FIELD_BOOL, .help = "the usage with every chunk"},
    {0}};
static const struct field_rule sparse[] = {
    {.name = "top_k",
     .kinds = FIELD_INT,
     .min = 1,
     .max = MOST,
     .help = "tokens that each new one attends to, at most the model's"},
    {.name = "mode", .kinds = FIELD_TEXT, .words = "sparse dense"},
    {0}};
static const struct field_rule thinking[] = {
    {.name = "type", .kinds = FIELD_TEXT, .required = true, .words = "enabled disabled adaptive"},
    {.name = "budget_tokens",
     .kinds = FIELD_INT,
     .max = MOST,
     .help = "tokens of reasoning until its end marker comes"},
    {0}};
static const struct field_rule template_kwargs[] = {
    {.name = "thinking", .kinds = FIELD_BOOL},
    {.name = "enable_thinking", .kinds = FIELD_BOOL},
    {.name = "clear_thinking", .kinds = FIELD_BOOL},
    {0}};

#define MODEL                                                                                      \
    {                                                                                              \
        .name = "model", .kinds = FIELD_TEXT, .help = "the served name or an alias"                \
    }
#define STREAM                                                                                     \
    {                                                                                              \
        .name = "stream", .kinds = FIELD_BOOL, .help = "events as they come"                       \
    }
#define RESUMABLE                                                                                  \
    {                                                                                              \
        .name = "resumable", .kinds = FIELD_BOOL,                                                  \
        .help = "a stream that can be gone on with: GET /v1/streams/{id}?from=N"                   \
    }
#define TOOLS                                                                                      \
    {                                                                                              \
        .name = "tools", .kinds = FIELD_ARRAY, .help = "functions that may be called"              \
    }
#define SEED                                                                                       \
    {                                                                                              \
        .name = "seed", .kinds = FIELD_INT, .min = -BIT63, .max = 2 * BIT63,                       \
        .help = "sampling is a function of it and the position"                                    \
    }
#define SPARSE                                                                                     \
    {                                                                                              \
        .name = "sparse", .kinds = FIELD_OBJECT, .fields = sparse,                                 \
        .help = "attention of this request"                                                        \
    }
#define PRIORITY                                                                                   \
    {                                                                                              \
        .name = "priority", .kinds = FIELD_INT, .min = INT32_MIN, .max = MOST,                     \
        .help = "lower is served first"                                                            \
    }
#define CACHE_SALT                                                                                 \
    {                                                                                              \
        .name = "cache_salt", .kinds = FIELD_TEXT, .help = "prefixes are shared among equal salts" \
    }
#define TOP_P                                                                                      \
    {                                                                                              \
        .name = "top_p", .kinds = FIELD_NUMBER, .max = 1, .above_min = true,                       \
        .help = "the most likely tokens of so much mass"                                           \
    }
#define TOP_K                                                                                      \
    {                                                                                              \
        .name = "top_k", .kinds = FIELD_INT, .min = -1, .max = MOST,                               \
        .help = "the most likely tokens; 0 and -1: all"                                            \
    }
#define THINKING_BUDGET                                                                            \
    {                                                                                              \
        .name = "thinking_token_budget", .kinds = FIELD_INT, .max = MOST,                          \
        .help = "tokens of reasoning until its end marker comes"                                   \
    }

/* What chat and completions share, and responses for the most part. */
#define SAMPLING                                                                                   \
    {.name = "temperature", .kinds = FIELD_NUMBER, .max = 2, .help = "0: greedy"}, TOP_P, TOP_K,   \
        {.name = "min_p", .kinds = FIELD_NUMBER, .max = 1},                                        \
        {.name = "presence_penalty", .kinds = FIELD_NUMBER, .min = -2, .max = 2},                  \
        {.name = "frequency_penalty", .kinds = FIELD_NUMBER, .min = -2, .max = 2},                 \
        {.name = "repetition_penalty", .kinds = FIELD_NUMBER, .max = 10, .above_min = true}, SEED, \
        {.name = "stop", .kinds = FIELD_TEXT | FIELD_ARRAY, .help = "1 to 16 strings"},            \
        {.name = "logit_bias", .kinds = FIELD_OBJECT, .help = "token ids to -100 .. 100"},         \
        {.name = "ignore_eos", .kinds = FIELD_BOOL},                                               \
        {.name = "min_tokens", .kinds = FIELD_INT, .max = MOST}, SPARSE, PRIORITY, CACHE_SALT,     \
    {                                                                                              \
        .name = "user", .kinds = FIELD_TEXT                                                        \
    }
#define COMMON                                                                                     \
    MODEL, STREAM, RESUMABLE,                                                                      \
        {.name = "stream_options", .kinds = FIELD_OBJECT, .fields = stream_options},               \
        {.name = "return_progress", .kinds = FIELD_BOOL, .help = "chunks while the prompt runs"},  \
        {.name = "return_token_ids", .kinds = FIELD_BOOL},                                         \
        {.name = "n", .kinds = FIELD_INT, .min = 1, .max = REQUEST_MAX_N}, SAMPLING,               \
        {.name = "stop_token_ids", .kinds = FIELD_ARRAY},                                          \
        {.name = "include_stop_str_in_output", .kinds = FIELD_BOOL},                               \
        {.name = "skip_special_tokens", .kinds = FIELD_BOOL},                                      \
        {.name = "bad_words", .kinds = FIELD_ARRAY},                                               \
        {.name = "allowed_token_ids", .kinds = FIELD_ARRAY},                                       \
        {.name = "prompt_logprobs", .kinds = FIELD_INT, .max = SAMPLE_MAX_TOP},                    \
        {.name = "response_format", .kinds = FIELD_OBJECT},                                        \
        {.name = "structured_outputs",                                                             \
         .kinds = FIELD_OBJECT,                                                                    \
         .help = "json, regex, choice or grammar"},                                                \
        {.name = "guided_regex", .kinds = FIELD_TEXT},                                             \
        {.name = "guided_choice", .kinds = FIELD_ARRAY},                                           \
    {                                                                                              \
        .name = "guided_grammar", .kinds = FIELD_TEXT                                              \
    }

static const struct field_rule chat[] = {
    {.name = "messages", .kinds = FIELD_ARRAY, .required = true, .help = "the conversation"},
    COMMON,
    {.name = "max_tokens", .kinds = FIELD_INT, .min = 1, .max = MOST},
    {.name = "max_completion_tokens", .kinds = FIELD_INT, .min = 1, .max = MOST},
    {.name = "logprobs", .kinds = FIELD_BOOL},
    {.name = "top_logprobs", .kinds = FIELD_INT, .max = SAMPLE_MAX_TOP},
    TOOLS,
    {.name = "tool_choice", .kinds = FIELD_TEXT | FIELD_OBJECT},
    {.name = "parallel_tool_calls", .kinds = FIELD_BOOL},
    {.name = "thinking", .kinds = FIELD_OBJECT | FIELD_BOOL, .fields = thinking},
    THINKING_BUDGET,
    {.name = "reasoning_effort",
     .kinds = FIELD_TEXT,
     .words = "none minimal low medium high xhigh max",
     .help = "none: no thinking; the others switch it on where `thinking` says nothing"},
    {.name = "chat_template_kwargs", .kinds = FIELD_OBJECT, .fields = template_kwargs},
    {.name = "add_generation_prompt", .kinds = FIELD_BOOL},
    {.name = "continue_final_message", .kinds = FIELD_BOOL},
    {0}};
const struct body_schema schema_chat = {"ChatRequest", chat};

static const struct field_rule completion[] = {
    {.name = "prompt",
     .kinds = FIELD_TEXT | FIELD_ARRAY,
     .required = true,
     .help = "a text, token ids, or an array of either"},
    COMMON,
    {.name = "max_tokens", .kinds = FIELD_INT, .max = MOST, .help = "16; 0 only with echo"},
    {.name = "logprobs", .kinds = FIELD_INT, .max = SAMPLE_MAX_TOP},
    {.name = "echo", .kinds = FIELD_BOOL},
    {.name = "best_of", .kinds = FIELD_INT, .min = 1, .max = REQUEST_MAX_N},
    {.name = "suffix", .kinds = FIELD_TEXT, .help = "refused: no such tokens in these models"},
    {0}};
const struct body_schema schema_completion = {"CompletionRequest", completion};

#define MESSAGES_PROMPT                                                                            \
    {.name = "messages", .kinds = FIELD_ARRAY, .required = true}, MODEL,                           \
        {.name = "system", .kinds = FIELD_TEXT | FIELD_ARRAY}, TOOLS,                              \
        {.name = "tool_choice", .kinds = FIELD_OBJECT},                                            \
    {                                                                                              \
        .name = "thinking", .kinds = FIELD_OBJECT, .fields = thinking                              \
    }
static const struct field_rule messages[] = {
    MESSAGES_PROMPT,
    {.name = "max_tokens", .kinds = FIELD_INT, .min = 1, .max = MOST, .required = true},
    {.name = "stop_sequences", .kinds = FIELD_ARRAY},
    STREAM,
    RESUMABLE,
    {.name = "temperature", .kinds = FIELD_NUMBER, .max = 1},
    TOP_P,
    TOP_K,
    {.name = "metadata", .kinds = FIELD_OBJECT},
    {.name = "output_config", .kinds = FIELD_OBJECT},
    {.name = "output_format", .kinds = FIELD_OBJECT},
    SEED,
    SPARSE,
    PRIORITY,
    CACHE_SALT,
    {0}};
const struct body_schema schema_messages = {"MessagesRequest", messages};
static const struct field_rule count_tokens[] = {MESSAGES_PROMPT, {0}};
const struct body_schema schema_count_tokens = {"CountTokensRequest", count_tokens};

static const struct field_rule reasoning[] = {
    {.name = "effort", .kinds = FIELD_TEXT, .words = "none minimal low medium high xhigh max"},
    {.name = "summary", .kinds = FIELD_TEXT},
    {0}};
static const struct field_rule text[] = {
    {.name = "format", .kinds = FIELD_OBJECT}, {.name = "verbosity", .kinds = FIELD_TEXT}, {0}};
static const struct field_rule responses[] = {
    {.name = "input", .kinds = FIELD_TEXT | FIELD_ARRAY, .required = true},
    MODEL,
    STREAM,
    RESUMABLE,
    {.name = "instructions", .kinds = FIELD_TEXT},
    {.name = "previous_response_id", .kinds = FIELD_TEXT},
    {.name = "store", .kinds = FIELD_BOOL, .help = "kept for the next request; true"},
    {.name = "max_output_tokens", .kinds = FIELD_INT, .min = 1, .max = MOST},
    TOOLS,
    {.name = "tool_choice", .kinds = FIELD_TEXT | FIELD_OBJECT},
    {.name = "parallel_tool_calls", .kinds = FIELD_BOOL},
    {.name = "reasoning", .kinds = FIELD_OBJECT, .fields = reasoning},
    {.name = "text", .kinds = FIELD_OBJECT, .fields = text},
    {.name = "metadata", .kinds = FIELD_OBJECT},
    {.name = "truncation", .kinds = FIELD_TEXT, .words = "disabled"},
    {.name = "include", .kinds = FIELD_ARRAY},
    {.name = "top_logprobs", .kinds = FIELD_INT, .max = 0.5, .help = "0 alone"},
    SAMPLING,
    {.name = "thinking", .kinds = FIELD_OBJECT | FIELD_BOOL, .fields = thinking},
    THINKING_BUDGET,
    {.name = "chat_template_kwargs", .kinds = FIELD_OBJECT, .fields = template_kwargs},
    {0}};
const struct body_schema schema_responses = {"ResponsesRequest", responses};

static const struct field_rule tokenize[] = {
    {.name = "prompt", .kinds = FIELD_TEXT, .help = "this, or messages"},
    {.name = "messages", .kinds = FIELD_ARRAY},
    MODEL,
    {.name = "add_special_tokens", .kinds = FIELD_BOOL},
    {.name = "return_token_strs", .kinds = FIELD_BOOL},
    TOOLS,
    {.name = "tool_choice", .kinds = FIELD_TEXT | FIELD_OBJECT},
    {.name = "thinking", .kinds = FIELD_OBJECT | FIELD_BOOL, .fields = thinking},
    {.name = "chat_template_kwargs", .kinds = FIELD_OBJECT, .fields = template_kwargs},
    {.name = "add_generation_prompt", .kinds = FIELD_BOOL},
    {.name = "continue_final_message", .kinds = FIELD_BOOL},
    {0}};
const struct body_schema schema_tokenize = {"TokenizeRequest", tokenize};
static const struct field_rule detokenize[] = {
    {.name = "tokens", .kinds = FIELD_ARRAY, .required = true, .help = "ids"}, MODEL, {0}};
const struct body_schema schema_detokenize = {"DetokenizeRequest", detokenize};

/* --- the check ---------------------------------------------------------------------------------
 */

static unsigned kind_of(const cJSON *v)
{
    if (cJSON_IsNumber(v))
        return v->valuedouble == floor(v->valuedouble) && isfinite(v->valuedouble)
                   ? FIELD_INT | FIELD_NUMBER
                   : FIELD_NUMBER;
    return cJSON_IsBool(v)     ? FIELD_BOOL
           : cJSON_IsString(v) ? FIELD_TEXT
           : cJSON_IsArray(v)  ? FIELD_ARRAY
                               : FIELD_OBJECT;
}

static bool fail_kind(const struct field_reader *r, const struct field_rule *f)
{
    static const char *const names[] = {"true or false", "an integer", "a number",
                                        "a string",      "an array",   "an object"};
    char list[100] = "";
    size_t n = 0;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (f->kinds & 1u << i)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? " or " : "", names[i]);
    return field_fail(r, f->name, "expected %s", list);
}

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *w = words; *w; w += strcspn(w, " "), w += *w == ' ')
        if (strcspn(w, " ") == n && !memcmp(w, word, n))
            return true;
    return false;
}

static bool check_value(const struct field_reader *r, const struct field_rule *f, const cJSON *v)
{
    if (!(kind_of(v) & f->kinds))
        return fail_kind(r, f);
    double x = v->valuedouble;
    if (cJSON_IsNumber(v) && (f->min < 0 || f->max > 0) &&
        (x < f->min || x > f->max || (f->above_min && x <= f->min)))
        return field_fail(r, f->name, "%.15g is outside %s%.15g, %.15g]", x,
                          f->above_min ? "(" : "[", f->min, f->max);
    if (cJSON_IsString(v) && f->words && !has_word(f->words, v->valuestring))
        return field_fail(r, f->name, "expected one of: %s", f->words);
    return true;
}

static bool check_fields(const struct field_rule *rules, const char *prefix, const cJSON *object,
                         struct api_error *ae)
{
    struct field_reader r = {object, prefix, ae};
    char inner[64];
    for (const struct field_rule *f = rules; f->name; f++) {
        const cJSON *v = field_get(&r, f->name);
        if (!v && f->required)
            return field_fail(&r, f->name, "this field is required");
        if (!v)
            continue;
        if (!check_value(&r, f, v))
            return false;
        snprintf(inner, sizeof inner, "%s%s.", prefix, f->name);
        if (f->fields && cJSON_IsObject(v) && !check_fields(f->fields, inner, v, ae))
            return false;
    }
    return true;
}

bool schema_check(const struct body_schema *s, const cJSON *root, struct api_error *ae)
{
    return check_fields(s->fields, "", root, ae);
}
