/* messages.c - see messages.h. */
#include "messages.h"

#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct conversion {
    cJSON *from, *to; /* the two requests */
    cJSON *messages;  /* of `to` */
    struct api_error *ae;
    bool failed; /* no memory */
};

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

/* Takes value; gives it back for further use, NULL without memory. */
static cJSON *add(struct conversion *c, cJSON *object, const char *key, cJSON *value)
{
    bool ok =
        object && value &&
        (key ? cJSON_AddItemToObject(object, key, value) : cJSON_AddItemToArray(object, value));
    if (ok)
        return value;
    cJSON_Delete(value);
    c->failed = true;
    return NULL;
}

/* A value moves from one tree to the other; its numbers keep their spelling. */
static void move(struct conversion *c, cJSON *from, const char *key, cJSON *to, const char *as)
{
    const cJSON *v = json_get(from, key);
    if (v && !cJSON_IsNull(v))
        add(c, to, as, cJSON_DetachItemViaPointer(from, (cJSON *)(uintptr_t)v));
}

static const char *type_of(const cJSON *block)
{
    const cJSON *type = json_get(block, "type");
    return cJSON_IsString(type) ? type->valuestring : "";
}

static cJSON *new_message(struct conversion *c, const char *role)
{
    cJSON *m = add(c, c->messages, NULL, cJSON_CreateObject());
    add(c, m, "role", cJSON_CreateString(role));
    return m;
}

/* The text of a block to the message's content parts. */
static bool add_text(struct conversion *c, const struct field_reader *r, const cJSON *block,
                     cJSON *message)
{
    const cJSON *text = json_get(block, "text");
    cJSON *parts = (cJSON *)(uintptr_t)json_get(message, "content");
    if (!cJSON_IsString(text))
        return field_fail(r, "text", "expected a string");
    if (!parts)
        parts = add(c, message, "content", cJSON_CreateArray());
    cJSON *part = add(c, parts, NULL, cJSON_CreateObject());
    add(c, part, "type", cJSON_CreateString("text"));
    add(c, part, "text", cJSON_CreateString(text->valuestring));
    return true;
}

static bool refuse_block(const struct field_reader *r, const cJSON *block, const char *known)
{
    return field_fail(r, "type", "\"%.40s\" is not supported here, only %s", type_of(block), known);
}

/* A string, or text blocks, as the content of message. */
static bool add_plain(struct conversion *c, cJSON *value, const char *path, cJSON *message)
{
    struct field_reader r = {NULL, "", c->ae};
    char prefix[96];
    int i = 0;
    if (cJSON_IsString(value)) {
        add(c, message, "content", cJSON_CreateString(value->valuestring));
        return true;
    }
    if (!cJSON_IsArray(value))
        return field_fail(&r, path, "expected a string or an array of text blocks");
    for (const cJSON *b = value->child; b; b = b->next, i++) {
        snprintf(prefix, sizeof prefix, "%.80s[%d].", path, i);
        r.prefix = prefix;
        if (strcmp(type_of(b), "text") != 0)
            return refuse_block(&r, b, "text");
        if (!add_text(c, &r, b, message))
            return false;
    }
    return true;
}

static bool add_result(struct conversion *c, const struct field_reader *r, const cJSON *block)
{
    const cJSON *id = json_get(block, "tool_use_id"), *content = json_get(block, "content");
    char path[96];
    if (!cJSON_IsString(id))
        return field_fail(r, "tool_use_id", "expected a string");
    cJSON *m = new_message(c, "tool");
    add(c, m, "tool_call_id", cJSON_CreateString(id->valuestring));
    if (!content || cJSON_IsNull(content)) {
        add(c, m, "content", cJSON_CreateString(""));
        return true;
    }
    snprintf(path, sizeof path, "%scontent", r->prefix);
    return add_plain(c, (cJSON *)(uintptr_t)content, path, m);
}

static bool add_use(struct conversion *c, const struct field_reader *r, cJSON *block,
                    cJSON *message)
{
    const cJSON *id = json_get(block, "id"), *name = json_get(block, "name");
    cJSON *calls = (cJSON *)(uintptr_t)json_get(message, "tool_calls");
    if (!cJSON_IsString(id))
        return field_fail(r, "id", "expected a string");
    if (!cJSON_IsString(name))
        return field_fail(r, "name", "expected a string");
    if (!cJSON_IsObject(json_get(block, "input")))
        return field_fail(r, "input", "expected an object");
    if (!calls)
        calls = add(c, message, "tool_calls", cJSON_CreateArray());
    cJSON *call = add(c, calls, NULL, cJSON_CreateObject());
    add(c, call, "id", cJSON_CreateString(id->valuestring));
    add(c, call, "type", cJSON_CreateString("function"));
    cJSON *function = add(c, call, "function", cJSON_CreateObject());
    add(c, function, "name", cJSON_CreateString(name->valuestring));
    move(c, block, "input", function, "arguments");
    return true;
}

static bool add_thinking(struct conversion *c, const struct field_reader *r, const cJSON *block,
                         cJSON *message)
{
    const cJSON *text = json_get(block, "thinking"), *had = json_get(message, "reasoning_content");
    if (!cJSON_IsString(text))
        return field_fail(r, "thinking", "expected a string");
    if (had)
        return field_fail(r, "type", "a message may hold one thinking block");
    add(c, message, "reasoning_content", cJSON_CreateString(text->valuestring));
    return true;
}

/* Results of tools are messages of their own, so a user's turn may become several. */
static bool add_user(struct conversion *c, const struct field_reader *r, const cJSON *block,
                     cJSON **message)
{
    const char *type = type_of(block);
    if (!strcmp(type, "tool_result")) {
        *message = NULL;
        return add_result(c, r, block);
    }
    if (strcmp(type, "text") != 0)
        return refuse_block(r, block, "text and tool_result");
    if (!*message)
        *message = new_message(c, "user");
    return add_text(c, r, block, *message);
}

static bool add_assistant(struct conversion *c, const struct field_reader *r, cJSON *block,
                          cJSON **message)
{
    const char *type = type_of(block);
    if (!*message)
        *message = new_message(c, "assistant");
    if (!strcmp(type, "text"))
        return add_text(c, r, block, *message);
    if (!strcmp(type, "tool_use"))
        return add_use(c, r, block, *message);
    if (!strcmp(type, "thinking"))
        return add_thinking(c, r, block, *message);
    return refuse_block(r, block, "text, thinking and tool_use");
}

static bool add_turn(struct conversion *c, cJSON *m, int i)
{
    char prefix[64], path[72];
    snprintf(prefix, sizeof prefix, "messages[%d].", i);
    struct field_reader r = {m, prefix, c->ae};
    const char *role = "";
    cJSON *content = (cJSON *)(uintptr_t)field_get(&r, "content"), *message = NULL;
    int k = 0;
    if (!field_text(&r, "role", &role))
        return false;
    bool user = !strcmp(role, "user");
    if (!user && strcmp(role, "assistant") != 0)
        return field_fail(&r, "role", "expected \"user\" or \"assistant\"");
    if (cJSON_IsString(content)) {
        add(c, new_message(c, role), "content", cJSON_CreateString(content->valuestring));
        return true;
    }
    if (!cJSON_IsArray(content) || !content->child)
        return field_fail(&r, "content", "expected a string or an array of blocks");
    for (cJSON *b = content->child, *next; b; b = next, k++) {
        next = b->next;
        snprintf(path, sizeof path, "messages[%d].content[%d].", i, k);
        struct field_reader block = {b, path, c->ae};
        if (!(user ? add_user(c, &block, b, &message) : add_assistant(c, &block, b, &message)))
            return false;
    }
    return true;
}

static bool add_messages(struct conversion *c)
{
    struct field_reader r = {c->from, "", c->ae};
    cJSON *system = (cJSON *)(uintptr_t)field_get(&r, "system");
    const cJSON *messages = field_get(&r, "messages");
    int i = 0;
    if (!messages)
        return field_fail(&r, "messages", "this field is required");
    if (!cJSON_IsArray(messages) || !messages->child)
        return field_fail(&r, "messages", "expected an array with at least one message");
    c->messages = add(c, c->to, "messages", cJSON_CreateArray());
    if (system && !add_plain(c, system, "system", new_message(c, "system")))
        return false;
    for (cJSON *m = messages->child, *next; m; m = next, i++) {
        next = m->next;
        if (!add_turn(c, m, i))
            return false;
        if (!next && !strcmp(json_get(m, "role")->valuestring, "assistant"))
            add(c, c->to, "continue_final_message", cJSON_CreateTrue());
    }
    return true;
}

static bool add_tools(struct conversion *c)
{
    struct field_reader r = {c->from, "", c->ae};
    const cJSON *tools = field_get(&r, "tools");
    char prefix[32];
    int i = 0;
    if (!tools)
        return true;
    if (!cJSON_IsArray(tools))
        return field_fail(&r, "tools", "expected an array");
    cJSON *list = add(c, c->to, "tools", cJSON_CreateArray());
    for (cJSON *t = tools->child; t; t = t->next, i++) {
        snprintf(prefix, sizeof prefix, "tools[%d].", i);
        struct field_reader tool = {t, prefix, c->ae};
        const char *type = "custom", *name = NULL, *description = NULL;
        if (!field_text(&tool, "type", &type) || !field_text(&tool, "name", &name) ||
            !field_text(&tool, "description", &description))
            return false;
        if (strcmp(type, "custom") != 0)
            return field_fail(&tool, "type", "\"%.40s\" is not supported, only \"custom\"", type);
        if (!name || !*name)
            return field_fail(&tool, "name", "this field is required");
        if (!cJSON_IsObject(field_get(&tool, "input_schema")))
            return field_fail(&tool, "input_schema", "expected an object");
        cJSON *to = add(c, list, NULL, cJSON_CreateObject());
        add(c, to, "type", cJSON_CreateString("function"));
        cJSON *function = add(c, to, "function", cJSON_CreateObject());
        move(c, t, "name", function, "name");
        move(c, t, "description", function, "description");
        move(c, t, "input_schema", function, "parameters");
    }
    return true;
}

static bool add_choice(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    const cJSON *choice = field_get(&top, "tool_choice");
    struct field_reader r = {choice, "tool_choice.", c->ae};
    const char *type = "", *name = NULL;
    bool single = false;
    if (!choice)
        return true;
    if (!cJSON_IsObject(choice))
        return field_fail(&top, "tool_choice", "expected an object with a type");
    if (!field_text(&r, "type", &type) || !field_text(&r, "name", &name) ||
        !field_bool(&r, "disable_parallel_tool_use", &single))
        return false;
    if (single)
        add(c, c->to, "parallel_tool_calls", cJSON_CreateFalse());
    if (!strcmp(type, "tool")) {
        if (!name)
            return field_fail(&r, "name", "this field is required");
        cJSON *to = add(c, c->to, "tool_choice", cJSON_CreateObject());
        add(c, to, "type", cJSON_CreateString("function"));
        add(c, add(c, to, "function", cJSON_CreateObject()), "name", cJSON_CreateString(name));
        return true;
    }
    bool any = !strcmp(type, "any");
    if (!any && strcmp(type, "auto") != 0 && strcmp(type, "none") != 0)
        return field_fail(&r, "type", "expected \"auto\", \"any\", \"tool\" or \"none\"");
    add(c, c->to, "tool_choice", cJSON_CreateString(any ? "required" : type));
    return true;
}

static bool add_thinking_mode(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    const cJSON *thinking = field_get(&top, "thinking");
    struct field_reader r = {thinking, "thinking.", c->ae};
    const char *type = "disabled";
    if (thinking && !cJSON_IsObject(thinking))
        return field_fail(&top, "thinking", "expected an object with a type");
    if (!field_text(&r, "type", &type))
        return false;
    bool on = !strcmp(type, "enabled") || !strcmp(type, "adaptive");
    if (!on && strcmp(type, "disabled") != 0)
        return field_fail(&r, "type", "expected \"enabled\", \"adaptive\" or \"disabled\"");
    if (field_get(&r,
                  "budget_tokens")) /* a bound taken in silence would promise what is not kept */
        return field_fail(&r, "budget_tokens", "not supported by this server; leave it out");
    add(c, add(c, c->to, "thinking", cJSON_CreateObject()), "type",
        cJSON_CreateString(on ? "enabled" : "disabled"));
    return true;
}

static bool add_numbers(struct conversion *c, bool counting)
{
    static const char *const same[] = {"model", "max_tokens", "stream",   "top_p",     "top_k",
                                       "seed",  "sparse",     "priority", "cache_salt"};
    static const char *const unkept[] = {"output_format", "output_config"};
    struct field_reader r = {c->from, "", c->ae};
    const cJSON *stop = field_get(&r, "stop_sequences");
    double temperature = 1;
    for (size_t i = 0; i < sizeof unkept / sizeof *unkept; i++)
        if (field_get(&r, unkept[i]))
            return field_fail(&r, unkept[i], "not supported by this server");
    if (!counting && !field_get(&r, "max_tokens"))
        return field_fail(&r, "max_tokens", "this field is required");
    if (!field_number(&r, "temperature", 0, 1, false, &temperature))
        return false;
    if (stop && !cJSON_IsArray(stop))
        return field_fail(&r, "stop_sequences", "expected an array of strings");
    move(c, c->from, "temperature", c->to, "temperature");
    move(c, c->from, "stop_sequences", c->to, "stop");
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        move(c, c->from, same[i], c->to, same[i]);
    return true;
}

bool messages_to_chat(cJSON **root, bool counting, struct api_error *ae)
{
    struct conversion c = {.from = *root, .ae = ae};
    c.to = cJSON_CreateObject();
    if (!c.to)
        return no_memory(ae);
    bool ok = add_messages(&c) && add_tools(&c) && add_choice(&c) && add_thinking_mode(&c) &&
              add_numbers(&c, counting) && (!c.failed || no_memory(ae));
    if (!ok) {
        cJSON_Delete(c.to);
        return false;
    }
    cJSON_Delete(*root);
    *root = c.to;
    return true;
}
