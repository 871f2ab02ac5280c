/* fuzz_grammar.c - a pattern or a grammar of any bytes, and behind a NUL an output that it steers:
 * refused with a sentence, or masks, forced bytes and single bytes agree all the way, and no place
 * is a dead end. The first byte chooses what the text is.
 */
#include "grammar/ebnf.h"
#include "grammar/grammar.h"
#include "grammar/regex.h"
#include "steer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct grammar_vocab *v;
    struct grammar_builder *b;
    struct grammar *g;
    struct err e;
    if (size < 1)
        return 0;
    if ((!v && grammar_vocab_open(&v, N_IDS, token_bytes, NULL, &e) != ERR_OK) ||
        gb_open(&b, &e) != ERR_OK)
        abort();
    const char *text = (const char *)data + 1;
    size_t n = strnlen(text, size - 1), rest = size - 1 - n;
    gb_node x = GB_NEVER;
    unsigned flags = data[0] & 3;
    enum err_code code = data[0] & 4   ? grammar_ebnf(&x, b, text, n, &e)
                         : data[0] & 8 ? grammar_regex_search(&x, b, text, n, flags, &e)
                                       : grammar_regex(&x, b, text, n, flags, &e);
    if (code == ERR_OK)
        code = grammar_compile(&g, v, b, x, &e);
    gb_close(b);
    if (code != ERR_OK) {
        assert(e.msg[0]);
        return 0;
    }
    if (rest > 1)
        steer(g, data + 2 + n, rest - 1);
    grammar_close(g);
    return 0;
}
