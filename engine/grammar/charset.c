#define PCRE2_CODE_UNIT_WIDTH 8
#include "grammar/charset.h"

#include "grammar/builder_nodes.h"

#include "base/fault.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void charset_free(struct charset *s)
{
    free(s->range);
    *s = (struct charset){0};
}

void charset_add(struct charset *s, uint32_t lo, uint32_t hi)
{
    if (s->n == s->max) {
        uint32_t max = s->max ? s->max * 2 : 8;
        struct char_range *r = FAULT("grammar.charset") ? NULL : realloc(s->range, max * sizeof *r);
        if (!r) {
            s->failed = true;
            return;
        }
        s->range = r;
        s->max = max;
    }
    s->range[s->n++] = (struct char_range){lo, hi};
}

void charset_add_all(struct charset *s, const struct charset *t)
{
    s->failed |= t->failed;
    for (uint32_t i = 0; i < t->n; i++)
        charset_add(s, t->range[i].lo, t->range[i].hi);
}

static int by_lo(const void *x, const void *y)
{
    const struct char_range *a = x, *b = y;
    return (a->lo > b->lo) - (a->lo < b->lo);
}

void charset_normalise(struct charset *s)
{
    if (s->n > 1)
        qsort(s->range, s->n, sizeof *s->range, by_lo);
    uint32_t k = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        struct char_range r = s->range[i];
        if (k > 0 && r.lo <= s->range[k - 1].hi + 1) {
            if (r.hi > s->range[k - 1].hi)
                s->range[k - 1].hi = r.hi;
        } else {
            s->range[k++] = r;
        }
    }
    s->n = k;
}

void charset_complement(struct charset *s)
{
    struct charset out = {.failed = s->failed};
    uint32_t next = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->range[i].lo > next)
            charset_add(&out, next, s->range[i].lo - 1);
        next = s->range[i].hi + 1;
    }
    if (next <= MAX_CHAR)
        charset_add(&out, next, MAX_CHAR);
    free(s->range);
    *s = out;
}

bool charset_has(const struct charset *s, uint32_t c)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (c >= s->range[i].lo && c <= s->range[i].hi)
            return true;
    return false;
}

void charset_intersect(struct charset *out, const struct charset *s, const struct charset *t)
{
    out->failed |= s->failed || t->failed;
    for (uint32_t i = 0, k = 0; i < s->n && k < t->n;) {
        struct char_range a = s->range[i], b = t->range[k];
        uint32_t lo = a.lo > b.lo ? a.lo : b.lo, hi = a.hi < b.hi ? a.hi : b.hi;
        if (lo <= hi)
            charset_add(out, lo, hi);
        if (a.hi < b.hi)
            i++;
        else
            k++;
    }
}

/* Long names of general categories, which PCRE2 knows by their short ones alone. */
static const char *const category[][2] = {
    {"Cased_Letter", "L&"},
    {"LC", "L&"},
    {"Close_Punctuation", "Pe"},
    {"Connector_Punctuation", "Pc"},
    {"Control", "Cc"},
    {"cntrl", "Cc"},
    {"Currency_Symbol", "Sc"},
    {"Dash_Punctuation", "Pd"},
    {"Decimal_Number", "Nd"},
    {"digit", "Nd"},
    {"Enclosing_Mark", "Me"},
    {"Final_Punctuation", "Pf"},
    {"Format", "Cf"},
    {"Initial_Punctuation", "Pi"},
    {"Letter", "L"},
    {"Letter_Number", "Nl"},
    {"Line_Separator", "Zl"},
    {"Lowercase_Letter", "Ll"},
    {"Mark", "M"},
    {"Combining_Mark", "M"},
    {"Math_Symbol", "Sm"},
    {"Modifier_Letter", "Lm"},
    {"Modifier_Symbol", "Sk"},
    {"Nonspacing_Mark", "Mn"},
    {"Number", "N"},
    {"Open_Punctuation", "Ps"},
    {"Other", "C"},
    {"Other_Letter", "Lo"},
    {"Other_Number", "No"},
    {"Other_Punctuation", "Po"},
    {"Other_Symbol", "So"},
    {"Paragraph_Separator", "Zp"},
    {"Private_Use", "Co"},
    {"Punctuation", "P"},
    {"punct", "P"},
    {"Separator", "Z"},
    {"Space_Separator", "Zs"},
    {"Spacing_Mark", "Mc"},
    {"Surrogate", "Cs"},
    {"Symbol", "S"},
    {"Titlecase_Letter", "Lt"},
    {"Unassigned", "Cn"},
    {"Uppercase_Letter", "Lu"},
};

/* What ECMA-262 writes between \p{ and }, as PCRE2 wants it. false: not a name at all. */
static bool property_pattern(const char *name, size_t n, char *out, size_t out_bytes)
{
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
              c == '_' || c == '='))
            return false;
    }
    const char *prefix = "", *value = name, *equals = memchr(name, '=', n);
    int value_bytes = (int)n;
    if (equals) {
        int key = (int)(equals - name);
        value = equals + 1;
        value_bytes = (int)n - key - 1;
        if ((key == 6 && !strncmp(name, "Script", 6)) || (key == 2 && !strncmp(name, "sc", 2)))
            prefix = "sc:";
        else if ((key == 17 && !strncmp(name, "Script_Extensions", 17)) ||
                 (key == 3 && !strncmp(name, "scx", 3)))
            prefix = "scx:";
        else if (!(key == 16 && !strncmp(name, "General_Category", 16)) &&
                 !(key == 2 && !strncmp(name, "gc", 2)))
            return false;
    }
    for (size_t i = 0; !*prefix && i < sizeof category / sizeof category[0]; i++)
        if (strlen(category[i][0]) == (size_t)value_bytes &&
            !strncmp(category[i][0], value, (size_t)value_bytes)) {
            value = category[i][1];
            value_bytes = (int)strlen(value);
            break;
        }
    return snprintf(out, out_bytes, "\\p{%s%.*s}+", prefix, value_bytes, value) < (int)out_bytes;
}

enum { BLOCK_CHARS = 0x10000, N_BLOCKS = 17, MAX_PROPERTIES = 256, PROPERTY_BYTES = 80 };

static struct {
    pthread_mutex_t lock;
    struct {
        char pattern[PROPERTY_BYTES];
        struct charset set;
    } known[MAX_PROPERTIES];
    uint32_t n;
} properties = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t spell(uint32_t c, char *p)
{
    if (c < 0x80) {
        p[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        p[i] = (char)(0x80 | (c & 0x3F));
    p[0] = (char)(lead[n] | c);
    return n;
}

/* Lets the pattern find its runs in all characters in order, a block at a time. */
static bool probe(const char *pattern, struct charset *out)
{
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_NO_UTF_CHECK, &error, &at, NULL);
    if (!code)
        return false;
    char *text = malloc(BLOCK_CHARS * 4);
    uint32_t *start = malloc((BLOCK_CHARS * 4 + 1) * sizeof *start); /* byte -> character */
    pcre2_match_data *found = pcre2_match_data_create_from_pattern(code, NULL);
    out->failed |= !text || !start || !found;
    for (uint32_t block = 0; block < N_BLOCKS && !out->failed; block++) {
        size_t n = 0;
        for (uint32_t c = block * BLOCK_CHARS; c < (block + 1) * BLOCK_CHARS; c++) {
            if (c >= 0xD800 && c < 0xE000)
                continue;
            start[n] = c;
            n += spell(c, text + n);
        }
        start[n] = (block + 1) * BLOCK_CHARS;
        for (size_t from = 0; from < n;) {
            if (pcre2_match(code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, found, NULL) < 0)
                break;
            const PCRE2_SIZE *v = pcre2_get_ovector_pointer(found);
            uint32_t lo = start[v[0]], end = start[v[1]];
            if (lo < 0xD800 && end > 0xE000) { /* a run over the gap */
                charset_add(out, lo, 0xD7FF);
                lo = 0xE000;
            }
            charset_add(out, lo, lo < 0xD800 && end == 0xE000 ? 0xD7FF : end - 1);
            from = v[1];
        }
    }
    pcre2_match_data_free(found);
    pcre2_code_free(code);
    free(start);
    free(text);
    charset_normalise(out);
    return true;
}

bool charset_add_property(struct charset *s, const char *name, size_t n)
{
    char pattern[PROPERTY_BYTES];
    if (n == 3 && !memcmp(name, "Any", 3)) {
        charset_add(s, 0, MAX_CHAR);
        return true;
    }
    if (n == 5 && !memcmp(name, "ASCII", 5)) {
        charset_add(s, 0, 0x7F);
        return true;
    }
    if (!property_pattern(name, n, pattern, sizeof pattern))
        return false;
    bool ok = false;
    pthread_mutex_lock(&properties.lock);
    for (uint32_t i = 0; i < properties.n && !ok; i++)
        if (!strcmp(properties.known[i].pattern, pattern)) {
            charset_add_all(s, &properties.known[i].set);
            ok = true;
        }
    if (!ok) {
        struct charset found = {0};
        ok = probe(pattern, &found);
        charset_add_all(s, &found);
        if (ok && !found.failed && properties.n < MAX_PROPERTIES) {
            strcpy(properties.known[properties.n].pattern, pattern);
            properties.known[properties.n++].set = found;
        } else {
            charset_free(&found);
        }
    }
    pthread_mutex_unlock(&properties.lock);
    return ok;
}

static gb_node escape_node(struct grammar_builder *b, uint32_t c)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *at = c ? strchr(plain, (int)c) : NULL;
    char text[8];
    if (at)
        return gb_bytes(b, (char[2]){'\\', letter[at - plain]}, 2);
    snprintf(text, sizeof text, "\\u%04x", c);
    return gb_bytes(b, text, 6);
}

gb_node charset_node(struct grammar_builder *b, const struct charset *s, bool json)
{
    gb_node *part = malloc(((size_t)s->n * 3 + 36) * sizeof *part);
    if (!part || s->failed) {
        free(part);
        return gb_fail(b, ERR_NOMEM, "no memory for a set of characters");
    }
    size_t n = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t lo = s->range[i].lo, hi = s->range[i].hi;
        static const uint32_t cut[] = {'"', '\\'};
        while (json && lo < 0x20 && lo <= hi)
            part[n++] = escape_node(b, lo++);
        for (unsigned k = 0; json && k < 2; k++)
            if (lo <= cut[k] && cut[k] <= hi) {
                if (lo < cut[k])
                    part[n++] = gb_code_points(b, lo, cut[k] - 1);
                part[n++] = escape_node(b, cut[k]);
                lo = cut[k] + 1;
            }
        if (lo <= hi)
            part[n++] = gb_code_points(b, lo, hi);
    }
    gb_node x = gb_alt(b, part, n);
    free(part);
    return x;
}
