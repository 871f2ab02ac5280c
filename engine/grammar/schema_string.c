/* schema_string.c - the contents of strings, as JSON spells them between quotes. */
#include "grammar/schema_impl.h"

#include "grammar/regex.h"

#include <string.h>

gb_node schema_any_text(struct schema_maker *m)
{
    if (m->plain)
        return m->markup->text;
    if (m->any_text == GB_NEVER)
        m->any_text = grammar_regex_any(m->b, REGEX_JSON);
    return m->any_text;
}

gb_node schema_pattern_node(struct schema_maker *m, uint32_t pattern)
{
    struct pattern *p = &m->pattern[pattern];
    gb_node *node = &p->node[!m->plain];
    if (p->has_node[!m->plain] || !schema_ok(m))
        return *node;
    struct err e = {0};
    enum err_code code = ERR_INVALID;
    unsigned json = m->plain ? 0 : REGEX_JSON, flags = json | REGEX_UNICODE;
    for (int i = 0; i < 2 && code == ERR_INVALID; i++, flags = json)
        code = p->whole ? grammar_regex(node, m->b, p->text, p->bytes, flags, &e)
                        : grammar_regex_search(node, m->b, p->text, p->bytes, flags, &e);
    if (code != ERR_OK)
        *m->e = e;
    p->has_node[!m->plain] = code == ERR_OK;
    return *node;
}

static gb_node of_length(struct schema_maker *m, uint32_t least, uint32_t most)
{
    gb_node one;
    if (least == 0 && most == UINT32_MAX)
        return schema_any_text(m);
    if (least > most)
        return GB_NEVER;
    if (grammar_regex(&one, m->b, "[^]", 3, m->plain ? 0 : REGEX_JSON, m->e))
        return GB_NEVER;
    return gb_repeat(m->b, one, least, most);
}

static gb_node of_values(struct schema_maker *m, const struct assertion *a)
{
    struct ids all = {0};
    bool list = !strcmp(a->keyword, "enum");
    for (const cJSON *v = list ? a->json->child : a->json; v; v = list ? v->next : NULL)
        if (cJSON_IsString(v) && !ids_push(m, &all, schema_text(m, v->valuestring)))
            return GB_NEVER;
    return gb_alt(m->b, all.at, all.n);
}

static gb_node of_leaf(struct schema_maker *m, const struct assertion *a)
{
    if (a->kind == A_VALUES)
        return of_values(m, a);
    if (a->kind == A_LENGTH)
        return of_length(m, a->least, a->most);
    return schema_pattern_node(m, a->pattern);
}

/* All parts at once. Bounds of length are put together first. */
static gb_node of_and(struct schema_maker *m, const struct formula *f, const struct formula_node *n,
                      const gb_node *made)
{
    gb_node any = schema_any_text(m), x = any;
    uint32_t least = 0, most = UINT32_MAX;
    for (uint32_t i = 0; i < n->n_list; i++) {
        uint32_t part = f->part.at[n->list + i];
        const struct formula_node *p = &f->node[part];
        const struct assertion *a = p->op == F_LEAF ? &m->assertion[p->leaf] : NULL;
        if (a && a->kind == A_LENGTH) {
            least = a->least > least ? a->least : least;
            most = a->most < most ? a->most : most;
        } else {
            x = x == any ? made[part] : gb_and(m->b, x, made[part]);
        }
    }
    gb_node length = of_length(m, least, most);
    return length == any ? x : x == any ? length : gb_and(m->b, x, length);
}

static gb_node of_one(struct schema_maker *m, const struct formula *f, const struct formula_node *n,
                      const gb_node *made)
{
    struct ids all = {0};
    for (uint32_t i = 0; i < n->n_list; i++) {
        struct ids others = {0};
        for (uint32_t k = 0; k < n->n_list; k++)
            if (k != i && !ids_push(m, &others, made[f->part.at[n->list + k]]))
                return GB_NEVER;
        gb_node one = made[f->part.at[n->list + i]];
        if (!ids_push(m, &all, gb_minus(m->b, one, gb_alt(m->b, others.at, others.n))))
            return GB_NEVER;
    }
    return gb_alt(m->b, all.at, all.n);
}

static gb_node of_or(struct schema_maker *m, const struct formula *f, const struct formula_node *n,
                     const gb_node *made)
{
    struct ids all = {0};
    for (uint32_t k = 0; k < n->n_list; k++)
        if (!ids_push(m, &all, made[f->part.at[n->list + k]]))
            return GB_NEVER;
    return gb_alt(m->b, all.at, all.n);
}

gb_node schema_string(struct schema_maker *m, const struct goal *goal)
{
    struct formula f;
    if (!schema_formula(m, goal, J_STRING, &f))
        return GB_NEVER;
    gb_node *made = schema_alloc(m, f.n * sizeof *made);
    for (uint32_t i = 0; made && i < f.n && schema_ok(m); i++) {
        const struct formula_node *n = &f.node[i];
        switch (n->op) {
        case F_FALSE:
            made[i] = GB_NEVER;
            break;
        case F_TRUE:
            made[i] = schema_any_text(m);
            break;
        case F_LEAF:
            made[i] = of_leaf(m, &m->assertion[n->leaf]);
            break;
        case F_AND:
            made[i] = of_and(m, &f, n, made);
            break;
        case F_OR:
            made[i] = of_or(m, &f, n, made);
            break;
        case F_ONE:
            made[i] = of_one(m, &f, n, made);
            break;
        case F_NOT:
            made[i] = gb_minus(m->b, schema_any_text(m), made[f.part.at[n->list]]);
            break;
        }
    }
    if (!made || !schema_ok(m))
        return GB_NEVER;
    gb_node x = made[f.n - 1];
    return m->plain && x != m->markup->text ? gb_and(m->b, x, m->markup->text) : x;
}
