/* chat_deepseek.c - DeepSeek-V3, R1, R1-0528 (calls as fenced JSON) and V3.1, V3.2-Exp (raw calls).
 *
 * The templates published with the first of them are faulty around tools (a round of calls left
 * open, flags never reset); what is written here is the form that their successors settled on. See
 * the specification, sections 11.1 to 11.3.
 */
#include "base/json.h"
#include "text/chat_parts.h"

#include <string.h>

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define CALLS_BEGIN "<｜tool▁calls▁begin｜>"
#define CALLS_END "<｜tool▁calls▁end｜>"
#define CALL_BEGIN "<｜tool▁call▁begin｜>"
#define CALL_END "<｜tool▁call▁end｜>"
#define OUTPUTS_BEGIN "<｜tool▁outputs▁begin｜>"
#define OUTPUTS_END "<｜tool▁outputs▁end｜>"
#define OUTPUT_BEGIN "<｜tool▁output▁begin｜>"
#define OUTPUT_END "<｜tool▁output▁end｜>"
#define SEP "<｜tool▁sep｜>"

static const char fenced_tools[] =
    "You are a helpful assistant with tool calling capabilities. When a tool call is needed, you "
    "MUST "
    "use the following format to issue the call:\n" CALLS_BEGIN CALL_BEGIN "function" SEP
    "FUNCTION_NAME\n```json\n{\"param1\": \"value1\", \"param2\": \"value2\"}\n```" CALL_END
        CALLS_END
    "\n\nMake sure the JSON is valid.## Tools\n\n### Function\n\nYou have the following functions "
    "available:\n\n";
static const char raw_tools_end[] =
    "\n\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n" CALLS_BEGIN CALL_BEGIN
    "tool_call_name" SEP "tool_call_arguments" CALL_END "{{additional_tool_calls}}" CALLS_END "\n\n"
    "Where:\n\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
    "Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces\n";

/* System and developer messages stand in front, wherever they were. */
static void write_system(struct chat_job *job)
{
    bool first = true;
    chat_mark(job->out, BOS);
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        if (m->role != ROLE_SYSTEM && m->role != ROLE_DEVELOPER)
            continue;
        if (!first)
            chat_mark(job->out, "\n\n");
        first = false;
        chat_text(job->out, m->content);
    }
}

/* What follows the last </think>, or all of it. A message to be continued is not cut: its end
 * matters. */
static struct chat_str without_thoughts(const struct chat_message *m)
{
    struct chat_str rest = m->content;
    if (!m->is_final)
        chat_cut_last(m->content, "</think>", NULL, &rest);
    return rest;
}

/* A text that is continued stands inside reasoning when it (or what we put before it) opened one.
 */
static bool leaves_open(struct chat_str text, bool opened)
{
    struct chat_str rest = text;
    opened = chat_cut_last(text, "<think>", NULL, &rest) || opened;
    return opened && !chat_cut_first(rest, "</think>", NULL, NULL);
}

/* ---- V3, R1, R1-0528 ---- */

struct fenced_style {
    bool cuts_thoughts;
    bool assistant_after_user; /* the assistant's marker belongs to the user's turn */
    bool lines_between_results;
    const char *generation; /* after the assistant's marker */
    const char *thinking;   /* what the model then writes by itself when it thinks; NULL: nothing */
};
static const struct fenced_style v3 = {false, false, true, "", NULL},
                                 r1 = {true, false, false, "<think>\n", NULL},
                                 r1_0528 = {true, true, true, "", "<think>\n"};

static void write_fenced_calls(struct chat_out *o, const struct chat_message *m)
{
    chat_mark(o, CALLS_BEGIN);
    for (size_t k = 0; k < m->n_calls; k++) {
        chat_mark(o, k ? "\n" CALL_BEGIN "function" SEP : CALL_BEGIN "function" SEP);
        chat_text(o, m->call[k].name);
        chat_mark(o, "\n```json\n");
        chat_text(o, m->call[k].arguments);
        chat_mark(o, "\n```" CALL_END);
    }
    chat_mark(o, CALLS_END);
}

static enum err_code render_fenced(struct chat_job *job, const void *style, struct err *e)
{
    const struct fenced_style *st = style;
    struct chat_out *o = job->out;
    bool in_results = false, marked = false; /* the assistant's marker is already there */
    (void)e;
    write_system(job);
    if (job->tools) {
        chat_mark(o, "\n\n");
        chat_mark(o, fenced_tools);
        for (const cJSON *t = job->tools->child; t; t = t->next) {
            chat_mark(o, "\n```json\n");
            chat_text_json(o, t);
            chat_mark(o, "\n```\n");
        }
    }
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        if (m->role == ROLE_SYSTEM || m->role == ROLE_DEVELOPER)
            continue;
        if (m->role == ROLE_TOOL) {
            chat_mark(o, in_results ? (st->lines_between_results ? "\n" OUTPUT_BEGIN : OUTPUT_BEGIN)
                                    : OUTPUTS_BEGIN OUTPUT_BEGIN);
            chat_text(o, m->content);
            chat_mark(o, OUTPUT_END);
            in_results = true;
            marked = false;
            continue;
        }
        if (in_results)
            chat_mark(o, OUTPUTS_END);
        if (m->role == ROLE_USER) {
            chat_mark(o, USER);
            chat_text(o, m->content);
            if (st->assistant_after_user)
                chat_mark(o, ASSISTANT);
            marked = st->assistant_after_user;
        } else {
            if (!in_results && !st->assistant_after_user)
                chat_mark(o, ASSISTANT);
            chat_text(o, st->cuts_thoughts ? without_thoughts(m) : m->content);
            if (m->n_calls)
                write_fenced_calls(o, m);
            if (m->is_final)
                job->thinking_open = st->cuts_thoughts && leaves_open(m->content, false);
            else
                chat_mark(o, EOS);
            marked = false;
        }
        in_results = false;
    }
    if (in_results)
        chat_mark(o, OUTPUTS_END);
    else if (job->opt->add_generation_prompt && !job->opt->continue_final_message) {
        if (!marked)
            chat_mark(o, ASSISTANT);
        bool opens = st->thinking && job->thinking && job->opt->open_thinking;
        const char *generation = opens ? st->thinking : st->generation;
        chat_mark(o, generation);
        job->thinking_open = generation[0] != '\0';
    }
    return ERR_OK;
}

/* ---- V3.1, V3.2-Exp ---- */

struct raw_style {
    bool exp; /* V3.2-Exp, which invites an answer in more places */
};
static const struct raw_style v31 = {false}, v32_exp = {true};

static void write_raw_tools(struct chat_out *o, const cJSON *tools)
{
    chat_mark(o, "\n\n## Tools\nYou have access to the following tools:");
    for (const cJSON *t = tools->child; t; t = t->next) {
        const cJSON *f = json_get(t, "function"), *parameters = json_get(f, "parameters");
        chat_mark(o, "\n\n### ");
        chat_text(o, chat_json_str(json_get(f, "name")));
        chat_mark(o, "\nDescription: ");
        chat_text(o, chat_json_str(json_get(f, "description")));
        chat_mark(o, "\n\nParameters: ");
        if (parameters && !cJSON_IsNull(parameters))
            chat_text_json(o, parameters);
        else
            chat_mark(o, "{}");
    }
    chat_mark(o, raw_tools_end);
}

static void write_raw_calls(struct chat_out *o, const struct chat_message *m)
{
    chat_mark(o, CALLS_BEGIN);
    for (size_t k = 0; k < m->n_calls; k++) {
        chat_mark(o, CALL_BEGIN);
        chat_text(o, m->call[k].name);
        chat_mark(o, SEP);
        chat_text(o, m->call[k].arguments);
        chat_mark(o, CALL_END);
    }
    chat_mark(o, CALLS_END);
}

static void write_raw_assistant(struct chat_job *job, const struct chat_message *m,
                                enum chat_role before, bool first, bool exp)
{
    struct chat_out *o = job->out;
    bool after_user = before == ROLE_USER && !first;
    bool opens = !m->n_calls && job->thinking && (m->prefix || m->is_final);
    if (after_user || (exp && first && m->n_calls))
        chat_mark(o, opens ? ASSISTANT "<think>" : ASSISTANT "</think>");
    struct chat_str text = m->content;
    /* Reasoning to go on from: the answer's beginning, where there is one, ends it. */
    bool thought = m->is_final && opens && after_user && m->reasoning.n;
    if (thought)
        chat_text(o, m->reasoning);
    if (thought && text.n)
        chat_mark(o, "</think>");
    /* Calls and answers to results keep their text whole, as in training; so does what is
     * continued. */
    if (!m->n_calls && before != ROLE_TOOL && !m->is_final)
        chat_cut_first(m->content, "</think>", NULL, &text);
    chat_text(o, text);
    if (m->n_calls)
        write_raw_calls(o, m);
    if (m->is_final)
        job->thinking_open = !(thought && text.n) && leaves_open(m->content, opens && after_user);
    else
        chat_mark(o, EOS);
}

static enum err_code render_raw(struct chat_job *job, const void *style, struct err *e)
{
    const struct raw_style *st = style;
    struct chat_out *o = job->out;
    enum chat_role last = ROLE_SYSTEM; /* of the messages that stand in order */
    bool first = true, any_prefix = false, invite;
    (void)e;
    write_system(job);
    if (job->tools)
        write_raw_tools(o, job->tools);
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        if (m->role == ROLE_SYSTEM || m->role == ROLE_DEVELOPER)
            continue;
        if (m->role == ROLE_USER) {
            chat_mark(o, USER);
            chat_text(o, m->content);
        } else if (m->role == ROLE_TOOL) {
            chat_mark(o, OUTPUT_BEGIN);
            chat_text(o, m->content);
            chat_mark(o, OUTPUT_END);
        } else {
            write_raw_assistant(job, m, last, first, st->exp);
            any_prefix = any_prefix || m->prefix;
        }
        last = m->role;
        first = false;
    }
    if (st->exp)
        invite = last != ROLE_TOOL && !(last == ROLE_ASSISTANT && any_prefix);
    else
        invite = last == ROLE_USER;
    if (invite && job->opt->add_generation_prompt && !job->opt->continue_final_message) {
        chat_mark(o, job->thinking ? ASSISTANT "<think>" : ASSISTANT "</think>");
        job->thinking_open = job->thinking;
    }
    return ERR_OK;
}

const struct chat_format chat_deepseek_v3 = {"deepseek-v3", false, false, &v3, render_fenced};
const struct chat_format chat_deepseek_r1 = {"deepseek-r1", true, false, &r1, render_fenced};
const struct chat_format chat_deepseek_r1_0528 = {"deepseek-r1-0528", true, false, &r1_0528,
                                                  render_fenced};
const struct chat_format chat_deepseek_v31 = {"deepseek-v3.1", false, false, &v31, render_raw};
const struct chat_format chat_deepseek_v32_exp = {"deepseek-v3.2-exp", false, false, &v32_exp,
                                                  render_raw};
