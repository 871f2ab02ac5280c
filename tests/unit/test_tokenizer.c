/* test_tokenizer.c - merging, splitting, added tokens and what is refused, with tokenizers made
 * here.
 *
 * Each test writes its own small tokenizer.json: the 256 bytes have the ids 0 to 255, in order, and
 * every merge makes the next id. So expected ids can be read off the merges.
 */
#include "base/fault.h"
#include "base/json.h"
#include "base/thread.h"
#include "test.h"
#include "text/bpe.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

/* The character that spells byte b in a tokenizer.json, as JSON. */
static size_t spell(unsigned b, char *out)
{
    unsigned cp = b;
    if (b <= 0x20)
        cp = 0x100 + b;
    else if (b >= 0x7F && b <= 0xA0)
        cp = 0x121 + b - 0x7F;
    else if (b == 0xAD)
        cp = 0x143;
    if (cp == '"' || cp == '\\')
        return (size_t)sprintf(out, "\\%c", (char)cp);
    if (cp < 0x80)
        return (size_t)sprintf(out, "%c", (char)cp);
    return (size_t)sprintf(out, "%c%c", (char)(0xC0 | cp >> 6), (char)(0x80 | (cp & 0x3F)));
}

static size_t spell_text(const char *text, char *out)
{
    size_t n = 0;
    out[0] = '\0';
    for (; *text; text++)
        n += spell((unsigned char)*text, out + n);
    return n;
}

enum { MAX_JSON = 1 << 16 };

/* merges: pairs of texts, ended by NULL. added and more are JSON (more: members of the file). */
static void write_json(char *json, const char *const *merges, const char *added, const char *more,
                       const char *model_more)
{
    char a[256], b[256];
    size_t n = (size_t)sprintf(json, "{\"added_tokens\": [%s], %s \"model\": {%s \"vocab\": {",
                               added, more, model_more);
    for (unsigned i = 0; i < 256; i++) {
        spell(i, a);
        a[spell(i, a)] = '\0';
        n += (size_t)sprintf(json + n, "%s\"%s\": %u", i ? ", " : "", a, i);
    }
    unsigned id = 256;
    for (const char *const *m = merges; *m; m += 2) {
        spell_text(m[0], a);
        spell_text(m[1], b);
        n += (size_t)sprintf(json + n, ", \"%s%s\": %u", a, b, id++);
    }
    n += (size_t)sprintf(json + n, "}, \"merges\": [");
    for (const char *const *m = merges; *m; m += 2) {
        spell_text(m[0], a);
        spell_text(m[1], b);
        /* both ways of writing a merge, in turns */
        bool pair = (m - merges) / 2 % 2;
        n += (size_t)sprintf(json + n, pair ? "%s[\"%s\", \"%s\"]" : "%s\"%s %s\"",
                             m == merges ? "" : ", ", a, b);
    }
    n += (size_t)sprintf(json + n, "]}}");
    CHECK(n < MAX_JSON);
}

static struct tokenizer *make(const char *const *merges, const char *added, const char *more,
                              const char *model_more)
{
    static char json[MAX_JSON];
    struct tokenizer *tok = NULL;
    struct err e = {0};
    write_json(json, merges, added, more, model_more);
    CHECK_OK(tokenizer_parse(&tok, json, strlen(json), NULL, 0, &e), e);
    return tok;
}

static void refuse(const char *added, const char *more, const char *model_more, const char *part)
{
    static char json[MAX_JSON];
    static const char *const none[] = {NULL};
    struct tokenizer *tok = NULL;
    struct err e = {0};
    write_json(json, none, added, more, model_more);
    CHECK_MSG(tokenizer_parse(&tok, json, strlen(json), NULL, 0, &e) == ERR_INVALID,
              "accepted: %s %s %s", added, more, model_more);
    CHECK_MSG(strstr(e.msg, part), "\"%s\" lacks \"%s\"", e.msg, part);
    CHECK(!tok);
}

static void want_parts(const struct tokenizer *tok, const struct text_part *part, size_t n_parts,
                       const uint32_t *id, size_t n)
{
    struct token_vec v = {0};
    struct err e = {0};
    size_t total = 0, bytes = 0;
    char *back = NULL;
    CHECK_OK(tokenizer_encode(tok, part, n_parts, &v, &e), e);
    for (size_t i = 0; i < v.n && i < n; i++)
        CHECK_MSG(v.id[i] == id[i], "id %zu is %u, not %u", i, v.id[i], id[i]);
    CHECK_MSG(v.n == n, "%zu ids, not %zu", v.n, n);
    CHECK_OK(tokenizer_decode(tok, v.id, v.n, false, &back, &bytes, &e), e);
    for (size_t i = 0; i < n_parts; total += part[i++].bytes) {
        CHECK(total + part[i].bytes <= bytes);
        CHECK(!part[i].bytes || memcmp(back + total, part[i].text, part[i].bytes) == 0);
    }
    CHECK(total == bytes);
    free(back);
    token_vec_free(&v);
}

#define WANT(tok, text, ...)                                                                       \
    do {                                                                                           \
        static const uint32_t ids[] = {__VA_ARGS__};                                               \
        struct text_part part = {(text), strlen(text), true};                                      \
        want_parts((tok), &part, 1, ids, sizeof ids / sizeof *ids);                                \
    } while (0)

/* ---- merging ---- */

TEST(merges_go_by_rank_then_from_the_left)
{
    static const char *const merges[] = {"a", "b", "b", "c", "ab", "c", "a", "a", "aa", "a", NULL};
    struct tokenizer *tok = make(merges, "", "", "");
    WANT(tok, "abc", 258); /* ab before bc, then abc */
    WANT(tok, "bc", 257);
    WANT(tok, "xabcbc", 'x', 258, 257);
    WANT(tok, "aaa", 260); /* aa from the left, then aaa */
    WANT(tok, "aaaa", 259, 259);
    WANT(tok, "aaaaa", 259, 260); /* aa aa a: the only aa a is the last pair */
    tokenizer_close(tok);
}

/* Goal: a token which its own bytes never merge into is not given just because a piece spells it.
 */
TEST(a_token_out_of_reach_is_not_given)
{
    static const char *const merges[] = {"b", "c", "a", "b", "ab", "c", NULL};
    struct tokenizer *tok = make(merges, "", "", "");
    WANT(tok, "abc", 'a', 256); /* bc comes first, so ab and abc never arise */
    WANT(tok, "ab", 257);
    tokenizer_close(tok);
    tok = make(merges, "", "", "\"ignore_merges\": true,");
    WANT(tok, "abc", 258); /* unless the file says that whole pieces are looked up */
    WANT(tok, "abcx", 'a', 256, 'x');
    tokenizer_close(tok);
}

/* The rule itself, with nothing clever: find the best pair, join, begin again. */
static size_t slow_bpe(const uint32_t (*rule)[3], size_t n_rules, uint32_t *id, size_t n)
{
    for (;;) {
        size_t best = n_rules, at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            for (size_t r = 0; r < best; r++) {
                if (rule[r][0] == id[i] && rule[r][1] == id[i + 1]) {
                    best = r;
                    at = i;
                }
            }
        }
        if (best == n_rules)
            return n;
        id[at] = rule[best][2];
        memmove(id + at + 1, id + at + 2, (n - at - 2) * sizeof *id);
        n--;
    }
}

/* Goal: the short way and the heap give what the plain rule gives.
 * Method: random merges over three letters, so that ranks clash all the time, and pieces of every
 * length on both sides of the border between the two ways. */
TEST(merging_equals_the_plain_rule)
{
    enum { RULES = 40, MAX = 130 };
    struct rng rng = {test_seed()};
    for (int round = 0; round < 40; round++) {
        struct bpe b = {0};
        struct bpe_scratch s = {0};
        struct err e = {0};
        uint32_t rule[RULES][3];
        CHECK_OK(bpe_init(&b, RULES, &e), e);
        for (uint32_t i = 0; i < 256; i++)
            b.byte_id[i] = i;
        for (uint32_t r = 0; r < RULES;) {
            uint32_t x = rng_below(&rng, 3 + r), y = rng_below(&rng, 3 + r);
            bool seen = false;
            for (uint32_t k = 0; k < 2; k++) {
                uint32_t *p = k ? &y : &x;
                *p = *p < 3 ? 'a' + *p : 256 + *p - 3;
            }
            for (uint32_t k = 0; k < r; k++)
                seen = seen || (rule[k][0] == x && rule[k][1] == y);
            if (seen)
                continue;
            rule[r][0] = x;
            rule[r][1] = y;
            rule[r][2] = 256 + r;
            bpe_add(&b, x, y, 256 + r++);
        }
        for (size_t n = 1; n <= MAX; n++) {
            char text[MAX];
            uint32_t want[MAX], got[MAX];
            size_t n_got = 0, n_want;
            for (size_t i = 0; i < n; i++) {
                text[i] = (char)('a' + rng_below(&rng, 3));
                want[i] = (unsigned char)text[i];
            }
            n_want = slow_bpe((const uint32_t(*)[3])rule, RULES, want, n);
            CHECK_OK(bpe_encode(&b, &s, text, n, got, &n_got, &e), e);
            CHECK_MSG(n_got == n_want && memcmp(got, want, n_got * sizeof *got) == 0,
                      "round %d, %zu letters", round, n);
        }
        bpe_scratch_free(&s);
        bpe_free(&b);
    }
}

TEST(bytes_are_spelt_and_unspelt)
{
    for (unsigned i = 0; i < 256; i++) {
        char text[4], out[4];
        size_t n = 0;
        if (i == '"' || i == '\\') {
            text[0] = (char)i;
            CHECK(vocab_unspell(text, 1, out, &n));
        } else {
            CHECK(vocab_unspell(text, spell(i, text), out, &n));
        }
        CHECK_MSG(n == 1 && (unsigned char)out[0] == i, "byte %u", i);
    }
    char out[8];
    size_t n = 0;
    CHECK(!vocab_unspell(" ", 1, out, &n) && !vocab_unspell("\xC5\x84", 2, out, &n));
    CHECK(!vocab_unspell("｜", 3, out, &n) && !vocab_unspell("\xC4", 1, out, &n));
}

/* ---- splitting ---- */

#define SPLIT(regex)                                                                               \
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" regex                                      \
    "\"}, \"behavior\": \"Isolated\", \"invert\": false}"
#define SEQUENCE(list) "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" list "]},"

/* Merges that would join across any border show where the borders are. */
static const char *const greedy[] = {"a", "b", "b", "a",  "1",  "1", " ", " ", "a", "1", "1",
                                     "a", " ", "a", "\n", "\n", " ", "1", "1", " ", NULL};
enum { AB = 256, BA, ONES, BLANKS, A1, ONE_A, BLANK_A, LINES, BLANK_1, ONE_BLANK };

TEST(pieces_end_where_the_regex_says)
{
    struct tokenizer *tok = make(greedy, "", "", "");
    WANT(tok, "a1", A1); /* no pre-tokenizer: one piece */
    tokenizer_close(tok);
    tok = make(greedy, "", SEQUENCE(SPLIT("\\\\p{N}{1,3}")), "");
    WANT(tok, "a1", 'a', '1');
    WANT(tok, "1111", ONES, '1', '1'); /* 111 and 1 */
    WANT(tok, "1a", '1', 'a');
    tokenizer_close(tok);
    tok = make(greedy, "",
               "\"pre_tokenizer\": {\"type\": \"Digits\", \"individual_digits\": true},", "");
    WANT(tok, "a11", 'a', '1', '1');
    tokenizer_close(tok);
    tok = make(greedy, "", "\"pre_tokenizer\": {\"type\": \"Digits\"},", "");
    WANT(tok, "a11", 'a', ONES);
    tokenizer_close(tok);
}

/* Goal: a later stage sees each piece alone; its look-ahead ends at the border. */
TEST(stages_split_what_came_before)
{
    struct tokenizer *tok =
        make(greedy, "", SEQUENCE(SPLIT("\\\\p{N}") ", " SPLIT("\\\\s+(?!\\\\S)|\\\\s+")), "");
    WANT(tok, "  a", ' ', ' ', 'a'); /* one blank stays with the letter's side */
    WANT(tok, "  1", BLANKS, '1');   /* but a digit is in another piece already */
    tokenizer_close(tok);
}

TEST(a_literal_pattern_is_literal)
{
    struct tokenizer *tok =
        make(greedy, "",
             "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": "
             "\".\"}, \"behavior\": \"Isolated\"},",
             "");
    WANT(tok, "ab.ab", AB, '.', AB);
    tokenizer_close(tok);
}

TEST(byte_level_brings_gpt2s_regex_unless_told_not_to)
{
#define BYTE_LEVEL(x)                                                                              \
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false" x "},"
    struct tokenizer *tok = make(greedy, "", BYTE_LEVEL(""), "");
    WANT(tok, "a1 a", 'a', '1', BLANK_A);
    WANT(tok, "a  a", 'a', ' ', BLANK_A);
    tokenizer_close(tok);
    tok = make(greedy, "", BYTE_LEVEL(", \"use_regex\": false"), "");
    WANT(tok, "a1", A1);
    tokenizer_close(tok);
}

/* U+180E is no white space for Unicode, but PCRE2's own \s takes it. U+0085 and U+3000 are. */
TEST(white_space_is_unicodes)
{
    struct tokenizer *tok = make(greedy, "", SEQUENCE(SPLIT("\\\\s")), "");
    WANT(tok, "a\u3000b", 'a', 0xE3, 0x80, 0x80, 'b');
    tokenizer_close(tok);
    /* \S+ is one piece: what follows it in that piece can merge. */
    static const char *const join[] = {"\x8E", "a", "\x80", "a", "\x85", "a", NULL};
    tok = make(join, "", SEQUENCE(SPLIT("\\\\S+")), "");
    WANT(tok, "\u180Ea", 0xE1, 0xA0, 256);       /* U+180E and a: one piece */
    WANT(tok, "\u3000a", 0xE3, 0x80, 0x80, 'a'); /* a blank and a: two */
    WANT(tok,
         "\xC2\x85"
         "a",
         0xC2, 0x85, 'a');
    tokenizer_close(tok);
    tok = make(join, "", SEQUENCE(SPLIT("[^\\\\s]+")), "");
    WANT(tok, "\u180Ea", 0xE1, 0xA0, 256);
    WANT(tok, "\u3000a", 0xE3, 0x80, 0x80, 'a');
    tokenizer_close(tok);
}

TEST(a_class_intersection_becomes_a_look_ahead)
{
    struct tokenizer *tok = make(greedy, "", SEQUENCE(SPLIT("[\\\\p{L}&&[^b]]+")), "");
    WANT(tok, "ab", 'a', 'b');
    WANT(tok, "1 1a", '1', BLANK_1, 'a');
    tokenizer_close(tok);
    tok = make(greedy, "", SEQUENCE(SPLIT("[\\\\p{L}\\\\p{N}&&[1a]]")), "");
    WANT(tok, "a1ba", 'a', '1', 'b', 'a');
    tokenizer_close(tok);
    refuse("", SEQUENCE(SPLIT("[^a&&[b]]")), "", "not supported");
    refuse("", SEQUENCE(SPLIT("[\\\\S]")), "", "\\S inside a class");
}

/* A letter of Unicode 16 (U+10D4A) must be a letter also where PCRE2 is older. */
TEST(the_newest_letters_are_letters)
{
    static const char *const join[] = {"\x8A", "a", "a", "\xF0", NULL};
    struct tokenizer *tok = make(join, "", SEQUENCE(SPLIT("\\\\p{L}+")), "");
    WANT(tok, "\U00010D4Aa", 0xF0, 0x90, 0xB5, 256);
    WANT(tok, "a\U00010D4A", 257, 0x90, 0xB5, 0x8A);
    WANT(tok, "a\U0001F600", 'a', 0xF0, 0x9F, 0x98, 0x80); /* a symbol is another piece */
    tokenizer_close(tok);
    tok = make(join, "", SEQUENCE(SPLIT("[\\\\p{L}]+")), "");
    WANT(tok, "\U00010D4Aa", 0xF0, 0x90, 0xB5, 256);
    tokenizer_close(tok);
}

/* Goal: each bad byte is a piece of its own; what stands around it is split as if it were alone. */
TEST(invalid_utf8_is_bytes)
{
    static const char *const join[] = {"a", "b", "b", "\xFF", "\xFF", "\xFF", "\xE4", "\xBD", NULL};
    struct tokenizer *tok = make(join, "", "", "");
    WANT(tok,
         "ab\xFF\xFF"
         "ab",
         256, 0xFF, 0xFF, 256);
    WANT(tok,
         "\xE4\xBD"
         "a",
         0xE4, 0xBD, 'a');                       /* cut short */
    WANT(tok, "\xE4\xBD\xA0", 259, 0xA0);        /* whole: one piece, so it merges */
    WANT(tok, "\xC0\x80", 0xC0, 0x80);           /* overlong */
    WANT(tok, "\xED\xA0\x80", 0xED, 0xA0, 0x80); /* a surrogate */
    struct text_part nul = {"a\0b", 3, false};
    static const uint32_t ids[] = {'a', 0, 'b'};
    want_parts(tok, &nul, 1, ids, 3);
    tokenizer_close(tok);
}

/* ---- added tokens ---- */

#define ADDED(id, text, special)                                                                   \
    "{\"id\": " #id ", \"content\": \"" text "\", \"special\": " #special ", \"normalized\": "     \
    "false}"
static const char three[] =
    ADDED(300, "<a>", true) ", " ADDED(301, "<a><b>", false) ", " ADDED(302, "｜x", false);
static const char *const none[] = {NULL};

TEST(the_longest_added_token_wins)
{
    struct tokenizer *tok = make(none, three, "", "");
    WANT(tok, "<a>", 300);
    WANT(tok, "<a><b>", 301);
    WANT(tok, "<a><bx", 300, '<', 'b', 'x');
    WANT(tok, "<<a>｜x<", '<', 300, 302, '<');
    WANT(tok, "<a", '<', 'a');
    CHECK(tokenizer_n_ids(tok) == 303);
    CHECK(tokenizer_is_special(tok, 300) && !tokenizer_is_special(tok, 301));
    CHECK(tokenizer_is_added(tok, 302) && !tokenizer_is_added(tok, 'a'));
    CHECK(!tokenizer_is_added(tok, 5000) && !tokenizer_is_special(tok, UINT32_MAX));
    CHECK(tokenizer_find(tok, "<a>", 3) == 300 && tokenizer_find(tok, "a", 1) == 'a');
    CHECK(tokenizer_find(tok, "<b>", 3) == UINT32_MAX && tokenizer_find(tok, "", 0) == UINT32_MAX);
    size_t n = 7;
    CHECK(tokenizer_bytes(tok, 299, &n) && n == 0); /* a gap in the ids */
    CHECK(tokenizer_bytes(tok, UINT32_MAX, &n) && n == 0);
    CHECK(memcmp(tokenizer_bytes(tok, 302, &n), "｜x", 4) == 0 && n == 4);
    tokenizer_close(tok);
}

TEST(text_is_never_markup)
{
    struct tokenizer *tok = make(none, three, "", "");
    struct text_part text = {"<a>", 3, false};
    static const uint32_t plain[] = {'<', 'a', '>'};
    want_parts(tok, &text, 1, plain, 3);
    struct text_part across[] = {{"<a", 2, true}, {">", 1, true}}; /* not over a border either */
    want_parts(tok, across, 2, plain, 3);
    struct text_part half[] = {{"<", 1, false}, {"a>", 2, true}};
    want_parts(tok, half, 2, plain, 3);
    struct text_part longer[] = {{"<a>", 3, true}, {"<b>", 3, false}};
    static const uint32_t short_one[] = {300, '<', 'b', '>'};
    want_parts(tok, longer, 2, short_one, 4);
    tokenizer_close(tok);
}

/* Goal: between added tokens, the borders of parts leave no trace. */
TEST(parts_are_one_text)
{
    static const char *const join[] = {"a",    "b",        "ab",   "c", "\xE4",
                                       "\xBD", "\xE4\xBD", "\xA0", NULL};
    struct tokenizer *tok = make(join, three, "", "");
    struct text_part part[] = {{"<a>", 3, true}, {"a", 1, false},     {"", 0, false},
                               {"b", 1, true},   {"c\xE4", 2, false}, {"\xBD\xA0", 2, false},
                               {NULL, 0, true},  {"<a>", 3, true}};
    static const uint32_t ids[] = {300, 257, 259, 300};
    want_parts(tok, part, 8, ids, 4);
    want_parts(tok, NULL, 0, ids, 0);
    tokenizer_close(tok);
}

TEST(decoding_can_leave_special_tokens_out)
{
    struct tokenizer *tok = make(none, three, "", "");
    static const uint32_t ids[] = {'x', 300, 301, 299, 'y'};
    struct err e = {0};
    char *text = NULL;
    size_t n = 0;
    CHECK_OK(tokenizer_decode(tok, ids, 5, true, &text, &n, &e), e);
    CHECK(n == 8 && strcmp(text, "x<a><b>y") == 0);
    free(text);
    CHECK_OK(tokenizer_decode(tok, ids, 5, false, &text, &n, &e), e);
    CHECK(n == 11 && strcmp(text, "x<a><a><b>y") == 0);
    free(text);
    tokenizer_close(tok);
}

/* ---- what is refused, and what is read beside ---- */

TEST(what_cannot_be_done_exactly_is_refused_by_name)
{
    refuse("", "\"normalizer\": {\"type\": \"NFC\"},", "", "normalizer NFC");
    refuse("", "\"decoder\": {\"type\": \"WordPiece\"},", "", "decoder WordPiece");
    refuse("", "", "\"type\": \"Unigram\",", "model.type Unigram");
    refuse("", "", "\"byte_fallback\": true,", "model.byte_fallback");
    refuse("", "", "\"dropout\": 0.1,", "model.dropout");
    refuse("", "", "\"end_of_word_suffix\": \"</w>\",", "model.end_of_word_suffix");
    refuse("", "\"pre_tokenizer\": {\"type\": \"Whitespace\"},", "", "type Whitespace");
    refuse("", "\"pre_tokenizer\": {\"type\": \"ByteLevel\"},", "", "add_prefix_space");
    refuse("", SEQUENCE(SPLIT("(a")), "", "regex");
    refuse("",
           "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, "
           "\"behavior\": \"Removed\"},",
           "", "Removed");
    refuse("{\"id\": 300, \"content\": \"x\", \"lstrip\": true}", "", "", "lstrip");
    refuse("{\"id\": 300, \"content\": \"x\", \"single_word\": true}", "", "", "single_word");
    refuse("{\"id\": -1, \"content\": \"x\"}", "", "", "added_tokens[0].id");
    refuse("{\"id\": 3000000, \"content\": \"x\"}", "", "", "added_tokens[0].id");
    refuse("{\"id\": 300}", "", "", "added_tokens[0].content");
    refuse(ADDED(300, "x", true) ", " ADDED(300, "y", true), "", "", "another token's id");
    refuse(ADDED(97, "x", true), "", "", "another token's id");
    refuse("7", "", "", "added_tokens[0]");
}

TEST(broken_files_are_refused)
{
    static const char *const bad[] = {"",
                                      "[]",
                                      "{}",
                                      "{\"model\": 3}",
                                      "{\"model\": {\"vocab\": {}, \"merges\": []}}",
                                      "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}}",
                                      "{\"model\": {\"vocab\": {\"a\": 0.5}, \"merges\": []}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tokenizer *tok = NULL;
        struct err e = {0};
        CHECK_MSG(tokenizer_parse(&tok, bad[i], strlen(bad[i]), NULL, 0, &e) == ERR_INVALID, "%s",
                  bad[i]);
        CHECK(!tok && strstr(e.msg, "tokenizer.json"));
    }
}

TEST(settings_name_bos_eos_and_template)
{
    static char json[MAX_JSON];
    static const char config[] =
        "{\"bos_token\": {\"content\": \"<a>\"}, \"eos_token\": \"｜x\", \"add_bos_token\": true,"
        " \"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"},"
        " {\"name\": \"default\", \"template\": \"D\"}]}";
    struct tokenizer *tok = NULL;
    struct err e = {0};
    write_json(json, none, three, "", "");
    CHECK_OK(tokenizer_parse(&tok, json, strlen(json), config, strlen(config), &e), e);
    CHECK(tokenizer_bos(tok) == 300 && tokenizer_eos(tok) == 302 && tokenizer_add_bos(tok));
    CHECK(strcmp(tokenizer_chat_template(tok), "D") == 0);
    tokenizer_close(tok);
    CHECK_OK(tokenizer_parse(&tok, json, strlen(json), NULL, 0, &e), e);
    CHECK(tokenizer_bos(tok) == UINT32_MAX && !tokenizer_add_bos(tok));
    CHECK(!tokenizer_chat_template(tok));
    tokenizer_close(tok);
    CHECK(tokenizer_open(&tok, "tests/fixtures/no-such-model", &e) == ERR_IO);
}

/* Goal: every place where memory can run out gives ERR_NOMEM (or, in the JSON reader, ERR_INVALID),
 * nothing is lost, and the ids taken before stay. */
TEST_LIMIT(no_memory_anywhere, 60)
{
    static char json[MAX_JSON];
    char long_text[400];
    struct err e = {0};
    write_json(json, greedy, three, SEQUENCE(SPLIT("\\\\p{L}+")), "");
    memset(long_text, 'a', sizeof long_text);
    struct text_part part[] = {{"<a>", 3, true}, {long_text, sizeof long_text, false}};
    for (unsigned n = 1;; n++) {
        struct tokenizer *tok = NULL;
        struct token_vec v = {0};
        char spec[16], *text = NULL;
        size_t bytes = 0;
        snprintf(spec, sizeof spec, "*:%u", n);
        fault_arm(spec);
        bool ok = tokenizer_parse(&tok, json, strlen(json), NULL, 0, &e) == ERR_OK &&
                  tokenizer_encode(tok, part, 2, &v, &e) == ERR_OK &&
                  tokenizer_decode(tok, v.id, v.n, false, &text, &bytes, &e) == ERR_OK;
        bool reached = fault_passages() >= n;
        fault_arm(NULL);
        CHECK_MSG(ok || e.code == ERR_NOMEM || e.code == ERR_INVALID, "fault %u: %s", n, e.msg);
        CHECK(ok || !text);
        free(text);
        token_vec_free(&v);
        tokenizer_close(tok);
        if (!reached) {
            CHECK(ok && n > 8);
            break;
        }
    }
}

/* ---- many at once ---- */

static struct tokenizer *shared;
static void *encode_often(void *arg)
{
    struct text_part part = {"ab ab 11 a1ba <a> abab", 22, true};
    struct token_vec *v = arg;
    struct err e = {0};
    for (int i = 0; i < 300; i++) {
        v->n = 0;
        CHECK_OK(tokenizer_encode(shared, &part, 1, v, &e), e);
    }
    return NULL;
}

TEST(threads_share_a_tokenizer)
{
    enum { N = 4 };
    pthread_t t[N];
    struct token_vec v[N] = {{0}};
    struct err e = {0};
    shared = make(greedy, three, SEQUENCE(SPLIT("\\\\s+")), "");
    for (int i = 0; i < N; i++)
        CHECK_OK(thread_start(&t[i], "enc", encode_often, &v[i], &e), e);
    for (int i = 0; i < N; i++)
        thread_join(t[i]);
    for (int i = 0; i < N; i++) {
        CHECK(v[i].n == v[0].n && memcmp(v[i].id, v[0].id, v[0].n * sizeof(uint32_t)) == 0);
        if (i)
            token_vec_free(&v[i]);
    }
    token_vec_free(&v[0]);
    tokenizer_close(shared);
}

/* ---- which chat format a directory means ---- */

static const char *detected(const char *added, const char *tmpl, const char *model_type)
{
    static char json[MAX_JSON];
    char config[512];
    struct tokenizer *tok = NULL;
    struct err e = {0};
    const char *why = NULL;
    write_json(json, none, added, "", "");
    snprintf(config, sizeof config, tmpl ? "{\"chat_template\": \"%s\"}" : "{}", tmpl);
    CHECK_OK(tokenizer_parse(&tok, json, strlen(json), config, strlen(config), &e), e);
    const char *name = chat_format_name(chat_format_detect(tok, model_type, &why));
    CHECK(why && why[0]);
    tokenizer_close(tok);
    return name;
}

TEST(the_chat_format_is_recognised)
{
#define FORMAT(name, added, tmpl, type)                                                            \
    CHECK_MSG(strcmp(detected(added, tmpl, type), name) == 0, "%s", detected(added, tmpl, type))
    static const char think[] = ADDED(300, "<think>", true) ", " ADDED(301, "</think>", true);
    FORMAT("deepseek-v3", "", "<｜User｜><｜Assistant｜>", "deepseek_v3");
    FORMAT("deepseek-r1", "", "</think> <｜Assistant｜><think>\\\\n", "deepseek_v3");
    FORMAT("deepseek-r1-0528", "", "<｜Assistant｜> split('</think>')", "deepseek_v3");
    FORMAT("deepseek-v3.1", "", "{% if not thinking %}</think>", "deepseek_v3");
    FORMAT("deepseek-v3.2-exp", "", "{% if not thinking %}</think>", "deepseek_v32");
    FORMAT("deepseek-v3.2", "", "<｜DSML｜", "deepseek_v32");
    FORMAT("deepseek-v3.2", think, NULL, "deepseek_v32");
    FORMAT("deepseek-v3.1", think, NULL, "deepseek_v3");
    FORMAT("deepseek-v3", "", NULL, "deepseek_v2");
    FORMAT("glm-4.6", "", "[gMASK]<sop> /nothink", "glm4_moe");
    FORMAT("glm-5", "", "[gMASK]<sop>", "glm_moe_dsa");
    FORMAT("glm-5.2", "", "[gMASK]<sop> Reasoning Effort", "glm_moe_dsa");
    FORMAT("glm-5", think, NULL, "glm_moe_dsa");
    FORMAT("kimi-k2", "", "<|im_system|>", "kimi_k2");
    FORMAT("kimi-k2", ADDED(300, "<|im_middle|>", true), NULL, "kimi_k2");
    for (const char *const *n = chat_format_names(); *n; n++)
        CHECK(strcmp(chat_format_name(chat_format_by_name(*n)), *n) == 0);
    CHECK(!chat_format_by_name("deepseek") && !chat_format_by_name(""));
}
