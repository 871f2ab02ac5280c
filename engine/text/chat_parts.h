/* chat_parts.h - what the chat formats share: messages already checked, and the prompt being
 * written.
 *
 * chat_read_messages() turns the client's JSON into plain structs, or says what is wrong with it; a
 * format then only writes. It writes with chat_mark() what is its own and with chat_text() what
 * came from the caller: this is the whole defence against text that looks like markup.
 */
#ifndef GAZE_TEXT_CHAT_PARTS_H
#define GAZE_TEXT_CHAT_PARTS_H

#include "text/chat_format.h"
#include "text/chat_json.h"

struct chat_str { /* borrowed from the JSON or in the arena */
    const char *s;
    size_t n;
};

enum chat_role { ROLE_SYSTEM, ROLE_DEVELOPER, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL };

struct chat_call {
    struct chat_str id, name, arguments; /* arguments: JSON text as sent */
    const cJSON *object;                 /* arguments read, only for formats that take them apart */
};

struct chat_message {
    enum chat_role role;
    struct chat_str content, reasoning;
    bool has_reasoning; /* reasoning was given, even if empty */
    bool prefix;
    bool is_final; /* the last one, to be continued */
    struct chat_call *call;
    size_t n_calls;
    struct chat_str call_id; /* of a tool's result */
};

struct chat_out {
    struct arena *arena;
    struct text_part *part;
    size_t n, max;
    bool failed; /* no memory; sticky */
};
void chat_mark(struct chat_out *o, const char *literal); /* static text */
void chat_text(struct chat_out *o, struct chat_str text);
/* Text that does not live as long as the prompt, such as parsed arguments: it is copied. */
void chat_text_copy(struct chat_out *o, struct chat_str text);
void chat_text_json(struct chat_out *o, const cJSON *value);

/* All that a format gets. */
struct chat_job {
    const struct chat_message *message;
    size_t n_messages;
    const cJSON *tools; /* an array with at least one checked tool, or NULL */
    const struct chat_options *opt;
    bool thinking; /* the option, or the format's default */
    struct chat_out *out;
    bool thinking_open; /* the format's answer */
};

struct chat_format {
    const char *name;
    bool thinks;          /* thinking when nothing is said */
    bool reads_arguments; /* needs call.object */
    const void *style;    /* which member of its family */
    enum err_code (*render)(struct chat_job *job, const void *style, struct err *e);
};
extern const struct chat_format chat_deepseek_v3, chat_deepseek_r1, chat_deepseek_r1_0528,
    chat_deepseek_v31, chat_deepseek_v32_exp, chat_deepseek_v32, chat_glm_46, chat_glm_5,
    chat_glm_52, chat_kimi_k2;

/* Parsed arguments live until chat_free_trees(). */
struct chat_trees {
    cJSON **tree;
    size_t n, max;
};
MUST_CHECK enum err_code chat_read_messages(const cJSON *messages, bool continue_final,
                                            bool read_arguments, struct arena *a,
                                            struct chat_trees *trees, struct chat_message **out,
                                            size_t *n, struct err *e);
void chat_free_trees(struct chat_trees *trees);
MUST_CHECK enum err_code chat_check_tools(const cJSON *tools, struct err *e);

/* Helpers over strings. */
struct chat_str chat_lit(const char *s);
struct chat_str chat_json_str(const cJSON *string); /* {"", 0} for anything but a string */
bool chat_ends_with(struct chat_str s, const char *suffix);
/* Splits s at the first or the last occurrence of mark; false (and untouched results) without one.
 */
bool chat_cut_first(struct chat_str s, const char *mark, struct chat_str *before,
                    struct chat_str *after);
bool chat_cut_last(struct chat_str s, const char *mark, struct chat_str *before,
                   struct chat_str *after);
struct chat_str chat_trim_left(struct chat_str s); /* Unicode white space, as Python's strip() */
struct chat_str chat_trim(struct chat_str s);

#endif
