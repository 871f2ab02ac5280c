/* schema_values.c - values that a schema holds: what they are, and how they are written. */
#include "grammar/schema_impl.h"

#include "base/json.h"

#include <stdio.h>
#include <string.h>

enum json_type json_type_of(const cJSON *value)
{
    return cJSON_IsNull(value)     ? J_NULL
           : cJSON_IsBool(value)   ? J_BOOL
           : cJSON_IsNumber(value) ? J_NUMBER
           : cJSON_IsString(value) ? J_STRING
           : cJSON_IsArray(value)  ? J_ARRAY
                                   : J_OBJECT;
}

static bool objects_equal(struct schema_maker *m, const cJSON *a, const cJSON *b)
{
    uint32_t n = 0, k = 0;
    for (const cJSON *x = a->child; x; x = x->next) {
        const cJSON *y = json_get(b, x->string);
        if (json_get(a, x->string) != x)
            continue; /* named again later */
        if (!y || !json_equal(m, x, y))
            return false;
        n++;
    }
    for (const cJSON *y = b->child; y; y = y->next)
        k += json_get(b, y->string) == y;
    return n == k;
}

bool json_equal(struct schema_maker *m, const cJSON *a, const cJSON *b)
{
    enum json_type type = json_type_of(a);
    struct decimal x, y;
    if (type != json_type_of(b) || !schema_step(m))
        return false;
    switch (type) {
    case J_BOOL:
        return cJSON_IsTrue(a) == cJSON_IsTrue(b);
    case J_NUMBER:
        return decimal_read(m, &x, a) && decimal_read(m, &y, b) && decimal_compare(&x, &y) == 0;
    case J_STRING:
        return !strcmp(a->valuestring, b->valuestring);
    case J_ARRAY:
        a = a->child;
        b = b->child;
        for (; a && b; a = a->next, b = b->next)
            if (!json_equal(m, a, b))
                return false;
        return !a && !b;
    case J_OBJECT:
        return objects_equal(m, a, b);
    default:
        return true;
    }
}

/* Text that grows in the arena. */
struct spelling {
    struct schema_maker *m;
    char *s;
    uint32_t n, max;
};

static void put(struct spelling *o, const char *s, size_t n)
{
    while (o->n + n + 1 > o->max && schema_ok(o->m)) {
        o->s = schema_grow(o->m, o->s, o->max, &o->max, 1);
        if (!o->s)
            return;
    }
    if (!schema_ok(o->m))
        return;
    memcpy(o->s + o->n, s, n);
    o->n += (uint32_t)n;
    o->s[o->n] = '\0';
}

static void put_text(struct spelling *o, const char *text)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    for (const char *c = text; *c; c++) {
        const char *at = strchr(plain, *c);
        char code[8];
        if (!strncmp(c, JSON_NUL, 2)) {
            put(o, "\\u0000", 6);
            c++;
        } else if (at) {
            put(o, (char[2]){'\\', letter[at - plain]}, 2);
        } else if ((unsigned char)*c < 0x20) {
            put(o, code, (size_t)sprintf(code, "\\u%04x", (unsigned)(unsigned char)*c));
        } else {
            put(o, c, 1);
        }
    }
}

static void put_value(struct spelling *o, const cJSON *value)
{
    struct decimal d;
    const char *text;
    bool first = true;
    switch (json_type_of(value)) {
    case J_NULL:
        put(o, "null", 4);
        return;
    case J_BOOL:
        put(o, cJSON_IsTrue(value) ? "true" : "false", cJSON_IsTrue(value) ? 4 : 5);
        return;
    case J_NUMBER:
        text = decimal_read(o->m, &d, value) ? decimal_text(o->m, &d) : NULL;
        if (text)
            put(o, text, strlen(text));
        return;
    case J_STRING:
        put(o, "\"", 1);
        put_text(o, value->valuestring);
        put(o, "\"", 1);
        return;
    default:
        break;
    }
    put(o, cJSON_IsArray(value) ? "[" : "{", 1);
    for (const cJSON *x = value->child; x; x = x->next) {
        if (x->string && json_get(value, x->string) != x)
            continue;
        if (!first)
            put(o, ",", 1);
        first = false;
        if (x->string) {
            put(o, "\"", 1);
            put_text(o, x->string);
            put(o, "\":", 2);
        }
        put_value(o, x);
    }
    put(o, cJSON_IsArray(value) ? "]" : "}", 1);
}

char *schema_spell(struct schema_maker *m, const cJSON *value)
{
    struct spelling o = {.m = m};
    put(&o, "", 0);
    put_value(&o, value);
    return schema_ok(m) ? o.s : NULL;
}

gb_node schema_text(struct schema_maker *m, const char *text)
{
    struct spelling o = {.m = m};
    if (m->plain)
        return gb_bytes(m->b, text, strlen(text));
    put(&o, "", 0);
    put_text(&o, text);
    return schema_ok(m) ? gb_bytes(m->b, o.s, o.n) : GB_NEVER;
}

/* In what a schema demands whatever else holds. */
static const struct assertion *listed_in(struct schema_maker *m, uint32_t schema)
{
    const struct schema *s = &m->schema[schema];
    const struct assertion *found = NULL;
    if (!schema_step(m))
        return NULL;
    for (uint32_t i = s->first; i < s->first + s->n && !found; i++) {
        const struct assertion *a = &m->assertion[i];
        if (a->kind == A_VALUES)
            return a;
        if (a->kind == A_REF)
            found = listed_in(m, a->value);
        for (uint32_t k = 0; a->kind == A_ALL && k < a->n_list && !found; k++)
            found = listed_in(m, m->list.at[a->list + k]);
    }
    return found;
}

const struct assertion *schema_listed(struct schema_maker *m, const struct goal *goal)
{
    const struct assertion *found = NULL;
    for (uint32_t i = 0; i < goal->n && !found; i++)
        if (!(goal->at[i] & 1))
            found = listed_in(m, goal->at[i] >> 1);
    return found;
}
