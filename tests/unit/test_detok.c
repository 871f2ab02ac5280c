/* test_detok.c - text that grows token by token: UTF-8 across borders, and stop strings.
 *
 * The tokenizer is made here: ids 0 to 255 are the bytes, 256 is special. So a text can be fed in
 * any split, and the answer compared with that of a model that sees the text whole.
 */
#include "base/fault.h"
#include "test.h"
#include "text/detok.h"

enum { SPECIAL = 256, MARK = 257 };

static struct tokenizer *tok;
static struct arena memory; /* of one detokenizer */

static void make_tokenizer(void)
{
    static char json[1 << 14];
    struct err e = {0};
    size_t n = (size_t)sprintf(
        json, "{\"added_tokens\": [{\"id\": 256, \"content\": \"<s>\", \"special\": "
              "true}, {\"id\": 257, \"content\": \"<｜m｜>\"}], \"model\": "
              "{\"merges\": [], \"vocab\": {");
    for (unsigned b = 0; b < 256; b++) {
        unsigned cp = b <= 0x20 ? 0x100 + b : b >= 0x7F && b <= 0xA0 ? 0x121 + b - 0x7F : b;
        cp = b == 0xAD ? 0x143 : cp;
        n += (size_t)sprintf(json + n, "%s\"\\u%04x\": %u", b ? ", " : "", cp, b);
    }
    n += (size_t)sprintf(json + n, "}}}");
    CHECK(n < sizeof json);
    CHECK_OK(tokenizer_parse(&tok, json, n, NULL, 0, &e), e);
}

struct result {
    char text[4096];
    size_t n;
    bool stopped;
    uint32_t which;
    size_t most_held; /* bytes taken but not given out, at its most */
};

static void add(struct result *r, const char *text, size_t n)
{
    CHECK(r->n + n < sizeof r->text);
    memcpy(r->text + r->n, text, n);
    r->n += n;
    r->text[r->n] = '\0';
}

/* no_stop: the first so many tokens are fed without looking for stop strings. */
static struct result feed(const uint32_t *id, size_t n, const struct stop_list *stop, bool skip,
                          size_t no_stop)
{
    struct detok *d = NULL;
    struct result r = {.n = 0};
    struct err e = {0};
    const char *text = NULL;
    size_t bytes = 0;
    arena_init(&memory, 0);
    CHECK_OK(detok_create(&d, &memory, tok, stop, skip, &e), e);
    for (size_t i = 0; i < n; i++) {
        bool stopped = false;
        uint32_t which = 0;
        detok_put(d, id[i], i >= no_stop, &text, &bytes, &stopped, &which);
        add(&r, text, bytes);
        CHECK(!(stopped && r.stopped) && !(r.stopped && bytes));
        if (stopped) {
            r.stopped = true;
            r.which = which;
        } else if (!r.stopped && i + 1 > r.n && i + 1 - r.n > r.most_held) {
            r.most_held = i + 1 - r.n; /* for texts of one byte a token that come out as they are */
        }
    }
    detok_flush(d, &text, &bytes);
    CHECK(!r.stopped || bytes == 0);
    add(&r, text, bytes);
    detok_flush(d, &text, &bytes);
    CHECK(bytes == 0);
    arena_free(&memory);
    return r;
}

static struct result feed_text(const char *s, size_t n, const struct stop_list *stop)
{
    uint32_t id[1024];
    CHECK(n <= 1024);
    for (size_t i = 0; i < n; i++)
        id[i] = (unsigned char)s[i];
    return feed(id, n, stop, false, 0);
}

static void want(const char *in, const char *out)
{
    struct result r = feed_text(in, strlen(in), NULL);
    CHECK_MSG(r.n == strlen(out) && memcmp(r.text, out, r.n) == 0, "\"%s\" gave \"%s\"", in,
              r.text);
}

#define BAD "\uFFFD"

TEST(characters_come_whole_or_as_one_mark)
{
    make_tokenizer();
    want("plain", "plain");
    want("é你😀", "é你😀");
    want("\xE4\xBD", BAD);      /* the end comes inside a character */
    want("\xE4\xBDx", BAD "x"); /* one mark for what cannot be completed */
    want("\xE4\xBD\xE4\xBD\xA0", BAD "你");
    want("\xF0\x9F\x98x", BAD "x");
    want("\xF0\x9F\x98\xF0\x9F\x98\x80", BAD "😀");
    want("\x80\xBF", BAD BAD); /* each stray byte its own */
    want("\xC0\x80", BAD BAD); /* overlong: never the beginning of anything */
    want("\xE0\x80\x80", BAD BAD BAD);
    want("\xE0\x9F\xBF", BAD BAD BAD);
    want("\xED\xA0\x80", BAD BAD BAD);         /* a surrogate */
    want("\xF4\x90\x80\x80", BAD BAD BAD BAD); /* above U+10FFFF */
    want("\xF5\x80", BAD BAD);
    want("\xFF", BAD);
    want("\xF0\x80\x80\x80", BAD BAD BAD BAD);
    want("\xC3", BAD);
    want("\xC3\xC3\xA9", BAD "é");
    tokenizer_close(tok);
}

TEST(a_character_comes_with_its_last_byte)
{
    struct detok *d = NULL;
    struct err e = {0};
    const char *text = NULL;
    size_t n = 0;
    bool stopped = false;
    uint32_t which = 0;
    static const unsigned char emoji[] = {0xF0, 0x9F, 0x98, 0x80};
    make_tokenizer();
    arena_init(&memory, 0);
    CHECK_OK(detok_create(&d, &memory, tok, NULL, false, &e), e);
    for (int i = 0; i < 4; i++) {
        detok_put(d, emoji[i], true, &text, &n, &stopped, &which);
        CHECK(n == (i == 3 ? 4u : 0u) && !stopped);
    }
    CHECK(memcmp(text, "😀", 4) == 0);
    arena_free(&memory);
    tokenizer_close(tok);
}

TEST(special_tokens_can_be_left_out)
{
    static const uint32_t ids[] = {'a', SPECIAL, MARK, 99999, 'b'};
    make_tokenizer();
    struct result r = feed(ids, 5, NULL, true, 0);
    CHECK_MSG(strcmp(r.text, "a<｜m｜>b") == 0, "%s", r.text);
    r = feed(ids, 5, NULL, false, 0);
    CHECK_MSG(strcmp(r.text, "a<s><｜m｜>b") == 0, "%s", r.text);
    tokenizer_close(tok);
}

#define STOPS(name, with, ...)                                                                     \
    static const char *const name##_text[] = {__VA_ARGS__};                                        \
    enum { name##_n = sizeof name##_text / sizeof *name##_text };                                  \
    size_t name##_bytes[name##_n];                                                                 \
    for (size_t i_ = 0; i_ < name##_n; i_++)                                                       \
        name##_bytes[i_] = strlen(name##_text[i_]);                                                \
    struct stop_list name = {name##_text, name##_bytes, name##_n, with}

static void want_stop(const char *in, const struct stop_list *stop, const char *out, int which)
{
    struct result r = feed_text(in, strlen(in), stop);
    CHECK_MSG(strcmp(r.text, out) == 0, "\"%s\" gave \"%s\", not \"%s\"", in, r.text, out);
    CHECK_MSG(r.stopped == (which >= 0), "%s", in);
    CHECK_MSG(which < 0 || r.which == (uint32_t)which, "\"%s\": stop %u", in, r.which);
}

TEST(stop_strings_end_the_text)
{
    make_tokenizer();
    STOPS(one, false, "STOP");
    want_stop("a STOP b", &one, "a ", 0);
    want_stop("STOP", &one, "", 0);
    want_stop("a STO", &one, "a STO", -1);    /* held back, then flushed */
    want_stop("STSTOSTOP", &one, "STSTO", 0); /* a false start inside another */
    want_stop("a\xE4\xBDSTOP", &one, "a" BAD, 0);
    STOPS(with, true, "STOP");
    want_stop("a STOP b", &with, "a STOP", 0);
    STOPS(many, false, "abcd", "bc", "cd", "xbc");
    want_stop("abcd", &many, "a", 1);  /* the first to be complete, though another began */
    want_stop("axbcd", &many, "a", 3); /* two at one byte: the longer */
    want_stop("acd", &many, "a", 2);
    STOPS(wide, false, "。", "你好");
    want_stop("你好", &wide, "", 1);
    want_stop("你你。", &wide, "你你", 0);
    want_stop("你", &wide, "你", -1);
    STOPS(periodic, false, "aabaaa");
    want_stop("aabaabaaab", &periodic, "aab", 0);
    tokenizer_close(tok);
}

TEST(a_stop_string_may_lie_in_one_token_or_in_many)
{
    static const uint32_t ids[] = {'x', MARK, 'y'};
    make_tokenizer();
    STOPS(inside, false, "m");
    struct result r = feed(ids, 3, &inside, false, 0);
    CHECK(r.stopped && strcmp(r.text, "x<｜") == 0);
    STOPS(over, false, "｜>y");
    r = feed(ids, 3, &over, false, 0);
    CHECK(r.stopped && strcmp(r.text, "x<｜m") == 0);
    STOPS(special, false, "<s>");
    static const uint32_t end[] = {'x', SPECIAL, 'y'};
    r = feed(end, 3, &special, true, 0); /* a token that is left out cannot stop */
    CHECK(!r.stopped && strcmp(r.text, "xy") == 0);
    r = feed(end, 3, &special, false, 0);
    CHECK(r.stopped && strcmp(r.text, "x") == 0);
    tokenizer_close(tok);
}

TEST(stops_wait_for_min_tokens)
{
    static const uint32_t ids[] = {'a', 'b', 'a', 'b', 'c'};
    make_tokenizer();
    STOPS(ab, false, "ab");
    struct result r = feed(ids, 5, &ab, false, 2); /* the first ab is complete too early */
    CHECK_MSG(r.stopped && strcmp(r.text, "ab") == 0, "%s", r.text);
    r = feed(ids, 5, &ab, false, 1); /* it began early, but is complete in time */
    CHECK(r.stopped && strcmp(r.text, "") == 0);
    r = feed(ids, 5, &ab, false, 4);
    CHECK(!r.stopped && strcmp(r.text, "ababc") == 0);
    tokenizer_close(tok);
}

TEST(no_more_is_held_back_than_must_be)
{
    make_tokenizer();
    STOPS(stop, false, "STOP", "TOX");
    CHECK(feed_text("hello", 5, &stop).most_held == 0);
    CHECK(feed_text("xSTxx", 5, &stop).most_held == 2);
    CHECK(feed_text("xSTOx", 5, &stop).most_held == 3);
    CHECK(feed_text("TOTOTOTO", 8, &stop).most_held == 2);
    tokenizer_close(tok);
}

/* The plain rule: whole text, as Python's "replace" decodes it; then byte by byte, does one of the
 * stop strings end here? */
static struct result slow(const char *s, size_t n, const struct stop_list *stop)
{
    struct result all = feed_text(s, n, NULL), r = {.n = 0};
    for (size_t end = 1; end <= all.n; end++) {
        size_t best = SIZE_MAX;
        for (size_t k = 0; k < stop->n; k++) {
            if (end >= stop->bytes[k] &&
                memcmp(all.text + end - stop->bytes[k], stop->text[k], stop->bytes[k]) == 0 &&
                (best == SIZE_MAX || stop->bytes[k] > stop->bytes[best]))
                best = k;
        }
        if (best == SIZE_MAX)
            continue;
        r.stopped = true;
        r.which = (uint32_t)best;
        add(&r, all.text, end - (stop->include ? 0 : stop->bytes[best]));
        return r;
    }
    return all;
}

/* Goal: whatever the text, the stop strings and the borders of tokens, the answer is the plain
 * rule's. Method: a tiny alphabet, with pieces of characters, so that everything clashes. */
TEST_LIMIT(random_texts_and_stops, 60)
{
    static const char *const letters[] = {"a", "b", "é", "\xC3", "\xA9", "你", "\xE4\xBD"};
    struct rng rng = {test_seed()};
    make_tokenizer();
    for (int round = 0; round < 4000; round++) {
        char text[128] = "", stops[4][16];
        const char *stop_text[4];
        size_t stop_bytes[4], n = 0;
        uint32_t n_stops = 1 + rng_below(&rng, 4);
        for (uint32_t k = 0; k < n_stops; k++) {
            stop_bytes[k] = 0;
            for (uint32_t i = 1 + rng_below(&rng, 3); i--;) {
                const char *c = letters[rng_below(&rng, 3)];
                memcpy(stops[k] + stop_bytes[k], c, strlen(c));
                stop_bytes[k] += strlen(c);
            }
            stop_text[k] = stops[k];
        }
        struct stop_list stop = {stop_text, stop_bytes, n_stops, rng_below(&rng, 2)};
        for (uint32_t i = rng_below(&rng, 30); i--;) {
            const char *c = letters[rng_below(&rng, rng_below(&rng, 2) ? 2 : 7)];
            memcpy(text + n, c, strlen(c));
            n += strlen(c);
        }
        struct result x = slow(text, n, &stop), got = feed_text(text, n, &stop);
        CHECK_MSG(x.n == got.n && memcmp(x.text, got.text, x.n) == 0, "\"%s\" not \"%s\"", got.text,
                  x.text);
        CHECK(x.stopped == got.stopped);
        CHECK(!x.stopped || stop_bytes[x.which] == stop_bytes[got.which]);
    }
    tokenizer_close(tok);
}

TEST(no_memory)
{
    static const char *const fault[] = {"detok.create:1", "arena.alloc:2", "arena.alloc:3",
                                        "arena.alloc:4"};
    static const char *const text[] = {"stop"};
    static const size_t bytes[] = {4};
    struct stop_list stop = {text, bytes, 1, false};
    struct detok *d = NULL;
    struct err e = {0};
    make_tokenizer();
    arena_init(&memory, 0);
    for (size_t i = 0; i < sizeof fault / sizeof *fault; i++) {
        fault_arm(fault[i]);
        CHECK(detok_create(&d, &memory, tok, &stop, false, &e) == ERR_NOMEM && !d);
    }
    fault_arm(NULL);
    arena_free(&memory);
    tokenizer_close(tok);
}
