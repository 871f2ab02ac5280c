/* chat_format.h - conversations to prompt text, in the exact wire format of each model family.
 *
 * A format is code, not a template: it knows which bytes are markup and which came from the caller,
 * so text inside a message that spells a special token stays ordinary text. The result is a list of
 * parts for tokenizer_encode().
 *
 * Formats: deepseek-v3 deepseek-r1 deepseek-r1-0528 deepseek-v3.1 deepseek-v3.2-exp deepseek-v3.2
 *          glm-4.6 glm-5 glm-5.2 kimi-k2.
 * Source:  the specification's section on chat formats; checked against tests/golden's chat
 * vectors. Thread:  any.
 */
#ifndef GAZE_TEXT_CHAT_FORMAT_H
#define GAZE_TEXT_CHAT_FORMAT_H

#include "base/arena.h"
#include "text/tokenizer.h"

#include <cjson/cJSON.h>

struct chat_format; /* static tables: nothing to free */

enum tri { TRI_UNSET = -1, TRI_FALSE = 0, TRI_TRUE = 1 };
struct chat_options {
    bool add_generation_prompt;
    bool continue_final_message;
    enum tri thinking;            /* unset: the format's default */
    enum tri clear_thinking;      /* GLM only */
    const char *reasoning_effort; /* NULL: not given */
    const cJSON *response_format; /* a schema that deepseek-v3.2 puts into the prompt, or NULL */
    bool open_thinking; /* where the model is to think and the format leaves it to the model to
                           begin so, the prompt begins it, with what the model would write */
};

/* In the arena that render was given; its texts may be borrowed from the JSON as well. */
struct chat_prompt {
    struct text_part *part;
    size_t n_parts;
    bool thinking_open; /* the prompt ends inside reasoning */
};

/* By name ("deepseek-v3.1" ...); NULL when unknown. */
const struct chat_format *chat_format_by_name(const char *name);
/* By what the model directory says: its chat_template text, model_type and special tokens. Never
 * NULL: the newest format that the vocabulary can spell. *why gets a static sentence for the log.
 */
const struct chat_format *chat_format_detect(const struct tokenizer *tok, const char *model_type,
                                             const char **why);
const char *chat_format_name(const struct chat_format *f);
const char *const *chat_format_names(void); /* NULL-terminated */

/* Renders messages (an array as OpenAI's clients send it; content may be null, a string, or an
 * array of text parts) with tools (array or NULL). ERR_INVALID names the message and the field,
 * e.g. "messages[2].role: ..."; ERR_NOMEM. */
MUST_CHECK enum err_code chat_format_render(const struct chat_format *f, const cJSON *messages,
                                            const cJSON *tools, const struct chat_options *opt,
                                            struct arena *a, struct chat_prompt *out,
                                            struct err *e);

#endif
