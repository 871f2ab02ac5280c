#include "grammar/ebnf.h"

#include "base/fault.h"
#include "base/hash.h"
#include "grammar/builder_nodes.h"
#include "grammar/charset.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NESTING = 200, MAX_COUNT = 1 << 24, MAX_NAME = 200 };

struct rule {
    char *name;
    gb_node node;
    bool defined;
};

struct parser {
    struct grammar_builder *b;
    const char *begin, *p, *end;
    struct rule *rule;
    uint32_t n_rules, max_rules;
    uint32_t *table; /* name -> rule + 1; a power of two above 2 * n_rules */
    uint32_t n_table;
    gb_node *part; /* a stack: of the sequences and alternatives that are open */
    uint32_t n_parts, max_parts;
    int depth;
    struct err *e;
};

static bool wrong(struct parser *s, const char *what)
{
    unsigned line = 1;
    for (const char *q = s->begin; q < s->p; q++)
        line += *q == '\n';
    if (s->e->code == ERR_OK)
        err_set(s->e, ERR_INVALID, "grammar: line %u: %s", line, what);
    return false;
}

static bool no_memory(struct parser *s)
{
    err_set(s->e, ERR_NOMEM, "no memory for a grammar");
    return false;
}

static void skip_space(struct parser *s)
{
    for (; s->p < s->end; s->p++) {
        if (*s->p == '#')
            while (s->p < s->end && *s->p != '\n' && *s->p != '\r')
                s->p++;
        if (s->p == s->end || !strchr(" \t\r\n", *s->p) || !*s->p)
            return;
    }
}

static bool take(struct parser *s, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, text, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

static size_t name_bytes(const struct parser *s)
{
    size_t n = 0;
    while (s->p + n < s->end &&
           (name_char(s->p[n]) ||
            (s->p[n] == '.' && n > 0 && s->p + n + 1 < s->end && name_char(s->p[n + 1]))))
        n++;
    return n;
}

/* Whether a rule's head stands here. */
static bool at_head(struct parser *s)
{
    const char *back = s->p;
    size_t n = name_bytes(s);
    s->p += n;
    skip_space(s);
    bool head = n > 0 && take(s, "::=");
    s->p = back;
    return head;
}

static bool push(struct parser *s, gb_node x)
{
    if (s->n_parts == s->max_parts) {
        uint32_t max = s->max_parts ? s->max_parts * 2 : 64;
        gb_node *p = FAULT("grammar.ebnf") ? NULL : realloc(s->part, max * sizeof *p);
        if (!p)
            return no_memory(s);
        s->part = p;
        s->max_parts = max;
    }
    s->part[s->n_parts++] = x;
    return true;
}

static bool table_grow(struct parser *s)
{
    uint32_t n = s->n_table ? s->n_table * 2 : 64;
    uint32_t *t = FAULT("grammar.ebnf") ? NULL : calloc(n, sizeof *t);
    if (!t)
        return no_memory(s);
    for (uint32_t i = 0; i < s->n_rules; i++) {
        const char *name = s->rule[i].name;
        uint32_t at = (uint32_t)hash_bytes(0, name, strlen(name)) & (n - 1);
        while (t[at])
            at = (at + 1) & (n - 1);
        t[at] = i + 1;
    }
    free(s->table);
    s->table = t;
    s->n_table = n;
    return true;
}

/* The rule of this name, made when it is met first. NULL: no memory, or the name is too long. */
static struct rule *rule_of(struct parser *s, const char *name, size_t bytes)
{
    if (bytes > MAX_NAME) {
        wrong(s, "a name of more than 200 characters");
        return NULL;
    }
    if (s->n_rules * 2 >= s->n_table && !table_grow(s))
        return NULL;
    uint32_t at = (uint32_t)hash_bytes(0, name, bytes) & (s->n_table - 1);
    for (; s->table[at]; at = (at + 1) & (s->n_table - 1)) {
        struct rule *r = &s->rule[s->table[at] - 1];
        if (strlen(r->name) == bytes && memcmp(r->name, name, bytes) == 0)
            return r;
    }
    if (s->n_rules == s->max_rules) {
        uint32_t max = s->max_rules ? s->max_rules * 2 : 32;
        struct rule *r = realloc(s->rule, max * sizeof *r);
        if (!r) {
            no_memory(s);
            return NULL;
        }
        s->rule = r;
        s->max_rules = max;
    }
    char *copy = FAULT("grammar.ebnf") ? NULL : strndup(name, bytes);
    if (!copy) {
        no_memory(s);
        return NULL;
    }
    s->rule[s->n_rules] = (struct rule){.name = copy, .node = gb_rule(s->b, copy)};
    s->table[at] = s->n_rules + 1;
    return &s->rule[s->n_rules++];
}

static bool hex(struct parser *s, unsigned n, uint32_t *out)
{
    uint32_t x = 0;
    for (unsigned i = 0; i < n; i++, s->p++) {
        char c = s->p < s->end ? *s->p : ' ';
        if (c >= '0' && c <= '9')
            x = x << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            x = x << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else
            return wrong(s, "a wrong hexadecimal escape");
    }
    if (x > MAX_CHAR || (x >= 0xD800 && x < 0xE000))
        return wrong(s, "an escape that is no character");
    *out = x;
    return true;
}

static bool escape(struct parser *s, uint32_t *out)
{
    static const char from[] = "nrtbfv0", to[] = "\n\r\t\b\f\v";
    if (s->p == s->end)
        return wrong(s, "a backslash at the end");
    char c = *s->p++;
    if (c == 'x')
        return hex(s, 2, out);
    if (c == 'U')
        return hex(s, 8, out);
    if (c == 'u' && s->p < s->end && *s->p == '{') {
        const char *close = memchr(s->p, '}', (size_t)(s->end - s->p));
        if (!close || close - s->p < 2 || close - s->p > 9)
            return wrong(s, "a wrong \\u{...}");
        s->p++;
        return hex(s, (unsigned)(close - s->p), out) && take(s, "}");
    }
    if (c == 'u')
        return hex(s, 4, out);
    const char *at = c ? strchr(from, c) : NULL;
    if (at)
        *out = (unsigned char)to[at - from];
    else if (c && strchr("\"'\\[]-^/?", c))
        *out = (unsigned char)c;
    else
        return wrong(s, "an unknown escape");
    return true;
}

/* One character of a literal or a class. */
static bool character(struct parser *s, uint32_t *out)
{
    unsigned char c = (unsigned char)*s->p++;
    if (c == '\\')
        return escape(s, out);
    *out = c;
    if (c < 0x80)
        return true;
    unsigned n = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
    uint32_t x = c & (0x3Fu >> n);
    bool ok = c >= 0xC2 && c <= 0xF4;
    for (; ok && n > 0; n--) {
        ok = s->p < s->end && ((unsigned char)*s->p & 0xC0) == 0x80;
        if (ok)
            x = x << 6 | ((unsigned char)*s->p++ & 0x3Fu);
    }
    *out = x;
    return (ok && x <= MAX_CHAR) || wrong(s, "not UTF-8");
}

/* After the opening quote. */
static bool literal(struct parser *s, gb_node *out)
{
    uint32_t from = s->n_parts;
    while (s->p < s->end && *s->p != '"') {
        uint32_t c;
        if (*s->p == '\n')
            return wrong(s, "a text without its closing quote");
        if (!character(s, &c) || !push(s, gb_code_points(s->b, c, c)))
            return false;
    }
    if (!take(s, "\""))
        return wrong(s, "a text without its closing quote");
    *out = s->n_parts > from ? gb_seq(s->b, s->part + from, s->n_parts - from) : GB_EMPTY;
    s->n_parts = from;
    return true;
}

/* After [. */
static bool class(struct parser *s, gb_node *out)
{
    struct charset set = {0};
    bool inverted = take(s, "^"), ok = true;
    while (ok && s->p < s->end && *s->p != ']') {
        uint32_t lo, hi;
        ok = character(s, &lo);
        hi = lo;
        if (ok && s->end - s->p > 1 && *s->p == '-' && s->p[1] != ']') {
            s->p++;
            ok = character(s, &hi);
        }
        if (ok && lo > hi)
            ok = wrong(s, "a range that runs backwards");
        if (ok)
            charset_add(&set, lo, hi);
    }
    if (ok && !take(s, "]"))
        ok = wrong(s, "a class without its ]");
    if (ok) {
        charset_normalise(&set);
        if (inverted)
            charset_complement(&set);
        *out = charset_node(s->b, &set, false);
    }
    charset_free(&set);
    return ok;
}

static bool alternatives(struct parser *s, gb_node *out);

static bool element(struct parser *s, gb_node *out)
{
    if (take(s, "\""))
        return literal(s, out);
    if (take(s, "["))
        return class(s, out);
    if (take(s, ".")) {
        *out = gb_code_points(s->b, 0, MAX_CHAR);
        return true;
    }
    if (take(s, "(")) {
        if (s->p < s->end && *s->p == '=')
            return wrong(s, "a look-ahead (= cannot be kept");
        if (++s->depth > MAX_NESTING)
            return wrong(s, "groups nested too deep");
        if (!alternatives(s, out))
            return false;
        s->depth--;
        return take(s, ")") || wrong(s, "a group without its )");
    }
    size_t n = name_bytes(s);
    if (n == 0)
        return wrong(s, "a sign that is not known here");
    const char *name = s->p;
    s->p += n;
    struct rule *r = rule_of(s, name, n);
    if (!r)
        return false;
    *out = r->node;
    return true;
}

static bool number(struct parser *s, uint32_t *out)
{
    uint32_t x = 0;
    skip_space(s);
    const char *from = s->p;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if ((x = x * 10 + (uint32_t)(*s->p - '0')) > MAX_COUNT)
            return wrong(s, "a count above 16777216");
    bool any = s->p > from;
    skip_space(s);
    if (any)
        *out = x;
    return any;
}

/* Any number of * + ? {} behind an element. */
static bool counted(struct parser *s, gb_node *x)
{
    for (;;) {
        skip_space(s);
        uint32_t min = 0, max = GB_UNBOUNDED;
        if (take(s, "+")) {
            min = 1;
        } else if (take(s, "?")) {
            max = 1;
        } else if (take(s, "{")) {
            bool low = number(s, &min);
            if (take(s, ",")) {
                if (!number(s, &max) && !low)
                    return wrong(s, "a count without numbers");
            } else if (low) {
                max = min;
            } else {
                return wrong(s, "a count without numbers");
            }
            if (s->e->code != ERR_OK)
                return false;
            if (!take(s, "}") || min > max)
                return wrong(s, "a wrong count");
        } else if (!take(s, "*")) {
            return true;
        }
        *x = gb_repeat(s->b, *x, min, max);
    }
}

static bool sequence(struct parser *s, gb_node *out)
{
    uint32_t from = s->n_parts;
    for (skip_space(s); s->p < s->end && *s->p != '|' && *s->p != ')' && !at_head(s);
         skip_space(s)) {
        gb_node x;
        if (!element(s, &x) || !counted(s, &x) || !push(s, x))
            return false;
    }
    *out = s->n_parts > from ? gb_seq(s->b, s->part + from, s->n_parts - from) : GB_EMPTY;
    s->n_parts = from;
    return true;
}

static bool alternatives(struct parser *s, gb_node *out)
{
    uint32_t from = s->n_parts;
    do {
        gb_node x;
        if (!sequence(s, &x) || !push(s, x))
            return false;
        skip_space(s);
    } while (take(s, "|"));
    *out = gb_alt(s->b, s->part + from, s->n_parts - from);
    s->n_parts = from;
    return true;
}

static bool rules(struct parser *s)
{
    for (skip_space(s); s->p < s->end; skip_space(s)) {
        if (!at_head(s))
            return wrong(s, "expected a rule: name ::= ...");
        const char *name = s->p;
        size_t n = name_bytes(s);
        s->p += n;
        skip_space(s);
        take(s, "::=");
        struct rule *r = rule_of(s, name, n);
        if (!r)
            return false;
        if (r->defined)
            return wrong(s, "a rule that was defined before");
        r->defined = true;
        gb_node node = r->node, body; /* the rules may move while the body is read */
        if (!alternatives(s, &body))
            return false;
        gb_define(s->b, node, body);
    }
    return true;
}

enum err_code grammar_ebnf(gb_node *out, struct grammar_builder *b, const char *text, size_t bytes,
                           struct err *e)
{
    struct parser s = {.b = b, .begin = text, .p = text, .end = text + bytes, .e = e};
    e->code = ERR_OK;
    if (rules(&s)) {
        struct rule *root = rule_of(&s, "root", 4);
        if (root && !root->defined)
            err_set(e, ERR_INVALID, "grammar: there is no rule called root");
        else if (root && gb_error(b, e) == ERR_OK)
            *out = root->node;
    }
    for (uint32_t i = 0; i < s.n_rules; i++)
        free(s.rule[i].name);
    free(s.rule);
    free(s.table);
    free(s.part);
    return e->code;
}

gb_node grammar_choice(struct grammar_builder *b, const char *const *choice, const size_t *bytes,
                       size_t n)
{
    gb_node *part = malloc((n + 1) * sizeof *part);
    if (!part)
        return gb_fail(b, ERR_NOMEM, "no memory for a choice");
    for (size_t i = 0; i < n; i++)
        part[i] = gb_bytes(b, choice[i], bytes[i]);
    gb_node x = gb_alt(b, part, n);
    free(part);
    return x;
}
