/* schema_pool.c - the maker's memory, tables and errors. */
#include "grammar/schema_impl.h"

#include "base/fault.h"
#include "base/hash.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool schema_no_memory(struct schema_maker *m)
{
    if (schema_ok(m))
        err_set(m->e, ERR_NOMEM, "no memory for a schema");
    return false;
}

/* The schema's JSON pointer, its end where it is too long. */
static void place(const struct schema_maker *m, uint32_t schema, char *out, size_t room)
{
    char all[1024];
    size_t at = sizeof all - 1;
    all[at] = '\0';
    for (uint32_t s = schema; m->n_schemas && m->schema[s].parent != s; s = m->schema[s].parent)
        for (int k = 1; k >= 0; k--) {
            const char *step = m->schema[s].step[k];
            size_t n = step ? strlen(step) : 0;
            if (!step || n + 1 > at)
                continue;
            at -= n;
            memcpy(all + at, step, n);
            all[--at] = '/';
        }
    size_t n = sizeof all - 1 - at;
    bool whole = n + 2 <= room;
    snprintf(out, room, "#%s%s", whole ? "" : "...", all + (whole ? at : sizeof all - room + 4));
}

bool schema_fail(struct schema_maker *m, uint32_t schema, const char *keyword, const char *fmt, ...)
{
    char where[120], what[120];
    va_list args;
    if (!schema_ok(m))
        return false;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    place(m, schema, where, sizeof where);
    err_set(m->e, ERR_INVALID, "%s at %s: %s", keyword, where, what);
    return false;
}

bool schema_work(struct schema_maker *m, uint32_t steps)
{
    if (m->steps >= steps && schema_ok(m)) {
        m->steps -= steps;
        return true;
    }
    if (schema_ok(m))
        schema_fail(m, m->goal_now && m->goal[m->goal_now].n ? m->goal[m->goal_now].at[0] >> 1 : 0,
                    "schema", "its combinations are too many to be kept exactly");
    return false;
}

bool schema_step(struct schema_maker *m)
{
    return schema_work(m, 1);
}

void *schema_alloc(struct schema_maker *m, size_t bytes)
{
    void *p = FAULT("grammar.schema") ? NULL : arena_alloc(&m->a, bytes);
    if (!p)
        schema_no_memory(m);
    return p;
}

void *schema_grow(struct schema_maker *m, void *at, uint32_t n, uint32_t *max, size_t each)
{
    if (n < *max)
        return at;
    uint32_t want = *max ? *max * 2 : 16;
    void *p = schema_alloc(m, want * each);
    if (!p)
        return NULL;
    if (at)
        memcpy(p, at, n * each);
    *max = want;
    return p;
}

struct assertion *schema_add_assertion(struct schema_maker *m, struct assertion like)
{
    struct assertion *at =
        schema_grow(m, m->assertion, m->n_assertions, &m->max_assertions, sizeof *at);
    if (!at)
        return NULL;
    m->assertion = at;
    at += m->n_assertions++;
    *at = like;
    return at;
}

bool ids_push(struct schema_maker *m, struct ids *v, uint32_t x)
{
    uint32_t *at = schema_grow(m, v->at, v->n, &v->max, sizeof *at);
    if (!at)
        return false;
    v->at = at;
    v->at[v->n++] = x;
    return true;
}

uint32_t table_find(const struct table *t, table_get *get, const void *of, const void *key,
                    size_t bytes)
{
    if (!t->n_slots)
        return UINT32_MAX;
    for (uint64_t at = hash_bytes(bytes, key, bytes);; at++) {
        uint32_t i = t->slot[at & (t->n_slots - 1)];
        size_t n;
        if (!i)
            return UINT32_MAX;
        const void *other = get(of, i - 1, &n);
        if (n == bytes && memcmp(other, key, bytes) == 0)
            return i - 1;
    }
}

static void table_place(struct table *t, uint32_t i, const void *key, size_t bytes)
{
    uint64_t at = hash_bytes(bytes, key, bytes);
    while (t->slot[at & (t->n_slots - 1)])
        at++;
    t->slot[at & (t->n_slots - 1)] = i + 1;
}

bool table_add(struct schema_maker *m, struct table *t, table_get *get, const void *of, uint32_t n,
               const void *key, size_t bytes)
{
    if (n * 2 >= t->n_slots) {
        struct table bigger = {.n_slots = t->n_slots ? t->n_slots * 2 : 64};
        bigger.slot = schema_alloc(m, bigger.n_slots * sizeof *bigger.slot);
        if (!bigger.slot)
            return false;
        memset(bigger.slot, 0, bigger.n_slots * sizeof *bigger.slot);
        for (uint32_t i = 0; i < n; i++) {
            size_t k;
            const void *old = get(of, i, &k);
            table_place(&bigger, i, old, k);
        }
        *t = bigger;
    }
    table_place(t, n, key, bytes);
    return true;
}

static const void *get_name(const void *of, uint32_t i, size_t *bytes)
{
    const struct schema_maker *m = of;
    *bytes = strlen(m->name[i]);
    return m->name[i];
}

uint32_t schema_name(struct schema_maker *m, const char *name)
{
    size_t n = strlen(name);
    uint32_t known = table_find(&m->by_name, get_name, m, name, n);
    if (known != UINT32_MAX)
        return known;
    const char **at = schema_grow(m, m->name, m->n_names, &m->max_names, sizeof *at);
    if (!at || !table_add(m, &m->by_name, get_name, m, m->n_names, name, n))
        return UINT32_MAX;
    m->name = at;
    m->name[m->n_names] = name;
    return m->n_names++;
}

uint32_t schema_pattern(struct schema_maker *m, const char *text, size_t bytes, bool whole)
{
    for (uint32_t i = 0; i < m->n_patterns; i++)
        if (m->pattern[i].whole == whole && m->pattern[i].bytes == bytes &&
            memcmp(m->pattern[i].text, text, bytes) == 0)
            return i;
    struct pattern *at = schema_grow(m, m->pattern, m->n_patterns, &m->max_patterns, sizeof *at);
    if (!at)
        return UINT32_MAX;
    m->pattern = at;
    m->pattern[m->n_patterns] = (struct pattern){.text = text, .bytes = bytes, .whole = whole};
    return m->n_patterns++;
}
