/* chat_dsml.c - DeepSeek-V3.2: calls and results in DSML. See the specification, section 11.4.
 *
 * Reasoning is kept for turns after the last user (or developer) message only, so that it survives
 * a loop of tool calls and no longer. The invitation to answer is part of the user's turn and of
 * the last result: there is no way to leave it out.
 */
#include "base/json.h"
#include "text/chat_parts.h"

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define TAG "｜DSML｜"

static const char tools_begin[] =
    "\n\n## Tools\n\n"
    "You have access to a set of tools you can use to answer the user's question.\n"
    "You can invoke functions by writing a \"<" TAG
    "function_calls>\" block like the following as part of your reply to the user:\n"
    "<" TAG "function_calls>\n"
    "<" TAG "invoke name=\"$FUNCTION_NAME\">\n"
    "<" TAG "parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</" TAG
    "parameter>\n...\n"
    "</" TAG "invoke>\n"
    "<" TAG "invoke name=\"$FUNCTION_NAME2\">\n...\n"
    "</" TAG "invoke>\n"
    "</" TAG "function_calls>\n\n"
    "String and scalar parameters should be specified as is without any escaping or quotes, while "
    "lists and objects should use JSON format. The \"string\" attribute should be set to \"true\" "
    "for "
    "string type parameters and \"false\" for other types (numbers, booleans, arrays, objects).\n\n"
    "If the thinking_mode is enabled, then after function results you should strongly consider "
    "outputting a thinking block. Here is an example:\n\n"
    "<" TAG "function_calls>\n...\n</" TAG "function_calls>\n\n"
    "<function_results>\n...\n</function_results>\n\n"
    "<think>...thinking about results</think>\n\n"
    "Here are the functions available in JSONSchema format:\n<functions>\n";

/* After the first system message, or after BOS where there is none. */
static void write_tools(struct chat_job *job)
{
    struct chat_out *o = job->out;
    if (job->tools) {
        chat_mark(o, tools_begin);
        for (const cJSON *t = job->tools->child; t; t = t->next) {
            chat_text_json(o, json_get(t, "function"));
            chat_mark(o, "\n");
        }
        chat_mark(o, "</functions>\n");
    }
    if (job->opt->response_format) {
        chat_mark(o,
                  "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
                  "reply:\n");
        chat_text_json(o, job->opt->response_format);
    }
}

static void write_call(struct chat_out *o, const struct chat_call *call)
{
    chat_mark(o, "\n<" TAG "invoke name=\"");
    chat_text(o, call->name);
    chat_mark(o, "\">\n");
    for (const cJSON *p = call->object ? call->object->child : NULL; p; p = p->next) {
        bool string = cJSON_IsString(p);
        chat_mark(o, "<" TAG "parameter name=\"");
        chat_text_copy(o, chat_lit(p->string));
        chat_mark(o, string ? "\" string=\"true\">" : "\" string=\"false\">");
        if (string)
            chat_text_copy(o, chat_json_str(p));
        else
            chat_text_json(o, p);
        chat_mark(o, p->next ? "</" TAG "parameter>\n" : "</" TAG "parameter>");
    }
    chat_mark(o, "\n</" TAG "invoke>");
}

static enum err_code write_assistant(struct chat_job *job, const struct chat_message *m, bool kept,
                                     struct err *e)
{
    struct chat_out *o = job->out;
    bool open = false; /* a text that is continued inside its reasoning */
    if (kept && job->thinking) {
        if (!m->reasoning.n && !m->n_calls && !m->is_final)
            return err_set(e, ERR_INVALID,
                           "messages: an assistant message after the last user message needs "
                           "reasoning_content or tool_calls when thinking is on");
        if (m->is_final && !m->reasoning.n) {
            open = !chat_cut_first(m->content, "</think>", NULL, NULL);
        } else {
            chat_text(o, m->reasoning);
            chat_mark(o, "</think>");
        }
    }
    chat_text(o, m->content);
    if (m->n_calls) {
        chat_mark(o, "\n\n<" TAG "function_calls>");
        for (size_t i = 0; i < m->n_calls; i++)
            write_call(o, &m->call[i]);
        chat_mark(o, "\n</" TAG "function_calls>");
    }
    if (!m->is_final)
        chat_mark(o, EOS);
    job->thinking_open = m->is_final && open;
    return ERR_OK;
}

/* The result number n (from 0) of n_calls. */
static enum err_code write_result(struct chat_job *job, const struct chat_message *m, size_t n,
                                  size_t n_calls, bool think, struct err *e)
{
    struct chat_out *o = job->out;
    if (n >= n_calls)
        return err_set(e, ERR_INVALID, "messages: %zu tool results follow %zu tool calls", n + 1,
                       n_calls);
    chat_mark(o, n ? "\n<result>" : "\n\n<function_results>\n<result>");
    chat_text(o, m->content);
    chat_mark(o, "</result>");
    if (n + 1 < n_calls)
        return ERR_OK;
    chat_mark(o, "\n</function_results>\n\n");
    chat_mark(o, think ? "<think>" : "</think>");
    job->thinking_open = think;
    return ERR_OK;
}

static enum err_code render(struct chat_job *job, const void *style, struct err *e)
{
    struct chat_out *o = job->out;
    size_t last_user = SIZE_MAX, n_results = 0, n_calls = 0;
    bool tools_out = false;
    (void)style;
    for (size_t i = 0; i < job->n_messages; i++) {
        enum chat_role role = job->message[i].role;
        if (role == ROLE_USER || role == ROLE_DEVELOPER)
            last_user = i;
        tools_out = tools_out || role == ROLE_SYSTEM;
    }
    chat_mark(o, BOS);
    if (!tools_out)
        write_tools(job);
    tools_out = !tools_out;
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        bool after_last = last_user == SIZE_MAX || i > last_user;
        switch (m->role) {
        case ROLE_SYSTEM:
            chat_text(o, m->content);
            if (!tools_out)
                write_tools(job);
            tools_out = true;
            break;
        case ROLE_USER:
        case ROLE_DEVELOPER:
            chat_mark(o, USER);
            if (m->role == ROLE_DEVELOPER)
                chat_mark(o, "\n\n# The user's message is: ");
            chat_text(o, m->content);
            job->thinking_open = job->thinking && i == last_user;
            chat_mark(o, job->thinking_open ? ASSISTANT "<think>" : ASSISTANT "</think>");
            break;
        case ROLE_ASSISTANT:
            if (write_assistant(job, m, after_last, e))
                return e->code;
            n_calls = m->n_calls;
            n_results = 0;
            break;
        case ROLE_TOOL:
            if (write_result(job, m, n_results++, n_calls, job->thinking && after_last, e))
                return e->code;
            break;
        }
    }
    return ERR_OK;
}

const struct chat_format chat_deepseek_v32 = {"deepseek-v3.2", false, true, NULL, render};
