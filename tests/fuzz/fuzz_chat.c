/* fuzz_chat.c - conversations of any bytes, rendered by every format.
 *
 * Byte 0 chooses the format, byte 1 the flags; the rest is JSON with messages, tools, and
 * response_format. Rendering must refuse or give a prompt; no format's own text has a snowman, so
 * one in a markup part has come from the caller, and that must never be.
 */
#include "base/json.h"
#include "text/chat_format.h"
#include "text/chat_json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FLAG_GENERATE = 1,
    FLAG_CONTINUE = 2,
    FLAG_THINK = 4,
    FLAG_NO_THINK = 8,
    FLAG_KEEP = 16,
    FLAG_EFFORT = 32
};

static void require(bool ok)
{
    if (!ok)
        abort();
}

static void check(const struct chat_prompt *p)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct text_part *part = &p->part[i];
        require(part->bytes > 0 && part->text);
        require(!part->markup || !memmem(part->text, part->bytes, "\xE2\x98\x83", 3));
        require(utf8_valid(part->text, part->bytes, NULL));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cJSON *tree = NULL;
    struct err e = {0};
    struct chat_prompt prompt = {0};
    struct arena a;
    if (size < 2 || size > 1 << 16)
        return 0;
    const char *const *names = chat_format_names();
    size_t n_names = 0;
    while (names[n_names])
        n_names++;
    const char *text = (const char *)data + 2;
    if (json_parse(&tree, text, size - 2, JSON_MAX_DEPTH, &e))
        return 0;
    require(chat_json_keep_numbers(tree, text, size - 2, &e) == ERR_OK);
    unsigned flags = data[1];
    const cJSON *schema = json_get(tree, "response_format");
    struct chat_options opt = {.add_generation_prompt = flags & FLAG_GENERATE,
                               .continue_final_message = flags & FLAG_CONTINUE,
                               .thinking = flags & FLAG_THINK      ? TRI_TRUE
                                           : flags & FLAG_NO_THINK ? TRI_FALSE
                                                                   : TRI_UNSET,
                               .clear_thinking = flags & FLAG_KEEP ? TRI_FALSE : TRI_UNSET,
                               .reasoning_effort = flags & FLAG_EFFORT ? "high" : NULL,
                               .response_format = cJSON_IsObject(schema) ? schema : NULL};
    const struct chat_format *f = chat_format_by_name(names[data[0] % n_names]);
    arena_init(&a, 0);
    if (chat_format_render(f, json_get(tree, "messages"), json_get(tree, "tools"), &opt, &a,
                           &prompt, &e) == ERR_OK) {
        check(&prompt); /* reads all of it: nothing may have been freed with the call's own trees */
    } else {
        require(e.code == ERR_INVALID && e.msg[0]);
    }
    cJSON_Delete(tree);
    arena_free(&a);
    return 0;
}
