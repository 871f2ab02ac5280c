/* schema_number.c - decimal numbers, and the texts of those that satisfy a goal.
 *
 * A number is read from its first digit on. Each bound is a comparison that is known at the end,
 * each multiple a remainder; a state of all of them and the digits read so far is a node, made once
 * per goal. The digits are bounded, so the graph has no circles and stays regular.
 */
#include "grammar/regex.h"
#include "grammar/schema_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool decimal_read(struct schema_maker *m, struct decimal *out, const cJSON *number)
{
    char text[40];
    const char *s = number->valuestring;
    if (!s) {
        snprintf(text, sizeof text, "%.17g", number->valuedouble);
        for (int digits = 1; digits < 17; digits++) { /* the shortest that reads back */
            char shorter[40];
            snprintf(shorter, sizeof shorter, "%.*g", digits, number->valuedouble);
            if (strtod(shorter, NULL) == number->valuedouble) {
                memcpy(text, shorter, sizeof text);
                break;
            }
        }
        s = text;
    }
    size_t n = strlen(s);
    char *digits = schema_alloc(m, n + 1);
    if (!digits)
        return false;
    *out = (struct decimal){.negative = *s == '-', .digits = digits};
    bool point = false;
    for (s += *s == '-'; *s && *s != 'e' && *s != 'E'; s++) {
        if (*s == '.') {
            point = true;
            continue;
        }
        if (out->n || *s != '0') {
            digits[out->n++] = *s;
            out->point += !point;
        } else if (point) {
            out->point--;
        }
    }
    if (*s)
        out->point += (int32_t)fmin(fmax(strtod(s + 1, NULL), -100000), 100000);
    while (out->n && digits[out->n - 1] == '0')
        out->n--;
    if (!out->n)
        *out = (struct decimal){.digits = digits};
    return true;
}

static int compare_size(const struct decimal *x, const struct decimal *y)
{
    if (!x->n || !y->n)
        return (x->n > 0) - (y->n > 0);
    if (x->point != y->point)
        return x->point > y->point ? 1 : -1;
    uint32_t n = x->n < y->n ? x->n : y->n;
    int c = memcmp(x->digits, y->digits, n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

int decimal_compare(const struct decimal *x, const struct decimal *y)
{
    if (x->negative != y->negative)
        return x->negative ? -1 : 1;
    return x->negative ? compare_size(y, x) : compare_size(x, y);
}

bool decimal_is_whole(const struct decimal *x)
{
    return x->point >= (int32_t)x->n;
}

/* The number of which x is so many 10^exponent; false: too large. */
static bool as_integer(const struct decimal *x, uint64_t *out, int32_t *exponent)
{
    *out = 0;
    *exponent = x->point - (int32_t)x->n;
    for (uint32_t i = 0; i < x->n; i++) {
        if (*out > (UINT64_MAX - 9) / 10)
            return false;
        *out = *out * 10 + (uint64_t)(x->digits[i] - '0');
    }
    return true;
}

bool decimal_is_multiple(const struct decimal *x, const struct decimal *of)
{
    uint64_t divisor;
    int32_t exponent;
    if (!x->n)
        return true;
    if (!as_integer(of, &divisor, &exponent))
        return compare_size(x, of) == 0;
    int32_t down = x->point - (int32_t)x->n - exponent; /* x = digits * 10^down of the unit */
    unsigned __int128 rest = 0;
    for (uint32_t i = 0; i < x->n; i++)
        rest = (rest * 10 + (unsigned)(x->digits[i] - '0')) % divisor;
    if (down < 0) { /* digits must be a multiple of divisor * 10^-down; they end in no zero */
        return false;
    }
    for (int32_t i = 0; i < down && rest; i++)
        rest = rest * 10 % divisor;
    return rest == 0;
}

char *decimal_text(struct schema_maker *m, const struct decimal *x)
{
    enum { MOST_ZEROS = 21 };
    int32_t n = (int32_t)x->n, point = x->point;
    char *out = schema_alloc(m, x->n + 2 * MOST_ZEROS + 16), *to = out;
    if (!out)
        return NULL;
    if (x->negative)
        *to++ = '-';
    if (point > n + MOST_ZEROS || point < -MOST_ZEROS) { /* d.ddde+xx */
        *to++ = x->digits[0];
        if (n > 1) {
            *to++ = '.';
            memcpy(to, x->digits + 1, x->n - 1);
            to += n - 1;
        }
        sprintf(to, "e%d", (int)point - 1);
        return out;
    }
    if (point <= 0)
        *to++ = '0';
    for (int32_t i = 0; i < point; i++)
        *to++ = i < n ? x->digits[i] : '0';
    if (point < n)
        *to++ = '.';
    for (int32_t i = point; i < n; i++)
        *to++ = i < 0 ? '0' : x->digits[i];
    *to = '\0';
    return out;
}

/* --- the automaton ------------------------------------------------------------------------------
 */

/* STATE_STEPS: of schema_step(), for a state with its ten digits, some 8 us; with the largest
 * divisor all states of one multiple take 0.1 s. */
enum { MAX_WHOLE = 19, MORE_WHOLE = 24, MAX_DECIMALS = 17, MAX_DIVISOR = 640, STATE_STEPS = 160 };

/* A constant that a number is compared with. */
struct comparison {
    struct decimal with;
    int32_t whole; /* digits before its point */
};

/* A number must be a multiple of divisor * 10^zeros, or of divisor / 10^decimals. */
struct division {
    uint32_t divisor, zeros, decimals;
};

/* What a leaf of the formula says: the comparisons or the division it looks at. */
struct leaf {
    uint32_t first, n; /* comparisons; of a division: its index */
    bool demanded;     /* by the formula as a whole */
};

struct numbers {
    struct schema_maker *m;
    struct formula f;
    struct leaf *leaf; /* per node of the formula */
    uint8_t *value;    /* likewise: scratch */
    struct comparison *compare;
    uint32_t n_compare, max_compare;
    struct division *division;
    uint32_t n_divisions, max_divisions;
    bool exact, whole; /* whole: no number has decimals */
    uint32_t max_whole;
    size_t key_bytes;
    struct table by_key;
    struct node_of_key {
        const uint8_t *key;
        gb_node node;
    } * made;
    uint32_t n_made, max_made;
};

enum phase { AT_WHOLE, AT_POINT, AT_DECIMALS };
/* A state's bytes: negative, phase, whole digits, decimals, whether a digit but 0 was read, whether
 * the last one was 0; per comparison 0 below, 1 equal, 2 above so far; per division the remainder
 * (2 bytes), zeros at the end, and whether a decimal made it impossible. */
enum { S_NEGATIVE, S_PHASE, S_WHOLE, S_DECIMALS, S_SOME, S_ZERO_LAST, S_HEAD };

static uint8_t *division_at(const struct numbers *x, uint8_t *s, uint32_t i)
{
    return s + S_HEAD + x->n_compare + 4 * (size_t)i;
}

static int sign_of(int x)
{
    return (x > 0) - (x < 0);
}

/* Whole digits of the constant; 0.5 has one, as 0.5 as a text has. */
static int32_t whole_of(const struct comparison *c)
{
    return c->whole > 0 ? c->whole : 1;
}

/* Below, equal or above: of the number's size to the constant's, at the end. */
static int compared(const struct numbers *x, const uint8_t *s, uint32_t i)
{
    const struct comparison *c = &x->compare[i];
    bool zero = !s[S_SOME], negative = s[S_NEGATIVE] && !zero;
    if (!c->with.n)
        return zero ? 0 : negative ? -1 : 1;
    if (negative != c->with.negative || zero)
        return zero ? (c->with.negative ? 1 : -1) : negative ? -1 : 1;
    int size = (int)s[S_HEAD + i] - 1;
    if (s[S_PHASE] == AT_WHOLE && s[S_WHOLE] != whole_of(c))
        size = sign_of(s[S_WHOLE] - whole_of(c));
    if (size == 0) {
        int32_t read = whole_of(c) + s[S_DECIMALS];
        int32_t digits = (c->whole > 0 ? 0 : 1 - c->whole) + (int32_t)c->with.n;
        if (read < digits)
            size = -1;
    }
    return negative ? -size : size;
}

/* Behind the last whole digit a comparison is decided by their number, or goes on digit by digit:
 * how many there were is no longer of interest. */
static void end_whole(const struct numbers *x, uint8_t *s)
{
    for (uint32_t i = 0; i < x->n_compare; i++) {
        int size = sign_of(s[S_WHOLE] - whole_of(&x->compare[i]));
        if (size)
            s[S_HEAD + i] = (uint8_t)(1 + size);
    }
    s[S_WHOLE] = 1;
    s[S_PHASE] = AT_POINT;
}

static uint64_t power10(uint32_t n)
{
    uint64_t p = 1;
    while (n--)
        p *= 10;
    return p;
}

static bool divides(const struct numbers *x, const uint8_t *s, uint32_t i)
{
    const struct division *d = &x->division[i];
    const uint8_t *at = division_at(x, (uint8_t *)s, i);
    uint32_t rest = (uint32_t)at[0] << 8 | at[1];
    if (!s[S_SOME])
        return true;
    if (at[3] || at[2] < d->zeros)
        return false;
    uint32_t missing = d->decimals > s[S_DECIMALS] ? d->decimals - s[S_DECIMALS] : 0;
    return rest * power10(missing) % d->divisor == 0;
}

static bool leaf_holds(const struct numbers *x, const uint8_t *s, uint32_t node)
{
    const struct assertion *a = &x->m->assertion[x->f.node[node].leaf];
    const struct leaf *l = &x->leaf[node];
    int c = l->n ? compared(x, s, l->first) : 0;
    bool holds = false;
    switch ((enum kind)a->kind) {
    case A_MIN:
        return c >= 0;
    case A_MAX:
        return c <= 0;
    case A_VALUES:
        for (uint32_t i = 0; i < l->n && !holds; i++)
            holds = compared(x, s, l->first + i) == 0;
        return holds;
    default: /* A_MULTIPLE, or A_TYPE for whole numbers */
        return divides(x, s, l->first);
    }
}

static bool formula_holds(struct numbers *x, const uint8_t *s)
{
    for (uint32_t i = 0; i < x->f.n; i++) {
        const struct formula_node *n = &x->f.node[i];
        uint32_t count = 0;
        for (uint32_t k = 0; k < n->n_list; k++)
            count += x->value[x->f.part.at[n->list + k]];
        x->value[i] = n->op == F_LEAF  ? leaf_holds(x, s, i)
                      : n->op == F_AND ? count == n->n_list
                      : n->op == F_OR  ? count > 0
                      : n->op == F_ONE ? count == 1
                      : n->op == F_NOT ? count == 0
                                       : n->op == F_TRUE;
    }
    return x->value[x->f.n - 1];
}

/* The constant's digit at a place, counted from its first whole digit (0 where it has none). */
static char digit_at(const struct comparison *c, int32_t place)
{
    int32_t lead = c->whole > 0 ? 0 : 1 - c->whole; /* zeros before its first digit */
    int32_t i = place - lead;
    return i >= 0 && i < (int32_t)c->with.n ? c->with.digits[i] : '0';
}

static void read_digit(const struct numbers *x, uint8_t *s, unsigned digit)
{
    for (uint32_t i = 0; i < x->n_compare; i++) {
        const struct comparison *c = &x->compare[i];
        bool whole = s[S_PHASE] == AT_WHOLE;
        int32_t at = whole ? s[S_WHOLE] : whole_of(c) + s[S_DECIMALS];
        if (whole && at >= whole_of(c)) /* it is longer */
            s[S_HEAD + i] = 2;
        else if (s[S_HEAD + i] == 1)
            s[S_HEAD + i] = (uint8_t)(1 + sign_of((int)digit - (digit_at(c, at) - '0')));
    }
    for (uint32_t i = 0; i < x->n_divisions; i++) {
        const struct division *d = &x->division[i];
        uint8_t *r = division_at(x, s, i);
        uint32_t rest = (uint32_t)r[0] << 8 | r[1];
        if (s[S_PHASE] == AT_DECIMALS && s[S_DECIMALS] >= d->decimals) {
            r[3] |= digit != 0;
            continue;
        }
        if (digit == 0 && r[2] < d->zeros) {
            r[2]++;
            continue;
        }
        for (unsigned k = digit ? r[2] : 0; k > 0; k--)
            rest = rest * 10 % d->divisor;
        rest = (rest * 10 + digit) % d->divisor;
        if (digit)
            r[2] = 0;
        r[0] = (uint8_t)(rest >> 8);
        r[1] = (uint8_t)rest;
    }
    s[S_PHASE] == AT_WHOLE ? s[S_WHOLE]++ : s[S_DECIMALS]++;
    s[S_SOME] |= digit != 0;
    s[S_ZERO_LAST] = digit == 0;
}

/* Forgets what no later question tells apart, so that states meet: behind the last decimal that a
 * divisor reaches only whether the remainder is nothing, the last digit where none may be 0 at the
 * end, the sign where nothing is compared. */
static void shorten(const struct numbers *x, uint8_t *s)
{
    for (uint32_t i = 0; i < x->n_divisions && s[S_PHASE] == AT_DECIMALS; i++) {
        uint8_t *r = division_at(x, s, i);
        if (s[S_DECIMALS] < x->division[i].decimals)
            continue;
        r[3] |= !divides(x, s, i);
        r[0] = r[1] = 0;
        r[2] = (uint8_t)x->division[i].zeros;
    }
    if (!x->exact || s[S_PHASE] != AT_DECIMALS)
        s[S_ZERO_LAST] = 0;
    if (!x->n_compare && s[S_SOME])
        s[S_NEGATIVE] = 0;
}

static const void *get_made(const void *of, uint32_t i, size_t *bytes)
{
    const struct numbers *x = of;
    *bytes = x->key_bytes;
    return x->made[i].key;
}

static gb_node number_from(struct numbers *x, const uint8_t *s);

/* Digits that lead to the same place go together. */
static uint32_t digit_parts(struct numbers *x, const uint8_t *s, unsigned from, gb_node *part)
{
    gb_node next[10];
    uint32_t n = 0;
    uint8_t *to = schema_alloc(x->m, x->key_bytes);
    for (unsigned d = from; d < 10 && to; d++) {
        memcpy(to, s, x->key_bytes);
        read_digit(x, to, d);
        shorten(x, to);
        next[d] = number_from(x, to);
    }
    for (unsigned d = from; d < 10 && to && schema_ok(x->m); d++) {
        uint64_t set[4] = {0};
        bool first = next[d] != GB_NEVER;
        for (unsigned k = from; k < d; k++)
            first &= next[k] != next[d];
        for (unsigned k = d; k < 10; k++)
            if (next[k] == next[d])
                set[0] |= (uint64_t)1 << ('0' + k);
        if (first)
            part[n++] = gb_seq(x->m->b, (gb_node[]){gb_byte_set(x->m->b, set), next[d]}, 2);
    }
    return n;
}

/* Whether all numbers of this part of the formula are whole. */
static bool is_whole(const struct numbers *x, uint32_t node)
{
    const struct formula_node *n = &x->f.node[node];
    const struct assertion *a = &x->m->assertion[n->leaf];
    uint32_t count = 0;
    if (n->op == F_LEAF)
        return a->kind == A_TYPE || (a->kind == A_MULTIPLE && decimal_is_whole(&a->bound));
    for (uint32_t k = 0; k < n->n_list && n->op != F_NOT; k++)
        count += is_whole(x, x->f.part.at[n->list + k]);
    return n->op == F_FALSE || (count > 0 && (n->op == F_AND || count == n->n_list));
}

/* Below or above the constant whatever follows; 0: open. */
static int decided(const struct numbers *x, const uint8_t *s, uint32_t i)
{
    const struct comparison *c = &x->compare[i];
    bool negative = s[S_NEGATIVE];
    int size = (int)s[S_HEAD + i] - 1;
    if (!s[S_SOME])
        return 0; /* it may still be 0 */
    if (!c->with.n || negative != c->with.negative)
        return negative ? -1 : 1;
    if (s[S_PHASE] == AT_WHOLE)
        size = s[S_WHOLE] > whole_of(c);
    return negative ? -size : size;
}

/* Whether something that the whole formula demands is out of reach. */
static bool is_hopeless(const struct numbers *x, const uint8_t *s)
{
    for (uint32_t k = 0; k < x->f.n; k++) {
        const struct leaf *l = &x->leaf[k];
        if (!l->demanded)
            continue;
        enum kind kind = (enum kind)x->m->assertion[x->f.node[k].leaf].kind;
        if ((kind == A_MIN && decided(x, s, l->first) < 0) ||
            (kind == A_MAX && decided(x, s, l->first) > 0) ||
            ((kind == A_TYPE || kind == A_MULTIPLE) && division_at(x, (uint8_t *)s, l->first)[3]))
            return true;
    }
    return false;
}

static gb_node number_from(struct numbers *x, const uint8_t *s)
{
    struct grammar_builder *b = x->m->b;
    gb_node part[24];
    uint32_t n = 0, known;
    if (!schema_step(x->m) || is_hopeless(x, s))
        return GB_NEVER;
    known = table_find(&x->by_key, get_made, x, s, x->key_bytes);
    if (known != UINT32_MAX)
        return x->made[known].node;
    if (!schema_work(x->m, STATE_STEPS))
        return GB_NEVER;
    uint8_t *t = schema_alloc(x->m, 2 * x->key_bytes), *kept = t ? t + x->key_bytes : NULL;
    if (!t)
        return GB_NEVER;
    memcpy(kept, s, x->key_bytes);
    bool leading_zero = s[S_PHASE] == AT_WHOLE && s[S_WHOLE] == 1 && !s[S_SOME];
    bool ends = s[S_PHASE] != AT_POINT && s[S_WHOLE] > 0 && !(s[S_NEGATIVE] && !s[S_SOME]);
    if (x->exact && s[S_PHASE] == AT_DECIMALS)
        ends &= !s[S_ZERO_LAST];
    if (ends && formula_holds(x, s))
        part[n++] = GB_EMPTY;
    if (s[S_PHASE] == AT_WHOLE) {
        if (s[S_WHOLE] < x->max_whole && !leading_zero)
            n += digit_parts(x, s, 0, part + n);
        if (s[S_WHOLE] > 0 && !x->whole) {
            memcpy(t, s, x->key_bytes);
            end_whole(x, t);
            gb_node rest = number_from(x, t);
            if (rest != GB_NEVER)
                part[n++] = gb_seq(b, (gb_node[]){gb_bytes(b, ".", 1), rest}, 2);
        }
    } else if (s[S_DECIMALS] < MAX_DECIMALS) {
        memcpy(t, s, x->key_bytes);
        t[S_PHASE] = AT_DECIMALS;
        n += digit_parts(x, t, 0, part + n);
    }
    gb_node node = gb_alt(b, part, n);
    struct node_of_key *made = schema_grow(x->m, x->made, x->n_made, &x->max_made, sizeof *made);
    if (!made)
        return GB_NEVER;
    x->made = made;
    if (!table_add(x->m, &x->by_key, get_made, x, x->n_made, kept, x->key_bytes))
        return GB_NEVER;
    made[x->n_made++] = (struct node_of_key){kept, node};
    return node;
}

static gb_node fixed(struct schema_maker *m, gb_node *kept, const char *pattern)
{
    if (*kept == GB_NEVER && grammar_regex(kept, m->b, pattern, strlen(pattern), 0, m->e))
        return GB_NEVER;
    return *kept;
}

/* Whatever number, or whole number. */
static gb_node any_number(struct schema_maker *m, bool whole, bool exact)
{
    static const char ints[] = "0|-?[1-9]\\d{0,18}",
                      reals[] = "(?:(?:0|-?[1-9]\\d{0,18})(?:\\.\\d{1,17})?|-0\\.0{0,16}[1-9]"
                                "\\d{0,16})(?:[eE][+-]?\\d{1,2})?",
                      exact_reals[] = "(?:0|-?[1-9]\\d{0,18})(?:\\.\\d{0,16}[1-9])?|"
                                      "-0\\.\\d{0,16}[1-9]";
    if (whole)
        return fixed(m, &m->integer[0], ints);
    return fixed(m, &m->number[exact], exact ? exact_reals : reals);
}

static bool add_comparison(struct numbers *x, const struct decimal *with)
{
    struct comparison *at =
        schema_grow(x->m, x->compare, x->n_compare, &x->max_compare, sizeof *at);
    if (!at)
        return false;
    x->compare = at;
    at[x->n_compare++] = (struct comparison){.with = *with, .whole = with->point};
    if (with->point > (int32_t)x->max_whole)
        x->max_whole = with->point < MORE_WHOLE ? (uint32_t)with->point : MORE_WHOLE;
    return true;
}

/* An exclusive bound, as the nearest number beyond it that a reader in double precision can tell
 * from it: 0.99999999999999999 is 1 to such a reader. */
static bool beyond(struct schema_maker *m, const struct decimal *bound, bool up,
                   struct decimal *out)
{
    char *text = decimal_text(m, bound);
    if (!text)
        return false;
    cJSON number = {.type = cJSON_Number};
    number.valuedouble = nextafter(strtod(text, NULL), up ? INFINITY : -INFINITY);
    return decimal_read(m, out, &number);
}

static bool add_division(struct numbers *x, const struct assertion *a, uint32_t *index)
{
    uint64_t divisor = 1;
    int32_t exponent = 0;
    struct division d = {.divisor = 1};
    bool fits = a->kind == A_TYPE || as_integer(&a->bound, &divisor, &exponent);
    if (exponent < 0)
        d.decimals = (uint32_t)-exponent;
    else
        d.zeros = (uint32_t)exponent;
    if (!fits || divisor > MAX_DIVISOR || d.decimals > MAX_DECIMALS || d.zeros > MAX_WHOLE)
        return schema_fail(x->m, a->schema, a->keyword,
                           "a multiple with more than about %d remainders cannot be kept",
                           MAX_DIVISOR);
    d.divisor = (uint32_t)divisor;
    struct division *at =
        schema_grow(x->m, x->division, x->n_divisions, &x->max_divisions, sizeof *at);
    if (!at)
        return false;
    x->division = at;
    at[x->n_divisions] = d;
    *index = x->n_divisions++;
    return true;
}

static bool add_leaf(struct numbers *x, uint32_t node)
{
    struct schema_maker *m = x->m;
    const struct assertion *a = &m->assertion[x->f.node[node].leaf];
    struct leaf *l = &x->leaf[node];
    struct decimal d = a->bound;
    if (a->kind == A_TYPE || a->kind == A_MULTIPLE)
        return add_division(x, a, &l->first);
    l->first = x->n_compare;
    if (a->kind == A_VALUES) {
        const cJSON *v =
            cJSON_IsArray(a->json) && !strcmp(a->keyword, "enum") ? a->json->child : a->json;
        for (; v; v = v == a->json ? NULL : v->next)
            if (cJSON_IsNumber(v) && (!decimal_read(m, &d, v) || !add_comparison(x, &d)))
                return false;
    } else if ((a->exclusive && !beyond(m, &a->bound, a->kind == A_MIN, &d)) ||
               !add_comparison(x, &d)) {
        return false;
    }
    l->n = x->n_compare - l->first;
    return true;
}

gb_node schema_number(struct schema_maker *m, const struct goal *goal)
{
    struct numbers x = {.m = m, .exact = goal->exact, .max_whole = MAX_WHOLE};
    if (!schema_formula(m, goal, J_NUMBER, &x.f))
        return GB_NEVER;
    const struct formula_node *last = &x.f.node[x.f.n - 1];
    bool whole = last->op == F_LEAF && m->assertion[last->leaf].kind == A_TYPE;
    if (last->op == F_FALSE)
        return GB_NEVER;
    if (last->op == F_TRUE || whole)
        return any_number(m, whole, goal->exact);
    x.leaf = schema_alloc(m, x.f.n * sizeof *x.leaf);
    x.value = schema_alloc(m, x.f.n);
    if (!x.leaf || !x.value)
        return GB_NEVER;
    memset(x.leaf, 0, x.f.n * sizeof *x.leaf);
    for (uint32_t i = 0; i < x.f.n; i++)
        if (x.f.node[i].op == F_LEAF && !add_leaf(&x, i))
            return GB_NEVER;
    x.whole = is_whole(&x, x.f.n - 1);
    x.leaf[x.f.n - 1].demanded = last->op == F_LEAF;
    for (uint32_t k = 0; last->op == F_AND && k < last->n_list; k++) {
        uint32_t part = x.f.part.at[last->list + k];
        x.leaf[part].demanded = x.f.node[part].op == F_LEAF;
    }
    x.key_bytes = S_HEAD + x.n_compare + 4 * (size_t)x.n_divisions;
    uint8_t *s = schema_alloc(m, x.key_bytes);
    if (!s)
        return GB_NEVER;
    memset(s, 0, x.key_bytes);
    memset(s + S_HEAD, 1, x.n_compare);
    gb_node plus = number_from(&x, s);
    s[S_NEGATIVE] = 1;
    gb_node minus = number_from(&x, s);
    return gb_alt(
        m->b, (gb_node[]){plus, gb_seq(m->b, (gb_node[]){gb_bytes(m->b, "-", 1), minus}, 2)}, 2);
}
