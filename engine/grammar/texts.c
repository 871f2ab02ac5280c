/* texts.c - which parts hold nothing but text, and what any text makes needless.
 *
 * Patterns that are searched for, and look-aheads, begin and end with "any characters". Once such a
 * pattern was found, all that it could still match besides is covered by "any characters, then what
 * follows": those cells are dropped. So the states of (?=.*a)(?=.*b).* and of (?!.*x) are few, and
 * where nothing can come any more, that is seen at once.
 *
 * There are two kinds of text: UTF-8, and the content of JSON strings as charset_node() spells it.
 * A node is a text of a kind if all its strings are whole characters of it. What a cell has left is
 * then text, too, if its next bytes are: in both kinds the end of a character is seen from it.
 */
#include "grammar/automaton.h"

#include <stdlib.h>
#include <string.h>

enum { PLAIN, JSON, N_KINDS };
static const uint8_t text_flag[N_KINDS] = {TEXT_PLAIN, TEXT_JSON};

/* Places inside a character; AT_CHAR: between two. */
enum {
    AT_CHAR,
    LAST,   /* one continuation byte to come */
    LAST_2, /* two */
    LAST_3,
    AFTER_E0,
    AFTER_ED,
    AFTER_F0,
    AFTER_F4,
    AFTER_BACKSLASH,
    CODE_1, /* the digits of \u00xx */
    CODE_2,
    CODE_3,
    CODE_00,
    CODE_01,
    N_PLACES,
    NOWHERE
};

static unsigned within(unsigned byte, unsigned lo, unsigned hi, unsigned to)
{
    return byte >= lo && byte <= hi ? to : NOWHERE;
}

static unsigned begin_char(unsigned kind, unsigned byte)
{
    if (byte < 0x80) {
        if (kind == JSON && byte == '\\')
            return AFTER_BACKSLASH;
        return kind == JSON && (byte < 0x20 || byte == '"') ? NOWHERE : AT_CHAR;
    }
    if (byte < 0xC2 || byte > 0xF4)
        return NOWHERE;
    if (byte < 0xE0)
        return LAST;
    if (byte == 0xE0)
        return AFTER_E0;
    if (byte == 0xED)
        return AFTER_ED;
    if (byte < 0xF0)
        return LAST_2;
    return byte == 0xF0 ? AFTER_F0 : byte == 0xF4 ? AFTER_F4 : LAST_3;
}

static unsigned text_step(unsigned kind, unsigned place, unsigned byte)
{
    bool hex = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f');
    switch (place) {
    case AT_CHAR:
        return begin_char(kind, byte);
    case LAST:
        return within(byte, 0x80, 0xBF, AT_CHAR);
    case LAST_2:
        return within(byte, 0x80, 0xBF, LAST);
    case LAST_3:
        return within(byte, 0x80, 0xBF, LAST_2);
    case AFTER_E0:
        return within(byte, 0xA0, 0xBF, LAST);
    case AFTER_ED:
        return within(byte, 0x80, 0x9F, LAST);
    case AFTER_F0:
        return within(byte, 0x90, 0xBF, LAST_2);
    case AFTER_F4:
        return within(byte, 0x80, 0x8F, LAST_2);
    case AFTER_BACKSLASH:
        return byte == 'u' ? CODE_1 : byte && strchr("\"\\bfnrt", (int)byte) ? AT_CHAR : NOWHERE;
    case CODE_1:
        return byte == '0' ? CODE_2 : NOWHERE;
    case CODE_2:
        return byte == '0' ? CODE_3 : NOWHERE;
    case CODE_3:
        return byte == '0' ? CODE_00 : byte == '1' ? CODE_01 : NOWHERE;
    case CODE_00: /* those that have no letter of their own */
        return hex && !strchr("89acd", (int)byte) ? AT_CHAR : NOWHERE;
    case CODE_01:
        return hex ? AT_CHAR : NOWHERE;
    default:
        return NOWHERE;
    }
}

static uint8_t bytes_flags(const char *p, size_t n)
{
    uint8_t flags = 0;
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        unsigned place = AT_CHAR;
        for (size_t i = 0; i < n && place != NOWHERE; i++)
            place = text_step(kind, place, (unsigned char)p[i]);
        flags |= place == AT_CHAR ? text_flag[kind] : 0;
    }
    return flags;
}

static uint8_t set_flags(const struct byte_set *s)
{
    uint8_t flags = TEXT_PLAIN | TEXT_JSON;
    for (unsigned byte = 0; byte < 256; byte++)
        for (unsigned kind = 0; byte_set_has(s, byte) && kind < N_KINDS; kind++)
            if (begin_char(kind, byte) != AT_CHAR)
                flags &= (uint8_t)~text_flag[kind];
    return flags;
}

/* Whether a lexeme is exactly one character of the kind: all walks through both agree. */
static bool is_any_char(const struct lexeme *x, unsigned kind)
{
    bool met[MAX_LEXEME_STATES][N_PLACES] = {{false}};
    uint8_t stack[MAX_LEXEME_STATES * N_PLACES][2] = {{LEXEME_START, AT_CHAR}};
    unsigned n = 1;
    met[LEXEME_START][AT_CHAR] = true;
    while (n > 0) {
        unsigned s = stack[--n][0], place = stack[n][1];
        for (unsigned byte = 0; byte < 256; byte++) {
            unsigned to = x->to[s][byte], next = text_step(kind, place, byte);
            if ((to == LEXEME_DEAD) != (next == NOWHERE) ||
                (to == LEXEME_DONE) != (next == AT_CHAR))
                return false;
            if (to <= LEXEME_DONE || met[to][next])
                continue;
            met[to][next] = true;
            stack[n][0] = (uint8_t)to;
            stack[n++][1] = (uint8_t)next;
        }
    }
    return true;
}

enum { MAX_MET = 64 };

/* Whether all strings of a short node are text of the kind; no memory and too large: no. */
static bool is_text(struct grammar *g, gb_node x, unsigned kind)
{
    uint32_t state[MAX_MET] = {automaton_start(g, x)};
    uint8_t place[MAX_MET] = {AT_CHAR};
    unsigned n = 1;
    for (unsigned i = 0; i < n; i++)
        for (unsigned byte = 0; byte < 256; byte++) {
            uint32_t to = automaton_step(g, state[i], byte);
            unsigned next = text_step(kind, place[i], byte), k = 0;
            if (!to)
                continue;
            if (next == NOWHERE || (g->state[to].may_end && next != AT_CHAR))
                return false;
            while (k < n && (state[k] != to || place[k] != next))
                k++;
            if (k == MAX_MET)
                return false;
            state[k] = to;
            place[k] = (uint8_t)next;
            n += k == n;
        }
    return !g->failed;
}

void texts_learn(struct grammar *g, gb_node x, unsigned longest)
{
    enum { BOTH = TEXT_PLAIN | TEXT_JSON, SHORT = 6 };
    const struct gb_node_data *d = &g->node[x];
    uint8_t flags = BOTH;
    switch ((enum gb_kind)d->kind) {
    case NODE_NEVER:
    case NODE_EMPTY:
        break;
    case NODE_BYTES:
        flags = bytes_flags(g->text + d->a, d->b);
        break;
    case NODE_SET:
        flags = set_flags(&g->set[d->a]);
        break;
    case NODE_SEQ:
    case NODE_ALT:
        for (uint32_t i = 0; i < d->b; i++)
            flags &= g->known[g->part[d->a + i]];
        break;
    case NODE_REPEAT:
    case NODE_MINUS:
        flags &= g->known[d->a];
        break;
    case NODE_AND:
        flags &= g->known[d->a] | g->known[d->b];
        break;
    case NODE_RULE:
    case NODE_UNIQUE:
    case NODE_ITEM:
        flags = 0;
        break;
    }
    bool list = d->kind == NODE_SEQ || d->kind == NODE_ALT;
    if (!flags && list && longest <= SHORT && g->known[x] & PRODUCTIVE)
        for (unsigned kind = 0; kind < N_KINDS; kind++)
            flags |= is_text(g, x, kind) ? text_flag[kind] : 0;
    if (d->kind == NODE_REPEAT && g->lexeme[x])
        for (unsigned kind = 0; kind < N_KINDS; kind++)
            if (flags & text_flag[kind] && is_any_char(g->lexeme[x], kind))
                flags |= d->c == GB_UNBOUNDED ? ANY_TEXT | ANY_CHARS : ANY_CHARS;
    g->known[x] |= flags;
}

enum { MAX_LOOKS = 24 };

/* What a cell's own bytes can still be. */
static uint8_t head_flags(const struct grammar *g, const struct cell *c)
{
    const struct gb_node_data *d = &g->node[c->expr];
    if (d->kind == NODE_BYTES)
        return bytes_flags(g->text + d->a + c->b, d->b - c->b);
    if (g->lexeme[c->expr] && c->a != LEXEME_START)
        return 0;
    if (d->kind == NODE_AND || d->kind == NODE_MINUS)
        return 0; /* it may be inside a character */
    return g->known[c->expr];
}

/* Whether `at` is what comes at `end`, or one of it. */
static bool is_one_of(const struct grammar *g, uint32_t at, uint32_t end)
{
    for (; is_join(g, end); end = g->cell[end].next)
        if (at == end || at == g->cell[end].a)
            return true;
    return at == end;
}

/* Whether there is nothing but text of this flag from `at` to `end`, on every way. */
static bool text_up_to(const struct grammar *g, uint32_t at, uint32_t end, uint8_t flag,
                       unsigned *looks)
{
    while (!is_one_of(g, at, end)) {
        if (!at || ++*looks > MAX_LOOKS)
            return false;
        if (is_join(g, at) ? !text_up_to(g, g->cell[at].a, end, flag, looks)
                           : !(g->known[g->cell[at].expr] & flag))
            return false;
        at = g->cell[at].next;
    }
    return true;
}

/* Whether all that cell `at` can still match up to cell `end` is text of this flag. */
static bool covered(const struct grammar *g, uint32_t at, uint32_t end, uint8_t flag)
{
    unsigned looks = 0;
    return !(g->info[at].flags & IN_MARK) && head_flags(g, &g->cell[at]) & flag &&
           text_up_to(g, g->cell[at].next, end, flag, &looks);
}

uint32_t texts_absorb(struct grammar *g, uint32_t n)
{
    uint32_t *cells = n ? g->list.at + g->list.n - n : NULL;
    for (uint32_t i = 0; n > 1 && i < n; i++) {
        uint32_t any = cells[i], kept = 0, min, max;
        struct cell c = g->cell[any];
        if (!(g->known[c.expr] & ANY_TEXT) || c.a != LEXEME_START || (g->info[any].flags & IN_MARK))
            continue;
        automaton_limits(g, c.expr, &min, &max);
        if (c.b != FAR && c.b < min)
            continue;
        uint8_t flag = g->known[c.expr] & (TEXT_PLAIN | TEXT_JSON);
        uint32_t at = 0;
        for (uint32_t k = 0; k < n; k++) {
            if (k == i)
                at = kept;
            if (k == i || !covered(g, cells[k], c.next, flag))
                cells[kept++] = cells[k];
        }
        g->list.n -= n - kept;
        n = kept;
        i = at;
    }
    return n;
}
