/* schema_ref.c - where references lead: pointers, anchors, and identifiers inside the schema. */
#include "grammar/schema_impl.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static bool has_scheme(const char *uri)
{
    size_t n = strspn(uri, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-");
    return n > 0 && uri[n] == ':';
}

/* The URI that `ref` is, seen from `base`; what stands behind # is left out. */
static const char *resolve(struct schema_maker *m, const char *base, const char *ref)
{
    size_t n = strcspn(ref, "#"), keep = 0;
    if (n == 0)
        return base;
    if (!has_scheme(ref)) {
        const char *path = strstr(base, "://");
        size_t from = path ? (size_t)(path + 3 - base) : 0;
        const char *slash = strchr(base + from, '/');
        if (ref[0] == '/')
            keep = slash ? (size_t)(slash - base) : strlen(base);
        else if ((slash = strrchr(base + from, '/')))
            keep = (size_t)(slash - base) + 1;
    }
    char *out = schema_alloc(m, keep + n + 1);
    if (!out)
        return NULL;
    memcpy(out, base, keep);
    memcpy(out + keep, ref, n);
    out[keep + n] = '\0';
    return out;
}

static const char *id_of(const cJSON *json)
{
    const char *id = cJSON_GetStringValue(json_get(json, "$id"));
    if (!id)
        id = cJSON_GetStringValue(json_get(json, "id"));
    return id && *id && *id != '#' ? id : NULL;
}

void schema_base(struct schema_maker *m, struct schema *s, const cJSON *json)
{
    const char *id = cJSON_IsObject(json) ? id_of(json) : NULL;
    const char *base = id ? resolve(m, s->base, id) : NULL;
    if (base) {
        s->base = base;
        s->resource = json;
    }
}

/* Steps of a pointer, decoded one by one. */
static const cJSON *follow(struct schema_maker *m, const cJSON *at, const char *pointer)
{
    static const char hex_digits[] = "0123456789abcdefABCDEF";
    while (at && *pointer == '/') {
        size_t n = strcspn(++pointer, "/"), k = 0;
        char *step = schema_alloc(m, n + 1);
        if (!step)
            return NULL;
        for (size_t i = 0; i < n; i++) {
            char c = pointer[i];
            if (c == '%' && i + 2 < n && strspn(pointer + i + 1, hex_digits) >= 2) {
                char hex[3] = {pointer[i + 1], pointer[i + 2], '\0'};
                c = (char)strtoul(hex, NULL, 16);
                i += 2;
            }
            step[k++] = c;
        }
        size_t j = 0;
        for (size_t i = 0; i < k; i++) /* ~1 is /, ~0 is ~ */
            if (step[i] == '~' && i + 1 < k && (step[i + 1] == '0' || step[i + 1] == '1'))
                step[j++] = step[++i] == '1' ? '/' : '~';
            else
                step[j++] = step[i];
        step[j] = '\0';
        if (cJSON_IsArray(at)) {
            char *end;
            unsigned long i = strtoul(step, &end, 10);
            at = *step && !*end && i < 1u << 20 ? cJSON_GetArrayItem(at, (int)i) : NULL;
        } else {
            at = json_get(at, step);
        }
        pointer += n;
    }
    return *pointer ? NULL : at;
}

struct search {
    const char *base; /* wanted; NULL: any */
    const char *anchor;
};

/* The schema in this tree that has the wanted identifier, and in it the anchor. */
static const cJSON *search(struct schema_maker *m, const cJSON *at, const char *base,
                           const struct search *want)
{
    const char *id = cJSON_IsObject(at) ? id_of(at) : NULL,
               *own = cJSON_IsObject(at) ? cJSON_GetStringValue(json_get(at, "id")) : NULL;
    if (!schema_step(m))
        return NULL;
    if (id && !(base = resolve(m, base, id)))
        return NULL;
    bool here = !want->base || !strcmp(base, want->base);
    if (here && id && !want->anchor)
        return at;
    if (here && want->anchor && cJSON_IsObject(at)) {
        static const char *const keys[] = {"$anchor", "$dynamicAnchor", "$id"};
        for (size_t i = 0; i < 3; i++) {
            const char *a = cJSON_GetStringValue(json_get(at, keys[i]));
            if (a && !strcmp(a + (i == 2 && *a == '#'), want->anchor))
                return at;
        }
        if (own && *own == '#' && !strcmp(own + 1, want->anchor))
            return at;
    }
    const cJSON *found = NULL;
    for (const cJSON *c = at->child; c && !found && schema_ok(m); c = c->next)
        if (cJSON_IsObject(c) || cJSON_IsArray(c))
            found = search(m, c, base, want);
    return found;
}

uint32_t schema_refer(struct schema_maker *m, uint32_t from, const char *keyword, const char *ref)
{
    const struct schema *s = &m->schema[from];
    const char *uri = resolve(m, s->base, ref), *mark = strchr(ref, '#');
    const char *fragment = mark ? mark + 1 : "";
    const cJSON *resource = s->resource, *to;
    if (!uri)
        return UINT32_MAX;
    if (ref[0] != '#') {
        if (strcmp(uri, m->schema[0].base) == 0)
            resource = m->root;
        else
            resource = search(m, m->root, "", &(struct search){.base = uri});
    }
    if (*fragment && *fragment != '/' && resource)
        to = search(m, resource, uri, &(struct search){.base = uri, .anchor = fragment});
    else
        to = resource ? follow(m, resource, fragment) : NULL;
    if (!to && ref[0] == '#' && resource != m->root) /* `id` was often meant as a mere name */
        to = *fragment == '/' || !*fragment ? follow(m, m->root, fragment) : NULL;
    if (!schema_ok(m))
        return UINT32_MAX;
    if (!to) {
        schema_fail(m, from, keyword, "'%.60s' leads to nothing in this schema", ref);
        return UINT32_MAX;
    }
    if (!cJSON_IsObject(to) && !cJSON_IsBool(to)) {
        schema_fail(m, from, keyword, "'%.60s' leads to what is no schema", ref);
        return UINT32_MAX;
    }
    return schema_of(m, to, from, keyword, NULL);
}

/* The parts of a schema that look at the same value. */
static bool same_place(enum kind k)
{
    return k == A_REF || k == A_ALL || k == A_ANY || k == A_ONE || k == A_NOT || k == A_IF ||
           k == A_DEPENDS;
}

static bool walk(struct schema_maker *m, uint32_t x, unsigned depth)
{
    enum { UNSEEN, OPEN, DONE };
    struct schema *s = &m->schema[x];
    if (s->walk == DONE)
        return true;
    if (s->walk == OPEN)
        return schema_fail(m, x, "$ref", "it leads back to itself without reading anything");
    if (depth > SCHEMA_MAX_WALK)
        return schema_fail(m, x, "$ref", "more than %d steps lead here", SCHEMA_MAX_WALK);
    s->walk = OPEN;
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        const struct assertion *a = &m->assertion[i];
        if (!same_place(a->kind))
            continue;
        /* A list's value is of unevaluatedItems or -Properties: another place. */
        if (a->value != UINT32_MAX && a->kind != A_ALL && !walk(m, a->value, depth + 1))
            return false;
        for (uint32_t k = 0; k < a->n_list; k++) {
            uint32_t y = m->list.at[a->list + k];
            if (y != UINT32_MAX && !walk(m, y, depth + 1))
                return false;
        }
    }
    s->walk = DONE;
    return true;
}

bool schema_refuse_circles(struct schema_maker *m)
{
    for (uint32_t i = 0; i < m->n_schemas; i++)
        if (!walk(m, i, 0))
            return false;
    return true;
}
