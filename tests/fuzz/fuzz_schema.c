/* fuzz_schema.c - a schema of any JSON, and behind a NUL an output that it steers: refused with its
 * keyword and place, or masks, forced bytes and single bytes agree all the way.
 */
#include "base/json.h"
#include "grammar/schema.h"
#include "steer.h"
#include "text/chat_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct grammar_vocab *v;
    const char *text = (const char *)data;
    size_t n = strnlen(text, size), rest = size - n;
    struct grammar_builder *b;
    struct grammar *g;
    struct err e = {0};
    cJSON *schema;
    gb_node x = GB_NEVER;
    if (json_parse_nul(&schema, text, n, JSON_MAX_DEPTH, &e) != ERR_OK)
        return 0;
    if ((!v && grammar_vocab_open(&v, N_IDS, token_bytes, NULL, &e) != ERR_OK) ||
        chat_json_keep_numbers(schema, text, n, &e) != ERR_OK || gb_open(&b, &e) != ERR_OK)
        abort();
    enum err_code code = grammar_schema(&x, b, schema, &e);
    if (code == ERR_OK)
        code = grammar_compile(&g, v, b, x, &e);
    gb_close(b);
    if (code == ERR_OK) {
        if (rest > 1)
            steer(g, data + n + 1, rest - 1);
        grammar_close(g);
    } else {
        grammar_schema_explain(schema, &e);
        assert(code == ERR_INVALID && strstr(e.msg, " at #"));
    }
    cJSON_Delete(schema);
    return 0;
}
