/* prompt.c - messages and prompts to token ids; see params.h. */
#include "params.h"
#include "tools.h"

#include "base/json.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

bool prompt_encode(struct arena *a, const struct tokenizer *tok, const struct text_part *part,
                   size_t n_parts, bool add_bos, struct params_prompt *out, struct api_error *ae)
{
    struct token_vec v = {0};
    struct err e = {0};
    if ((add_bos && token_vec_push(&v, tokenizer_bos(tok), &e)) ||
        tokenizer_encode(tok, part, n_parts, &v, &e)) {
        token_vec_free(&v);
        api_fail_err(ae, &e);
        return false;
    }
    uint32_t *id = arena_alloc(a, v.n * sizeof *id);
    if (!id || v.n > UINT32_MAX) {
        token_vec_free(&v);
        return no_memory(ae);
    }
    if (v.n)
        memcpy(id, v.id, v.n * sizeof *id);
    out->id = id;
    out->n = (uint32_t)v.n;
    token_vec_free(&v);
    return true;
}

/* Text beyond what any tokens of the context could spell: making tokens of it would take seconds of
 * a processor, and for one endless word 40 bytes of memory for each of its own. */
static bool may_fit(const struct params *p, const struct text_part *part, size_t n_parts,
                    const struct param_env *env, struct api_error *ae)
{
    uint64_t bytes = 0, longest = tokenizer_longest(env->tok);
    for (size_t i = 0; i < n_parts; i++)
        bytes += part[i].bytes;
    uint64_t least = (bytes + longest - 1) / longest;
    return !p->bounded || least <= env->max_context || params_fits(p, least, true, env, ae);
}

/* "messages[2].role: must be ..." names its own field. */
static void fail_render(struct api_error *ae, const struct err *e)
{
    char param[96];
    size_t n = 0;
    while (n < sizeof param - 1 &&
           (isalnum((unsigned char)e->msg[n]) || strchr("_[].", e->msg[n])) && e->msg[n])
        n++;
    bool named = e->msg[n] == ':' && n;
    snprintf(param, sizeof param, "%.*s", named ? (int)n : 8, named ? e->msg : "messages");
    if (e->code == ERR_INVALID)
        api_fail(ae, 400, param, "invalid_value", "%s", e->msg);
    else
        api_fail_err(ae, e);
}

static bool read_thinking(const cJSON *root, struct chat_options *opt, struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    const cJSON *thinking = field_get(&r, "thinking"),
                *kwargs = field_get(&r, "chat_template_kwargs");
    bool on = false;
    if (kwargs) {
        struct field_reader k = {kwargs, "chat_template_kwargs.", ae};
        if (!cJSON_IsObject(kwargs))
            return field_fail(&r, "chat_template_kwargs", "expected an object");
        for (int i = 0; i < 2; i++) {
            const char *name = i ? "enable_thinking" : "thinking";
            if (!field_bool(&k, name, &on))
                return false;
            if (field_get(&k, name))
                opt->thinking = on ? TRI_TRUE : TRI_FALSE;
        }
        if (!field_bool(&k, "clear_thinking", &on))
            return false;
        if (field_get(&k, "clear_thinking"))
            opt->clear_thinking = on ? TRI_TRUE : TRI_FALSE;
    }
    if (cJSON_IsBool(thinking)) {
        opt->thinking = cJSON_IsTrue(thinking) ? TRI_TRUE : TRI_FALSE;
    } else if (thinking) {
        const char *type = NULL;
        struct field_reader t = {thinking, "thinking.", ae};
        if (!cJSON_IsObject(thinking))
            return field_fail(&r, "thinking", "expected an object with a type");
        if (!field_text(&t, "type", &type))
            return false;
        if (!type || (strcmp(type, "enabled") != 0 && strcmp(type, "disabled") != 0))
            return field_fail(&t, "type", "expected \"enabled\" or \"disabled\"");
        opt->thinking = !strcmp(type, "enabled") ? TRI_TRUE : TRI_FALSE;
    }
    if (!field_text(&r, "reasoning_effort", &opt->reasoning_effort))
        return false;
    if (opt->reasoning_effort && opt->thinking == TRI_UNSET)
        opt->thinking = strcmp(opt->reasoning_effort, "none") ? TRI_TRUE : TRI_FALSE;
    return true;
}

/* The rendered prompt, and the opening of a call where one is required. */
static bool encode_chat(struct params *p, const struct chat_prompt *rendered, const cJSON *messages,
                        const struct chat_options *opt, const struct param_env *env,
                        struct api_error *ae)
{
    struct text_part opening[TOOLS_MAX_PARTS];
    size_t n = 0;
    if (!tools_open_call(p, env->format, messages, opt, rendered->thinking_open, opening, &n, ae))
        return false;
    struct text_part *part = arena_alloc(&p->arena, (rendered->n_parts + n + 1) * sizeof *part);
    p->prompt = arena_zalloc(&p->arena, sizeof *p->prompt);
    if (!p->prompt || !part)
        return no_memory(ae);
    if (rendered->n_parts)
        memcpy(part, rendered->part, rendered->n_parts * sizeof *part);
    memcpy(part + rendered->n_parts, opening, n * sizeof *part);
    n += rendered->n_parts;
    if (!may_fit(p, part, n, env, ae))
        return false;
    p->n_prompts = 1;
    p->thinking_open = rendered->thinking_open;
    return prompt_encode(&p->arena, env->tok, part, n, false, p->prompt, ae);
}

/* DeepSeek's way to ask for it: the last message, an assistant's, is how the answer begins. */
static bool ends_in_prefix(const cJSON *messages)
{
    const cJSON *last = messages->child->prev; /* cJSON: of the first it is the last */
    const char *role = cJSON_GetStringValue(json_get(last, "role"));
    return role && !strcmp(role, "assistant") && cJSON_IsTrue(json_get(last, "prefix"));
}

bool prompt_from_chat(struct params *p, cJSON *root, const struct param_env *env,
                      struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    struct chat_options opt = {
        .add_generation_prompt = true, .thinking = TRI_UNSET, .clear_thinking = TRI_UNSET};
    struct chat_prompt rendered = {0};
    struct err e = {0};
    const cJSON *messages = field_get(&r, "messages");
    if (!messages)
        return field_fail(&r, "messages", "this field is required");
    if (!cJSON_IsArray(messages) || !messages->child)
        return field_fail(&r, "messages", "expected an array with at least one message");
    if (!tools_read(p, root, ae) || !read_thinking(root, &opt, ae) ||
        !field_bool(&r, "add_generation_prompt", &opt.add_generation_prompt) ||
        !field_bool(&r, "continue_final_message", &opt.continue_final_message))
        return false;
    opt.response_format =
        json_get(json_get(json_get(root, "response_format"), "json_schema"), "schema");
    opt.open_thinking = p->call_required || p->guide.kind != GUIDE_NONE;
    opt.continue_final_message |= ends_in_prefix(messages);
    if (opt.continue_final_message && json_get(root, "add_generation_prompt") &&
        opt.add_generation_prompt)
        return field_fail(&r, "continue_final_message", "not together with add_generation_prompt");
    if (opt.continue_final_message)
        opt.add_generation_prompt = false;
    if (chat_format_render(env->format, messages, p->tools, &opt, &p->arena, &rendered, &e)) {
        fail_render(ae, &e);
        return false;
    }
    if (!p->tools && !tools_keep_out(p, env, ae))
        return false;
    if (tools_markup_is_special(env->tok))
        p->like.keep_special = true; /* the output parser needs to see it */
    return encode_chat(p, &rendered, messages, &opt, env, ae);
}

static bool read_ids(struct params *p, const cJSON *array, const struct param_env *env,
                     struct params_prompt *out, struct api_error *ae)
{
    struct field_reader r = {NULL, "", ae};
    uint32_t n_ids = tokenizer_n_ids(env->tok), n = 0;
    int size = cJSON_GetArraySize(array);
    uint32_t *id = arena_alloc(&p->arena, (size_t)size * sizeof *id);
    if (!id)
        return no_memory(ae);
    for (const cJSON *v = array->child; v; v = v->next) {
        double x = cJSON_IsNumber(v) ? v->valuedouble : -1;
        if (!(x >= 0) || x >= n_ids || x != floor(x))
            return field_fail(&r, "prompt", "token %u is not an id in 0..%u", n, n_ids - 1);
        id[n++] = (uint32_t)x;
    }
    out->id = id;
    out->n = n;
    if (p->echo) {
        struct err e = {0};
        char *text = NULL;
        if (tokenizer_decode(env->tok, id, n, false, &text, &out->text_bytes, &e)) {
            api_fail_err(ae, &e);
            return false;
        }
        out->text = arena_strndup(&p->arena, text, out->text_bytes);
        free(text);
        if (!out->text)
            return no_memory(ae);
    }
    return true;
}

static bool read_one(struct params *p, const cJSON *v, const struct param_env *env,
                     struct params_prompt *out, struct api_error *ae)
{
    struct field_reader r = {NULL, "", ae};
    if (cJSON_IsArray(v))
        return read_ids(p, v, env, out, ae);
    if (!cJSON_IsString(v))
        return field_fail(&r, "prompt", "expected strings, token ids or arrays of token ids");
    struct text_part part = {v->valuestring, strlen(v->valuestring), true};
    bool bos = tokenizer_add_bos(env->tok) && tokenizer_bos(env->tok) != UINT32_MAX;
    if (!may_fit(p, &part, 1, env, ae) ||
        !prompt_encode(&p->arena, env->tok, &part, 1, bos, out, ae))
        return false;
    out->text_bytes = part.bytes;
    out->text = arena_strndup(&p->arena, part.text, part.bytes);
    return out->text || no_memory(ae);
}

bool prompt_from_completion(struct params *p, const cJSON *root, const struct param_env *env,
                            struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    const cJSON *v = field_get(&r, "prompt");
    if (!v)
        return field_fail(&r, "prompt", "this field is required");
    /* An array of numbers is one prompt; any other array holds several. */
    const cJSON *first = cJSON_IsArray(v) && !cJSON_IsNumber(v->child) ? v->child : v;
    bool several = first != v;
    int n = several ? cJSON_GetArraySize(v) : 1;
    if (n < 1 || !first || (cJSON_IsArray(first) && !first->child))
        return field_fail(&r, "prompt", "it is empty");
    if (n > PARAMS_MAX_PROMPTS)
        return field_fail(&r, "prompt", "%d prompts, at most %d go in one request", n,
                          PARAMS_MAX_PROMPTS);
    p->prompt = arena_zalloc(&p->arena, (size_t)n * sizeof *p->prompt);
    if (!p->prompt)
        return no_memory(ae);
    for (const cJSON *one = first; one; one = several ? one->next : NULL)
        if (!read_one(p, one, env, &p->prompt[p->n_prompts++], ae))
            return false;
    return true;
}
