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

static gb_node others(struct schema_maker *m, uint32_t goal)
{
    static const struct {
        int type;
        const char *text;
    } words[] = {{cJSON_NULL, "null"}, {cJSON_True, "true"}, {cJSON_False, "false"}};
    struct goal g = m->goal[goal];
    gb_node part[6];
    size_t n = 0;
    for (size_t i = 0; i < 3; i++)
        if (schema_goal_holds(m, g.at, g.n, &(cJSON){.type = words[i].type}))
            part[n++] = text(m, words[i].text);
    part[n++] = schema_number(m, &g);
    part[n++] = of_forms(m, goal, J_ARRAY);
    part[n++] = of_forms(m, goal, J_OBJECT);
    return gb_alt(m->b, part, n);
}

static gb_node make(struct schema_maker *m, uint32_t goal)
{
    struct goal g = m->goal[goal];
    const struct assertion *a = schema_listed(m, &g);
    gb_node quote = text(m, "\"");
    m->goal_now = goal;
    if (a)
        return of_list(m, &g, a, J_ANY);
    gb_node strings = gb_seq(m->b, (gb_node[]){quote, schema_string(m, &g), quote}, 3);
    return gb_alt(m->b, (gb_node[]){others(m, goal), strings}, 2);
}

gb_node schema_other_than_strings(struct schema_maker *m, uint32_t goal)
{
    const struct schema_markup *markup = m->markup; /* what is inside is JSON again */
    struct goal g = m->goal[goal];
    const struct assertion *a = schema_listed(m, &g);
    gb_node x = GB_NEVER;
    m->markup = NULL;
    if (!a)
        x = others(m, goal);
    for (enum json_type t = J_NULL; a && t < J_ANY; t++)
        if (t != J_STRING)
            x = gb_alt(m->b, (gb_node[]){x, of_list(m, &g, a, t)}, 2);
    m->markup = markup;
    return x;
}

gb_node schema_plain_strings(struct schema_maker *m, uint32_t goal)
{
    struct goal g = m->goal[goal];
    const struct assertion *a = schema_listed(m, &g);
    struct ids all = {0};
    gb_node x = GB_NEVER;
    m->plain = true;
    bool list = a && !strcmp(a->keyword, "enum");
    if (!a)
        x = schema_string(m, &g);
    for (const cJSON *v = !a     ? NULL
                          : list ? a->json->child
                                 : a->json;
         v && schema_ok(m); v = list ? v->next : NULL)
        if (cJSON_IsString(v) && schema_goal_holds(m, g.at, g.n, v))
            (void)ids_push(m, &all, schema_text(m, v->valuestring));
    if (a && all.n)
        x = gb_and(m->b, gb_alt(m->b, all.at, all.n), m->markup->text);
    m->plain = false;
    return x;
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

enum result { A_VALUE, AN_OBJECT };

static bool run(struct schema_maker *m, const cJSON *schema, enum result result, gb_node *out)
{
    const struct schema_markup *markup = m->markup;
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
    uint32_t root = never ? 0 : schema_goal(m, &all, false);
    const struct assertion *a = never ? NULL : schema_listed(m, &m->goal[root]);
    m->goal_now = root;
    if (result == A_VALUE)
        *out = schema_value(m, root);
    else if (a && markup)
        return schema_fail(m, 0, a->keyword, "listed objects cannot be kept in this markup");
    else if (a)
        *out = of_list(m, &m->goal[root], a, J_OBJECT);
    else
        *out = never ? GB_NEVER : of_forms(m, root, J_OBJECT);
    m->markup = NULL;
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
    bool made = run(&m, schema, A_VALUE, &x);
    maker_close(&m);
    if (made && gb_error(b, e) == ERR_OK)
        *out = x;
    return e->code;
}

enum err_code grammar_schema_object(gb_node *out, struct grammar_builder *b, const cJSON *schema,
                                    const struct schema_markup *markup, struct err *e)
{
    struct schema_maker m = {.b = b, .e = e, .markup = markup};
    gb_node x = GB_NEVER;
    bool made = run(&m, schema, AN_OBJECT, &x);
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
    if (run(&m, schema, A_VALUE, &x) && m.n_goals > 1 && schema_no_tokens(&m)) {
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
