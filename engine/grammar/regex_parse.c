#include "grammar/regex_tree.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_GROUPS = 200, MAX_COUNT = 1 << 24 };

struct parser {
    struct regex *r;
    const char *begin, *p, *end;
    bool unicode;
    int depth;
    struct err *e;
};

static uint32_t wrong(struct parser *s, const char *what)
{
    if (s->e->code == ERR_OK)
        err_set(s->e, ERR_INVALID, "pattern: %s at byte %zu", what, (size_t)(s->p - s->begin));
    return 0;
}

static uint32_t no_memory(struct parser *s)
{
    err_set(s->e, ERR_NOMEM, "no memory for a pattern");
    return 0;
}

static uint32_t node(struct parser *s, enum regex_kind kind)
{
    struct regex *r = s->r;
    if (r->n_nodes + 1 >= r->max_nodes) {
        uint32_t max = r->max_nodes ? r->max_nodes * 2 : 64;
        struct regex_node *n = FAULT("grammar.regex") ? NULL : realloc(r->node, max * sizeof *n);
        if (!n)
            return no_memory(s);
        r->node = n;
        r->max_nodes = max;
        if (r->n_nodes == 0)
            r->n_nodes = 1;
    }
    r->node[r->n_nodes] =
        (struct regex_node){.kind = kind, .asserts = kind >= RX_BEGIN, .nullable = kind != RX_SET};
    return r->n_nodes++;
}

/* Takes the set. */
static uint32_t set_node(struct parser *s, struct charset *set)
{
    struct regex *r = s->r;
    charset_normalise(set);
    if (r->n_sets == r->max_sets && !set->failed) {
        uint32_t max = r->max_sets ? r->max_sets * 2 : 16;
        struct charset *t = FAULT("grammar.regex") ? NULL : realloc(r->set, max * sizeof *t);
        set->failed |= !t;
        if (t) {
            r->set = t;
            r->max_sets = max;
        }
    }
    uint32_t x = set->failed ? no_memory(s) : node(s, RX_SET);
    if (!x) {
        charset_free(set);
        return 0;
    }
    r->set[r->n_sets] = *set;
    r->node[x].set = r->n_sets++;
    return x;
}

static uint32_t char_node(struct parser *s, uint32_t c)
{
    struct charset set = {0};
    charset_add(&set, c, c);
    return set_node(s, &set);
}

static bool at(const struct parser *s, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(s->end - s->p) >= n && memcmp(s->p, text, n) == 0;
}

static bool take(struct parser *s, const char *text)
{
    if (!at(s, text))
        return false;
    s->p += strlen(text);
    return true;
}

/* The next character of the pattern, which is UTF-8. */
static uint32_t character(struct parser *s)
{
    unsigned char c = (unsigned char)*s->p++;
    if (c < 0x80)
        return c;
    if (c == 0xC0 && s->p < s->end && *s->p == (char)0x80) { /* JSON_NUL */
        s->p++;
        return 0;
    }
    unsigned n = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
    uint32_t x = c & (0x3Fu >> n);
    if (c < 0xC2 || c > 0xF4)
        return wrong(s, "not UTF-8");
    for (; n > 0; n--) {
        if (s->p == s->end || ((unsigned char)*s->p & 0xC0) != 0x80)
            return wrong(s, "not UTF-8");
        x = x << 6 | ((unsigned char)*s->p++ & 0x3Fu);
    }
    return x > MAX_CHAR ? wrong(s, "not UTF-8") : x;
}

void regex_word(struct charset *s)
{
    charset_add(s, '0', '9');
    charset_add(s, 'A', 'Z');
    charset_add(s, '_', '_');
    charset_add(s, 'a', 'z');
}

static void space(struct charset *s)
{
    static const uint32_t r[][2] = {
        {9, 13},          {0x20, 0x20},     {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
        {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    for (size_t i = 0; i < sizeof r / sizeof r[0]; i++)
        charset_add(s, r[i][0], r[i][1]);
}

/* After a backslash: \d \D \s \S \w \W \p{} \P{}. Adds to set; false: it is none of them. */
static bool class_escape(struct parser *s, struct charset *set)
{
    struct charset c = {0};
    char letter = *s->p;
    switch (letter) {
    case 'd':
    case 'D':
        charset_add(&c, '0', '9');
        break;
    case 's':
    case 'S':
        space(&c);
        break;
    case 'w':
    case 'W':
        regex_word(&c);
        break;
    case 'p':
    case 'P':
        if (!s->unicode)
            return false;
        s->p++;
        const char *name = s->p + 1;
        const char *close =
            s->p < s->end && *s->p == '{' ? memchr(name, '}', (size_t)(s->end - name)) : NULL;
        if (!close || !charset_add_property(&c, name, (size_t)(close - name))) {
            charset_free(&c);
            wrong(s, "an unknown Unicode property");
            return true;
        }
        s->p = close;
        break;
    default:
        return false;
    }
    s->p++;
    charset_normalise(&c);
    if (letter == 'D' || letter == 'S' || letter == 'W' || letter == 'P')
        charset_complement(&c);
    charset_add_all(set, &c);
    charset_free(&c);
    return true;
}

static bool hex(struct parser *s, unsigned n, uint32_t *out)
{
    uint32_t x = 0;
    if ((size_t)(s->end - s->p) < n)
        return false;
    for (unsigned i = 0; i < n; i++) {
        char c = s->p[i];
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
                                            : 16;
        if (d == 16)
            return false;
        x = x << 4 | d;
    }
    s->p += n;
    *out = x;
    return true;
}

/* After \u. */
static uint32_t unicode_escape(struct parser *s)
{
    uint32_t c, low;
    if (s->unicode && take(s, "{")) {
        c = 0;
        const char *from = s->p;
        uint32_t digit;
        while (c <= MAX_CHAR && hex(s, 1, &digit))
            c = c << 4 | digit;
        if (s->p == from || c > MAX_CHAR || !take(s, "}"))
            return wrong(s, "a wrong \\u{...}");
        return c;
    }
    if (!hex(s, 4, &c))
        return s->unicode ? wrong(s, "a wrong \\u") : 'u';
    if (c >= 0xD800 && c < 0xDC00 && at(s, "\\u")) {
        const char *back = s->p;
        s->p += 2;
        if (hex(s, 4, &low) && low >= 0xDC00 && low < 0xE000)
            return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        s->p = back;
    }
    return c;
}

/* After a backslash: one character. */
static uint32_t char_escape(struct parser *s, bool in_class)
{
    uint32_t c;
    char letter = *s->p;
    switch (letter) {
    case 'f':
    case 'n':
    case 'r':
    case 't':
    case 'v':
        s->p++;
        return letter == 'f'   ? '\f'
               : letter == 'n' ? '\n'
               : letter == 'r' ? '\r'
               : letter == 't' ? '\t'
                               : '\v';
    case 'b':
        if (in_class) {
            s->p++;
            return '\b';
        }
        break;
    case 'c':
        if (s->end - s->p > 1 && ((s->p[1] | 32) >= 'a' && (s->p[1] | 32) <= 'z')) {
            s->p += 2;
            return (uint32_t)s->p[-1] & 31;
        }
        return s->unicode ? wrong(s, "a wrong \\c") : '\\'; /* the c stands for itself */
    case 'x':
        s->p++;
        if (hex(s, 2, &c))
            return c;
        return s->unicode ? wrong(s, "a wrong \\x") : 'x';
    case 'u':
        s->p++;
        return unicode_escape(s);
    case '0':
        if (s->end - s->p < 2 || s->p[1] < '0' || s->p[1] > '9') {
            s->p++;
            return 0;
        }
        return wrong(s, "an octal escape");
    case 'k':
        if (s->unicode || memchr(s->begin, '<', (size_t)(s->end - s->begin)))
            return wrong(s, "a back reference cannot be kept");
        break;
    default:
        break;
    }
    if (letter >= '1' && letter <= '9')
        return wrong(s, "a back reference cannot be kept");
    if (s->unicode && !strchr("^$\\.*+?()[]{}|/", letter) && !(in_class && letter == '-'))
        return wrong(s, "a needless escape under the u flag");
    return character(s);
}

/* One member of a class: a character (true) or a set that was added (false). */
static bool class_atom(struct parser *s, struct charset *set, uint32_t *c)
{
    if (*s->p != '\\') {
        *c = character(s);
        return true;
    }
    if (++s->p == s->end) {
        wrong(s, "a backslash at the end");
        return false;
    }
    if (class_escape(s, set))
        return false;
    *c = char_escape(s, true);
    return true;
}

/* After [. */
static uint32_t class_node(struct parser *s)
{
    struct charset set = {0};
    bool inverted = take(s, "^");
    while (s->e->code == ERR_OK && s->p < s->end && *s->p != ']') {
        uint32_t lo = 0, hi = 0;
        bool one = class_atom(s, &set, &lo);
        if (s->e->code != ERR_OK)
            break;
        if (s->end - s->p < 2 || *s->p != '-' || s->p[1] == ']') {
            if (one)
                charset_add(&set, lo, lo);
            continue;
        }
        s->p++;
        bool two = class_atom(s, &set, &hi);
        if (s->e->code != ERR_OK)
            break;
        if (one && two && lo <= hi) {
            charset_add(&set, lo, hi);
        } else if (one && two) {
            wrong(s, "a range that runs backwards");
        } else if (s->unicode) {
            wrong(s, "a range with a class at one end");
        } else { /* without the u flag the three stand for themselves */
            charset_add(&set, '-', '-');
            if (one)
                charset_add(&set, lo, lo);
            if (two)
                charset_add(&set, hi, hi);
        }
    }
    if (s->e->code == ERR_OK && !take(s, "]"))
        wrong(s, "a class without its ]");
    if (s->e->code != ERR_OK) {
        charset_free(&set);
        return 0;
    }
    charset_normalise(&set);
    if (inverted)
        charset_complement(&set);
    return set_node(s, &set);
}

static uint32_t alternatives(struct parser *s);

/* After (. */
static uint32_t group(struct parser *s)
{
    enum regex_kind kind = RX_SEQ;
    if (take(s, "?=")) {
        kind = RX_AHEAD;
    } else if (take(s, "?!")) {
        kind = RX_NOT_AHEAD;
    } else if (at(s, "?<=") || at(s, "?<!")) {
        return wrong(s, "look-behind (?<= (?<! cannot be kept");
    } else if (take(s, "?<")) {
        const char *close = memchr(s->p, '>', (size_t)(s->end - s->p));
        if (!close || close == s->p)
            return wrong(s, "a group's name without its >");
        s->p = close + 1;
    } else if (at(s, "?") && !take(s, "?:")) {
        return wrong(s, "a group that is not known");
    }
    if (++s->depth > MAX_GROUPS)
        return wrong(s, "groups nested too deep");
    uint32_t inner = alternatives(s);
    s->depth--;
    if (!inner)
        return 0;
    if (!take(s, ")"))
        return wrong(s, "a group without its )");
    if (kind == RX_SEQ)
        return inner;
    uint32_t x = node(s, kind);
    if (x)
        s->r->node[x].kid = inner;
    return x;
}

static uint32_t dot(struct parser *s)
{
    struct charset set = {0};
    charset_add(&set, '\n', '\n');
    charset_add(&set, '\r', '\r');
    charset_add(&set, 0x2028, 0x2029);
    charset_complement(&set);
    return set_node(s, &set);
}

/* Digits; more than MAX_COUNT: an error. */
static bool number(struct parser *s, uint32_t *out)
{
    const char *from = s->p;
    uint32_t x = 0;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if ((x = x * 10 + (uint32_t)(*s->p - '0')) > MAX_COUNT) {
            wrong(s, "a count above 16777216");
            return false;
        }
    *out = x;
    return s->p > from;
}

/* {n} {n,} {n,m}: false and nothing taken when it is none. */
static bool braces(struct parser *s, uint32_t *min, uint32_t *max)
{
    const char *back = s->p;
    s->p++;
    bool ok = number(s, min);
    *max = *min;
    if (ok && take(s, ",") && !number(s, max))
        *max = GB_UNBOUNDED;
    if (ok && s->e->code == ERR_OK && take(s, "}"))
        return true;
    s->p = back;
    return false;
}

static uint32_t atom(struct parser *s)
{
    if (take(s, "("))
        return group(s);
    if (take(s, "["))
        return class_node(s);
    if (take(s, "."))
        return dot(s);
    if (take(s, "^"))
        return node(s, RX_BEGIN);
    if (take(s, "$"))
        return node(s, RX_END);
    char c = *s->p;
    uint32_t min, max;
    if (c == '*' || c == '+' || c == '?')
        return wrong(s, "nothing to repeat");
    if (c == '{' && (s->unicode || braces(s, &min, &max)))
        return wrong(s, "nothing to repeat");
    if (s->unicode && (c == '}' || c == ']'))
        return wrong(s, "a stray bracket");
    if (c != '\\')
        return char_node(s, character(s));
    if (++s->p == s->end)
        return wrong(s, "a backslash at the end");
    if (take(s, "b"))
        return node(s, RX_WORD_EDGE);
    if (take(s, "B"))
        return node(s, RX_NOT_WORD_EDGE);
    struct charset set = {0};
    if (class_escape(s, &set)) {
        if (s->e->code == ERR_OK)
            return set_node(s, &set);
        charset_free(&set);
        return 0;
    }
    return char_node(s, char_escape(s, false));
}

static uint32_t repeated(struct parser *s)
{
    uint32_t x = atom(s), min, max;
    if (!x || s->e->code != ERR_OK || s->p == s->end)
        return x;
    if (take(s, "*")) {
        min = 0;
        max = GB_UNBOUNDED;
    } else if (take(s, "+")) {
        min = 1;
        max = GB_UNBOUNDED;
    } else if (take(s, "?")) {
        min = 0;
        max = 1;
    } else if (*s->p != '{' || !braces(s, &min, &max)) {
        if (*s->p == '{' && s->unicode)
            return wrong(s, "a wrong count");
        return x;
    }
    if (min > max)
        return wrong(s, "a count whose limits are the wrong way round");
    if (s->r->node[x].kind >= RX_BEGIN)
        return wrong(s, "an assertion cannot be repeated");
    take(s, "?"); /* lazy: another search order, the same language */
    uint32_t y = node(s, RX_REPEAT);
    if (!y)
        return 0;
    struct regex_node *n = &s->r->node[y];
    n->kid = x;
    n->min = min;
    n->max = max;
    n->asserts = s->r->node[x].asserts;
    n->nullable = min == 0 || s->r->node[x].nullable;
    return y;
}

static uint32_t sequence(struct parser *s)
{
    uint32_t first = 0, last = 0, count = 0;
    bool asserts = false, nullable = true;
    while (s->p < s->end && *s->p != '|' && *s->p != ')') {
        uint32_t x = repeated(s);
        if (s->e->code != ERR_OK)
            return 0;
        if (last) { /* a group's node may be in a list already: never, each is made once */
            s->r->node[last].sibling = x;
        } else {
            first = x;
        }
        last = x;
        count++;
        asserts |= s->r->node[x].asserts;
        nullable &= s->r->node[x].nullable;
    }
    uint32_t y = node(s, count ? RX_SEQ : RX_EMPTY);
    if (!y)
        return 0;
    s->r->node[y].kid = first;
    s->r->node[y].asserts = asserts;
    s->r->node[y].nullable = nullable;
    return y;
}

static uint32_t alternatives(struct parser *s)
{
    uint32_t first = sequence(s), last = first;
    if (s->e->code != ERR_OK || !at(s, "|"))
        return first;
    bool asserts = s->r->node[first].asserts, nullable = s->r->node[first].nullable;
    while (take(s, "|")) {
        uint32_t x = sequence(s);
        if (s->e->code != ERR_OK)
            return 0;
        s->r->node[last].sibling = x;
        last = x;
        asserts |= s->r->node[x].asserts;
        nullable |= s->r->node[x].nullable;
    }
    uint32_t y = node(s, RX_ALT);
    if (!y)
        return 0;
    s->r->node[y].kid = first;
    s->r->node[y].asserts = asserts;
    s->r->node[y].nullable = nullable;
    return y;
}

enum err_code regex_parse(struct regex *out, const char *pattern, size_t bytes, bool unicode,
                          struct err *e)
{
    *out = (struct regex){0};
    e->code = ERR_OK;
    struct parser s = {.r = out,
                       .begin = pattern,
                       .p = pattern,
                       .end = pattern + bytes,
                       .unicode = unicode,
                       .e = e};
    out->root = alternatives(&s);
    if (e->code == ERR_OK && s.p < s.end)
        wrong(&s, "a ) too many");
    if (e->code != ERR_OK)
        regex_free(out);
    return e->code;
}

void regex_free(struct regex *r)
{
    for (uint32_t i = 0; i < r->n_sets; i++)
        charset_free(&r->set[i]);
    free(r->set);
    free(r->node);
    *r = (struct regex){0};
}
