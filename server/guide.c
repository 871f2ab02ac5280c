/* guide.c - see guide.h. */
#include "guide.h"

#include "base/json.h"
#include "grammar/cache.h"
#include "grammar/ebnf.h"
#include "grammar/regex.h"
#include "grammar/schema.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHOICES = 10000, CACHE_ENTRIES = 512 };
static const size_t cache_bytes = (size_t)256 << 20;

struct guides {
    pthread_mutex_t lock;
    struct guide_vocab *vocab; /* made when it is first needed */
    struct grammar_cache *cache;
};

enum err_code guides_open(struct guides **out, struct err *e)
{
    struct guides *gs = calloc(1, sizeof *gs);
    if (!gs)
        return err_set(e, ERR_NOMEM, "no memory for grammars");
    if (grammar_cache_open(&gs->cache, CACHE_ENTRIES, cache_bytes, e)) {
        free(gs);
        return e->code;
    }
    pthread_mutex_init(&gs->lock, NULL);
    *out = gs;
    return ERR_OK;
}

void guides_close(struct guides *gs)
{
    if (!gs)
        return;
    grammar_cache_close(gs->cache);
    guide_vocab_close(gs->vocab);
    pthread_mutex_destroy(&gs->lock);
    free(gs);
}

struct grammar_cache_counts guides_counts(struct guides *gs)
{
    return grammar_cache_get_counts(gs->cache);
}

static enum err_code get_vocab(const struct param_env *env, const struct guide_vocab **out,
                               struct err *e)
{
    struct guides *gs = env->guides;
    e->code = ERR_OK;
    pthread_mutex_lock(&gs->lock);
    if (gs->vocab || !guide_vocab_open(&gs->vocab, env->tok, env->model->vocab_size, e))
        *out = gs->vocab;
    pthread_mutex_unlock(&gs->lock);
    return e->code;
}

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

/* --- fields -------------------------------------------------------------------------------------
 */

/* One of the fields that ask for a form; a second one is an error. */
static bool set(struct params *p, const struct field_reader *r, const char *key,
                enum guide_kind kind, const cJSON *value)
{
    struct guide_spec *s = &p->guide;
    size_t n = strlen(r->prefix) + strlen(key);
    if (s->kind != GUIDE_NONE)
        return field_fail(r, key, "not together with %s", s->param);
    char *param = arena_alloc(&p->arena, n + 1);
    if (!param)
        return no_memory(r->ae);
    memcpy(param, r->prefix, strlen(r->prefix));
    memcpy(param + strlen(r->prefix), key, strlen(key) + 1);
    s->param = param;
    s->kind = kind;
    s->value = value;
    return true;
}

static bool set_text(struct params *p, const struct field_reader *r, const char *key,
                     enum guide_kind kind)
{
    const char *text = NULL;
    if (!field_get(r, key))
        return true;
    if (!field_text(r, key, &text) || !set(p, r, key, kind, field_get(r, key)))
        return false;
    return *text || field_fail(r, key, "it is empty");
}

static bool set_choice(struct params *p, const struct field_reader *r, const char *key)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    int n = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    if (n < 1 || n > MAX_CHOICES)
        return field_fail(r, key, "expected an array of 1 to %d strings", MAX_CHOICES);
    for (const cJSON *one = v->child; one; one = one->next)
        if (!cJSON_IsString(one) || !one->valuestring[0])
            return field_fail(r, key, "expected strings that are not empty");
    return set(p, r, key, GUIDE_CHOICE, v);
}

/* A schema, or its text. */
static bool set_schema(struct params *p, const struct field_reader *r, const char *key)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    if (cJSON_IsString(v) && p->guide.kind == GUIDE_NONE) {
        struct err e;
        size_t n = strlen(v->valuestring);
        if (json_parse_nul(&p->guide.tree, v->valuestring, n, JSON_MAX_DEPTH, &e) ||
            chat_json_keep_numbers(p->guide.tree, v->valuestring, n, &e)) {
            if (e.code == ERR_INVALID)
                return field_fail(r, key, "not JSON: %s", e.msg);
            return no_memory(r->ae);
        }
        v = p->guide.tree;
    }
    if (!cJSON_IsObject(v) && !cJSON_IsBool(v) && p->guide.kind == GUIDE_NONE)
        return field_fail(r, key, "expected a schema: an object, true or false");
    return set(p, r, key, GUIDE_SCHEMA, v);
}

static bool set_object(struct params *p, const struct field_reader *r, const char *key)
{
    bool on = false;
    return field_bool(r, key, &on) && (!on || set(p, r, key, GUIDE_OBJECT, NULL));
}

static bool read_format(struct params *p, const struct field_reader *r)
{
    const cJSON *format = field_get(r, "response_format");
    struct field_reader f = {format, "response_format.", r->ae};
    struct field_reader s = {NULL, "response_format.json_schema.", r->ae};
    const char *type = NULL;
    if (!format)
        return true;
    if (!cJSON_IsObject(format))
        return field_fail(r, "response_format", "expected an object");
    if (!field_text(&f, "type", &type))
        return false;
    if (type && !strcmp(type, "text"))
        return true;
    if (type && !strcmp(type, "json_object"))
        return set(p, r, "response_format", GUIDE_OBJECT, NULL);
    if (!type || strcmp(type, "json_schema") != 0)
        return field_fail(&f, "type", "expected \"text\", \"json_object\" or \"json_schema\"");
    s.root = field_get(&f, "json_schema");
    if (!cJSON_IsObject(s.root))
        return field_fail(&f, "json_schema", "expected an object with a schema");
    if (!field_get(&s, "schema"))
        return field_fail(&s, "schema", "this field is required");
    bool strict; /* schemas are always kept exactly */
    return field_bool(&s, "strict", &strict) && set_schema(p, &s, "schema");
}

static bool read_structured(struct params *p, const struct field_reader *r)
{
    const cJSON *v = field_get(r, "structured_outputs");
    struct field_reader s = {v, "structured_outputs.", r->ae};
    if (!v)
        return true;
    if (!cJSON_IsObject(v))
        return field_fail(r, "structured_outputs", "expected an object");
    if (field_get(&s, "structural_tag"))
        return field_fail(&s, "structural_tag", "not supported by this server");
    if (!set_schema(p, &s, "json") || !set_text(p, &s, "regex", GUIDE_REGEX) ||
        !set_choice(p, &s, "choice") || !set_text(p, &s, "grammar", GUIDE_EBNF) ||
        !set_object(p, &s, "json_object"))
        return false;
    return p->guide.kind != GUIDE_NONE ||
           field_fail(r, "structured_outputs",
                      "expected one of json, regex, choice, grammar and json_object");
}

/* --- tool calls ---------------------------------------------------------------------------------
 */

/* How a format writes calls: section, then call name after arguments end, another one, last. */
struct call_syntax {
    const char *format;
    const char *section, *trigger,
        *rest;                      /* what opens calls; the marker in it; what follows that */
    const char *call;               /* opens each; NULL: the first is opened by the section */
    const char *next, *between;     /* opens a further one; what may stand before that */
    const char *before;             /* the name: text, or markup */
    bool numbered;                  /* ":n" behind the name */
    const char *after, *end, *last; /* the name; the arguments; all calls */
    /* Where each argument has a tag of its own: before its name, behind that for a string that is
     * written as it stands and for JSON, and behind the value. NULL: the arguments are JSON. */
    const char *key, *string, *json, *value_end;
};
#define V3_CALLS "<｜tool▁calls▁begin｜>"
#define V3_CALL "<｜tool▁call▁begin｜>"
#define V3_END "<｜tool▁call▁end｜>"
#define V3_LAST "<｜tool▁calls▁end｜>"
#define DSML "｜DSML｜"
#define V3_SYNTAX                                                                                  \
    .section = V3_CALLS, .trigger = V3_CALLS, .rest = "", .call = V3_CALL, .next = V3_CALL,        \
    .between = "\n", .before = "function<｜tool▁sep｜>", .after = "\n```json\n",                   \
    .end = "\n```" V3_END, .last = V3_LAST
static const struct call_syntax syntaxes[] = {{.format = "deepseek-v3", V3_SYNTAX},
                                              {.format = "deepseek-r1", V3_SYNTAX},
                                              {.format = "deepseek-r1-0528", V3_SYNTAX},
                                              {.format = "deepseek-v3.1",
                                               .section = V3_CALLS,
                                               .trigger = V3_CALLS,
                                               .rest = "",
                                               .call = V3_CALL,
                                               .next = V3_CALL,
                                               .before = "",
                                               .after = "<｜tool▁sep｜>",
                                               .end = V3_END,
                                               .last = V3_LAST},
                                              {.format = "deepseek-v3.2-exp",
                                               .section = V3_CALLS,
                                               .trigger = V3_CALLS,
                                               .rest = "",
                                               .call = V3_CALL,
                                               .next = V3_CALL,
                                               .before = "",
                                               .after = "<｜tool▁sep｜>",
                                               .end = V3_END,
                                               .last = V3_LAST},
                                              {.format = "deepseek-v3.2",
                                               .section = "\n\n<" DSML "function_calls>\n",
                                               .trigger = DSML,
                                               .rest = "function_calls>\n",
                                               .call = "<" DSML "invoke name=\"",
                                               .next = "<" DSML "invoke name=\"",
                                               .before = "",
                                               .after = "\">\n",
                                               .end = "</" DSML "invoke>\n",
                                               .last = "</" DSML "function_calls>",
                                               .key = "<" DSML "parameter name=\"",
                                               .string = "\" string=\"true\">",
                                               .json = "\" string=\"false\">",
                                               .value_end = "</" DSML "parameter>\n"},
                                              {.format = "glm-4.6",
                                               .section = "\n<tool_call>",
                                               .trigger = "<tool_call>",
                                               .rest = "",
                                               .next = "<tool_call>",
                                               .between = "\n",
                                               .before = "",
                                               .after = "\n",
                                               .end = "</tool_call>",
                                               .last = "",
                                               .key = "<arg_key>",
                                               .string = "</arg_key>\n<arg_value>",
                                               .json = "</arg_key>\n<arg_value>",
                                               .value_end = "</arg_value>\n"},
                                              {.format = "glm-5",
                                               .section = "<tool_call>",
                                               .trigger = "<tool_call>",
                                               .rest = "",
                                               .next = "<tool_call>",
                                               .before = "",
                                               .after = "",
                                               .end = "</tool_call>",
                                               .last = "",
                                               .key = "<arg_key>",
                                               .string = "</arg_key><arg_value>",
                                               .json = "</arg_key><arg_value>",
                                               .value_end = "</arg_value>"},
                                              {.format = "glm-5.2",
                                               .section = "<tool_call>",
                                               .trigger = "<tool_call>",
                                               .rest = "",
                                               .next = "<tool_call>",
                                               .before = "",
                                               .after = "",
                                               .end = "</tool_call>",
                                               .last = "",
                                               .key = "<arg_key>",
                                               .string = "</arg_key><arg_value>",
                                               .json = "</arg_key><arg_value>",
                                               .value_end = "</arg_value>"},
                                              {.format = "kimi-k2",
                                               .section = "<|tool_calls_section_begin|>",
                                               .trigger = "<|tool_calls_section_begin|>",
                                               .rest = "",
                                               .call = "<|tool_call_begin|>",
                                               .next = "<|tool_call_begin|>",
                                               .before = "functions.",
                                               .numbered = true,
                                               .after = "<|tool_call_argument_begin|>",
                                               .end = "<|tool_call_end|>",
                                               .last = "<|tool_calls_section_end|>"}};

static const struct call_syntax *syntax_of(const struct param_env *env)
{
    for (size_t i = 0; i < sizeof syntaxes / sizeof *syntaxes; i++)
        if (!strcmp(syntaxes[i].format, chat_format_name(env->format)))
            return &syntaxes[i];
    return NULL;
}

static uint32_t marker_id(const struct param_env *env, const char *marker)
{
    uint32_t id = tokenizer_find(env->tok, marker, strlen(marker));
    return id != UINT32_MAX && tokenizer_is_added(env->tok, id) ? id : UINT32_MAX;
}

/* The whole request's form as a text: what the cache knows it by. */
static bool write_key(struct params *p, const struct param_env *env, struct api_error *ae)
{
    static const char *const names[] = {"none", "regex", "choice", "ebnf", "object", "schema"};
    struct guide_spec *s = &p->guide;
    struct chat_buf b = {.arena = &p->arena};
    chat_buf_str(&b, names[s->kind]);
    chat_buf_str(&b, " ");
    if (s->value)
        chat_json_dump(&b, s->value);
    if (s->calls) {
        chat_buf_str(&b, " calls ");
        chat_buf_str(&b, chat_format_name(env->format));
        chat_buf_str(&b, p->one_call ? " one " : " ");
        chat_buf_str(&b, p->call_late ? " late " : " ");
        chat_buf_str(&b, p->call_late && p->call_name ? p->call_name : "");
        chat_buf_str(&b, p->opening ? p->opening : "");
        chat_json_dump(&b, p->tools);
    }
    if (b.failed)
        return no_memory(ae);
    s->key = b.s;
    s->key_bytes = b.n;
    return true;
}

/* A call that is required but not begun in the prompt needs a grammar. */
static bool check_late_call(const struct params *p, const struct field_reader *r,
                            const struct param_env *env)
{
    if (!p->call_late ||
        (p->guide.calls && (!p->thinking_open || marker_id(env, "</think>") != UINT32_MAX)))
        return true;
    if (p->thinking_open)
        return field_fail(r, "tool_choice",
                          "a call can only be required of this model with thinking off "
                          "(\"thinking\": {\"type\": \"disabled\"})");
    return field_fail(r, "tool_choice",
                      "one certain tool cannot be required of this model: in its format nothing "
                      "ends a tool's name");
}

bool guide_read(struct params *p, const cJSON *root, const struct param_env *env,
                struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    return !env->guides ||
           (read_format(p, &r) && read_structured(p, &r) && set_schema(p, &r, "guided_json") &&
            set_text(p, &r, "guided_regex", GUIDE_REGEX) && set_choice(p, &r, "guided_choice") &&
            set_text(p, &r, "guided_grammar", GUIDE_EBNF) &&
            set_object(p, &r, "guided_json_object"));
}

bool guide_settle(struct params *p, const struct param_env *env, struct api_error *ae)
{
    struct field_reader r = {NULL, "", ae};
    struct guide_spec *s = &p->guide;
    if (!env->guides)
        return check_late_call(p, &r, env);
    const struct call_syntax *calls = p->tools ? syntax_of(env) : NULL;
    s->calls = calls && marker_id(env, calls->trigger) != UINT32_MAX;
    if (p->call_required)
        s->kind = GUIDE_NONE; /* the answer is a call */
    if (!check_late_call(p, &r, env))
        return false;
    if (s->kind != GUIDE_NONE && p->tools && !s->calls)
        return field_fail(&r, s->param,
                          "not together with tools for this model, whose calls cannot be told from "
                          "text (\"tool_choice\": \"none\")");
    if (s->kind != GUIDE_NONE && p->thinking_open && marker_id(env, "</think>") == UINT32_MAX)
        return field_fail(&r, s->param,
                          "not with thinking: in this vocabulary no token ends it "
                          "(\"thinking\": {\"type\": \"disabled\"})");
    if (s->kind == GUIDE_NONE && !s->calls)
        return true;
    if (s->value && s->value != s->tree) { /* the request's tree goes, what is needed stays */
        cJSON *copy = cJSON_Duplicate(s->value, true);
        if (!copy)
            return no_memory(ae);
        cJSON_Delete(s->tree);
        s->value = s->tree = copy;
    }
    return write_key(p, env, ae);
}

/* --- compiling ----------------------------------------------------------------------------------
 */

struct making {
    const struct params *p;
    const struct param_env *env;
    const struct guide_vocab *vocab;
    struct grammar_builder *b;
    gb_node any_object, any_value; /* GB_NEVER: not made yet */
};

#define JSON_RULES                                                                                 \
    "object ::= \"{\" (pair (\",\" \" \"? pair)*)? \"}\"\n"                                        \
    "pair ::= string \":\" \" \"? value\n"                                                         \
    "value ::= object | \"[\" (value (\",\" \" \"? value)*)? \"]\" | string | number | \"true\" "  \
    "| "                                                                                           \
    "\"false\" | \"null\"\n"                                                                       \
    "string ::= \"\\\"\" char* \"\\\"\"\n"                                                         \
    "char ::= [^\"\\\\\\x00-\\x1F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" code)\n"                     \
    "code ::= [0-9abcefABCEF] hex hex hex | [dD] [0-7] hex hex | "                                 \
    "[dD] [89abAB] hex hex \"\\\\u\" [dD] [c-fC-F] hex hex\n"                                      \
    "hex ::= [0-9a-fA-F]\n"                                                                        \
    "number ::= \"-\"? (\"0\" | [1-9] [0-9]{0,17}) (\".\" [0-9]{1,17})? ([eE] [+-]? "              \
    "[0-9]{1,3})?\n"

static enum err_code make_object(struct making *m, gb_node *out, struct err *e)
{
    static const char text[] = "root ::= object\n" JSON_RULES;
    e->code = ERR_OK;
    if (m->any_object == GB_NEVER && grammar_ebnf(&m->any_object, m->b, text, sizeof text - 1, e))
        return e->code;
    *out = m->any_object;
    return ERR_OK;
}

static enum err_code make_value(struct making *m, gb_node *out, struct err *e)
{
    static const char text[] = "root ::= value\n" JSON_RULES;
    e->code = ERR_OK;
    if (m->any_value == GB_NEVER && grammar_ebnf(&m->any_value, m->b, text, sizeof text - 1, e))
        return e->code;
    *out = m->any_value;
    return ERR_OK;
}

static enum err_code make_choice(struct making *m, const cJSON *array, gb_node *out, struct err *e)
{
    size_t n = (size_t)cJSON_GetArraySize(array), i = 0;
    const char **text = calloc(n, sizeof *text);
    size_t *bytes = calloc(n, sizeof *bytes);
    if (text && bytes) {
        for (const cJSON *v = array->child; v; v = v->next, i++) {
            text[i] = v->valuestring;
            bytes[i] = strlen(text[i]);
        }
        *out = grammar_choice(m->b, text, bytes, n);
        (void)gb_error(m->b, e);
    } else {
        err_set(e, ERR_NOMEM, "no memory for %zu choices", n);
    }
    free(text);
    free(bytes);
    return e->code;
}

/* With the u flag, for \p{...} and \u{...}; what that refuses, as a needless escape, without. */
static enum err_code make_regex(struct making *m, const char *text, gb_node *out, struct err *e)
{
    struct err plain = {0};
    size_t n = strlen(text);
    if (grammar_regex(out, m->b, text, n, REGEX_UNICODE, e) == ERR_INVALID &&
        grammar_regex(out, m->b, text, n, 0, &plain) == ERR_OK)
        e->code = ERR_OK;
    return e->code;
}

static enum err_code make_content(struct making *m, gb_node *out, struct err *e)
{
    const struct guide_spec *s = &m->p->guide;
    const char *text = s->value && cJSON_IsString(s->value) ? s->value->valuestring : "";
    *out = GB_NEVER;
    e->code = ERR_OK;
    switch (s->kind) {
    case GUIDE_NONE:
        break;
    case GUIDE_REGEX:
        return make_regex(m, text, out, e);
    case GUIDE_CHOICE:
        return make_choice(m, s->value, out, e);
    case GUIDE_EBNF:
        return grammar_ebnf(out, m->b, text, strlen(text), e);
    case GUIDE_OBJECT:
        return make_object(m, out, e);
    case GUIDE_SCHEMA:
        return grammar_schema(out, m->b, s->value, e);
    }
    return ERR_OK;
}

static enum err_code add_markup(struct making *m, gb_node *list, size_t *n, const char *markup,
                                struct err *e)
{
    return guide_vocab_markup(&list[(*n)++], m->b, m->vocab, markup, e);
}

static const cJSON *function_of(const cJSON *tool)
{
    return json_get(tool, "function");
}

/* --- arguments with tags: one after another, each by its type -----------------------------------
 */

/* A string as it stands: any text that does not spell a tag's end. */
static enum err_code make_raw(struct making *m, const cJSON *schema, const struct call_syntax *s,
                              gb_node *out, struct err *e)
{
    static const char no_dsml[] = "(?![^]*" DSML ")[^]*", no_glm[] = "(?![^]*</arg_value>)[^]*";
    const cJSON *list = json_get(schema, "enum");
    const char *text = strstr(s->key, DSML) ? no_dsml : no_glm;
    bool strings = cJSON_IsArray(list) && list->child;
    for (const cJSON *v = strings ? list->child : NULL; v; v = v->next)
        strings &= cJSON_IsString(v);
    if (strings)
        return make_choice(m, list, out, e);
    return grammar_regex(out, m->b, text, strlen(text), 0, e);
}

enum { AS_STRING = 1, AS_JSON = 2 };

/* How a value of this schema may be written. Where the tag does not say it, the type has to. */
static int ways_of(const cJSON *schema, const struct call_syntax *s)
{
    static const char *const others[] = {"number", "integer", "boolean", "null", "object", "array"};
    const char *type = cJSON_GetStringValue(json_get(schema, "type"));
    if (type && !strcmp(type, "string"))
        return AS_STRING;
    for (size_t i = 0; type && i < sizeof others / sizeof *others; i++)
        if (!strcmp(type, others[i]))
            return AS_JSON;
    return strcmp(s->string, s->json) ? AS_STRING | AS_JSON : AS_STRING;
}

/* key name string-or-json value end */
static enum err_code make_argument(struct making *m, const cJSON *schema,
                                   const struct call_syntax *s, bool string, gb_node *out,
                                   struct err *e)
{
    gb_node part[5];
    size_t n = 0;
    if (add_markup(m, part, &n, s->key, e))
        return e->code;
    part[n++] = gb_bytes(m->b, schema->string, strlen(schema->string));
    if (add_markup(m, part, &n, string ? s->string : s->json, e) ||
        (string ? make_raw(m, schema, s, &part[n], e) : make_value(m, &part[n], e)))
        return e->code;
    n++;
    if (add_markup(m, part, &n, s->value_end, e))
        return e->code;
    *out = gb_seq(m->b, part, n);
    return gb_error(m->b, e);
}

/* Any of the declared ones, in any order. */
static enum err_code make_tagged(struct making *m, const cJSON *parameters,
                                 const struct call_syntax *s, gb_node *out, struct err *e)
{
    const cJSON *properties = json_get(parameters, "properties");
    size_t max = cJSON_IsObject(properties) ? 2 * (size_t)cJSON_GetArraySize(properties) : 0, n = 0;
    gb_node *one = malloc((max + 1) * sizeof *one);
    if (!one)
        return err_set(e, ERR_NOMEM, "no memory for %zu parameters", max);
    e->code = ERR_OK;
    for (const cJSON *p = max ? properties->child : NULL; p && !e->code; p = p->next)
        for (int way = AS_STRING; way <= AS_JSON && !e->code; way++)
            if (ways_of(p, s) & way)
                (void)make_argument(m, p, s, way == AS_STRING, &one[n++], e);
    if (e->code == ERR_OK) /* else the last one is not there */
        *out = gb_repeat(m->b, gb_alt(m->b, one, n), 0, GB_UNBOUNDED);
    free(one);
    return e->code;
}

/* Of one argument in markup, for a strict tool. */
struct strict_argument {
    struct making *m;
    const struct call_syntax *s;
    struct err *e;
};

/* key name string-or-json value end */
static gb_node make_strict(void *arg, struct grammar_builder *b, const char *name, gb_node json,
                           gb_node raw)
{
    struct strict_argument *a = arg;
    bool told = strcmp(a->s->string, a->s->json) != 0;
    gb_node way[2], part[5];
    size_t n_ways = 0, n;
    for (int string = 0; string < 2; string++) {
        gb_node value = string ? raw : json;
        n = 0;
        if (value == GB_NEVER)
            continue;
        if (add_markup(a->m, part, &n, a->s->key, a->e))
            return GB_NEVER;
        part[n++] = gb_bytes(b, name, strlen(name));
        if (add_markup(a->m, part, &n, string ? a->s->string : a->s->json, a->e))
            return GB_NEVER;
        part[n++] = value;
        if (add_markup(a->m, part, &n, a->s->value_end, a->e))
            return GB_NEVER;
        way[n_ways++] = gb_seq(b, part, n);
    }
    if (!told && n_ways == 2 && a->e->code == ERR_OK) /* a reader could not tell "1" from 1 */
        err_set(
            a->e, ERR_INVALID,
            "'%.60s' may be a string or something else, which this model's markup does not tell",
            name);
    return gb_alt(b, way, n_ways);
}

static enum err_code make_strict_arguments(struct making *m, const cJSON *schema,
                                           const struct call_syntax *s, gb_node *out, struct err *e)
{
    struct err refused = {0};
    struct strict_argument arg = {m, s, &refused};
    struct schema_markup markup = {.arg = &arg, .member = make_strict};
    if (!s->key)
        return grammar_schema_object(out, m->b, schema, NULL, e);
    if (make_raw(m, NULL, s, &markup.text, e) ||
        grammar_schema_object(out, m->b, schema, &markup, e))
        return e->code;
    if (refused.code != ERR_OK)
        *e = refused;
    return e->code;
}

static enum err_code make_arguments(struct making *m, const cJSON *tool,
                                    const struct call_syntax *s, gb_node *out, struct err *e)
{
    const cJSON *f = function_of(tool), *schema = json_get(f, "parameters");
    if (cJSON_IsTrue(json_get(f, "strict")) && schema) {
        if (make_strict_arguments(m, schema, s, out, e) == ERR_OK)
            return ERR_OK;
        if (e->code == ERR_INVALID)
            (void)err_prefix(e, "%s", cJSON_GetStringValue(json_get(f, "name")));
        return e->code;
    }
    if (s->key)
        return make_tagged(m, schema, s, out, e);
    return make_object(m, out, e);
}

/* One tool's call: [before name after] arguments end. */
static enum err_code make_call(struct making *m, const struct call_syntax *s, const cJSON *tool,
                               bool named, gb_node *out, struct err *e)
{
    gb_node part[8];
    size_t n = 0;
    const char *name = cJSON_GetStringValue(json_get(function_of(tool), "name"));
    if (!name)
        name = "";
    if (!named) {
        if (*s->before && add_markup(m, part, &n, s->before, e))
            return e->code;
        part[n++] = gb_bytes(m->b, name, strlen(name));
        if (s->numbered) {
            static const uint64_t digits[4] = {(uint64_t)0x3FF << '0'};
            part[n++] = gb_bytes(m->b, ":", 1);
            part[n++] = gb_repeat(m->b, gb_byte_set(m->b, digits), 1, 4);
        }
        if (*s->after && add_markup(m, part, &n, s->after, e))
            return e->code;
    }
    if (make_arguments(m, tool, s, &part[n++], e) || add_markup(m, part, &n, s->end, e))
        return e->code;
    *out = gb_seq(m->b, part, n);
    return gb_error(m->b, e);
}

/* A call of any tool, from its name on. */
static enum err_code make_any_call(struct making *m, const struct call_syntax *s, gb_node *out,
                                   struct err *e)
{
    size_t n = 0, max = (size_t)cJSON_GetArraySize(m->p->tools);
    gb_node *one = malloc((max + 1) * sizeof *one);
    if (!one)
        return err_set(e, ERR_NOMEM, "no memory for %zu tools", max);
    e->code = ERR_OK;
    for (const cJSON *t = m->p->tools->child; t && !e->code; t = t->next)
        (void)make_call(m, s, t, false, &one[n++], e);
    if (e->code == ERR_OK) /* else the last one is not there */
        *out = gb_alt(m->b, one, n);
    free(one);
    return e->code;
}

static const cJSON *called_tool(const struct params *p)
{
    const cJSON *t = p->tools->child;
    while (p->call_name && t && t->next) {
        const char *name = cJSON_GetStringValue(json_get(function_of(t), "name"));
        if (name && !strcmp(name, p->call_name))
            break;
        t = t->next;
    }
    return t;
}

/* Behind the opening that the prompt ends with; behind the marker that the model chose to write; or
 * from that opening on. */
enum calls_from { BEHIND_OPENING, BEHIND_TRIGGER, WHOLE };

static enum err_code make_first(struct making *m, const struct call_syntax *s, enum calls_from from,
                                gb_node any, gb_node *out, struct err *e)
{
    const struct params *p = m->p;
    size_t k = strlen(s->before), at = p->opening ? strlen(p->opening) : 0;
    *out = any;
    if (from == WHOLE && p->call_name)
        return make_call(m, s, called_tool(p), false, out, e);
    if (from != BEHIND_OPENING)
        return ERR_OK;
    if (p->call_name || !p->tools->child->next) { /* its name is in the opening */
        if (*s->after)
            return make_call(m, s, called_tool(p), true, out, e);
        return ERR_OK;
    }
    if (k && at >= k && !strcmp(p->opening + at - k, s->before)) { /* so is what stands before it */
        struct call_syntax rest = *s;
        rest.before = "";
        return make_any_call(m, &rest, out, e);
    }
    return ERR_OK;
}

static enum err_code make_calls(struct making *m, enum calls_from from, gb_node *out, struct err *e)
{
    const struct params *p = m->p;
    const struct call_syntax *s = syntax_of(m->env);
    const char *opens = from == WHOLE ? s->section : from == BEHIND_TRIGGER ? s->rest : "";
    gb_node call, more[3], all[5];
    size_t n_more = 0, n = 0;
    if (*opens && add_markup(m, all, &n, opens, e))
        return e->code;
    if (from != BEHIND_OPENING && s->call && add_markup(m, all, &n, s->call, e))
        return e->code;
    if (make_any_call(m, s, &call, e) || make_first(m, s, from, call, &all[n++], e))
        return e->code;
    if (!p->one_call) {
        if (s->between)
            more[n_more++] = gb_repeat(m->b, gb_bytes(m->b, s->between, strlen(s->between)), 0, 1);
        if (add_markup(m, more, &n_more, s->next, e))
            return e->code;
        more[n_more++] = call;
        all[n++] = gb_repeat(m->b, gb_seq(m->b, more, n_more), 0, GB_UNBOUNDED);
    }
    if (*s->last && add_markup(m, all, &n, s->last, e))
        return e->code;
    *out = gb_seq(m->b, all, n);
    return gb_error(m->b, e);
}

static enum err_code make_root(struct making *m, gb_node *out, struct err *e)
{
    const struct guide_spec *s = &m->p->guide;
    gb_node content = GB_NEVER, calls = GB_NEVER;
    if (s->kind == GUIDE_NONE)
        return make_calls(m,
                          m->p->call_late       ? WHOLE
                          : m->p->call_required ? BEHIND_OPENING
                                                : BEHIND_TRIGGER,
                          out, e);
    if ((s->calls && make_calls(m, WHOLE, &calls, e)) || make_content(m, &content, e))
        return e->code;
    *out = gb_alt(m->b, (gb_node[]){content, calls}, 2);
    return gb_error(m->b, e);
}

static enum err_code make_grammar(void *arg, struct grammar **out, struct err *e)
{
    struct making *m = arg;
    gb_node root = GB_NEVER;
    if (gb_open(&m->b, e))
        return e->code;
    enum err_code code = make_root(m, &root, e);
    if (code == ERR_OK)
        code = grammar_compile(out, m->vocab->vocab, m->b, root, e);
    gb_close(m->b);
    if (code == ERR_INVALID && m->p->guide.kind == GUIDE_SCHEMA)
        grammar_schema_explain(m->p->guide.value, e);
    return code;
}

bool guide_is_new(const struct params *p, const struct param_env *env)
{
    const struct guide_spec *s = &p->guide;
    return s->key && !grammar_cache_has(env->guides->cache, s->key, s->key_bytes);
}

bool guide_make(struct params *p, const struct param_env *env, struct api_error *ae)
{
    const struct guide_spec *s = &p->guide;
    struct making m = {.p = p, .env = env};
    struct gen_request *like = &p->like;
    struct err e = {0};
    if (!s->key)
        return true;
    if (!get_vocab(env, &m.vocab, &e) &&
        !grammar_cache_get(env->guides->cache, &like->grammar, s->key, s->key_bytes, make_grammar,
                           &m, &e)) {
        like->guide_vocab = m.vocab;
        like->grammar_after_thinking = (s->kind != GUIDE_NONE || p->call_late) && p->thinking_open;
        like->grammar_after_id = UINT32_MAX;
        if (s->kind == GUIDE_NONE && !p->call_required)
            like->grammar_after_id = marker_id(env, syntax_of(env)->trigger);
        return true;
    }
    const char *param = s->kind == GUIDE_NONE ? "tools" : s->param;
    if (e.code == ERR_INVALID)
        return api_fail(ae, 400, param, "invalid_value", "%s: %s", param, e.msg);
    api_fail_err(ae, &e);
    return false;
}
