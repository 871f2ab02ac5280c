/* schema_impl.h - a schema taken apart, between reading it and the language made of it.
 *
 * A *schema* is true, false, or a list of *assertions*, each of one keyword. A *goal* is a set of
 * schemas that a value must satisfy (or, negated, must not); its language is made once and is a
 * rule, so schemas may refer to themselves. Scalars are made of a goal's formula over its
 * assertions; arrays and objects of its *forms*: the ways to satisfy it, each a list of conditions
 * that hold together.
 *
 * Everything lies in the maker's arena and ends with it. The first error stays in m->e and makes
 * all that follows give nothing.
 */
#ifndef GAZE_GRAMMAR_SCHEMA_IMPL_H
#define GAZE_GRAMMAR_SCHEMA_IMPL_H

#include "base/arena.h"
#include "grammar/grammar.h"
#include "grammar/schema.h"

enum json_type { J_NULL, J_BOOL, J_NUMBER, J_STRING, J_ARRAY, J_OBJECT, J_ANY };
#define BIT(type) ((uint8_t)(1u << (type)))

enum kind {
    A_TYPE,     /* types, whole: numbers must be integers */
    A_VALUES,   /* json: an array (enum) or one value (const) */
    A_REF,      /* value */
    A_ALL,      /* list: schemas */
    A_ANY,      /* likewise */
    A_ONE,      /* likewise */
    A_NOT,      /* value */
    A_IF,       /* list: if, then, else */
    A_MIN,      /* bound, exclusive */
    A_MAX,      /* likewise */
    A_MULTIPLE, /* bound */
    A_LENGTH,   /* least, most */
    A_PATTERN,  /* pattern */
    A_COUNT,    /* items: least, most */
    A_UNIQUE,
    A_ITEM,       /* value: of item `least` */
    A_ITEMS,      /* value: of items from `least` on */
    A_CONTAINS,   /* value: of least to most items */
    A_REQUIRED,   /* name */
    A_PROPERTY,   /* name, value */
    A_MATCHING,   /* value: of properties that `pattern` matches */
    A_ADDITIONAL, /* value: of properties not in list (names), matched by none of list2 (patterns)
                   */
    A_NAMES,      /* value: of the properties' names */
    A_MEMBERS,    /* properties: least, most */
    A_NEEDS,      /* where `name` is, the names in list are too */
    A_DEPENDS,    /* where `name` is, the object is of `value` */
    A_BRANCH      /* value: then or else; says nothing more, but where its names stand in order */
};

/* digits * 10^(point - n): 0.digits times 10^point. Without zeros at either end; zero: n == 0. */
struct decimal {
    bool negative;
    const char *digits;
    uint32_t n;
    int32_t point;
};

struct assertion {
    uint8_t kind; /* enum kind */
    uint8_t type; /* the type of values it is about, or J_ANY */
    uint8_t types;
    bool whole, exclusive;
    uint32_t schema; /* whose */
    const char *keyword;
    const cJSON *json;
    uint32_t value, name, pattern;
    uint32_t least, most;
    uint32_t list, n_list, list2, n_list2; /* in m->list */
    struct decimal bound;
};

struct schema {
    const cJSON *json;
    uint32_t parent;       /* schema; of the root: itself */
    const char *step[2];   /* from there: keyword, and name or index or NULL */
    const cJSON *resource; /* the schema with an $id that this one is in, or the root */
    const char *base;      /* its URI */
    uint32_t first, n;     /* assertions */
    bool always, never;    /* true; false */
    uint8_t walk;          /* marks of refuse_circles() */
};

struct pattern {
    const char *text;
    size_t bytes;
    bool whole;      /* matches from beginning to end, as formats do; else it is searched */
    gb_node node[2]; /* as it stands, and as the contents of JSON strings */
    bool has_node[2];
    struct grammar *grammar; /* of its own, to try single texts; NULL: not yet */
    bool never;              /* it matches nothing */
};

struct ids {
    uint32_t *at;
    uint32_t n, max;
};

enum { SCHEMA_MAX_WALK = 400 }; /* schemas on the way to one for the same value */

/* Numbers by bytes. */
struct table {
    uint32_t *slot; /* index + 1 */
    uint32_t n_slots;
};

/* A schema in a goal, or its negation: schema << 1 | negated. Sorted, none twice. */
struct goal {
    const uint32_t *at; /* behind at[-1], which holds `exact` for the table */
    uint32_t n;
    bool exact;    /* each value in one spelling */
    gb_node value; /* its language; a rule while it is to be defined */
    bool has_value;
    int8_t empty; /* 1: no value; -1: there is one, or it is not plain; 0: not asked yet */
};

struct form;
struct schema_maker {
    struct grammar_builder *b;
    struct arena a;
    struct err *e;
    const cJSON *root;
    uint32_t steps; /* left */
    struct schema *schema;
    uint32_t n_schemas, max_schemas;
    struct table by_json;
    struct assertion *assertion;
    uint32_t n_assertions, max_assertions;
    struct ids list;
    const char **name;
    uint32_t n_names, max_names;
    struct table by_name;
    struct pattern *pattern;
    uint32_t n_patterns, max_patterns;
    struct grammar_vocab *no_tokens; /* for grammars that try texts alone */
    struct goal *goal;
    uint32_t n_goals, max_goals;
    struct table by_goal;
    struct ids asked;     /* pairs of goals: the second is in the first's language */
    struct ids to_define; /* goals whose rules are to be defined */
    uint32_t goal_now;    /* whose language is being made */
    uint64_t *formula_of; /* per schema: formula << 32 | node + 1, see schema_formula.c */
    uint32_t formulas;    /* made so far */
    uint32_t *named, *walked, *held; /* per name, schema, schema: marks of schema_order() */
    uint32_t order;
    gb_node any_text;                   /* contents of JSON strings */
    const struct schema_markup *markup; /* of the object that is being made; NULL: JSON */
    bool plain;                         /* strings are made as they stand */
    gb_node number[2], integer[2];      /* exact or not; GB_NEVER: not made yet */
};

/* The error, with keyword and place of a schema. Returns false. */
bool schema_fail(struct schema_maker *m, uint32_t schema, const char *keyword, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
bool schema_no_memory(struct schema_maker *m);
static inline bool schema_ok(const struct schema_maker *m)
{
    return m->e->code == ERR_OK;
}
/* One step of work, or several; false: there was an error, or too much work. */
bool schema_step(struct schema_maker *m);
bool schema_work(struct schema_maker *m, uint32_t steps);

/* schema_pool.c: memory and numbers. All give 0 or NULL when there is no memory. */
void *schema_alloc(struct schema_maker *m, size_t bytes);
void *schema_grow(struct schema_maker *m, void *at, uint32_t n, uint32_t *max, size_t each);
struct assertion *schema_add_assertion(struct schema_maker *m, struct assertion like);
bool ids_push(struct schema_maker *m, struct ids *v, uint32_t x);
/* The number of key in a table whose entry i is get(of, i, &bytes); UINT32_MAX: not there, and then
 * table_add() makes it number n. */
typedef const void *table_get(const void *of, uint32_t i, size_t *bytes);
uint32_t table_find(const struct table *t, table_get *get, const void *of, const void *key,
                    size_t bytes);
bool table_add(struct schema_maker *m, struct table *t, table_get *get, const void *of, uint32_t n,
               const void *key, size_t bytes);
uint32_t schema_name(struct schema_maker *m, const char *name);
uint32_t schema_pattern(struct schema_maker *m, const char *text, size_t bytes, bool whole);

/* schema_read.c: the root becomes schema 0, and all it reaches is read. */
bool schema_read(struct schema_maker *m, const cJSON *root);
uint32_t schema_of(struct schema_maker *m, const cJSON *json, uint32_t parent, const char *step,
                   const char *name);
/* schema_ref.c: where the reference leads. UINT32_MAX: an error. */
uint32_t schema_refer(struct schema_maker *m, uint32_t from, const char *keyword, const char *ref);
void schema_base(struct schema_maker *m, struct schema *s, const cJSON *json);
bool schema_refuse_circles(struct schema_maker *m);
/* schema_unevaluated.c: once all is read. */
bool schema_unevaluated(struct schema_maker *m);

/* schema_format.c: the pattern of a format that is asserted, or NULL. */
const char *schema_format(const char *name);

/* schema_holds.c: whether a value satisfies the schema. */
bool schema_holds(struct schema_maker *m, uint32_t schema, const cJSON *value);
bool schema_goal_holds(struct schema_maker *m, const uint32_t *at, uint32_t n, const cJSON *value);
bool schema_assertion_holds(struct schema_maker *m, uint32_t assertion, const cJSON *value);
bool schema_no_tokens(struct schema_maker *m);
bool schema_matches(struct schema_maker *m, uint32_t pattern, const char *text);

/* schema_number.c */
bool decimal_read(struct schema_maker *m, struct decimal *out, const cJSON *number);
int decimal_compare(const struct decimal *x, const struct decimal *y);
bool decimal_is_whole(const struct decimal *x);
bool decimal_is_multiple(const struct decimal *x, const struct decimal *of);
/* As a text, in the one way that numbers are written where it matters. */
char *decimal_text(struct schema_maker *m, const struct decimal *x);
gb_node schema_number(struct schema_maker *m, const struct goal *goal);

/* schema_formula.c: a goal at a scalar type, as a formula over assertions. */
enum op { F_FALSE, F_TRUE, F_LEAF, F_AND, F_OR, F_ONE, F_NOT };
struct formula_node {
    enum op op;
    uint32_t leaf;         /* assertion */
    uint32_t list, n_list; /* parts: in ->part */
};
struct formula { /* parts before what is made of them; the last node is the whole */
    struct formula_node *node;
    uint32_t n, max;
    struct ids part;
};
bool schema_formula(struct schema_maker *m, const struct goal *goal, enum json_type type,
                    struct formula *out);

/* schema_string.c */
gb_node schema_text(struct schema_maker *m, const char *text); /* content of a string */
gb_node schema_any_text(struct schema_maker *m);
gb_node schema_pattern_node(struct schema_maker *m, uint32_t pattern);
/* The contents, without quotes, of the strings of a goal. */
gb_node schema_string(struct schema_maker *m, const struct goal *goal);

/* schema_goal.c: goal 0 is what no value satisfies. */
uint32_t schema_goal(struct schema_maker *m, const struct ids *literals, bool exact);
/* Puts the literal among sorted ones; *never is set where nothing can satisfy them all. */
bool goal_add(struct schema_maker *m, struct ids *v, uint32_t literal, bool *never);
bool schema_goal_empty(struct schema_maker *m, uint32_t goal, unsigned depth);
/* The names that a goal's schemas name: in their order those that `properties` of schemas that hold
 * in the form (NULL: in any) name, *n_ordered; behind them the others. */
bool schema_order(struct schema_maker *m, const struct goal *goal, const struct form *form,
                  struct ids *out, uint32_t *n_ordered);
/* schema.c: the language of a goal, a rule that is defined later where it may go round. */
gb_node schema_value(struct schema_maker *m, uint32_t goal);
/* Its values but strings, at once. */
gb_node schema_other_than_strings(struct schema_maker *m, uint32_t goal);
/* Its strings as they stand. */
gb_node schema_plain_strings(struct schema_maker *m, uint32_t goal);

/* schema_form.c: the ways to satisfy a goal as an array or an object. What holds in one: */
enum {
    COND_ASSERTION, /* a: assertion */
    COND_HAS,       /* a: name */
    COND_VALUE,     /* a: name, b: schema; where the name is, its value is of it */
    COND_SCHEMA,    /* a: schema that holds, whose conditions are there too */
    COND_EXTRA      /* a: assertion that a member with a name that no schema names violates */
};
struct condition {
    uint8_t kind;
    bool negated;
    uint32_t a, b;
};
struct form {
    struct condition *at;
    uint32_t n;
    bool listed; /* the values are those of a list that satisfy the goal */
};
struct forms {
    struct form *at;
    uint32_t n, max;
    uint32_t enough; /* no more are looked for */
};
bool schema_forms(struct schema_maker *m, uint32_t goal, enum json_type type, unsigned depth,
                  struct forms *out);
/* The literals that the form has for a member of this name. */
bool form_name(struct schema_maker *m, const struct form *form, uint32_t name, struct ids *out,
               bool *never);
/* 1: the form has it; -1: has it not; 0: neither is said. */
int form_has(const struct form *form, uint32_t name);

/* schema_values.c */
char *schema_spell(struct schema_maker *m, const cJSON *value); /* as it is generated */
enum json_type json_type_of(const cJSON *value);
bool json_equal(struct schema_maker *m, const cJSON *a, const cJSON *b);
/* A list of values that the goal allows nothing beside; NULL: none is at hand. */
const struct assertion *schema_listed(struct schema_maker *m, const struct goal *goal);

/* schema_object.c, schema_array.c: one form's language. */
gb_node schema_object(struct schema_maker *m, uint32_t goal, const struct form *form);
gb_node schema_array(struct schema_maker *m, uint32_t goal, const struct form *form);

#endif
