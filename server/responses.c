/* responses.c - see responses.h. */
#include "responses.h"

#include "base/json.h"
#include "convert.h"
#include "json_out.h"
#include "response_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool one_of(const char *s, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(s, list[i]))
            return true;
    return false;
}
#define ONE_OF(s, list) one_of(s, list, sizeof(list) / sizeof *(list))

/* --- items -------------------------------------------------------------------------------------
 */

static const char *const text_types[] = {"input_text", "output_text", "text"};

/* A string, or text parts, as the content of message. */
static bool add_content(struct conversion *c, const struct field_reader *item, const char *key,
                        cJSON *message)
{
    const cJSON *value = field_get(item, key);
    char prefix[96];
    int k = 0;
    if (!value)
        return field_fail(item, key, "this field is required");
    if (cJSON_IsString(value)) {
        convert_add(c, message, "content", cJSON_CreateString(value->valuestring));
        return true;
    }
    if (!cJSON_IsArray(value))
        return field_fail(item, key, "expected a string or an array of text parts");
    if (!value->child)
        convert_add(c, message, "content", cJSON_CreateString(""));
    for (const cJSON *part = value->child; part; part = part->next, k++) {
        snprintf(prefix, sizeof prefix, "%.60s%.16s[%d].", item->prefix, key, k);
        struct field_reader r = {part, prefix, c->ae};
        if (!ONE_OF(convert_type(part), text_types))
            return field_fail(&r, "type", "\"%.40s\" is not supported here, only text",
                              convert_type(part));
        if (!convert_text(c, &r, part, message))
            return false;
    }
    return true;
}

/* The assistant's turn that an item goes on with; a new one where it has any of the keys. */
static cJSON *assistant(struct conversion *c, cJSON **turn, bool has_calls_only)
{
    if (*turn && !has_calls_only && (json_get(*turn, "content") || json_get(*turn, "tool_calls")))
        *turn = NULL;
    if (!*turn)
        *turn = convert_message(c, "assistant");
    return *turn;
}

static bool add_message(struct conversion *c, const struct field_reader *r, cJSON **turn)
{
    static const char *const roles[] = {"user", "assistant", "system", "developer"};
    const char *role = "";
    if (!field_text(r, "role", &role))
        return false;
    if (!ONE_OF(role, roles))
        return field_fail(r, "role", "expected user, assistant, system or developer");
    if (*role == 'a')
        return add_content(c, r, "content", assistant(c, turn, false));
    *turn = NULL;
    return add_content(c, r, "content", convert_message(c, role));
}

static bool need_text(const struct field_reader *r, const char *key, const char **out)
{
    *out = NULL;
    return field_text(r, key, out) && (*out || field_fail(r, key, "this field is required"));
}

static bool add_call(struct conversion *c, const struct field_reader *r, cJSON **turn)
{
    const char *id, *name, *arguments;
    if (!need_text(r, "call_id", &id) || !need_text(r, "name", &name) ||
        !need_text(r, "arguments", &arguments))
        return false;
    cJSON *m = assistant(c, turn, true);
    cJSON *calls = (cJSON *)(uintptr_t)json_get(m, "tool_calls");
    if (!calls)
        calls = convert_add(c, m, "tool_calls", cJSON_CreateArray());
    cJSON *call = convert_add(c, calls, NULL, cJSON_CreateObject());
    convert_add(c, call, "id", cJSON_CreateString(id));
    convert_add(c, call, "type", cJSON_CreateString("function"));
    cJSON *function = convert_add(c, call, "function", cJSON_CreateObject());
    convert_add(c, function, "name", cJSON_CreateString(name));
    convert_add(c, function, "arguments", cJSON_CreateString(arguments));
    return true;
}

static bool add_call_output(struct conversion *c, const struct field_reader *r, cJSON **turn)
{
    const char *id;
    *turn = NULL;
    if (!need_text(r, "call_id", &id))
        return false;
    cJSON *m = convert_message(c, "tool");
    convert_add(c, m, "tool_call_id", cJSON_CreateString(id));
    return add_content(c, r, "output", m);
}

/* The texts of an array of parts, one after the other. */
static bool collect(const struct field_reader *r, const char *key, struct buf *to)
{
    const cJSON *list = field_get(r, key);
    if (list && !cJSON_IsArray(list))
        return field_fail(r, key, "expected an array");
    for (const cJSON *part = list ? list->child : NULL; part; part = part->next) {
        const cJSON *text = json_get(part, "text");
        if (!cJSON_IsString(text))
            return field_fail(r, key, "expected parts with a text");
        buf_str(to, text->valuestring);
    }
    return true;
}

static bool add_reasoning(struct conversion *c, const struct field_reader *r, cJSON **turn)
{
    struct buf text = {0};
    bool ok = collect(r, "content", &text) && (text.n || collect(r, "summary", &text));
    c->failed |= text.failed;
    if (ok && text.n) { /* without a text it is another server's secret: nothing to render */
        cJSON *m = assistant(c, turn, false);
        const cJSON *had = json_get(m, "reasoning_content");
        struct buf both = {0};
        buf_str(&both, had ? had->valuestring : "");
        buf_add(&both, text.s, text.n);
        c->failed |= both.failed;
        if (had)
            cJSON_Delete(cJSON_DetachItemViaPointer(m, (cJSON *)(uintptr_t)had));
        convert_add(c, m, "reasoning_content", cJSON_CreateString(both.s ? both.s : ""));
        buf_free(&both);
    }
    buf_free(&text);
    return ok;
}

static bool add_item(struct conversion *c, const cJSON *item, int i, cJSON **turn)
{
    char prefix[32];
    snprintf(prefix, sizeof prefix, "input[%d].", i);
    struct field_reader r = {item, prefix, c->ae};
    const char *type = "message";
    if (!cJSON_IsObject(item)) {
        snprintf(prefix, sizeof prefix, "input[%d]", i);
        return field_fail(&(struct field_reader){NULL, "", c->ae}, prefix, "expected an object");
    }
    if (!field_text(&r, "type", &type))
        return false;
    if (!strcmp(type, "message"))
        return add_message(c, &r, turn);
    if (!strcmp(type, "function_call"))
        return add_call(c, &r, turn);
    if (!strcmp(type, "function_call_output"))
        return add_call_output(c, &r, turn);
    if (!strcmp(type, "reasoning"))
        return add_reasoning(c, &r, turn);
    return field_fail(&r, "type",
                      "\"%.40s\" is not supported, only message, function_call, "
                      "function_call_output and reasoning",
                      type);
}

static bool add_previous(struct conversion *c, const struct param_env *env)
{
    struct field_reader r = {c->from, "", c->ae};
    const char *id = NULL;
    struct err e = {0};
    cJSON *list = NULL;
    size_t n = 0;
    if (!field_text(&r, "previous_response_id", &id))
        return false;
    if (!id)
        return true;
    char *text = env->responses
                     ? response_store_get(env->responses, id, env->owner, RESPONSE_TALK, &n)
                     : NULL;
    if (!text)
        return api_fail(c->ae, 400, "previous_response_id", "previous_response_not_found",
                        "The response \"%.64s\" is not there: it was not stored, or has made "
                        "room for others.",
                        id);
    bool ok = !json_parse(&list, text, n, JSON_MAX_DEPTH, &e);
    free(text);
    while (ok && list->child)
        convert_add(c, c->messages, NULL, cJSON_DetachItemViaPointer(list, list->child));
    cJSON_Delete(list);
    if (!ok)
        api_fail_err(c->ae, &e);
    return ok;
}

static bool add_input(struct conversion *c)
{
    struct field_reader r = {c->from, "", c->ae};
    const cJSON *input = field_get(&r, "input");
    cJSON *turn = NULL;
    int i = 0;
    if (!input)
        return field_fail(&r, "input", "this field is required");
    if (cJSON_IsString(input)) {
        convert_add(c, convert_message(c, "user"), "content",
                    cJSON_CreateString(input->valuestring));
        return true;
    }
    if (!cJSON_IsArray(input) || !input->child)
        return field_fail(&r, "input", "expected a string or an array of items");
    for (const cJSON *item = input->child; item; item = item->next)
        if (!add_item(c, item, i++, &turn))
            return false;
    return true;
}

/* What a later request will go on from; the instructions come behind it, they are not kept. */
static bool add_conversation(struct conversion *c, struct params *p, const struct param_env *env)
{
    struct field_reader r = {c->from, "", c->ae};
    const char *instructions = NULL;
    bool store = true;
    if (!field_bool(&r, "store", &store) || !field_text(&r, "instructions", &instructions))
        return false;
    p->responses.store = store && env->responses;
    c->messages = convert_add(c, c->to, "messages", cJSON_CreateArray());
    if (!add_previous(c, env) || !add_input(c))
        return false;
    if (p->responses.store) {
        char *text = cJSON_PrintUnformatted(c->messages);
        p->responses.talk = text ? arena_strndup(&p->arena, text, strlen(text)) : NULL;
        c->failed |= !p->responses.talk;
        cJSON_free(text);
    }
    if (instructions) {
        cJSON *m = cJSON_CreateObject();
        convert_add(c, m, "role", cJSON_CreateString("system"));
        convert_add(c, m, "content", cJSON_CreateString(instructions));
        if (!m || !cJSON_InsertItemInArray(c->messages, 0, m)) {
            cJSON_Delete(m);
            c->failed = true;
        }
    }
    return true;
}

/* --- tools -------------------------------------------------------------------------------------
 */

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
        static const char *const keys[] = {"name", "description", "parameters", "strict"};
        snprintf(prefix, sizeof prefix, "tools[%d].", i);
        struct field_reader tool = {t, prefix, c->ae};
        const char *name;
        if (strcmp(convert_type(t), "function") != 0)
            return field_fail(&tool, "type", "\"%.40s\" is not supported, only \"function\"",
                              convert_type(t));
        if (!need_text(&tool, "name", &name))
            return false;
        cJSON *to = convert_add(c, list, NULL, cJSON_CreateObject());
        convert_add(c, to, "type", cJSON_CreateString("function"));
        cJSON *function = convert_add(c, to, "function", cJSON_CreateObject());
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            convert_move(c, t, keys[k], function, keys[k]);
    }
    return true;
}

/* {"type": "function", "function": {"name"}} from {"type": "function", "name"} */
static bool add_named(struct conversion *c, const struct field_reader *r, cJSON *to)
{
    const char *name;
    if (strcmp(convert_type(r->root), "function") != 0)
        return field_fail(r, "type", "\"%.40s\" is not supported, only \"function\"",
                          convert_type(r->root));
    if (!need_text(r, "name", &name))
        return false;
    convert_add(c, to, "type", cJSON_CreateString("function"));
    convert_add(c, convert_add(c, to, "function", cJSON_CreateObject()), "name",
                cJSON_CreateString(name));
    return true;
}

static bool add_choice(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    cJSON *choice = (cJSON *)(uintptr_t)field_get(&top, "tool_choice");
    struct field_reader r = {choice, "tool_choice.", c->ae};
    if (!choice)
        return true;
    if (!cJSON_IsObject(choice)) { /* the chat reader knows the words */
        convert_move(c, c->from, "tool_choice", c->to, "tool_choice");
        return true;
    }
    cJSON *to = convert_add(c, c->to, "tool_choice", cJSON_CreateObject());
    if (strcmp(convert_type(choice), "allowed_tools") != 0)
        return add_named(c, &r, to);
    convert_add(c, to, "type", cJSON_CreateString("allowed_tools"));
    cJSON *allowed = convert_add(c, to, "allowed_tools", cJSON_CreateObject());
    const cJSON *tools = field_get(&r, "tools");
    if (!cJSON_IsArray(tools))
        return field_fail(&r, "tools", "expected an array");
    convert_move(c, choice, "mode", allowed, "mode");
    cJSON *list = convert_add(c, allowed, "tools", cJSON_CreateArray());
    int i = 0;
    for (const cJSON *t = tools->child; t; t = t->next) {
        char prefix[48];
        snprintf(prefix, sizeof prefix, "tool_choice.tools[%d].", i++);
        struct field_reader one = {t, prefix, c->ae};
        if (!add_named(c, &one, convert_add(c, list, NULL, cJSON_CreateObject())))
            return false;
    }
    return true;
}

/* --- the rest ----------------------------------------------------------------------------------
 */

static bool add_effort(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    const cJSON *reasoning = field_get(&top, "reasoning");
    struct field_reader r = {reasoning, "reasoning.", c->ae};
    const char *effort = NULL;
    if (!reasoning)
        return true;
    if (!field_text(&r, "effort", &effort))
        return false;
    if (!effort)
        return true;
    bool on = strcmp(effort, "none") != 0;
    if (on)
        convert_add(c, c->to, "reasoning_effort", cJSON_CreateString(effort));
    if (!field_get(&top, "thinking"))
        convert_add(c, convert_add(c, c->to, "thinking", cJSON_CreateObject()), "type",
                    cJSON_CreateString(on ? "enabled" : "disabled"));
    return true;
}

static bool add_format(struct conversion *c)
{
    struct field_reader top = {c->from, "", c->ae};
    const cJSON *text = field_get(&top, "text");
    struct field_reader r = {text, "text.", c->ae};
    cJSON *format = (cJSON *)(uintptr_t)field_get(&r, "format");
    if (!format)
        return true;
    if (!cJSON_IsObject(format))
        return field_fail(&r, "format", "expected an object");
    cJSON *to = convert_add(c, c->to, "response_format", cJSON_CreateObject());
    if (!strcmp(convert_type(format), "json_schema")) {
        static const char *const keys[] = {"name", "description", "schema", "strict"};
        cJSON *schema = convert_add(c, to, "json_schema", cJSON_CreateObject());
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            convert_move(c, format, keys[k], schema, keys[k]);
    }
    convert_move(c, format, "type", to, "type");
    return true;
}

static bool refuse_unkept(struct conversion *c)
{
    static const char *const keys[] = {"background", "conversation", "prompt"};
    struct field_reader r = {c->from, "", c->ae};
    const cJSON *include = field_get(&r, "include");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (field_get(&r, keys[i]) && !cJSON_IsFalse(field_get(&r, keys[i])))
            return field_fail(&r, keys[i], "not supported by this server");
    for (const cJSON *v = include ? include->child : NULL; v; v = v->next)
        if (!cJSON_IsString(v) || strcmp(v->valuestring, "reasoning.encrypted_content") != 0)
            return field_fail(&r, "include",
                              "only \"reasoning.encrypted_content\", and reasoning comes as text");
    return true;
}

static bool add_numbers(struct conversion *c)
{
    static const char *const same[] = {"model",
                                       "stream",
                                       "resumable",
                                       "temperature",
                                       "top_p",
                                       "top_k",
                                       "min_p",
                                       "seed",
                                       "stop",
                                       "sparse",
                                       "parallel_tool_calls",
                                       "min_tokens",
                                       "user",
                                       "priority",
                                       "thinking",
                                       "chat_template_kwargs",
                                       "ignore_eos",
                                       "cache_salt",
                                       "logit_bias",
                                       "presence_penalty",
                                       "frequency_penalty",
                                       "repetition_penalty",
                                       "thinking_token_budget"};
    convert_move(c, c->from, "max_output_tokens", c->to, "max_tokens");
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        convert_move(c, c->from, same[i], c->to, same[i]);
    return true;
}

/* The request's fields as the answer repeats them, ready to stand among its own. */
static bool echo(struct params *p, const cJSON *root, struct api_error *ae)
{
    static const char *const keys[][2] = {{"instructions", "null"},
                                          {"max_output_tokens", "null"},
                                          {"metadata", "{}"},
                                          {"parallel_tool_calls", "true"},
                                          {"previous_response_id", "null"},
                                          {"reasoning", "{\"effort\":null,\"summary\":null}"},
                                          {"text", "{\"format\":{\"type\":\"text\"}}"},
                                          {"tool_choice", "\"auto\""},
                                          {"tools", "[]"},
                                          {"truncation", "\"disabled\""},
                                          {"user", "null"}};
    struct buf b = {0};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *v = json_get(root, keys[i][0]);
        bool given = v && !cJSON_IsNull(v) &&
                     (*keys[i][0] != 't' || keys[i][0][1] != 'e' || json_get(v, "format"));
        char *text = given ? cJSON_PrintUnformatted(v) : NULL;
        b.failed |= given && !text;
        buf_fmt(&b, ",\"%s\":", keys[i][0]);
        buf_str(&b, text ? text : keys[i][1]);
        cJSON_free(text);
    }
    p->responses.echo = b.failed ? NULL : arena_strndup(&p->arena, b.s, b.n);
    buf_free(&b);
    struct err e = {.code = ERR_NOMEM};
    if (!p->responses.echo)
        api_fail_err(ae, &e);
    return p->responses.echo != NULL;
}

bool responses_to_chat(cJSON **root, struct params *p, const struct param_env *env,
                       struct api_error *ae)
{
    struct conversion c;
    if (!echo(p, *root, ae) || !convert_begin(&c, *root, ae))
        return false;
    bool ok = refuse_unkept(&c) && add_conversation(&c, p, env) && add_tools(&c) &&
              add_choice(&c) && add_effort(&c) && add_format(&c) && add_numbers(&c);
    return convert_end(&c, root, ok);
}

void responses_rename(struct api_error *ae)
{
    static const char *const names[][2] = {{"messages", "input"},
                                           {"max_tokens", "max_output_tokens"},
                                           {"response_format", "text.format"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(ae->param, names[i][0]))
            snprintf(ae->param, sizeof ae->param, "%s", names[i][1]);
}
