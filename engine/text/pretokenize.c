/* pretokenize.c - see pretokenize.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenize.h"

#include "base/fault.h"
#include "base/json.h"
#include "text/unicode_news.h"

#include <pcre2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_STAGES = 8,
    MAX_PATTERN_BYTES = 1 << 16,
    /* Backtracking points in one match. A run of a million blanks before the wrong character needs
     * a million; a pattern that needs more than this is one that explodes. */
    MATCH_LIMIT = 50 * 1000 * 1000,
    HEAP_LIMIT_KIB = 64 * 1024
};

struct pretok {
    pcre2_match_context *limits; /* only read while matching */
    /* Patterns that know the newest characters are half as fast, and few texts have any: those that
     * do are found first and take the second of each pair. */
    struct regex {
        pcre2_code *code; /* NULL: none */
        bool jit;
    } any_news; /* finds a character that this PCRE2 does not know; none when it knows them all */
    unsigned n_stages;
    struct stage {
        struct regex usual, news; /* news: none when it would be the same */
    } stage[MAX_STAGES];
};

struct pretok_scratch {
    pcre2_match_data *match;
};

static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
    "|\\s+(?!\\S)|\\s+";

/* ---- rewriting ---- */

#define WHITE                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"             \
    "\\x{202f}\\x{205f}\\x{3000}"

struct text_out {
    char *s;
    size_t n, max;
    bool full;
    bool news; /* write the characters that this PCRE2 is too old to know beside \p{L} ... */
};

static void put(struct text_out *o, const char *s, size_t n)
{
    if (o->full || n > o->max - o->n) {
        o->full = true;
        return;
    }
    memcpy(o->s + o->n, s, n);
    o->n += n;
}

static void put_str(struct text_out *o, const char *s)
{
    put(o, s, strlen(s));
}

/* A backslash and its character. What follows \p, \x ... is then copied like ordinary characters.
 */
static size_t escape_bytes(size_t room)
{
    return room > 1 ? 2 : 1;
}

/* Where the class that starts at p[0] == '[' ends (past its ']'); 0 when it does not. */
static size_t class_end(const char *p, size_t n)
{
    size_t i = 1, depth = 1;
    if (i < n && p[i] == '^')
        i++;
    if (i < n && p[i] == ']')
        i++;
    while (i < n) {
        if (p[i] == '\\') {
            i += escape_bytes(n - i);
            continue;
        }
        if (p[i] == '[')
            depth++;
        if (p[i++] == ']' && --depth == 0)
            return i;
    }
    return 0;
}

static size_t find_and(const char *p, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        if (p[i] == '\\')
            i++;
        else if (p[i] == '&' && p[i + 1] == '&')
            return i;
    }
    return 0;
}

static bool knows_unicode_16(void)
{
    char version[64] = "";
    pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
    return strtoul(version, NULL, 10) >= 16;
}

/* "\p{L}" at p: what is to be written beside it; else NULL. */
static const char *missing_news(const struct text_out *o, const char *p, size_t n)
{
    bool category = n >= 5 && p[1] == 'p' && p[2] == '{' && p[4] == '}';
    return category && o->news ? unicode_news(p[3]) : NULL;
}

/* A class without intersection: \s is spelt out. \S inside a class has no such spelling: refused.
 */
static enum err_code rewrite_class(const char *p, size_t n, struct text_out *o, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] != '\\' || i + 1 == n) {
            put(o, p + i, 1);
            continue;
        }
        const char *news = missing_news(o, p + i, n - i);
        if (news) {
            put(o, p + i, 5);
            put_str(o, news);
            i += 4;
            continue;
        }
        i++;
        if (p[i] == 'S')
            return err_set(e, ERR_INVALID, "a regex with \\S inside a class is not supported");
        if (p[i] == 's')
            put_str(o, WHITE);
        else
            put(o, p + i - 1, 2);
    }
    return ERR_OK;
}

/* [left&&[^right]] -> (?:(?![right])[left]), [left&&[right]] -> (?:(?=[right])[left]) */
static enum err_code rewrite_intersection(const char *p, size_t n, size_t cut, struct text_out *o,
                                          struct err *e)
{
    const char *right = p + cut + 2;
    size_t right_n = n - cut - 3; /* without the outer ']' */
    if (p[1] == '^' || right_n < 3 || right[0] != '[' || class_end(right, right_n) != right_n ||
        find_and(right, right_n))
        return err_set(e, ERR_INVALID, "the class %.*s is not supported", (int)(n < 100 ? n : 100),
                       p);
    bool without = right[1] == '^';
    put_str(o, without ? "(?:(?![" : "(?:(?=[");
    if (rewrite_class(right + 1 + without, right_n - 1 - without, o, e))
        return e->code;
    put_str(o, ")");
    if (rewrite_class(p, cut, o, e))
        return e->code;
    put_str(o, "])");
    return ERR_OK;
}

static enum err_code rewrite(const char *p, size_t n, struct text_out *o, struct err *e)
{
    for (size_t i = 0; i < n;) {
        if (p[i] == '\\') {
            size_t len = escape_bytes(n - i);
            const char *news = missing_news(o, p + i, n - i);
            if (news) {
                put_str(o, "[");
                put(o, p + i, len = 5);
                put_str(o, news);
                put_str(o, "]");
            } else if (len == 2 && (p[i + 1] == 's' || p[i + 1] == 'S'))
                put_str(o, p[i + 1] == 's' ? "[" WHITE "]" : "[^" WHITE "]");
            else
                put(o, p + i, len);
            i += len;
        } else if (p[i] == '[') {
            size_t len = class_end(p + i, n - i), cut;
            if (!len)
                return err_set(e, ERR_INVALID, "a regex with an open class");
            cut = find_and(p + i, len);
            if (cut ? rewrite_intersection(p + i, len, cut, o, e) : rewrite_class(p + i, len, o, e))
                return e->code;
            i += len;
        } else {
            put(o, p + i++, 1);
        }
    }
    return o->full ? err_set(e, ERR_INVALID, "a regex of %zu bytes is too long", n) : ERR_OK;
}

/* ---- building ---- */

enum {
    PATTERN = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
    LITERAL = PCRE2_UTF | PCRE2_LITERAL
};

static enum err_code compile(struct regex *r, const char *pattern, uint32_t options, struct err *e)
{
    int code = PCRE2_ERROR_NOMEMORY; /* what a fault put here means */
    size_t at = 0;
    r->code = FAULT("pretok.compile") ? NULL
                                      : pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                                      options, &code, &at, NULL);
    if (!r->code) {
        char why[120] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return err_set(e,
                       code == PCRE2_ERROR_HEAP_FAILED || code == PCRE2_ERROR_NOMEMORY
                           ? ERR_NOMEM
                           : ERR_INVALID,
                       "regex: %s at byte %zu", why, at);
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    return ERR_OK;
}

static enum err_code new_stage(struct pretok *p, struct stage **out, struct err *e)
{
    if (p->n_stages == MAX_STAGES)
        return err_set(e, ERR_INVALID, "more than %d splitting stages", MAX_STAGES);
    *out = &p->stage[p->n_stages++];
    return ERR_OK;
}

static enum err_code compile_rewritten(struct regex *r, const char *pattern, bool news,
                                       struct err *e)
{
    size_t n = strlen(pattern);
    struct text_out o = {.max = n * (sizeof WHITE + 16), .news = news};
    for (const char *c = pattern; (c = strstr(c, "\\p{")); c++)
        o.max += UNICODE_NEWS_MAX_BYTES;
    o.s = FAULT("pretok.rewrite") ? NULL : malloc(o.max + 1);
    if (!o.s)
        return err_set(e, ERR_NOMEM, "regex");
    if (rewrite(pattern, n, &o, e) == ERR_OK) {
        o.s[o.n] = '\0';
        e->code = compile(r, o.s, PATTERN, e);
    }
    free(o.s);
    return e->code;
}

static enum err_code add_regex(struct pretok *p, const char *pattern, struct err *e)
{
    struct stage *s = NULL;
    if (strlen(pattern) > MAX_PATTERN_BYTES)
        return err_set(e, ERR_INVALID, "a regex of %zu bytes is too long", strlen(pattern));
    if (new_stage(p, &s, e) || compile_rewritten(&s->usual, pattern, false, e))
        return e->code;
    if (p->any_news.code && strstr(pattern, "\\p{"))
        return compile_rewritten(&s->news, pattern, true, e);
    return ERR_OK;
}

static enum err_code make_any_news(struct pretok *p, struct err *e)
{
    static const char categories[] = "LMNPS";
    struct text_out o = {.max = 5 * UNICODE_NEWS_MAX_BYTES};
    if (knows_unicode_16())
        return ERR_OK;
    o.s = FAULT("pretok.news") ? NULL : malloc(o.max + 1);
    if (!o.s)
        return err_set(e, ERR_NOMEM, "regex");
    put_str(&o, "[");
    for (const char *c = categories; *c; c++)
        put_str(&o, unicode_news(*c));
    put_str(&o, "]");
    assert(!o.full);
    o.s[o.n] = '\0';
    e->code = compile(&p->any_news, o.s, PATTERN, e);
    free(o.s);
    return e->code;
}

static enum err_code add_split(struct pretok *p, const cJSON *config, struct err *e)
{
    const char *behavior = NULL;
    bool invert = false;
    if (json_get_str(config, "behavior", &behavior, e) ||
        json_get_bool(config, "invert", &invert, e))
        return e->code;
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return err_set(e, ERR_INVALID, "Split behavior %s is not supported (Isolated is)",
                       behavior ? behavior : "(none)");
    if (invert)
        return err_set(e, ERR_INVALID, "Split with invert is not supported");
    const cJSON *pattern = json_get(config, "pattern");
    const char *regex = NULL, *literal = NULL;
    if (json_get_str(pattern, "Regex", &regex, e) || json_get_str(pattern, "String", &literal, e))
        return e->code;
    if (regex)
        return add_regex(p, regex, e);
    if (!literal || !literal[0])
        return err_set(e, ERR_INVALID, "Split without a pattern");
    struct stage *s = NULL;
    if (new_stage(p, &s, e))
        return e->code;
    return compile(&s->usual, literal, LITERAL, e);
}

static enum err_code add_config(struct pretok *p, const cJSON *config, int depth, struct err *e)
{
    const char *type = NULL;
    if (json_get_str(config, "type", &type, e))
        return e->code;
    if (!type)
        return err_set(e, ERR_INVALID, "type is missing");
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *list = json_get(config, "pretokenizers"), *c = NULL;
        if (!cJSON_IsArray(list) || depth > 4)
            return err_set(e, ERR_INVALID, "Sequence without a list, or nested too deeply");
        cJSON_ArrayForEach(c, list)
        {
            if (add_config(p, c, depth + 1, e))
                return e->code;
        }
        return ERR_OK;
    }
    if (strcmp(type, "Split") == 0)
        return add_split(p, config, e);
    if (strcmp(type, "Digits") == 0) {
        bool each = false;
        if (json_get_bool(config, "individual_digits", &each, e))
            return e->code;
        return add_regex(p, each ? "\\p{N}" : "\\p{N}+", e);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        bool space = true, regex = true; /* what the reference takes when they are missing */
        if (json_get_bool(config, "add_prefix_space", &space, e) ||
            json_get_bool(config, "use_regex", &regex, e))
            return e->code;
        if (space)
            return err_set(e, ERR_INVALID, "ByteLevel with add_prefix_space is not supported");
        return regex ? add_regex(p, gpt2_pattern, e) : ERR_OK;
    }
    return err_set(e, ERR_INVALID, "type %s is not supported", type);
}

enum err_code pretok_create(struct pretok **out, const cJSON *config, struct err *e)
{
    struct pretok *p = FAULT("pretok.create") ? NULL : calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "pre-tokenizer");
    p->limits = pcre2_match_context_create(NULL);
    if (!p->limits) {
        err_set(e, ERR_NOMEM, "pre-tokenizer");
        goto fail;
    }
    pcre2_set_match_limit(p->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(p->limits, HEAP_LIMIT_KIB);
    if (make_any_news(p, e)) {
        err_prefix(e, "pre_tokenizer");
        goto fail;
    }
    if (config && !cJSON_IsNull(config) && add_config(p, config, 0, e)) {
        err_prefix(e, "pre_tokenizer");
        goto fail;
    }
    *out = p;
    return ERR_OK;
fail:
    pretok_destroy(p);
    return e->code;
}

void pretok_destroy(struct pretok *p)
{
    if (!p)
        return;
    for (unsigned i = 0; i < p->n_stages; i++) {
        pcre2_code_free(p->stage[i].usual.code);
        pcre2_code_free(p->stage[i].news.code);
    }
    pcre2_code_free(p->any_news.code);
    pcre2_match_context_free(p->limits);
    free(p);
}

enum err_code pretok_scratch_create(struct pretok_scratch **out, struct err *e)
{
    struct pretok_scratch *s = FAULT("pretok.scratch") ? NULL : malloc(sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "pre-tokenizer scratch");
    s->match = pcre2_match_data_create(1, NULL);
    if (!s->match) {
        free(s);
        return err_set(e, ERR_NOMEM, "pre-tokenizer scratch");
    }
    *out = s;
    return ERR_OK;
}

void pretok_scratch_destroy(struct pretok_scratch *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->match);
    free(s);
}

/* ---- splitting ---- */

struct split {
    const struct pretok *p;
    struct pretok_scratch *scratch;
    pretok_piece_fn fn;
    void *arg;
    bool news; /* the text has one of the newest characters */
};

/* The compiled pattern runs on 32 KiB of machine stack; the rare match that needs more is done
 * again by the interpreter, which takes memory from the heap up to HEAP_LIMIT_KIB. */
static int match(const struct split *sp, const struct regex *r, const char *text, size_t n,
                 size_t at)
{
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (r->jit)
        rc =
            pcre2_jit_match(r->code, (PCRE2_SPTR)text, n, at, 0, sp->scratch->match, sp->p->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         sp->scratch->match, sp->p->limits);
    return rc;
}

static size_t char_bytes(const char *p, size_t n)
{
    size_t i = 1;
    while (i < n && ((unsigned char)p[i] & 0xC0) == 0x80)
        i++;
    return i;
}

static enum err_code split_stage(const struct split *sp, unsigned stage, const char *text, size_t n,
                                 struct err *e)
{
    if (stage == sp->p->n_stages)
        return sp->fn(sp->arg, text, n, e);
    const struct stage *st = &sp->p->stage[stage];
    const struct regex *r = sp->news && st->news.code ? &st->news : &st->usual;
    size_t gap = 0, at = 0;
    while (at < n) {
        int rc = match(sp, r, text, n, at);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return err_set(e, rc == PCRE2_ERROR_NOMEMORY ? ERR_NOMEM : ERR_INVALID,
                           "pre-tokenizer regex %u: gave up (PCRE2 error %d)", stage, rc);
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sp->scratch->match);
        size_t begin = ov[0], end = ov[1];
        if (begin < gap || end <= begin) { /* empty, or moved by \K: not a piece */
            size_t from = end > at ? end : at;
            if (from >= n)
                break;
            at = from + char_bytes(text + from, n - from);
            continue;
        }
        if (begin > gap && split_stage(sp, stage + 1, text + gap, begin - gap, e))
            return e->code;
        if (split_stage(sp, stage + 1, text + begin, end - begin, e))
            return e->code;
        gap = at = end;
    }
    return gap < n ? split_stage(sp, stage + 1, text + gap, n - gap, e) : ERR_OK;
}

/* An error (a limit) counts as yes: the patterns for those texts are right for any. */
static bool has_news(const struct split *sp, const char *text, size_t n)
{
    size_t at = 0;
    if (!sp->p->any_news.code)
        return false;
    while (at < n && (unsigned char)text[at] < 0xE0) /* the first of them is U+0897: three bytes */
        at++;
    return at < n && match(sp, &sp->p->any_news, text, n, at) != PCRE2_ERROR_NOMATCH;
}

enum err_code pretok_split(const struct pretok *p, struct pretok_scratch *s, const char *text,
                           size_t n, pretok_piece_fn fn, void *arg, struct err *e)
{
    struct split sp = {p, s, fn, arg, false};
    sp.news = has_news(&sp, text, n);
    return n ? split_stage(&sp, 0, text, n, e) : ERR_OK;
}
