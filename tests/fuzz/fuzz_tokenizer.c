/* fuzz_tokenizer.c - tokenizer.json of any bytes, and any text through what was read.
 *
 * Byte 0 'j': the rest is the file. Anything else: the rest is four fields with NUL between them,
 * the file's pre_tokenizer, added_tokens and merges and a text; the fuzzer need not find 256 byte
 * tokens by itself. Whatever could be read must give back every text byte by byte, and text that is
 * not markup must hold no added token.
 */
#include "text/detok.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BYTES = 1 << 14, MAX_TEXT = 256 };

static void require(bool ok)
{
    if (!ok)
        abort();
}

static void round_trip(const struct tokenizer *tok, const char *text, size_t n, bool markup)
{
    struct text_part part[] = {{text, n / 2, markup}, {text + n / 2, n - n / 2, markup}};
    struct token_vec v = {0};
    struct err e = {0};
    char *back = NULL;
    size_t bytes = 0;
    if (tokenizer_encode(tok, part, 2, &v, &e) == ERR_OK) {
        require(tokenizer_decode(tok, v.id, v.n, false, &back, &bytes, &e) == ERR_OK);
        require(bytes == n && memcmp(back, text, n) == 0);
        for (size_t i = 0; i < v.n; i++) {
            require(v.id[i] < tokenizer_n_ids(tok));
            require(markup || !tokenizer_is_special(tok, v.id[i]));
        }
        free(back);
    }
    token_vec_free(&v);
}

/* Every token's bytes one after the other, in valid UTF-8 and never more than comes in. */
static void stream(const struct tokenizer *tok)
{
    static const char *const text[] = {"ab", "\n"};
    static const size_t bytes[] = {2, 1};
    struct stop_list stop = {text, bytes, 2, false};
    struct detok *d = NULL;
    struct arena memory;
    struct err e = {0};
    const char *out = NULL;
    size_t n = 0;
    bool stopped = false;
    uint32_t which = 0, n_ids = tokenizer_n_ids(tok);
    arena_init(&memory, 0);
    require(detok_create(&d, &memory, tok, &stop, true, &e) == ERR_OK);
    for (uint32_t id = 0; id < n_ids && id < 600; id++)
        detok_put(d, id, id > 300, &out, &n, &stopped, &which);
    detok_flush(d, &out, &n);
    arena_free(&memory);
}

static char *field(const uint8_t **data, size_t *size)
{
    const uint8_t *end = memchr(*data, 0, *size);
    size_t n = end ? (size_t)(end - *data) : *size;
    char *s = malloc(n + 1);
    require(s != NULL);
    memcpy(s, *data, n);
    s[n] = '\0';
    *data += n + (end != NULL);
    *size -= n + (end != NULL);
    return s;
}

static size_t write_file(char *json, size_t room, char *const fields[3])
{
    size_t n = (size_t)snprintf(json, room,
                                "{\"pre_tokenizer\": %s, \"added_tokens\": %s, \"model\": "
                                "{\"merges\": %s, \"vocab\": {",
                                fields[0][0] ? fields[0] : "null", fields[1][0] ? fields[1] : "[]",
                                fields[2][0] ? fields[2] : "[]");
    static const char *const pairs[] = {"ab", "bc", "abc", "aa", "aaaa", "Ġa", "11", "ĠĠ"};
    for (unsigned b = 0; b < 256; b++) {
        unsigned cp = b <= 0x20 ? 0x100 + b : b >= 0x7F && b <= 0xA0 ? 0x121 + b - 0x7F : b;
        cp = b == 0xAD ? 0x143 : cp;
        n += (size_t)snprintf(json + n, room - n, "%s\"\\u%04x\": %u", b ? ", " : "", cp, b);
    }
    for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++)
        n += (size_t)snprintf(json + n, room - n, ", \"%s\": %u", pairs[i], 256 + i);
    return n + (size_t)snprintf(json + n, room - n, "}}}");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] = "abcabc  aa\r\n 1234 \xE4\xBD\xA0\xE5\xA5\xBD \xFF<a> don't";
    struct tokenizer *tok = NULL;
    struct err e = {0};
    if (size == 0 || size > MAX_BYTES)
        return 0;
    if (data[0] == 'j') {
        if (tokenizer_parse(&tok, (const char *)data + 1, size - 1, NULL, 0, &e))
            return 0;
        round_trip(tok, plain, sizeof plain - 1, true);
        round_trip(tok, plain, sizeof plain - 1, false);
    } else {
        char *fields[3];
        size_t room = 2 * MAX_BYTES;
        char *json = malloc(room);
        require(json != NULL);
        data++;
        size--;
        for (int i = 0; i < 3; i++)
            fields[i] = field(&data, &size);
        size_t n = write_file(json, room, fields);
        require(n < room);
        for (int i = 0; i < 3; i++)
            free(fields[i]);
        /* The settings are fuzzed too: the text is as good a file as any. */
        size_t text_n = size < MAX_TEXT ? size : MAX_TEXT;
        if (tokenizer_parse(&tok, json, n, NULL, 0, &e) == ERR_OK) {
            round_trip(tok, (const char *)data, text_n, true);
            round_trip(tok, (const char *)data, text_n, false);
        }
        free(json);
    }
    if (tok)
        stream(tok);
    tokenizer_close(tok);
    return 0;
}
