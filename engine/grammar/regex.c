#include "grammar/regex.h"

#include "grammar/regex_tree.h"

#include <stdlib.h>
#include <string.h>

/* Assertions look at what surrounds a place, so a part of a pattern is made together with all that
 * follows it up to the end of the text. What follows is three languages: for the place at the
 * beginning of the text, after a word character, and after another one. A look-ahead is then an
 * intersection with the one that holds; ^ keeps the first of them alone. */
enum { AT_BEGIN, AFTER_WORD, AFTER_OTHER, N_PLACES };
struct rest {
    gb_node at[N_PLACES];
};

enum { MAX_UNROLLED = 32 };

struct maker {
    const struct regex *r;
    struct grammar_builder *b;
    bool json;
    gb_node any;                     /* all texts */
    gb_node word_last, other_last;   /* the texts that end in such a character */
    gb_node word_first, other_first; /* that begin with one; other: or are empty */
    struct charset word, other;
    bool no_begin, no_end; /* ^ or $ cannot hold in the part that is being made */
    struct err *e;
};

static gb_node seq2(struct grammar_builder *b, gb_node x, gb_node y)
{
    return gb_seq(b, (gb_node[]){x, y}, 2);
}

static gb_node alt2(struct grammar_builder *b, gb_node x, gb_node y)
{
    return gb_alt(b, (gb_node[]){x, y}, 2);
}

/* Of a part without assertions. */
static gb_node plain(struct maker *m, uint32_t x)
{
    const struct regex_node *n = &m->r->node[x];
    assert(!n->asserts);
    if (n->kind == RX_EMPTY)
        return GB_EMPTY;
    if (n->kind == RX_SET)
        return charset_node(m->b, &m->r->set[n->set], m->json);
    if (n->kind == RX_REPEAT)
        return gb_repeat(m->b, plain(m, n->kid), n->min, n->max);
    size_t count = 0;
    for (uint32_t k = n->kid; k; k = m->r->node[k].sibling)
        count++;
    gb_node *part = malloc((count + 1) * sizeof *part);
    if (!part) {
        err_set(m->e, ERR_NOMEM, "no memory for a pattern");
        return GB_NEVER;
    }
    count = 0;
    for (uint32_t k = n->kid; k; k = m->r->node[k].sibling)
        part[count++] = plain(m, k);
    gb_node y = n->kind == RX_SEQ ? gb_seq(m->b, part, count) : gb_alt(m->b, part, count);
    free(part);
    return y;
}

/* The languages that tell word characters, when they are first wanted. */
static void word_languages(struct maker *m)
{
    if (m->word.n)
        return;
    regex_word(&m->word);
    regex_word(&m->other);
    charset_normalise(&m->word);
    charset_complement(&m->other);
    gb_node w = charset_node(m->b, &m->word, m->json), o = charset_node(m->b, &m->other, m->json);
    m->word_last = seq2(m->b, m->any, w);
    m->other_last = seq2(m->b, m->any, o);
    m->word_first = seq2(m->b, w, m->any);
    m->other_first = alt2(m->b, GB_EMPTY, seq2(m->b, o, m->any));
}

static bool all_alike(const struct rest *k)
{
    return k->at[0] == k->at[1] && k->at[0] == k->at[2];
}

static struct rest alike(gb_node x)
{
    return (struct rest){{x, x, x}};
}

/* x, a language of whole texts, then k; the place after x depends on x's last character. */
static struct rest before(struct maker *m, gb_node x, bool nullable, const struct rest *k)
{
    if (all_alike(k))
        return alike(seq2(m->b, x, k->at[0]));
    gb_node moved;
    if (k->at[AFTER_WORD] == k->at[AFTER_OTHER]) {
        moved = seq2(m->b, nullable ? gb_minus(m->b, x, GB_EMPTY) : x, k->at[AFTER_WORD]);
    } else {
        word_languages(m);
        moved = alt2(m->b, seq2(m->b, gb_and(m->b, x, m->word_last), k->at[AFTER_WORD]),
                     seq2(m->b, gb_and(m->b, x, m->other_last), k->at[AFTER_OTHER]));
    }
    struct rest out = alike(moved);
    for (int i = 0; nullable && i < N_PLACES; i++)
        out.at[i] = alt2(m->b, moved, k->at[i]);
    return out;
}

static struct rest followed(struct maker *m, uint32_t x, struct rest k); /* x, then k */

static gb_node ends_here(struct maker *m, gb_node k)
{
    if (k == m->any || k == GB_EMPTY)
        return GB_EMPTY;
    return gb_and(m->b, k, GB_EMPTY);
}

static gb_node both(struct maker *m, gb_node x, gb_node y)
{
    return x == m->any ? y : y == m->any ? x : gb_and(m->b, x, y);
}

/* \b (or \B): whether the sides differ in being word characters (or do not). */
static struct rest word_edge(struct maker *m, bool edge, const struct rest *k)
{
    word_languages(m);
    gb_node word = edge ? m->word_first : m->other_first;
    gb_node other = edge ? m->other_first : m->word_first;
    return (struct rest){{both(m, k->at[AT_BEGIN], word), both(m, k->at[AFTER_WORD], other),
                          both(m, k->at[AFTER_OTHER], word)}};
}

static struct rest ahead(struct maker *m, uint32_t x, struct rest k)
{
    struct rest seen = followed(m, m->r->node[x].kid, alike(m->any));
    for (int i = 0; i < N_PLACES; i++)
        k.at[i] = m->r->node[x].kind == RX_AHEAD
                      ? both(m, k.at[i], seen.at[i])
                      : gb_minus_keeping_length(m->b, k.at[i], seen.at[i]);
    return k;
}

/* ((?!x)c)* up to the end of the text: texts of c's without a place, but the last, where x begins.
 * Only one look-ahead in front of one character, and only before the end of the text. */
static bool tempered(struct maker *m, uint32_t x, const struct rest *k, struct rest *out)
{
    const struct regex_node *n = &m->r->node[x];
    uint32_t body = n->kid;
    while (m->r->node[body].kind == RX_SEQ && !m->r->node[m->r->node[body].kid].sibling)
        body = m->r->node[body].kid;
    uint32_t look = m->r->node[body].kind == RX_SEQ ? m->r->node[body].kid : 0;
    uint32_t one = look ? m->r->node[look].sibling : 0;
    if (!one || m->r->node[one].sibling || m->r->node[one].kind != RX_SET || !all_alike(k) ||
        k->at[0] != GB_EMPTY ||
        (m->r->node[look].kind != RX_AHEAD && m->r->node[look].kind != RX_NOT_AHEAD) ||
        m->r->node[m->r->node[look].kid].asserts)
        return false;
    struct rest seen = followed(m, m->r->node[look].kid, alike(m->any));
    gb_node some = gb_minus(m->b, m->any, GB_EMPTY);
    gb_node bad = m->r->node[look].kind == RX_NOT_AHEAD ? gb_and(m->b, some, seen.at[0])
                                                        : gb_minus(m->b, some, seen.at[0]);
    gb_node texts = gb_repeat(m->b, plain(m, one), n->min, n->max);
    *out = alike(gb_minus(m->b, texts, seq2(m->b, m->any, bad)));
    return true;
}

static bool edges_alone(const struct maker *m, uint32_t x)
{
    const struct regex_node *n = &m->r->node[x];
    if (n->kind >= RX_BEGIN && n->kind != RX_BEGIN && n->kind != RX_END)
        return false;
    for (uint32_t k = n->asserts ? n->kid : 0; k; k = m->r->node[k].sibling)
        if (!edges_alone(m, k))
            return false;
    return true;
}

/* x* where x has no assertions but ^ and $. A round that passes a $ is the last one that reads
 * anything, and one that passes a ^ the first: in between are rounds without either. */
static bool rounds(struct maker *m, uint32_t x, const struct rest *k, struct rest *out)
{
    gb_node after = k->at[AFTER_OTHER];
    if (!edges_alone(m, x) || after != k->at[AFTER_WORD])
        return false;
    bool no_begin = m->no_begin, no_end = m->no_end;
    m->no_begin = true;
    gb_node last = followed(m, x, alike(ends_here(m, after))).at[AFTER_OTHER];
    m->no_end = true;
    gb_node between = followed(m, x, alike(GB_EMPTY)).at[AFTER_OTHER];
    m->no_begin = no_begin;
    m->no_end = no_end;
    gb_node star = gb_repeat(m->b, between, 0, GB_UNBOUNDED);
    *out = alike(seq2(m->b, star, alt2(m->b, after, last)));
    struct rest first = *out;
    first.at[AT_BEGIN] = k->at[AT_BEGIN];
    out->at[AT_BEGIN] = alt2(m->b, k->at[AT_BEGIN], followed(m, x, first).at[AT_BEGIN]);
    return true;
}

static struct rest repeat(struct maker *m, uint32_t x, struct rest k)
{
    const struct regex_node *n = &m->r->node[x];
    struct rest out = k;
    uint32_t max = n->max;
    if (max > MAX_UNROLLED) {
        if (tempered(m, x, &k, &out))
            return out;
        if (max != GB_UNBOUNDED || n->min > MAX_UNROLLED || !rounds(m, n->kid, &k, &out)) {
            err_set(m->e, ERR_INVALID,
                    "pattern: an assertion inside a repetition cannot be kept here");
            return k;
        }
        max = n->min;
    }
    for (uint32_t i = max; i > 0; i--) {
        out = followed(m, n->kid, out);
        for (int p = 0; p < N_PLACES && i > n->min; p++)
            out.at[p] = alt2(m->b, out.at[p], k.at[p]);
    }
    return out;
}

/* The parts of a sequence from x on. Neighbours without assertions are made at once. */
static struct rest sequence(struct maker *m, uint32_t x, struct rest k)
{
    if (!x)
        return k;
    const struct regex_node *n = m->r->node;
    if (n[x].asserts)
        return followed(m, x, sequence(m, n[x].sibling, k));
    size_t count = 0;
    uint32_t after = x;
    for (; after && !n[after].asserts; after = n[after].sibling)
        count++;
    struct rest last = sequence(m, after, k);
    gb_node *part = malloc((count + 1) * sizeof *part);
    if (!part) {
        err_set(m->e, ERR_NOMEM, "no memory for a pattern");
        return k;
    }
    bool nullable = true;
    count = 0;
    for (uint32_t y = x; y != after; y = n[y].sibling) {
        part[count++] = plain(m, y);
        nullable &= n[y].nullable;
    }
    gb_node run = gb_seq(m->b, part, count);
    free(part);
    return before(m, run, nullable, &last);
}

static struct rest followed(struct maker *m, uint32_t x, struct rest k)
{
    const struct regex_node *n = &m->r->node[x];
    if (m->e->code != ERR_OK)
        return k;
    if (!n->asserts)
        return before(m, plain(m, x), n->nullable, &k);
    struct rest out = alike(GB_NEVER);
    switch (n->kind) {
    case RX_SEQ:
        return sequence(m, n->kid, k);
    case RX_ALT:
        for (uint32_t y = n->kid; y; y = m->r->node[y].sibling) {
            struct rest one = followed(m, y, k);
            for (int i = 0; i < N_PLACES; i++)
                out.at[i] = alt2(m->b, out.at[i], one.at[i]);
        }
        return out;
    case RX_REPEAT:
        return repeat(m, x, k);
    case RX_BEGIN:
        if (!m->no_begin)
            out.at[AT_BEGIN] = k.at[AT_BEGIN];
        return out;
    case RX_END:
        for (int i = 0; i < N_PLACES && !m->no_end; i++)
            out.at[i] = ends_here(m, k.at[i]);
        return out;
    case RX_WORD_EDGE:
    case RX_NOT_WORD_EDGE:
        return word_edge(m, n->kind == RX_WORD_EDGE, &k);
    case RX_AHEAD:
    case RX_NOT_AHEAD:
        return ahead(m, x, k);
    case RX_EMPTY:
    case RX_SET:
        break;
    }
    return k;
}

static gb_node any_char(struct grammar_builder *b, bool json)
{
    struct char_range all = {0, MAX_CHAR};
    struct charset s = {.range = &all, .n = 1, .max = 1};
    return charset_node(b, &s, json);
}

gb_node grammar_regex_any(struct grammar_builder *b, unsigned flags)
{
    return gb_repeat(b, any_char(b, flags & REGEX_JSON), 0, GB_UNBOUNDED);
}

static enum err_code make(gb_node *out, struct grammar_builder *b, const char *pattern,
                          size_t bytes, unsigned flags, bool search, struct err *e)
{
    struct regex r;
    if (regex_parse(&r, pattern, bytes, flags & REGEX_UNICODE, e) != ERR_OK)
        return e->code;
    struct maker m = {.r = &r, .b = b, .json = flags & REGEX_JSON, .e = e};
    m.any = grammar_regex_any(b, flags);
    gb_node x;
    if (!search) {
        x = followed(&m, r.root, alike(GB_EMPTY)).at[AT_BEGIN];
    } else {
        struct rest found = followed(&m, r.root, alike(m.any));
        struct rest moved =
            before(&m, gb_repeat(b, any_char(b, m.json), 1, GB_UNBOUNDED), false, &found);
        x = all_alike(&found) ? seq2(b, m.any, found.at[0])
                              : alt2(b, found.at[AT_BEGIN], moved.at[AT_BEGIN]);
    }
    charset_free(&m.word);
    charset_free(&m.other);
    regex_free(&r);
    if (e->code == ERR_OK && gb_error(b, e) == ERR_OK)
        *out = x;
    return e->code;
}

enum err_code grammar_regex(gb_node *out, struct grammar_builder *b, const char *pattern,
                            size_t bytes, unsigned flags, struct err *e)
{
    return make(out, b, pattern, bytes, flags, false, e);
}

enum err_code grammar_regex_search(gb_node *out, struct grammar_builder *b, const char *pattern,
                                   size_t bytes, unsigned flags, struct err *e)
{
    return make(out, b, pattern, bytes, flags, true, e);
}
