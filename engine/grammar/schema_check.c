/* schema_holds.c - whether a value that is at hand satisfies a schema: members of an enum, names of
 * properties, and what alone is null, true or false. */
#include "grammar/schema_impl.h"

#include "base/json.h"
#include "grammar/regex.h"

#include <string.h>

static const char *no_bytes(const void *arg, uint32_t id, size_t *n)
{
    (void)arg;
    (void)id;
    *n = 0;
    return "";
}

bool schema_no_tokens(struct schema_maker *m)
{
    return m->no_tokens || !grammar_vocab_open(&m->no_tokens, 0, no_bytes, NULL, m->e);
}

/* The pattern's own grammar, over plain text. */
static bool open_pattern(struct schema_maker *m, struct pattern *p)
{
    struct grammar_builder *b;
    struct err e = {0};
    gb_node x = GB_NEVER;
    if (!schema_no_tokens(m) || gb_open(&b, m->e))
        return false;
    enum err_code code = ERR_INVALID;
    for (unsigned flags = REGEX_UNICODE; code == ERR_INVALID; flags = 0) {
        code = p->whole ? grammar_regex(&x, b, p->text, p->bytes, flags, &e)
                        : grammar_regex_search(&x, b, p->text, p->bytes, flags, &e);
        if (!flags)
            break;
    }
    if (code == ERR_OK)
        code = grammar_compile(&p->grammar, m->no_tokens, b, x, &e);
    gb_close(b);
    if (code == ERR_INVALID && strstr(e.msg, "no text")) { /* it matches nothing */
        p->never = true;
        return true;
    }
    if (code != ERR_OK)
        *m->e = e;
    return code == ERR_OK;
}

bool schema_matches(struct schema_maker *m, uint32_t pattern, const char *text)
{
    struct pattern *p = &m->pattern[pattern];
    struct grammar_matcher *at;
    size_t taken;
    if (!p->grammar && !p->never && !open_pattern(m, p))
        return false;
    if (p->never || grammar_matcher_open(&at, p->grammar, m->e))
        return false;
    bool matches = true;
    for (size_t n; *text && matches; text += n) {
        bool nul = !strncmp(text, JSON_NUL, 2);
        n = nul ? 2 : 1 + strcspn(text + 1, JSON_NUL);
        matches = grammar_matcher_accept(at, nul ? "" : text, nul ? 1 : n, &taken);
    }
    matches = matches && grammar_matcher_may_end(at);
    if (grammar_matcher_failed(at))
        err_set(m->e, ERR_INVALID, "pattern '%.100s': it takes too long", p->text);
    grammar_matcher_close(at);
    return matches;
}

static uint32_t code_points(const char *s)
{
    uint32_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

static uint32_t n_children(const cJSON *v)
{
    return (uint32_t)cJSON_GetArraySize(v);
}

static bool within(const struct assertion *a, uint32_t n)
{
    return n >= a->least && n <= a->most;
}

static bool all_differ(struct schema_maker *m, const cJSON *array)
{
    for (const cJSON *x = array->child; x; x = x->next)
        for (const cJSON *y = x->next; y; y = y->next)
            if (json_equal(m, x, y))
                return false;
    return true;
}

static bool contains(struct schema_maker *m, const struct assertion *a, const cJSON *array)
{
    uint32_t n = 0;
    for (const cJSON *x = array->child; x; x = x->next)
        n += schema_holds(m, a->value, x);
    return within(a, n);
}

/* The members that additionalProperties is about. */
static bool is_additional(struct schema_maker *m, const struct assertion *a, const char *name)
{
    const uint32_t *list = m->list.at;
    for (uint32_t i = 0; i < a->n_list; i++)
        if (!strcmp(m->name[list[a->list + i]], name))
            return false;
    for (uint32_t i = 0; i < a->n_list2; i++)
        if (schema_matches(m, list[a->list2 + i], name))
            return false;
    return true;
}

static bool members_hold(struct schema_maker *m, const struct assertion *a, const cJSON *object)
{
    for (const cJSON *x = object->child; x; x = x->next) {
        bool holds = true;
        if (a->kind == A_MATCHING && schema_matches(m, a->pattern, x->string))
            holds = schema_holds(m, a->value, x);
        else if (a->kind == A_ADDITIONAL && is_additional(m, a, x->string))
            holds = schema_holds(m, a->value, x);
        else if (a->kind == A_NAMES)
            holds =
                schema_holds(m, a->value, &(cJSON){.type = cJSON_String, .valuestring = x->string});
        if (!holds)
            return false;
    }
    return true;
}

static bool object_holds(struct schema_maker *m, const struct assertion *a, const cJSON *value)
{
    const cJSON *x = NULL;
    if (a->kind == A_REQUIRED || a->kind == A_PROPERTY || a->kind == A_NEEDS ||
        a->kind == A_DEPENDS)
        x = json_get(value, m->name[a->name]);
    switch ((enum kind)a->kind) {
    case A_REQUIRED:
        return x;
    case A_PROPERTY:
        return !x || schema_holds(m, a->value, x);
    case A_NEEDS:
        for (uint32_t i = 0; x && i < a->n_list; i++)
            if (!json_get(value, m->name[m->list.at[a->list + i]]))
                return false;
        return true;
    case A_DEPENDS:
        return !x || schema_holds(m, a->value, value);
    case A_MEMBERS:
        return within(a, n_children(value));
    default:
        return members_hold(m, a, value);
    }
}

static bool array_holds(struct schema_maker *m, const struct assertion *a, const cJSON *value)
{
    const cJSON *x;
    uint32_t i = 0;
    switch ((enum kind)a->kind) {
    case A_COUNT:
        return within(a, n_children(value));
    case A_UNIQUE:
        return all_differ(m, value);
    case A_ITEM:
        x = cJSON_GetArrayItem(value, (int)a->least);
        return !x || schema_holds(m, a->value, x);
    case A_ITEMS:
        for (x = value->child; x; x = x->next)
            if (i++ >= a->least && !schema_holds(m, a->value, x))
                return false;
        return true;
    default:
        return contains(m, a, value);
    }
}

static bool number_holds(struct schema_maker *m, const struct assertion *a, const cJSON *value)
{
    struct decimal x;
    if (!decimal_read(m, &x, value))
        return false;
    int c = decimal_compare(&x, &a->bound);
    switch ((enum kind)a->kind) {
    case A_MIN:
        return a->exclusive ? c > 0 : c >= 0;
    case A_MAX:
        return a->exclusive ? c < 0 : c <= 0;
    default:
        return decimal_is_multiple(&x, &a->bound);
    }
}

static bool is_among(struct schema_maker *m, const struct assertion *a, const cJSON *value)
{
    if (strcmp(a->keyword, "enum") != 0)
        return json_equal(m, a->json, value);
    for (const cJSON *x = a->json->child; x; x = x->next)
        if (x == value) /* often it is one of them itself */
            return true;
    for (const cJSON *x = a->json->child; x; x = x->next)
        if (json_equal(m, x, value))
            return true;
    return false;
}

/* How many of a list of schemas hold. */
static uint32_t n_holding(struct schema_maker *m, const struct assertion *a, const cJSON *value)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->n_list; i++)
        n += schema_holds(m, m->list.at[a->list + i], value);
    return n;
}

bool schema_assertion_holds(struct schema_maker *m, uint32_t assertion, const cJSON *value)
{
    const struct assertion *a = &m->assertion[assertion];
    enum json_type type = json_type_of(value);
    const uint32_t *part = m->list.at + a->list;
    struct decimal x;
    if (a->type != J_ANY && a->type != (uint8_t)type)
        return true;
    switch ((enum kind)a->kind) {
    case A_TYPE:
        if (!(a->types & BIT(type)))
            return false;
        return !a->whole || type != J_NUMBER ||
               (decimal_read(m, &x, value) && decimal_is_whole(&x));
    case A_VALUES:
        return is_among(m, a, value);
    case A_REF:
        return schema_holds(m, a->value, value);
    case A_ALL:
        return n_holding(m, a, value) == a->n_list;
    case A_ANY:
        return n_holding(m, a, value) > 0;
    case A_ONE:
        return n_holding(m, a, value) == 1;
    case A_NOT:
        return !schema_holds(m, a->value, value);
    case A_IF: {
        uint32_t branch = part[schema_holds(m, part[0], value) ? 1 : 2];
        return branch == UINT32_MAX || schema_holds(m, branch, value);
    }
    case A_BRANCH:
        return true;
    case A_LENGTH:
        return within(a, code_points(value->valuestring));
    case A_PATTERN:
        return schema_matches(m, a->pattern, value->valuestring);
    default:
        break;
    }
    return type == J_NUMBER  ? number_holds(m, a, value)
           : type == J_ARRAY ? array_holds(m, a, value)
                             : object_holds(m, a, value);
}

bool schema_holds(struct schema_maker *m, uint32_t schema, const cJSON *value)
{
    struct schema s = m->schema[schema];
    if (s.always || s.never || !schema_step(m))
        return s.always;
    for (uint32_t i = s.first; i < s.first + s.n; i++)
        if (!schema_assertion_holds(m, i, value))
            return false;
    return true;
}

bool schema_goal_holds(struct schema_maker *m, const uint32_t *at, uint32_t n, const cJSON *value)
{
    for (uint32_t i = 0; i < n; i++)
        if (schema_holds(m, at[i] >> 1, value) == (bool)(at[i] & 1))
            return false;
    return schema_ok(m);
}
