/* tools.c - see tools.h. */
#include "tools.h"

#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

static const char *name_of(const cJSON *tool)
{
    const cJSON *name = json_get(json_get(tool, "function"), "name");
    return cJSON_IsString(name) ? name->valuestring : "";
}

static const cJSON *find(const cJSON *array, const char *name)
{
    const cJSON *t = array ? array->child : NULL;
    while (t && strcmp(name_of(t), name) != 0)
        t = t->next;
    return t;
}

static bool read_mode(struct params *p, const struct field_reader *r, const char *key,
                      const char *mode, bool none_too)
{
    if (!strcmp(mode, "required"))
        p->call_required = true;
    else if (none_too && !strcmp(mode, "none"))
        p->no_calls = true;
    else if (strcmp(mode, "auto") != 0)
        return field_fail(r, key,
                          none_too ? "expected \"none\", \"auto\", \"required\" or an object"
                                   : "expected \"auto\" or \"required\"");
    return true;
}

static bool read_named(struct params *p, const cJSON *choice, struct api_error *ae)
{
    struct field_reader r = {json_get(choice, "function"), "tool_choice.function.", ae};
    const char *name = NULL;
    if (!cJSON_IsObject(r.root))
        return field_fail(&(struct field_reader){choice, "tool_choice.", ae}, "function",
                          "expected an object with a name");
    if (!field_text(&r, "name", &name))
        return false;
    if (!name || !*name || !find(p->tools, name))
        return field_fail(&r, "name", "\"%.64s\" is none of the tools", name ? name : "");
    p->call_required = true;
    p->call_name = arena_strndup(&p->arena, name, strlen(name));
    return p->call_name || no_memory(ae);
}

static bool read_allowed_tools(struct params *p, const cJSON *choice, struct api_error *ae)
{
    const cJSON *allowed = json_get(choice, "allowed_tools");
    struct field_reader r = {allowed, "tool_choice.allowed_tools.", ae};
    const cJSON *list = field_get(&r, "tools");
    const char *mode = "auto";
    if (!cJSON_IsObject(allowed))
        return field_fail(&(struct field_reader){choice, "tool_choice.", ae}, "allowed_tools",
                          "expected an object with mode and tools");
    if (!field_text(&r, "mode", &mode) || !read_mode(p, &r, "mode", mode, false))
        return false;
    if (!cJSON_IsArray(list) || !list->child || cJSON_GetArraySize(list) > TOOLS_MAX)
        return field_fail(&r, "tools", "expected an array of 1 to %d tools", TOOLS_MAX);
    for (const cJSON *t = list->child; t; t = t->next)
        if (!*name_of(t) || !find(p->tools, name_of(t)))
            return field_fail(&r, "tools", "\"%.64s\" is none of the tools", name_of(t));
    for (cJSON *t = p->tools->child, *next; t; t = next) {
        next = t->next;
        if (!find(list, name_of(t)))
            cJSON_Delete(cJSON_DetachItemViaPointer(p->tools, t));
    }
    return true;
}

static bool read_choice(struct params *p, const struct field_reader *r)
{
    const cJSON *choice = field_get(r, "tool_choice");
    struct field_reader c = {choice, "tool_choice.", r->ae};
    const char *type = "";
    if (!choice)
        return true;
    if (cJSON_IsString(choice))
        return read_mode(p, r, "tool_choice", choice->valuestring, true) &&
               (!p->call_required || p->tools ||
                field_fail(r, "tool_choice", "there are no tools"));
    if (!cJSON_IsObject(choice))
        return field_fail(r, "tool_choice", "expected a string or an object");
    if (!field_text(&c, "type", &type))
        return false;
    if (strcmp(type, "function") != 0 && strcmp(type, "allowed_tools") != 0)
        return field_fail(&c, "type", "expected \"function\" or \"allowed_tools\"");
    if (!p->tools)
        return field_fail(r, "tool_choice", "there are no tools");
    return *type == 'f' ? read_named(p, choice, r->ae) : read_allowed_tools(p, choice, r->ae);
}

bool tools_read(struct params *p, cJSON *root, struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    const cJSON *tools = field_get(&r, "tools");
    bool parallel = true;
    if (tools && !cJSON_IsArray(tools))
        return field_fail(&r, "tools", "expected an array");
    if (tools && cJSON_GetArraySize(tools) > TOOLS_MAX)
        return field_fail(&r, "tools", "at most %d", TOOLS_MAX);
    if (tools && tools->child)
        p->tools = cJSON_DetachItemViaPointer(root, (cJSON *)(uintptr_t)tools);
    if (!read_choice(p, &r) || !field_bool(&r, "parallel_tool_calls", &parallel))
        return false;
    p->one_call = !parallel;
    if (p->no_calls) {
        cJSON_Delete(p->tools);
        p->tools = NULL;
    }
    return true;
}

/* --- the opening of a call ----------------------------------------------------------------------
 */

#define V3_CALL "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
#define V3_SEP "<｜tool▁sep｜>"
#define DSML_CALL "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\""

struct opening {
    const char *format;
    const char *begin;   /* up to a name, or to what stands before it */
    const char *before;  /* the name; only where it is known */
    const char *after;   /* the name: from here on it is over; NULL: nothing sure ends it */
    bool numbered;       /* ":n" behind the name counts the conversation's calls */
    const char *mark[2]; /* what begins calls, and cannot be in text: NULL, or a token in most
                            vocabularies */
};
#define V3_MARKS                                                                                   \
    {                                                                                              \
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"                                    \
    }
#define GLM_MARKS                                                                                  \
    {                                                                                              \
        "<tool_call>"                                                                              \
    }
/* Each piece ends where the tokenizer would cut a whole call's text too, so that a call which is
 * rendered back later has the same tokens. */
static const struct opening openings[] = {
    {"deepseek-v3", V3_CALL "function" V3_SEP, "", "\n```json\n", false, V3_MARKS},
    {"deepseek-r1", V3_CALL "function" V3_SEP, "", "\n```json\n", false, V3_MARKS},
    {"deepseek-r1-0528", V3_CALL "function" V3_SEP, "", "\n```json\n", false, V3_MARKS},
    {"deepseek-v3.1", V3_CALL, "", V3_SEP, false, V3_MARKS},
    {"deepseek-v3.2-exp", V3_CALL, "", V3_SEP, false, V3_MARKS},
    {"deepseek-v3.2", DSML_CALL, "", "\">\n", false, {"｜DSML｜"}},
    {"kimi-k2",
     "<|tool_calls_section_begin|><|tool_call_begin|>",
     "functions.",
     "<|tool_call_argument_begin|>",
     true,
     {"<|tool_calls_section_begin|>", "<|tool_call_begin|>"}},
    {"glm-4.6", "\n<tool_call>", "", "\n", false, GLM_MARKS},
    {"glm-5", "<tool_call>", "", NULL, false, GLM_MARKS},
    {"glm-5.2", "<tool_call>", "", NULL, false, GLM_MARKS}};

static const struct opening *opening_of(const struct chat_format *format)
{
    const struct opening *o = openings;
    while (strcmp(o->format, chat_format_name(format)) != 0)
        o++; /* every format has one */
    return o;
}

static int count_calls(const cJSON *messages)
{
    int n = 0;
    for (const cJSON *m = messages->child; m; m = m->next) {
        const cJSON *calls = json_get(m, "tool_calls");
        n += cJSON_IsArray(calls) ? cJSON_GetArraySize(calls) : 0;
    }
    return n;
}

static struct text_part mark(const char *s)
{
    return (struct text_part){s, strlen(s), true};
}

/* The parser's copy, NUL-terminated. */
static bool join(struct params *p, const struct text_part *part, size_t n, struct api_error *ae)
{
    size_t bytes = 0, at = 0;
    for (size_t i = 0; i < n; i++)
        bytes += part[i].bytes;
    char *s = arena_alloc(&p->arena, bytes + 1);
    if (!s)
        return no_memory(ae);
    for (size_t i = 0; i < n; at += part[i++].bytes)
        memcpy(s + at, part[i].text, part[i].bytes);
    s[bytes] = 0;
    p->opening = s;
    return true;
}

bool tools_open_call(struct params *p, const struct chat_format *format, const cJSON *messages,
                     const struct chat_options *opt, bool thinking_open,
                     struct text_part part[TOOLS_MAX_PARTS], size_t *n, struct api_error *ae)
{
    struct field_reader r = {NULL, "", ae};
    const struct opening *o = opening_of(format);
    *n = 0;
    if (!p->call_required)
        return true;
    if (!opt->add_generation_prompt && !opt->continue_final_message)
        return field_fail(&r, "tool_choice",
                          "a call can only be required where an answer begins, but "
                          "add_generation_prompt is false");
    const char *only = p->tools->child->next || !o->after ? NULL : name_of(p->tools->child);
    const char *called = p->call_name ? p->call_name : only;
    p->call_late = thinking_open || (called && !o->after);
    if (p->call_late)
        return true;
    part[(*n)++] = mark(o->begin);
    if (called) {
        size_t room = strlen(called) + 16;
        char *name = arena_alloc(&p->arena, room);
        if (!name)
            return no_memory(ae);
        if (o->numbered)
            snprintf(name, room, "%s:%d", called, count_calls(messages));
        else
            snprintf(name, room, "%s", called);
        if (*o->before)
            part[(*n)++] = mark(o->before);
        part[(*n)++] = (struct text_part){name, strlen(name), false};
        part[(*n)++] = mark(o->after);
    }
    return join(p, part, *n, ae);
}

/* --- markers among the tokens -------------------------------------------------------------------
 */

static const char *const marks[] = {"<｜tool▁calls▁begin｜>",
                                    "<｜tool▁calls▁end｜>",
                                    "<｜tool▁call▁begin｜>",
                                    "<｜tool▁call▁end｜>",
                                    V3_SEP,
                                    "<｜tool▁outputs▁begin｜>",
                                    "<｜tool▁outputs▁end｜>",
                                    "<｜tool▁output▁begin｜>",
                                    "<｜tool▁output▁end｜>",
                                    "｜DSML｜",
                                    "<tool_call>",
                                    "</tool_call>",
                                    "<arg_key>",
                                    "</arg_key>",
                                    "<arg_value>",
                                    "</arg_value>",
                                    "<|tool_calls_section_begin|>",
                                    "<|tool_calls_section_end|>",
                                    "<|tool_call_begin|>",
                                    "<|tool_call_argument_begin|>",
                                    "<|tool_call_end|>"};
enum { N_MARKS = sizeof marks / sizeof *marks };

static uint32_t mark_id(const struct tokenizer *tok, const char *mark)
{
    uint32_t id = tokenizer_find(tok, mark, strlen(mark));
    return id != UINT32_MAX && tokenizer_is_added(tok, id) ? id : UINT32_MAX;
}

bool tools_keep_out(struct params *p, const struct param_env *env, struct api_error *ae)
{
    const struct opening *o = opening_of(env->format);
    const uint32_t *allowed = p->like.sample.allowed; /* by id: that stands */
    uint32_t *id = arena_alloc(&p->arena, N_MARKS * sizeof *id), n = 0;
    bool spelled = false;
    if (!id)
        return no_memory(ae);
    for (size_t i = 0; i < N_MARKS; i++) {
        uint32_t mark = mark_id(env->tok, marks[i]);
        if (mark != UINT32_MAX && !(allowed && allowed[mark / 32] >> mark % 32 & 1))
            id[n++] = mark;
    }
    for (size_t i = 0; i < 2 && o->mark[i]; i++)
        spelled |= mark_id(env->tok, o->mark[i]) == UINT32_MAX;
    p->like.never = id;
    p->like.n_never = n;
    p->markup =
        spelled && p->guide.kind == GUIDE_NONE ? OUTPUT_MARKUP_LEFT_OUT : OUTPUT_MARKUP_TEXT;
    return true;
}

bool tools_markup_is_special(const struct tokenizer *tok)
{
    static const char *const think[] = {"<think>", "</think>"};
    for (size_t i = 0; i < N_MARKS + 2; i++) {
        const char *mark = i < N_MARKS ? marks[i] : think[i - N_MARKS];
        uint32_t id = tokenizer_find(tok, mark, strlen(mark));
        if (id != UINT32_MAX && tokenizer_is_special(tok, id))
            return true;
    }
    return false;
}
