/* schema.c - see schema.h: goals become rules, one after another, until none is left. */
#include "grammar/schema_impl.h"

#include <string.h>

static gb_node text(struct schema_maker *m, const char *s)
{
    return gb_bytes(m->b, s, strlen(s));
}

/* The members of a list that satisfy the whole goal; only those of one type, unless it is J_ANY. */
static gb_node listed(struct schema_maker *m, const struct goal *g, const cJSON *first, bool list,
                      enum json_type type)
{
    struct ids all = {0};
    for (const cJSON *v = first; v && schema_ok(m); v = list ? v->next : NULL) {
        if ((type != J_ANY && json_type_of(v) != type) || !schema_goal_holds(m, g->at, g->n, v))
            continue;
        char *s = schema_spell(m, v);
        if (!s || !ids_push(m, &all, text(m, s)))
            return GB_NEVER;
    }
    return gb_alt(m->b, all.at, all.n);
}

static gb_node of_list(struct schema_maker *m, const struct goal *g, const struct assertion *a,
                       enum json_type type)
{
    bool list = !strcmp(a->keyword, "enum");
    return listed(m, g, list ? a->json->child : a->json, list, type);
}

static gb_node of_form(struct schema_maker *m, uint32_t goal, enum json_type type,
                       const struct form *form)
{
    struct goal g = m->goal[goal];
    if (form->listed)
        for (uint32_t i = 0; i < form->n; i++) {
            const struct condition *c = &form->at[i];
            if (c->kind == COND_ASSERTION && !c->negated && m->assertion[c->a].kind == A_VALUES)
                return of_list(m, &g, &m->assertion[c->a], type);
        }
    return type == J_ARRAY ? schema_array(m, goal, form) : schema_object(m, goal, form);
}

static gb_node of_forms(struct schema_maker *m, uint32_t goal, enum json_type type)
{
    struct forms forms = {.enough = UINT32_MAX};
    struct ids all = {0};
    if (!schema_forms(m, goal, type, 0, &forms))
        return GB_NEVER;
    for (uint32_t i = 0; i < forms.n && schema_ok(m); i++)
        if (!ids_push(m, &all, of_form(m, goal, type, &forms.at[i])))
            return GB_NEVER;
    return gb_alt(m->b, all.at, all.n);
}

static gb_node make(struct schema_maker *m, uint32_t goal)
{
    struct goal g = m->goal[goal];
    const struct assertion *a = schema_listed(m, &g);
    m->goal_now = goal;
    if (a)
        return of_list(m, &g, a, J_ANY);
    static const struct {
        int type;
        const char *text;
    } words[] = {{cJSON_NULL, "null"}, {cJSON_True, "true"}, {cJSON_False, "false"}};
    gb_node part[7], quote = text(m, "\"");
    size_t n = 0;
    for (size_t i = 0; i < 3; i++)
        if (schema_goal_holds(m, g.at, g.n, &(cJSON){.type = words[i].type}))
            part[n++] = text(m, words[i].text);
    part[n++] = schema_number(m, &g);
    part[n++] = gb_seq(m->b, (gb_node[]){quote, schema_string(m, &g), quote}, 3);
    part[n++] = of_forms(m, goal, J_ARRAY);
    part[n++] = of_forms(m, goal, J_OBJECT);
    return gb_alt(m->b, part, n);
}

/* The types that are not ruled out by a mere look. */
static uint8_t types_of(struct schema_maker *m, uint32_t schema, unsigned depth)
{
    struct schema s = m->schema[schema];
    uint8_t types = s.never ? 0 : 0xFF;
    for (uint32_t i = s.first; i < s.first + s.n && depth < 8; i++) {
        const struct assertion *a = &m->assertion[i];
        if (a->kind == A_TYPE)
            types &= a->types;
        else if (a->kind == A_REF)
            types &= types_of(m, a->value, depth + 1);
    }
    return types;
}

/* Which goals a goal's language is made of. */
static bool note(struct schema_maker *m, uint32_t goal)
{
    return ids_push(m, &m->asked, m->goal_now) && ids_push(m, &m->asked, goal);
}

gb_node schema_value(struct schema_maker *m, uint32_t goal)
{
    struct goal *g = &m->goal[goal];
    uint8_t types = 0xFF;
    if (!note(m, goal))
        return GB_NEVER;
    if (goal == 0 || g->has_value)
        return goal ? g->value : GB_NEVER;
    for (uint32_t i = 0; i < g->n; i++)
        if (!(g->at[i] & 1))
            types &= types_of(m, g->at[i] >> 1, 0);
    g->has_value = true;
    if (types & (BIT(J_ARRAY) | BIT(J_OBJECT))) {
        g->value = gb_rule(m->b, "value");
        return ids_push(m, &m->to_define, goal) ? m->goal[goal].value : GB_NEVER;
    }
    uint32_t now = m->goal_now;
    gb_node x = make(m, goal); /* nothing in it can lead back here */
    m->goal_now = now;
    m->goal[goal].value = x;
    return x;
}

static void maker_close(struct schema_maker *m)
{
    for (uint32_t i = 0; i < m->n_patterns; i++)
        if (m->pattern[i].grammar)
            grammar_close(m->pattern[i].grammar);
    grammar_vocab_close(m->no_tokens);
    arena_free(&m->a);
}

static bool run(struct schema_maker *m, const cJSON *schema, gb_node *out)
{
    struct ids all = {0};
    bool never = false;
    arena_init(&m->a, 65536);
    m->e->code = ERR_OK;
    m->steps = SCHEMA_STEPS;
    if (!schema_read(m, schema))
        return false;
    (void)schema_goal(m, &(struct ids){.at = (uint32_t[]){UINT32_MAX}, .n = 1}, true);
    if (schema_ok(m))
        m->goal[0].empty = 1;
    if (!goal_add(m, &all, 0, &never))
        return false;
    *out = never ? GB_NEVER : schema_value(m, schema_goal(m, &all, false));
    for (uint32_t i = 0; i < m->to_define.n && schema_ok(m); i++) { /* it grows on the way */
        uint32_t goal = m->to_define.at[i];
        gb_node x = make(m, goal);
        if (schema_ok(m))
            gb_define(m->b, m->goal[goal].value, x);
    }
    if (schema_ok(m) && never)
        return schema_fail(m, 0, "schema", "no value satisfies false");
    return schema_ok(m);
}

enum err_code grammar_schema(gb_node *out, struct grammar_builder *b, const cJSON *schema,
                             struct err *e)
{
    struct schema_maker m = {.b = b, .e = e};
    gb_node x = GB_NEVER;
    bool made = run(&m, schema, &x);
    maker_close(&m);
    if (made && gb_error(b, e) == ERR_OK)
        *out = x;
    return e->code;
}

/* --- why there is no value ----------------------------------------------------------------------
 */

static bool can_be(struct schema_maker *m, uint32_t goal)
{
    struct grammar *g;
    struct err e;
    if (grammar_compile(&g, m->no_tokens, m->b, m->goal[goal].value, &e) != ERR_OK)
        return e.code != ERR_INVALID || !strstr(e.msg, "no text");
    grammar_close(g);
    return true;
}

/* Follows goals that have no value to one that is made of none. */
static uint32_t culprit(struct schema_maker *m, uint32_t goal)
{
    enum { MAX_TRIED = 40 };
    uint8_t *tried = schema_alloc(m, m->n_goals);
    if (!tried)
        return goal;
    memset(tried, 0, m->n_goals);
    tried[goal] = 1;
    for (uint32_t i = 0, n = 0; i + 1 < m->asked.n && n < MAX_TRIED; i += 2) {
        uint32_t next = m->asked.at[i + 1];
        if (m->asked.at[i] != goal || next == 0 || tried[next])
            continue;
        tried[next] = 1;
        n++;
        if (can_be(m, next))
            continue;
        goal = next;
        i = 0;
    }
    return goal;
}

void grammar_schema_explain(const cJSON *schema, struct err *e)
{
    struct err why = {0};
    struct schema_maker m = {.e = &why};
    gb_node x = GB_NEVER;
    struct grammar_builder *b;
    if (strstr(e->msg, " at #"))
        return;
    if (!strstr(e->msg, "no text")) {
        (void)err_prefix(e, "schema at #");
        return;
    }
    if (gb_open(&b, &why) != ERR_OK)
        return;
    m.b = b;
    if (run(&m, schema, &x) && m.n_goals > 1 && schema_no_tokens(&m)) {
        const struct goal *g = &m.goal[culprit(&m, 1)];
        const struct schema *s = g->n ? &m.schema[g->at[0] >> 1] : m.schema;
        const char *keyword = s->n ? m.assertion[s->first + s->n - 1].keyword : "schema";
        schema_fail(&m, (uint32_t)(s - m.schema), keyword,
                    "no value can satisfy this and what else is demanded here");
    }
    maker_close(&m);
    gb_close(b);
    if (why.code == ERR_INVALID)
        *e = why;
}
