/* messages.c - see messages.h. */
#include "messages.h"

#include "base/json.h"
#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool refuse_block(const struct field_reader *r, const cJSON *block, const char *known)
{
    return field_fail(r, "type", "\"%.40s\" is not supported here, only %s", convert_type(block),
                      known);
}

/* A string, or text blocks, as the content of message. */
static bool add_plain(struct conversion *c, cJSON *value, const char *path, cJSON *message)
{
    struct field_reader r = {NULL, "", c->ae};
    char prefix[96];
    int i = 0;
    if (cJSON_IsString(value)) {
        convert_add(c, message, "content", cJSON_CreateString(value->valuestring));
        return true;
    }
    if (!cJSON_IsArray(value))
        return field_fail(&r, path, "expected a string or an array of text blocks");
    for (const cJSON *b = value->child; b; b = b->next, i++) {
        snprintf(prefix, sizeof prefix, "%.80s[%d].", path, i);
        r.prefix = prefix;
        if (strcmp(convert_type(b), "text") != 0)
            return refuse_block(&r, b, "text");
        if (!convert_text(c, &r, b, message))
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
    cJSON *m = convert_message(c, "tool");
    convert_add(c, m, "tool_call_id", cJSON_CreateString(id->valuestring));
    if (!content || cJSON_IsNull(content)) {
        convert_add(c, m, "content", cJSON_CreateString(""));
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
        calls = convert_add(c, message, "tool_calls", cJSON_CreateArray());
    cJSON *call = convert_add(c, calls, NULL, cJSON_CreateObject());
    convert_add(c, call, "id", cJSON_CreateString(id->valuestring));
    convert_add(c, call, "type", cJSON_CreateString("function"));
    cJSON *function = convert_add(c, call, "function", cJSON_CreateObject());
    convert_add(c, function, "name", cJSON_CreateString(name->valuestring));
    convert_move(c, block, "input", function, "arguments");
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
    convert_add(c, message, "reasoning_content", cJSON_CreateString(text->valuestring));
    return true;
}

/* Results of tools are messages of their own, so a user's turn may become several. */
static bool add_user(struct conversion *c, const struct field_reader *r, const cJSON *block,
                     cJSON **message)
{
    const char *type = convert_type(block);
    if (!strcmp(type, "tool_result")) {
        *message = NULL;
        return add_result(c, r, block);
    }
    if (strcmp(type, "text") != 0)
        return refuse_block(r, block, "text and tool_result");
    if (!*message)
        *message = convert_message(c, "user");
    return convert_text(c, r, block, *message);
}

static bool add_assistant(struct conversion *c, const struct field_reader *r, cJSON *block,
                          cJSON **message)
{
    const char *type = convert_type(block);
    if (!*message)
        *message = convert_message(c, "assistant");
    if (!strcmp(type, "text"))
        return convert_text(c, r, block, *message);
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
        convert_add(c, convert_message(c, role), "content",
                    cJSON_CreateString(content->valuestring));
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
    c->messages = convert_add(c, c->to, "messages", cJSON_CreateArray());
    if (system && !add_plain(c, system, "system", convert_message(c, "system")))
        return false;
    for (cJSON *m = messages->child, *next; m; m = next, i++) {
        next = m->next;
        if (!add_turn(c, m, i))
            return false;
        if (!next && !strcmp(json_get(m, "role")->valuestring, "assistant"))
            convert_add(c, c->to, "continue_final_message", cJSON_CreateTrue());
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
    cJSON *list = convert_add(c, c->to, "tools", cJSON_CreateArray());
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
        cJSON *to = convert_add(c, list, NULL, cJSON_CreateObject());
        convert_add(c, to, "type", cJSON_CreateString("function"));
        cJSON *function = convert_add(c, to, "function", cJSON_CreateObject());
        convert_move(c, t, "name", function, "name");
        convert_move(c, t, "description", function, "description");
        convert_move(c, t, "input_schema", function, "parameters");
        convert_move(c, t, "strict", function, "strict");
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
        convert_add(c, c->to, "parallel_tool_calls", cJSON_CreateFalse());
    if (!strcmp(type, "tool")) {
        if (!name)
            return field_fail(&r, "name", "this field is required");
        cJSON *to = convert_add(c, c->to, "tool_choice", cJSON_CreateObject());
        convert_add(c, to, "type", cJSON_CreateString("function"));
        convert_add(c, convert_add(c, to, "function", cJSON_CreateObject()), "name",
                    cJSON_CreateString(name));
        return true;
    }
    bool any = !strcmp(type, "any");
    if (!any && strcmp(type, "auto") != 0 && strcmp(type, "none") != 0)
        return field_fail(&r, "type", "expected \"auto\", \"any\", \"tool\" or \"none\"");
    convert_add(c, c->to, "tool_choice", cJSON_CreateString(any ? "required" : type));
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
    cJSON *to = convert_add(c, c->to, "thinking", cJSON_CreateObject());
    convert_add(c, to, "type", cJSON_CreateString(on ? "enabled" : "disabled"));
    if (on)
        convert_move(c, (cJSON *)(uintptr_t)thinking, "budget_tokens", to, "budget_tokens");
    return true;
}

/* {"type": "json_schema", "schema"}, as output_format or in output_config. */
static bool add_format(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    const cJSON *config = field_get(&top, "output_config");
    struct field_reader in = {config, "output_config.", c->ae};
    cJSON *format = (cJSON *)(uintptr_t)field_get(&in, "format");
    const char *prefix = format ? "output_config.format." : "output_format.";
    if (config && !cJSON_IsObject(config))
        return field_fail(&top, "output_config", "expected an object");
    if (!format)
        format = (cJSON *)(uintptr_t)field_get(&top, "output_format");
    struct field_reader r = {format, prefix, c->ae};
    if (!format)
        return true;
    if (strcmp(convert_type(format), "json_schema") != 0)
        return field_fail(&r, "type", "expected \"json_schema\"");
    cJSON *to = convert_add(c, c->to, "response_format", cJSON_CreateObject());
    convert_add(c, to, "type", cJSON_CreateString("json_schema"));
    cJSON *schema = convert_add(c, to, "json_schema", cJSON_CreateObject());
    convert_add(c, schema, "name", cJSON_CreateString("output"));
    convert_move(c, format, "schema", schema, "schema");
    return true;
}

static bool add_numbers(struct conversion *c)
{
    static const char *const same[] = {"model",      "max_tokens", "stream", "top_p",
                                       "top_k",      "seed",       "sparse", "priority",
                                       "cache_salt", "resumable"};
    struct field_reader r = {c->from, "", c->ae};
    const cJSON *stop = field_get(&r, "stop_sequences");
    if (stop && !cJSON_IsArray(stop))
        return field_fail(&r, "stop_sequences", "expected an array of strings");
    convert_move(c, c->from, "temperature", c->to, "temperature");
    convert_move(c, c->from, "stop_sequences", c->to, "stop");
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        convert_move(c, c->from, same[i], c->to, same[i]);
    return true;
}

bool messages_to_chat(cJSON **root, struct api_error *ae)
{
    struct conversion c;
    if (!convert_begin(&c, *root, ae))
        return false;
    bool ok = add_messages(&c) && add_tools(&c) && add_choice(&c) && add_thinking_mode(&c) &&
              add_format(&c) && add_numbers(&c);
    return convert_end(&c, root, ok);
}
