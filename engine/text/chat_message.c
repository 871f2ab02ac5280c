/* chat_message.c - the client's messages and tools, checked; the prompt's parts; string helpers. */
#include "base/fault.h"
#include "base/json.h"
#include "text/chat_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- strings ---- */

struct chat_str chat_lit(const char *s)
{
    return (struct chat_str){s, strlen(s)};
}

struct chat_str chat_json_str(const cJSON *string)
{
    return cJSON_IsString(string) ? chat_lit(string->valuestring) : (struct chat_str){"", 0};
}

bool chat_ends_with(struct chat_str s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s.n >= n && memcmp(s.s + s.n - n, suffix, n) == 0;
}

static void cut_at(struct chat_str s, const char *at, size_t mark_bytes, struct chat_str *before,
                   struct chat_str *after)
{
    size_t left = (size_t)(at - s.s);
    if (before)
        *before = (struct chat_str){s.s, left};
    if (after)
        *after = (struct chat_str){at + mark_bytes, s.n - left - mark_bytes};
}

bool chat_cut_first(struct chat_str s, const char *mark, struct chat_str *before,
                    struct chat_str *after)
{
    const char *at = memmem(s.s, s.n, mark, strlen(mark));
    if (!at)
        return false;
    cut_at(s, at, strlen(mark), before, after);
    return true;
}

bool chat_cut_last(struct chat_str s, const char *mark, struct chat_str *before,
                   struct chat_str *after)
{
    const char *last = NULL;
    size_t k = strlen(mark);
    for (const char *p = s.s; (p = memmem(p, s.n - (size_t)(p - s.s), mark, k)) != NULL; p += k)
        last = p;
    if (!last)
        return false;
    cut_at(s, last, k, before, after);
    return true;
}

/* Bytes of the white space character that s begins with; 0 when it is none. */
static size_t white_at(const char *s, size_t n)
{
    unsigned char c = n ? (unsigned char)s[0] : 'x', d = n > 1 ? (unsigned char)s[1] : 0,
                  f = n > 2 ? (unsigned char)s[2] : 0;
    if ((c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20))
        return 1;
    if (c == 0xC2)
        return d == 0x85 || d == 0xA0 ? 2 : 0;
    if (c == 0xE1)
        return d == 0x9A && f == 0x80 ? 3 : 0; /* U+1680 */
    if (c == 0xE2 && d == 0x80)                /* U+2000-200A, 2028, 2029, 202F */
        return (f >= 0x80 && f <= 0x8A) || f == 0xA8 || f == 0xA9 || f == 0xAF ? 3 : 0;
    if (c == 0xE2 && d == 0x81)
        return f == 0x9F ? 3 : 0;                       /* U+205F */
    return c == 0xE3 && d == 0x80 && f == 0x80 ? 3 : 0; /* U+3000 */
}

struct chat_str chat_trim_left(struct chat_str s)
{
    for (size_t k; (k = white_at(s.s, s.n)) != 0;) {
        s.s += k;
        s.n -= k;
    }
    return s;
}

struct chat_str chat_trim(struct chat_str s)
{
    s = chat_trim_left(s);
    for (bool more = true; more;) {
        more = false;
        for (size_t k = 1; k <= 3 && k <= s.n && !more; k++) {
            if (white_at(s.s + s.n - k, k) == k) {
                s.n -= k;
                more = true;
            }
        }
    }
    return s;
}

/* ---- the prompt ---- */

static void add_part(struct chat_out *o, struct text_part p)
{
    if (o->failed || p.bytes == 0)
        return;
    if (o->n == o->max) {
        size_t max = o->max ? 2 * o->max : 32;
        struct text_part *bigger = arena_alloc(o->arena, max * sizeof *bigger);
        if (!bigger) {
            o->failed = true;
            return;
        }
        if (o->n)
            memcpy(bigger, o->part, o->n * sizeof *bigger);
        o->part = bigger;
        o->max = max;
    }
    o->part[o->n++] = p;
}

void chat_mark(struct chat_out *o, const char *literal)
{
    add_part(o, (struct text_part){literal, strlen(literal), true});
}

void chat_text(struct chat_out *o, struct chat_str text)
{
    add_part(o, (struct text_part){text.s, text.n, false});
}

void chat_text_copy(struct chat_out *o, struct chat_str text)
{
    char *copy = arena_strndup(o->arena, text.s, text.n);
    if (copy)
        chat_text(o, (struct chat_str){copy, text.n});
    else
        o->failed = true;
}

void chat_text_json(struct chat_out *o, const cJSON *value)
{
    struct chat_buf b = {.arena = o->arena};
    chat_json_dump(&b, value);
    o->failed = o->failed || b.failed;
    if (!b.failed)
        chat_text(o, (struct chat_str){b.s, b.n});
}

/* ---- messages ---- */

struct reader {
    struct arena *arena;
    struct chat_trees *trees;
    bool read_arguments;
    size_t i; /* which message */
};

static const cJSON *present(const cJSON *object, const char *key)
{
    const cJSON *m = json_get(object, key);
    return m && !cJSON_IsNull(m) ? m : NULL;
}

/* An array of {"type": "text", "text": "..."}: joined with nothing between. */
static enum err_code read_content_parts(const struct reader *r, const cJSON *parts,
                                        struct chat_str *out, struct err *e)
{
    struct chat_buf b = {.arena = r->arena};
    size_t k = 0;
    for (const cJSON *p = parts->child; p; p = p->next, k++) {
        if (!cJSON_IsObject(p))
            return err_set(e, ERR_INVALID, "messages[%zu].content[%zu]: must be an object", r->i,
                           k);
        const cJSON *type = json_get(p, "type"), *text = json_get(p, "text");
        if (!cJSON_IsString(type))
            return err_set(e, ERR_INVALID, "messages[%zu].content[%zu].type: must be a string",
                           r->i, k);
        if (strcmp(type->valuestring, "text") != 0)
            return err_set(
                e, ERR_INVALID,
                "messages[%zu].content[%zu].type: \"%.40s\" is not supported, only \"text\"", r->i,
                k, type->valuestring);
        if (!cJSON_IsString(text))
            return err_set(e, ERR_INVALID, "messages[%zu].content[%zu].text: must be a string",
                           r->i, k);
        chat_buf_str(&b, text->valuestring);
    }
    if (b.failed)
        return err_set(e, ERR_NOMEM, "messages[%zu].content", r->i);
    *out = b.n ? (struct chat_str){b.s, b.n} : (struct chat_str){"", 0};
    return ERR_OK;
}

static enum err_code read_content(const struct reader *r, const cJSON *m, struct chat_str *out,
                                  struct err *e)
{
    const cJSON *c = present(m, "content");
    *out = (struct chat_str){"", 0};
    if (cJSON_IsArray(c))
        return read_content_parts(r, c, out, e);
    if (c && !cJSON_IsString(c))
        return err_set(e, ERR_INVALID,
                       "messages[%zu].content: must be a string or an array of parts", r->i);
    if (c)
        *out = chat_json_str(c);
    return ERR_OK;
}

static enum err_code read_string(const struct reader *r, const cJSON *m, const char *key,
                                 struct chat_str *out, bool *given, struct err *e)
{
    const cJSON *s = present(m, key);
    if (s && !cJSON_IsString(s))
        return err_set(e, ERR_INVALID, "messages[%zu].%s: must be a string", r->i, key);
    if (s) {
        *out = chat_json_str(s);
        *given = true;
    }
    return ERR_OK;
}

static enum err_code keep_tree(struct chat_trees *t, cJSON *tree, struct err *e)
{
    if (t->n == t->max) {
        size_t max = t->max ? 2 * t->max : 8;
        cJSON **bigger = FAULT("chat.trees") ? NULL : realloc(t->tree, max * sizeof *bigger);
        if (!bigger) {
            cJSON_Delete(tree);
            return err_set(e, ERR_NOMEM, "tool call arguments");
        }
        t->tree = bigger;
        t->max = max;
    }
    t->tree[t->n++] = tree;
    return ERR_OK;
}

void chat_free_trees(struct chat_trees *trees)
{
    for (size_t i = 0; i < trees->n; i++)
        cJSON_Delete(trees->tree[i]);
    free(trees->tree);
    *trees = (struct chat_trees){0};
}

#define CALL "messages[%zu].tool_calls[%zu]"

/* Call number k's arguments: a string with JSON in it, as the interface has it, or, as some clients
 * send, the object itself. */
static enum err_code read_arguments(const struct reader *r, size_t k, const cJSON *args,
                                    struct chat_call *call, struct err *e)
{
    if (cJSON_IsObject(args)) {
        struct chat_buf b = {.arena = r->arena};
        chat_json_dump(&b, args);
        if (b.failed)
            return err_set(e, ERR_NOMEM, CALL ".function.arguments", r->i, k);
        call->arguments = (struct chat_str){b.s, b.n};
        call->object = args;
        return ERR_OK;
    }
    if (args && !cJSON_IsNull(args) && !cJSON_IsString(args))
        return err_set(e, ERR_INVALID, CALL ".function.arguments: must be a string with JSON in it",
                       r->i, k);
    call->arguments = chat_json_str(args);
    if (!r->read_arguments)
        return ERR_OK;
    cJSON *tree = NULL;
    struct chat_str text = chat_trim(call->arguments);
    if (text.n == 0)
        return ERR_OK; /* no arguments at all: a call without parameters */
    if (json_parse(&tree, text.s, text.n, JSON_MAX_DEPTH, e))
        return err_prefix(e, CALL ".function.arguments", r->i, k);
    if (keep_tree(r->trees, tree, e))
        return e->code;
    if (!cJSON_IsObject(tree))
        return err_set(e, ERR_INVALID, CALL ".function.arguments: must be a JSON object", r->i, k);
    call->object = tree;
    return chat_json_keep_numbers(tree, text.s, text.n, e);
}

static enum err_code read_call(const struct reader *r, size_t k, const cJSON *c,
                               struct chat_call *call, struct err *e)
{
    const cJSON *type = present(c, "type"), *function = json_get(c, "function"),
                *name = json_get(function, "name");
    *call = (struct chat_call){{"", 0}, {"", 0}, {"", 0}, NULL};
    if (!cJSON_IsObject(c))
        return err_set(e, ERR_INVALID, CALL ": must be an object", r->i, k);
    if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0))
        return err_set(e, ERR_INVALID, CALL ".type: only \"function\" is supported", r->i, k);
    if (!cJSON_IsObject(function))
        return err_set(e, ERR_INVALID, CALL ".function: must be an object", r->i, k);
    if (!cJSON_IsString(name) || !name->valuestring[0])
        return err_set(e, ERR_INVALID, CALL ".function.name: must be a string that is not empty",
                       r->i, k);
    call->id = chat_json_str(json_get(c, "id"));
    call->name = chat_json_str(name);
    return read_arguments(r, k, json_get(function, "arguments"), call, e);
}

static enum err_code read_calls(const struct reader *r, const cJSON *m, struct chat_message *out,
                                struct err *e)
{
    const cJSON *calls = present(m, "tool_calls");
    if (present(m, "function_call"))
        return err_set(e, ERR_INVALID, "messages[%zu].function_call: not supported, use tool_calls",
                       r->i);
    if (!calls)
        return ERR_OK;
    if (!cJSON_IsArray(calls))
        return err_set(e, ERR_INVALID, "messages[%zu].tool_calls: must be an array", r->i);
    size_t n = (size_t)cJSON_GetArraySize(calls), k = 0;
    out->call = arena_alloc(r->arena, n * sizeof *out->call);
    if (!out->call)
        return err_set(e, ERR_NOMEM, "messages[%zu].tool_calls", r->i);
    for (const cJSON *c = calls->child; c; c = c->next, k++) {
        if (read_call(r, k, c, &out->call[k], e))
            return e->code;
    }
    out->n_calls = n;
    return ERR_OK;
}

static enum err_code read_role(const struct reader *r, const cJSON *m, enum chat_role *out,
                               struct err *e)
{
    static const char *const names[] = {"system", "developer", "user", "assistant", "tool"};
    const cJSON *role = json_get(m, "role");
    if (!cJSON_IsString(role))
        return err_set(e, ERR_INVALID, "messages[%zu].role: must be a string", r->i);
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        if (strcmp(role->valuestring, names[k]) == 0) {
            *out = (enum chat_role)k;
            return ERR_OK;
        }
    }
    return err_set(
        e, ERR_INVALID,
        "messages[%zu].role: \"%.40s\" is none of system, developer, user, assistant, tool", r->i,
        role->valuestring);
}

static enum err_code read_message(const struct reader *r, const cJSON *m, struct chat_message *out,
                                  struct err *e)
{
    bool given = false;
    *out = (struct chat_message){.reasoning = {"", 0}, .call_id = {"", 0}};
    if (!cJSON_IsObject(m))
        return err_set(e, ERR_INVALID, "messages[%zu]: must be an object", r->i);
    if (read_role(r, m, &out->role, e) || read_content(r, m, &out->content, e))
        return e->code;
    if (out->role == ROLE_TOOL)
        return read_string(r, m, "tool_call_id", &out->call_id, &given, e);
    if (out->role != ROLE_ASSISTANT)
        return ERR_OK;
    const cJSON *prefix = present(m, "prefix");
    if (prefix && !cJSON_IsBool(prefix))
        return err_set(e, ERR_INVALID, "messages[%zu].prefix: must be true or false", r->i);
    out->prefix = cJSON_IsTrue(prefix);
    /* Two names are in use for the same thing; the first is DeepSeek's own. */
    if (read_string(r, m, "reasoning", &out->reasoning, &out->has_reasoning, e) ||
        read_string(r, m, "reasoning_content", &out->reasoning, &out->has_reasoning, e))
        return e->code;
    return read_calls(r, m, out, e);
}

enum err_code chat_read_messages(const cJSON *messages, bool continue_final,
                                 bool read_arguments_too, struct arena *a, struct chat_trees *trees,
                                 struct chat_message **out, size_t *n, struct err *e)
{
    struct reader r = {a, trees, read_arguments_too, 0};
    if (!cJSON_IsArray(messages) || !messages->child)
        return err_set(e, ERR_INVALID, "messages: must be an array with at least one message");
    size_t count = (size_t)cJSON_GetArraySize(messages);
    struct chat_message *list = arena_alloc(a, count * sizeof *list);
    if (!list)
        return err_set(e, ERR_NOMEM, "%zu messages", count);
    for (const cJSON *m = messages->child; m; m = m->next, r.i++) {
        if (read_message(&r, m, &list[r.i], e))
            return e->code;
    }
    if (continue_final) {
        if (list[count - 1].role != ROLE_ASSISTANT)
            return err_set(e, ERR_INVALID,
                           "messages[%zu].role: only an assistant message can be continued",
                           count - 1);
        list[count - 1].is_final = true;
    }
    *out = list;
    *n = count;
    return ERR_OK;
}

enum err_code chat_check_tools(const cJSON *tools, struct err *e)
{
    size_t i = 0;
    if (!tools || cJSON_IsNull(tools))
        return ERR_OK;
    if (!cJSON_IsArray(tools))
        return err_set(e, ERR_INVALID, "tools: must be an array");
    for (const cJSON *t = tools->child; t; t = t->next, i++) {
        const cJSON *type = json_get(t, "type"), *f = json_get(t, "function"),
                    *name = json_get(f, "name"), *text = present(f, "description"),
                    *schema = present(f, "parameters");
        if (!cJSON_IsObject(t))
            return err_set(e, ERR_INVALID, "tools[%zu]: must be an object", i);
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0)
            return err_set(e, ERR_INVALID, "tools[%zu].type: must be \"function\"", i);
        if (!cJSON_IsObject(f))
            return err_set(e, ERR_INVALID, "tools[%zu].function: must be an object", i);
        if (!cJSON_IsString(name) || !name->valuestring[0])
            return err_set(e, ERR_INVALID, "tools[%zu].function.name: must be a string, not empty",
                           i);
        if (text && !cJSON_IsString(text))
            return err_set(e, ERR_INVALID, "tools[%zu].function.description: must be a string", i);
        if (schema && !cJSON_IsObject(schema))
            return err_set(e, ERR_INVALID, "tools[%zu].function.parameters: must be an object", i);
    }
    return ERR_OK;
}
