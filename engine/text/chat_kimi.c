/* chat_kimi.c - Kimi-K2. See the specification, section 11.6. */
#include "base/json.h"
#include "text/chat_parts.h"

#include <stdio.h>

#define MIDDLE "<|im_middle|>"
#define END "<|im_end|>"

/* "functions.{name}:{i}"; i counts all calls of the conversation from 0. */
static void write_call_id(struct chat_out *o, const struct chat_call *call, size_t i)
{
    char number[24];
    int n = snprintf(number, sizeof number, ":%zu", i);
    char *kept = arena_strndup(o->arena, number, (size_t)n);
    if (!kept) {
        o->failed = true;
        return;
    }
    chat_mark(o, "functions.");
    chat_text(o, call->name);
    chat_text(o, (struct chat_str){kept, (size_t)n});
}

struct seen_calls { /* results are matched with calls by id, else in order */
    const struct chat_call **call;
    size_t n, n_answered;
};

static void write_assistant(struct chat_job *job, const struct chat_message *m,
                            struct seen_calls *seen)
{
    struct chat_out *o = job->out;
    chat_mark(o, "<|im_assistant|>assistant" MIDDLE);
    chat_text(o, m->content);
    if (m->n_calls) {
        chat_mark(o, "<|tool_calls_section_begin|>");
        for (size_t k = 0; k < m->n_calls; k++) {
            chat_mark(o, "<|tool_call_begin|>");
            write_call_id(o, &m->call[k], seen->n);
            chat_mark(o, "<|tool_call_argument_begin|>");
            chat_text(o, m->call[k].arguments);
            chat_mark(o, "<|tool_call_end|>");
            seen->call[seen->n++] = &m->call[k];
        }
        chat_mark(o, "<|tool_calls_section_end|>");
    }
    if (!m->is_final)
        chat_mark(o, END);
}

static bool same(struct chat_str a, struct chat_str b)
{
    return a.n == b.n && a.n && chat_ends_with(a, b.s);
}

static void write_result(struct chat_job *job, const struct chat_message *m,
                         struct seen_calls *seen)
{
    struct chat_out *o = job->out;
    size_t i = seen->n_answered;
    for (size_t k = 0; k < seen->n; k++) {
        if (same(seen->call[k]->id, m->call_id))
            i = k; /* the latest with that id */
    }
    chat_mark(o, "<|im_system|>tool" MIDDLE "## Return of ");
    if (i < seen->n)
        write_call_id(o, seen->call[i], i);
    else
        chat_text(o, m->call_id);
    chat_mark(o, "\n");
    chat_text(o, m->content);
    chat_mark(o, END);
    seen->n_answered++;
}

static enum err_code render(struct chat_job *job, const void *style, struct err *e)
{
    struct chat_out *o = job->out;
    struct seen_calls seen = {0};
    size_t n_calls = 0;
    (void)style;
    for (size_t i = 0; i < job->n_messages; i++)
        n_calls += job->message[i].n_calls;
    seen.call = arena_alloc(o->arena, n_calls * sizeof *seen.call);
    if (!seen.call)
        return err_set(e, ERR_NOMEM, "a prompt with %zu calls", n_calls);
    if (job->tools) {
        chat_mark(o, "<|im_system|>tool_declare" MIDDLE);
        chat_text_json(o, job->tools);
        chat_mark(o, END);
    }
    for (size_t i = 0; i < job->n_messages; i++) {
        const struct chat_message *m = &job->message[i];
        bool system = m->role == ROLE_SYSTEM || m->role == ROLE_DEVELOPER;
        if (i == 0 && !system)
            chat_mark(o, "<|im_system|>system" MIDDLE
                         "You are Kimi, an AI assistant created by Moonshot AI." END "\n");
        if (system || m->role == ROLE_USER) {
            chat_mark(o, system ? "<|im_system|>system" MIDDLE : "<|im_user|>user" MIDDLE);
            chat_text(o, m->content);
            chat_mark(o, END);
        } else if (m->role == ROLE_ASSISTANT) {
            write_assistant(job, m, &seen);
        } else {
            write_result(job, m, &seen);
        }
    }
    if (job->opt->add_generation_prompt && !job->opt->continue_final_message)
        chat_mark(o, "<|im_assistant|>assistant" MIDDLE);
    return ERR_OK;
}

const struct chat_format chat_kimi_k2 = {"kimi-k2", false, false, NULL, render};
