/* schema_read.c - a schema's keywords as assertions, in the order in which they stand. */
#include "grammar/schema_impl.h"

#include "base/json.h"

#include <math.h>
#include <string.h>

enum { MAX_COUNT = 1 << 30 };

static const void *get_json(const void *of, uint32_t i, size_t *bytes)
{
    const struct schema_maker *m = of;
    *bytes = sizeof m->schema[i].json;
    return &m->schema[i].json;
}

uint32_t schema_of(struct schema_maker *m, const cJSON *json, uint32_t parent, const char *step,
                   const char *name)
{
    uint32_t known = table_find(&m->by_json, get_json, m, &json, sizeof json);
    if (known != UINT32_MAX)
        return known;
    if (!cJSON_IsObject(json) && !cJSON_IsBool(json)) {
        schema_fail(m, parent, step, "%s%s%sexpected a schema: an object, true or false",
                    name ? "'" : "", name ? name : "", name ? "': " : "");
        return UINT32_MAX;
    }
    struct schema *at = schema_grow(m, m->schema, m->n_schemas, &m->max_schemas, sizeof *at);
    if (!at || !table_add(m, &m->by_json, get_json, m, m->n_schemas, &json, sizeof json))
        return UINT32_MAX;
    m->schema = at;
    at += m->n_schemas;
    *at = (struct schema){.json = json,
                          .parent = m->n_schemas ? parent : 0,
                          .step = {step, name},
                          .resource = m->n_schemas ? m->schema[parent].resource : json,
                          .base = m->n_schemas ? m->schema[parent].base : "",
                          .always = cJSON_IsTrue(json),
                          .never = cJSON_IsFalse(json)};
    schema_base(m, at, json);
    return schema_ok(m) ? m->n_schemas++ : UINT32_MAX;
}

/* One keyword while it is read. */
struct reading {
    struct schema_maker *m;
    uint32_t schema;
    const cJSON *all; /* the schema's keywords */
    const cJSON *key; /* this one */
};

static bool wrong(const struct reading *r, const char *expected)
{
    return schema_fail(r->m, r->schema, r->key->string, "expected %s", expected);
}

/* A new assertion, to be filled in; NULL: no memory. */
static struct assertion *add(const struct reading *r, enum kind kind, enum json_type type)
{
    return schema_add_assertion(r->m, (struct assertion){.kind = (uint8_t)kind,
                                                         .type = (uint8_t)type,
                                                         .schema = r->schema,
                                                         .keyword = r->key->string,
                                                         .json = r->key,
                                                         .value = UINT32_MAX,
                                                         .most = UINT32_MAX});
}

static uint32_t sub(const struct reading *r, const cJSON *json, const char *name)
{
    return schema_of(r->m, json, r->schema, r->key->string, name);
}

/* The index of an element, as a step of a pointer. */
static const char *index_step(struct schema_maker *m, uint32_t i)
{
    char *out = schema_alloc(m, 12), digits[12];
    unsigned n = 0, k = 0;
    if (!out)
        return "";
    do
        digits[n++] = (char)('0' + i % 10);
    while (i /= 10);
    while (n)
        out[k++] = digits[--n];
    out[k] = '\0';
    return out;
}

static bool read_value(const struct reading *r, enum kind kind, enum json_type type)
{
    uint32_t value = sub(r, r->key, NULL);
    struct assertion *a = value == UINT32_MAX ? NULL : add(r, kind, type);
    if (a)
        a->value = value;
    return a;
}

static bool read_list(const struct reading *r, enum kind kind)
{
    struct schema_maker *m = r->m;
    struct ids all = {0};
    if (!cJSON_IsArray(r->key) || !r->key->child)
        return wrong(r, "an array of schemas that is not empty");
    for (const cJSON *x = r->key->child; x; x = x->next) {
        uint32_t s = sub(r, x, index_step(m, all.n));
        if (s == UINT32_MAX || !ids_push(m, &all, s))
            return false;
    }
    struct assertion *a = add(r, kind, J_ANY);
    if (!a)
        return false;
    a->list = m->list.n;
    a->n_list = all.n;
    for (uint32_t i = 0; i < all.n; i++)
        if (!ids_push(m, &m->list, all.at[i]))
            return false;
    return true;
}

static bool read_type(const struct reading *r)
{
    static const struct {
        const char *name;
        uint8_t bits;
    } types[] = {{"null", BIT(J_NULL)},    {"boolean", BIT(J_BOOL)},  {"number", BIT(J_NUMBER)},
                 {"integer", BIT(J_ANY)},  {"string", BIT(J_STRING)}, {"array", BIT(J_ARRAY)},
                 {"object", BIT(J_OBJECT)}};
    uint8_t bits = 0;
    const cJSON *first = cJSON_IsArray(r->key) ? r->key->child : r->key;
    for (const cJSON *x = first; x; x = cJSON_IsArray(r->key) ? x->next : NULL) {
        uint8_t bit = 0;
        for (size_t i = 0; cJSON_IsString(x) && i < sizeof types / sizeof *types; i++)
            if (!strcmp(types[i].name, x->valuestring))
                bit = types[i].bits;
        if (!bit)
            return schema_fail(r->m, r->schema, "type", "'%.40s' is no type",
                               cJSON_IsString(x) ? x->valuestring : "(no string)");
        bits |= bit;
    }
    if (!bits)
        return wrong(r, "a type, or an array of types that is not empty");
    struct assertion *a = add(r, A_TYPE, J_ANY);
    if (!a)
        return false;
    a->whole = bits & BIT(J_ANY) && !(bits & BIT(J_NUMBER));
    a->types = (uint8_t)((bits & ~BIT(J_ANY)) | (bits & BIT(J_ANY) ? BIT(J_NUMBER) : 0));
    return true;
}

static bool read_enum(const struct reading *r)
{
    if (!cJSON_IsArray(r->key) || !r->key->child)
        return wrong(r, "an array that is not empty");
    return add(r, A_VALUES, J_ANY);
}

static bool read_const(const struct reading *r)
{
    return add(r, A_VALUES, J_ANY);
}

static bool read_ref(const struct reading *r)
{
    if (!cJSON_IsString(r->key))
        return wrong(r, "a string");
    uint32_t to = schema_refer(r->m, r->schema, r->key->string, r->key->valuestring);
    struct assertion *a = to == UINT32_MAX ? NULL : add(r, A_REF, J_ANY);
    if (a)
        a->value = to;
    return a;
}

/* How many schemas have a member of this name, with this text. */
static uint32_t count_members(const cJSON *at, const char *key, const char *text)
{
    uint32_t n = 0;
    if (at->string && !strcmp(at->string, key))
        n += !text || (cJSON_IsString(at) && !strcmp(at->valuestring, text));
    for (const cJSON *c = at->child; c; c = c->next)
        n += count_members(c, key, text);
    return n;
}

/* A dynamic reference is a plain one where only one place can be meant. */
static bool read_dynamic(const struct reading *r)
{
    bool recursive = !strcmp(r->key->string, "$recursiveRef");
    const char *text = cJSON_GetStringValue(r->key), *anchor = text ? strchr(text, '#') : NULL;
    if (!text)
        return wrong(r, "a string");
    if (recursive ? count_members(r->m->root, "$recursiveAnchor", NULL) > 0
                  : anchor && count_members(r->m->root, "$dynamicAnchor", anchor + 1) > 1)
        return schema_fail(r->m, r->schema, r->key->string,
                           "several places can be meant, which this server does not follow");
    return read_ref(r);
}

static bool read_not(const struct reading *r)
{
    return read_value(r, A_NOT, J_ANY);
}

static bool read_if(const struct reading *r)
{
    struct schema_maker *m = r->m;
    const cJSON *then = json_get(r->all, "then"), *otherwise = json_get(r->all, "else");
    uint32_t part[3] = {sub(r, r->key, NULL), UINT32_MAX, UINT32_MAX};
    if (part[0] == UINT32_MAX)
        return false;
    if (then && (part[1] = schema_of(m, then, r->schema, "then", NULL)) == UINT32_MAX)
        return false;
    if (otherwise && (part[2] = schema_of(m, otherwise, r->schema, "else", NULL)) == UINT32_MAX)
        return false;
    struct assertion *a = add(r, A_IF, J_ANY);
    if (!a)
        return false;
    a->list = m->list.n;
    a->n_list = 3;
    for (int i = 0; i < 3; i++)
        if (!ids_push(m, &m->list, part[i]))
            return false;
    return true;
}

/* Where the names of a branch stand among the others. */
static bool read_branch(const struct reading *r)
{
    return !json_get(r->all, "if") || read_value(r, A_BRANCH, J_ANY);
}

static bool read_bound(const struct reading *r)
{
    bool max = strstr(r->key->string, "ax");
    struct decimal bound;
    const char *other = max ? "exclusiveMaximum" : "exclusiveMinimum";
    bool beside = r->key->string[0] == 'e';
    if (beside && cJSON_IsBool(r->key)) /* draft 4: it belongs to the other */
        return true;
    if (!cJSON_IsNumber(r->key))
        return wrong(r, "a number");
    if (!decimal_read(r->m, &bound, r->key))
        return false;
    struct assertion *a = add(r, max ? A_MAX : A_MIN, J_NUMBER);
    if (!a)
        return false;
    a->bound = bound;
    a->exclusive = beside || cJSON_IsTrue(json_get(r->all, other));
    return true;
}

static bool read_multiple(const struct reading *r)
{
    struct decimal of;
    if (!cJSON_IsNumber(r->key) || !(r->key->valuedouble > 0))
        return wrong(r, "a number above 0");
    if (!decimal_read(r->m, &of, r->key))
        return false;
    struct assertion *a = add(r, A_MULTIPLE, J_NUMBER);
    if (a)
        a->bound = of;
    return a;
}

static bool count_of(const struct reading *r, const cJSON *x, uint32_t *out)
{
    if (!cJSON_IsNumber(x) || !(x->valuedouble >= 0) || floor(x->valuedouble) != x->valuedouble)
        return wrong(r, "a whole number that is not negative");
    *out = x->valuedouble < MAX_COUNT ? (uint32_t)x->valuedouble : UINT32_MAX;
    return true;
}

/* minLength maxLength minItems maxItems minProperties maxProperties */
static bool read_count(const struct reading *r)
{
    const char *key = r->key->string;
    uint32_t n;
    if (!count_of(r, r->key, &n))
        return false;
    bool text = strstr(key, "Length"), items = strstr(key, "Items"), max = key[1] == 'a';
    if (!max && n == UINT32_MAX)
        return schema_fail(r->m, r->schema, key, "more than %d is more than can be made",
                           MAX_COUNT);
    struct assertion *a = add(r,
                              text    ? A_LENGTH
                              : items ? A_COUNT
                                      : A_MEMBERS,
                              text    ? J_STRING
                              : items ? J_ARRAY
                                      : J_OBJECT);
    if (a)
        *(max ? &a->most : &a->least) = n;
    return a;
}

static bool use_pattern(const struct reading *r, const char *text, bool whole, uint32_t *out)
{
    *out = schema_pattern(r->m, text, strlen(text), whole);
    if (*out == UINT32_MAX)
        return false;
    (void)schema_pattern_node(r->m, *out);
    if (r->m->e->code == ERR_INVALID && !strchr(r->m->e->msg, '#')) {
        struct err why = *r->m->e;
        r->m->e->code = ERR_OK;
        const char *msg = !strncmp(why.msg, "pattern: ", 9) ? why.msg + 9 : why.msg;
        return schema_fail(r->m, r->schema, r->key->string, "%s", msg);
    }
    return schema_ok(r->m);
}

static bool read_pattern(const struct reading *r)
{
    uint32_t p;
    if (!cJSON_IsString(r->key))
        return wrong(r, "a string");
    if (!use_pattern(r, r->key->valuestring, false, &p))
        return false;
    struct assertion *a = add(r, A_PATTERN, J_STRING);
    if (a)
        a->pattern = p;
    return a;
}

static bool read_format(const struct reading *r)
{
    uint32_t p;
    if (!cJSON_IsString(r->key))
        return wrong(r, "a string");
    const char *text = schema_format(r->key->valuestring);
    if (!text)
        return true; /* it only annotates */
    if (!use_pattern(r, text, true, &p))
        return false;
    struct assertion *a = add(r, A_PATTERN, J_STRING);
    if (a)
        a->pattern = p;
    return a;
}

static bool read_unique(const struct reading *r)
{
    if (!cJSON_IsBool(r->key))
        return wrong(r, "true or false");
    return cJSON_IsFalse(r->key) || add(r, A_UNIQUE, J_ARRAY);
}

static bool read_rest(const struct reading *r, uint32_t from)
{
    if (!read_value(r, A_ITEMS, J_ARRAY))
        return false;
    r->m->assertion[r->m->n_assertions - 1].least = from;
    return true;
}

static bool read_tuple(const struct reading *r)
{
    uint32_t i = 0;
    for (const cJSON *x = r->key->child; x; x = x->next, i++) {
        uint32_t value = sub(r, x, index_step(r->m, i));
        struct assertion *a = value == UINT32_MAX ? NULL : add(r, A_ITEM, J_ARRAY);
        if (!a)
            return false;
        a->value = value;
        a->least = i;
    }
    return true;
}

static bool read_items(const struct reading *r)
{
    const cJSON *prefix = json_get(r->all, "prefixItems");
    if (cJSON_IsArray(r->key))
        return read_tuple(r);
    return read_rest(r, cJSON_IsArray(prefix) ? (uint32_t)cJSON_GetArraySize(prefix) : 0);
}

static bool read_prefix(const struct reading *r)
{
    if (!cJSON_IsArray(r->key))
        return wrong(r, "an array of schemas");
    return read_tuple(r);
}

static bool read_more_items(const struct reading *r)
{
    const cJSON *items = json_get(r->all, "items");
    return !cJSON_IsArray(items) || read_rest(r, (uint32_t)cJSON_GetArraySize(items));
}

static bool read_contains(const struct reading *r)
{
    const cJSON *min = json_get(r->all, "minContains"), *max = json_get(r->all, "maxContains");
    uint32_t least = 1, most = UINT32_MAX;
    if ((min && !count_of(r, min, &least)) || (max && !count_of(r, max, &most)))
        return false;
    if (!read_value(r, A_CONTAINS, J_ARRAY))
        return false;
    struct assertion *a = &r->m->assertion[r->m->n_assertions - 1];
    a->least = least;
    a->most = most;
    return true;
}

static bool read_properties(const struct reading *r)
{
    struct schema_maker *m = r->m;
    if (!cJSON_IsObject(r->key))
        return wrong(r, "an object of schemas");
    for (const cJSON *x = r->key->child; x; x = x->next) {
        uint32_t value = sub(r, x, x->string), name = schema_name(m, x->string);
        struct assertion *a =
            value == UINT32_MAX || name == UINT32_MAX ? NULL : add(r, A_PROPERTY, J_OBJECT);
        if (!a)
            return false;
        a->value = value;
        a->name = name;
    }
    return true;
}

/* Names into the list of an assertion. */
static bool read_names(const struct reading *r, const cJSON *array, uint32_t *list, uint32_t *n)
{
    struct schema_maker *m = r->m;
    *list = m->list.n;
    *n = 0;
    for (const cJSON *x = array->child; x; x = x->next, ++*n) {
        if (!cJSON_IsString(x))
            return wrong(r, "an array of strings");
        uint32_t name = schema_name(m, x->valuestring);
        if (name == UINT32_MAX || !ids_push(m, &m->list, name))
            return false;
    }
    return true;
}

static bool read_required(const struct reading *r)
{
    uint32_t list, n;
    if (!cJSON_IsArray(r->key))
        return wrong(r, "an array of strings");
    if (!read_names(r, r->key, &list, &n))
        return false;
    for (uint32_t i = 0; i < n; i++) {
        struct assertion *a = add(r, A_REQUIRED, J_OBJECT);
        if (!a)
            return false;
        a->name = r->m->list.at[list + i];
    }
    return true;
}

static bool read_additional(const struct reading *r)
{
    struct schema_maker *m = r->m;
    const cJSON *properties = json_get(r->all, "properties");
    const cJSON *patterns = json_get(r->all, "patternProperties");
    uint32_t value = sub(r, r->key, NULL), list = m->list.n, n = 0, n2 = 0;
    if (value == UINT32_MAX)
        return false;
    for (const cJSON *x = cJSON_IsObject(properties) ? properties->child : NULL; x; x = x->next)
        if (!ids_push(m, &m->list, schema_name(m, x->string)))
            return false;
        else
            n++;
    for (const cJSON *x = cJSON_IsObject(patterns) ? patterns->child : NULL; x; x = x->next) {
        uint32_t p;
        if (!use_pattern(r, x->string, false, &p) || !ids_push(m, &m->list, p))
            return false;
        n2++;
    }
    struct assertion *a = add(r, A_ADDITIONAL, J_OBJECT);
    if (!a)
        return false;
    a->value = value;
    a->list = list;
    a->n_list = n;
    a->list2 = list + n;
    a->n_list2 = n2;
    return schema_ok(m);
}

static bool read_matching(const struct reading *r)
{
    if (!cJSON_IsObject(r->key))
        return wrong(r, "an object of schemas");
    for (const cJSON *x = r->key->child; x; x = x->next) {
        uint32_t p, value = sub(r, x, x->string);
        if (value == UINT32_MAX || !use_pattern(r, x->string, false, &p))
            return false;
        struct assertion *a = add(r, A_MATCHING, J_OBJECT);
        if (!a)
            return false;
        a->value = value;
        a->pattern = p;
    }
    return true;
}

static bool read_property_names(const struct reading *r)
{
    return read_value(r, A_NAMES, J_OBJECT);
}

/* dependencies, dependentRequired, dependentSchemas */
static bool read_dependencies(const struct reading *r)
{
    struct schema_maker *m = r->m;
    bool names = strcmp(r->key->string, "dependentSchemas") != 0;
    bool schemas = strcmp(r->key->string, "dependentRequired") != 0;
    if (!cJSON_IsObject(r->key))
        return wrong(r, "an object");
    for (const cJSON *x = r->key->child; x; x = x->next) {
        uint32_t list = 0, n = 0, value = UINT32_MAX, name = schema_name(m, x->string);
        bool array = names && cJSON_IsArray(x);
        if (name == UINT32_MAX)
            return false;
        if (array ? !read_names(r, x, &list, &n)
                  : !schemas || (value = sub(r, x, x->string)) == UINT32_MAX)
            return wrong(r, "an array of names, or a schema, for each name");
        struct assertion *a = add(r, array ? A_NEEDS : A_DEPENDS, J_OBJECT);
        if (!a)
            return false;
        a->name = name;
        a->value = value;
        a->list = list;
        a->n_list = n;
    }
    return true;
}

/* An empty allOf, until the others are read: see schema_unevaluated.c. */
static bool read_unevaluated(const struct reading *r)
{
    return read_value(r, A_ALL, J_ANY);
}

static const struct {
    const char *key;
    bool (*read)(const struct reading *r);
} keywords[] = {{"type", read_type},
                {"enum", read_enum},
                {"const", read_const},
                {"$ref", read_ref},
                {"$dynamicRef", read_dynamic},
                {"$recursiveRef", read_dynamic},
                {"not", read_not},
                {"if", read_if},
                {"then", read_branch},
                {"else", read_branch},
                {"minimum", read_bound},
                {"maximum", read_bound},
                {"exclusiveMinimum", read_bound},
                {"exclusiveMaximum", read_bound},
                {"multipleOf", read_multiple},
                {"minLength", read_count},
                {"maxLength", read_count},
                {"minItems", read_count},
                {"maxItems", read_count},
                {"minProperties", read_count},
                {"maxProperties", read_count},
                {"pattern", read_pattern},
                {"format", read_format},
                {"uniqueItems", read_unique},
                {"items", read_items},
                {"prefixItems", read_prefix},
                {"additionalItems", read_more_items},
                {"contains", read_contains},
                {"properties", read_properties},
                {"required", read_required},
                {"additionalProperties", read_additional},
                {"patternProperties", read_matching},
                {"propertyNames", read_property_names},
                {"dependencies", read_dependencies},
                {"dependentRequired", read_dependencies},
                {"dependentSchemas", read_dependencies},
                {"unevaluatedProperties", read_unevaluated},
                {"unevaluatedItems", read_unevaluated}};

static bool read_keyword(const struct reading *r)
{
    const char *key = r->key->string;
    if (!strcmp(key, "allOf"))
        return read_list(r, A_ALL);
    if (!strcmp(key, "anyOf"))
        return read_list(r, A_ANY);
    if (!strcmp(key, "oneOf"))
        return read_list(r, A_ONE);
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (!strcmp(keywords[i].key, key))
            return keywords[i].read(r);
    return true; /* unknown ones are ignored, as the specification has it */
}

bool schema_read(struct schema_maker *m, const cJSON *root)
{
    m->root = root;
    if (!cJSON_IsObject(root) && !cJSON_IsBool(root)) {
        err_set(m->e, ERR_INVALID, "schema at #: expected an object, true or false");
        return false;
    }
    m->assertion = schema_grow(m, NULL, 0, &m->max_assertions, sizeof *m->assertion);
    if (!m->assertion || !ids_push(m, &m->list, 0)) /* so that there is always one to point into */
        return false;
    if (schema_of(m, root, 0, NULL, NULL) == UINT32_MAX)
        return false;
    for (uint32_t i = 0; i < m->n_schemas; i++) { /* it grows on the way */
        const cJSON *json = m->schema[i].json;
        m->schema[i].first = m->n_assertions;
        for (const cJSON *k = cJSON_IsObject(json) ? json->child : NULL; k; k = k->next) {
            struct reading r = {.m = m, .schema = i, .all = json, .key = k};
            if (json_get(json, k->string) == k && (!schema_step(m) || !read_keyword(&r)))
                return false;
        }
        m->schema[i].n = m->n_assertions - m->schema[i].first;
    }
    return schema_refuse_circles(m) && schema_unevaluated(m);
}
