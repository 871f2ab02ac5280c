/* markup_types.c - what a request's tool schemas say about a parameter; see markup_arguments.h. */
#include "text/markup_arguments.h"

#include "base/json.h"

#include <string.h>

enum { MAX_SCHEMA_DEPTH = 8, MAX_SCHEMA_STEPS = 512 }; /* of anyOf, $ref ...; beyond: not said */

struct schema_walk {
    const cJSON *root;
    int steps; /* taken; a schema may refer to itself many times over */
};

static bool same(const char *s, const char *text, size_t bytes)
{
    return s && strlen(s) == bytes && memcmp(s, text, bytes) == 0;
}

/* The last member of that name, whose bytes need not end with NUL. */
static const cJSON *member(const cJSON *object, const char *key, size_t bytes)
{
    const cJSON *found = NULL;
    if (cJSON_IsObject(object))
        for (const cJSON *m = object->child; m; m = m->next)
            if (same(m->string, key, bytes))
                found = m;
    return found;
}

const cJSON *markup_find_tool(const cJSON *tools, const char *name, size_t bytes)
{
    const cJSON *tool = NULL;
    cJSON_ArrayForEach(tool, tools)
    {
        const cJSON *function = json_get(tool, "function");
        if (!cJSON_IsObject(function))
            function = tool;
        const cJSON *called = json_get(function, "name");
        if (cJSON_IsString(called) && same(called->valuestring, name, bytes))
            return function;
    }
    return NULL;
}

static uint8_t kind_of_name(const char *type)
{
    static const struct {
        const char *name;
        uint8_t kind;
    } table[] = {{"string", JSON_KIND_STRING},
                 {"integer", JSON_KIND_INTEGER},
                 {"number", JSON_KIND_INTEGER | JSON_KIND_NUMBER},
                 {"boolean", JSON_KIND_BOOL},
                 {"null", JSON_KIND_NULL},
                 {"object", JSON_KIND_OBJECT},
                 {"array", JSON_KIND_ARRAY}};
    for (size_t i = 0; type && i < sizeof table / sizeof *table; i++)
        if (strcmp(type, table[i].name) == 0)
            return table[i].kind;
    return JSON_KIND_ANY;
}

static uint8_t kind_of_value(const cJSON *value)
{
    if (cJSON_IsString(value))
        return JSON_KIND_STRING;
    if (cJSON_IsNumber(value))
        return JSON_KIND_INTEGER | JSON_KIND_NUMBER;
    if (cJSON_IsBool(value))
        return JSON_KIND_BOOL;
    if (cJSON_IsNull(value))
        return JSON_KIND_NULL;
    return cJSON_IsObject(value) ? JSON_KIND_OBJECT : JSON_KIND_ARRAY;
}

/* "#/$defs/City" within root; names with ~ escapes are not found, which costs only the type. */
static const cJSON *resolve(const cJSON *root, const char *ref)
{
    if (!ref || ref[0] != '#')
        return NULL;
    for (ref++; root && *ref == '/';) {
        size_t n = strcspn(++ref, "/");
        root = member(root, ref, n);
        ref += n;
    }
    return *ref ? NULL : root;
}

static uint8_t schema_kinds(struct schema_walk *w, const cJSON *schema, int depth)
{
    uint8_t kinds = JSON_KIND_ANY;
    if (!cJSON_IsObject(schema) || depth == MAX_SCHEMA_DEPTH || ++w->steps > MAX_SCHEMA_STEPS)
        return kinds;
    for (const cJSON *m = schema->child; m; m = m->next) {
        const char *key = m->string ? m->string : "";
        bool is_enum = strcmp(key, "enum") == 0, all = strcmp(key, "allOf") == 0;
        uint8_t these = 0;
        const cJSON *item = NULL;
        if (strcmp(key, "type") == 0 && cJSON_IsString(m)) {
            these = kind_of_name(m->valuestring);
        } else if (strcmp(key, "type") == 0 && cJSON_IsArray(m)) {
            cJSON_ArrayForEach(item, m) these |= kind_of_name(item->valuestring);
        } else if (strcmp(key, "const") == 0) {
            these = kind_of_value(m);
        } else if (strcmp(key, "$ref") == 0 && cJSON_IsString(m)) {
            these = schema_kinds(w, resolve(w->root, m->valuestring), depth + 1);
        } else if (is_enum && cJSON_IsArray(m)) {
            cJSON_ArrayForEach(item, m) these |= kind_of_value(item);
        } else if ((strcmp(key, "anyOf") == 0 || strcmp(key, "oneOf") == 0) && cJSON_IsArray(m)) {
            cJSON_ArrayForEach(item, m) these |= schema_kinds(w, item, depth + 1);
        } else if (all && cJSON_IsArray(m)) {
            these = JSON_KIND_ANY;
            cJSON_ArrayForEach(item, m) these &= schema_kinds(w, item, depth + 1);
        } else {
            continue;
        }
        if (kinds & these)
            kinds &= these; /* a contradiction allows nothing: the word read first stands */
    }
    return kinds;
}

uint8_t markup_parameter_kinds(const cJSON *parameters, const char *key, size_t bytes)
{
    const cJSON *schema = member(json_get(parameters, "properties"), key, bytes);
    struct schema_walk w = {parameters, 0};
    return schema_kinds(&w, schema, 0);
}
