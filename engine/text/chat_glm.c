/* chat_glm.c - GLM-4.6, GLM-5 and GLM-5.2. See the specification, section 11.5.
 *
 * No text ends a turn: the model stops at the next role's token. Assistant text is stripped of
 * white space at both ends, and left out when nothing remains.
 */
#include "base/json.h"
#include "text/chat_parts.h"

#include <string.h>

struct glm_style {
    const char *line;      /* GLM-4.6 puts a newline after each marker */
    const char *no_reason; /* after the assistant's marker, when there is no reasoning to show */
    const char *invite;    /* thinking */
    const char *invite_off;
    bool nothink;       /* thinking off is told by the user's text */
    bool effort_head;   /* thinking on is told in front */
    bool inner_tools;   /* the tool list has the function objects only */
    bool strips_reason; /* white space around kept reasoning goes */
};
static const struct glm_style glm_46 = {.line = "\n",
                                        .no_reason = "\n<think></think>",
                                        .invite = "<|assistant|>",
                                        .invite_off = "<|assistant|>\n<think></think>",
                                        .nothink = true,
                                        .strips_reason = true};
static const struct glm_style glm_5 = {.line = "",
                                       .no_reason = "</think>",
                                       .invite = "<|assistant|><think>",
                                       .invite_off = "<|assistant|></think>",
                                       .strips_reason = true};
static const struct glm_style glm_52 = {.line = "",
                                        .no_reason = "<think></think>",
                                        .invite = "<|assistant|><think>",
                                        .invite_off = "<|assistant|><think></think>",
                                        .effort_head = true,
                                        .inner_tools = true};

static const char tools_begin[] =
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n";
static const char tools_end[] = "</tools>\n\nFor each function call, output the function name and "
                                "arguments within the following "
                                "XML format:\n";

static void write_function(struct chat_job *job, const struct glm_style *st, const cJSON *tool)
{
    if (!st->inner_tools) {
        chat_text_json(job->out, tool);
        chat_mark(job->out, "\n");
        return;
    }
    const cJSON *f = json_get(tool, "function"), *defer = json_get(f, "defer_loading");
    if (!defer)
        defer = json_get(tool, "defer_loading");
    if (cJSON_IsTrue(defer))
        return;
    cJSON *copy = cJSON_Duplicate(f, true);
    if (!copy) {
        job->out->failed = true;
        return;
    }
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "strict");
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "defer_loading");
    chat_text_json(job->out, copy);
    chat_mark(job->out, "\n");
    cJSON_Delete(copy);
}

static void write_tools(struct chat_job *job, const struct glm_style *st)
{
    struct chat_out *o = job->out;
    const char *n = st->line;
    chat_mark(o, tools_begin);
    for (const cJSON *t = job->tools->child; t; t = t->next)
        write_function(job, st, t);
    chat_mark(o, tools_end);
    chat_mark(o, "<tool_call>{function-name}");
    chat_mark(o, n);
    chat_mark(o, "<arg_key>{arg-key-1}</arg_key>");
    chat_mark(o, n);
    chat_mark(o, "<arg_value>{arg-value-1}</arg_value>");
    chat_mark(o, n);
    chat_mark(o, "<arg_key>{arg-key-2}</arg_key>");
    chat_mark(o, n);
    chat_mark(o, "<arg_value>{arg-value-2}</arg_value>");
    chat_mark(o, n);
    chat_mark(o, "...");
    chat_mark(o, n);
    chat_mark(o, "</tool_call>");
}

static void write_call(struct chat_out *o, const struct glm_style *st, const struct chat_call *call)
{
    const char *n = st->line;
    chat_mark(o, n);
    chat_mark(o, "<tool_call>");
    chat_text(o, call->name);
    chat_mark(o, n);
    for (const cJSON *p = call->object ? call->object->child : NULL; p; p = p->next) {
        chat_mark(o, "<arg_key>");
        chat_text_copy(o, chat_lit(p->string));
        chat_mark(o, "</arg_key>");
        chat_mark(o, n);
        chat_mark(o, "<arg_value>");
        if (cJSON_IsString(p))
            chat_text_copy(o, chat_json_str(p));
        else
            chat_text_json(o, p);
        chat_mark(o, "</arg_value>");
        chat_mark(o, n);
    }
    chat_mark(o, "</tool_call>");
}

/* What was thought and what was said: reasoning_content, else what stands in the text itself. */
static void split_text(const struct chat_message *m, struct chat_str *reason, struct chat_str *text)
{
    struct chat_str before, after;
    *reason = m->reasoning;
    *text = m->content;
    if (m->has_reasoning || m->is_final)
        return;
    if (!chat_cut_first(m->content, "</think>", &before, &after))
        return;
    *reason = before;
    chat_cut_last(before, "<think>", NULL, reason);
    chat_cut_last(m->content, "</think>", NULL, text);
}

static void write_assistant(struct chat_job *job, const struct glm_style *st,
                            const struct chat_message *m, bool kept)
{
    struct chat_out *o = job->out;
    struct chat_str reason, text;
    split_text(m, &reason, &text);
    if (st->strips_reason)
        reason = chat_trim(reason);
    chat_mark(o, "<|assistant|>");
    if (kept && reason.n) {
        chat_mark(o, st->line);
        chat_mark(o, "<think>");
        chat_text(o, reason);
        chat_mark(o, "</think>");
    } else {
        chat_mark(o, st->no_reason);
    }
    text = m->is_final ? chat_trim_left(text) : chat_trim(text);
    if (text.n) {
        chat_mark(o, st->line);
        chat_text(o, text);
    }
    for (size_t k = 0; k < m->n_calls; k++)
        write_call(o, st, &m->call[k]);
}

static void write_result(struct chat_out *o, const struct glm_style *st, bool first,
                         const struct chat_message *m)
{
    if (first)
        chat_mark(o, "<|observation|>");
    chat_mark(o, st->line);
    chat_mark(o, "<tool_response>");
    chat_mark(o, st->line);
    chat_text(o, m->content);
    chat_mark(o, st->line);
    chat_mark(o, "</tool_response>");
}

static enum err_code render(struct chat_job *job, const void *style, struct err *e)
{
    const struct glm_style *st = style;
    struct chat_out *o = job->out;
    size_t last_user = SIZE_MAX;
    (void)e;
    for (size_t i = 0; i < job->n_messages; i++)
        last_user = job->message[i].role == ROLE_USER ? i : last_user;
    chat_mark(o, "[gMASK]<sop>");
    if (st->effort_head && job->thinking) {
        const char *effort = job->opt->reasoning_effort;
        chat_mark(o, effort && strcmp(effort, "high") == 0 ? "<|system|>Reasoning Effort: High"
                                                           : "<|system|>Reasoning Effort: Max");
    }
    if (job->tools)
        write_tools(job, st);
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        bool kept = last_user == SIZE_MAX || i > last_user ||
                    (!st->nothink && job->opt->clear_thinking == TRI_FALSE);
        switch (m->role) {
        case ROLE_SYSTEM:
        case ROLE_DEVELOPER:
            chat_mark(o, "<|system|>");
            chat_mark(o, st->line);
            chat_text(o, m->content);
            break;
        case ROLE_USER:
            chat_mark(o, "<|user|>");
            chat_mark(o, st->line);
            chat_text(o, m->content);
            if (st->nothink && !job->thinking && !chat_ends_with(m->content, "/nothink"))
                chat_mark(o, "/nothink");
            break;
        case ROLE_ASSISTANT:
            write_assistant(job, st, m, kept);
            break;
        case ROLE_TOOL:
            write_result(o, st, i == 0 || job->message[i - 1].role != ROLE_TOOL, m);
            break;
        }
    }
    if (job->opt->add_generation_prompt && !job->opt->continue_final_message) {
        chat_mark(o, job->thinking ? st->invite : st->invite_off);
        if (st->nothink && job->thinking && job->opt->open_thinking)
            chat_mark(o, "\n<think>"); /* GLM-4.6 would write it */
        job->thinking_open = job->thinking && (!st->nothink || job->opt->open_thinking);
    }
    return ERR_OK;
}

const struct chat_format chat_glm_46 = {"glm-4.6", true, true, &glm_46, render};
const struct chat_format chat_glm_5 = {"glm-5", true, true, &glm_5, render};
const struct chat_format chat_glm_52 = {"glm-5.2", true, true, &glm_52, render};
