/* test_chat.c - conversations in, the reference's prompt out, byte for byte, for every format.
 *
 * tests/fixtures/chat/prompts.jsonl holds what the public templates and encoders give (its fields
 * are told in the specification's chat vectors). A row passes when the rendered text is `prompt` or
 * one of `also_accept`; in rows about injection every byte of `text_spans` must lie in a part that
 * is not markup, so that no tokenizer turns it into a special token.
 */
#include "base/json.h"
#include "test.h"
#include "text/chat_format.h"
#include "text/chat_json.h"

struct row {
    cJSON *tree;
    const char *id, *format;
};

static enum tri tri_of(const cJSON *options, const char *key)
{
    const cJSON *v = json_get(options, key);
    return cJSON_IsTrue(v) ? TRI_TRUE : cJSON_IsFalse(v) ? TRI_FALSE : TRI_UNSET;
}

static struct chat_options options_of(const cJSON *o)
{
    const cJSON *effort = json_get(o, "reasoning_effort"), *schema = json_get(o, "response_format");
    return (struct chat_options){
        .add_generation_prompt = cJSON_IsTrue(json_get(o, "add_generation_prompt")),
        .continue_final_message = cJSON_IsTrue(json_get(o, "continue_final_message")),
        .thinking = tri_of(o, "thinking"),
        .clear_thinking = tri_of(o, "clear_thinking"),
        .reasoning_effort = cJSON_IsString(effort) ? effort->valuestring : NULL,
        .response_format = cJSON_IsObject(schema) ? schema : NULL};
}

/* The prompt as one text; span_ok: no byte of text_spans lies in markup. */
static char *join(const struct chat_prompt *p, const cJSON *spans, bool *span_ok)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_parts; i++)
        n += p->part[i].bytes;
    char *all = malloc(n + 1), *markup = malloc(n + 1);
    CHECK(all && markup);
    n = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        memcpy(all + n, p->part[i].text, p->part[i].bytes);
        memset(markup + n, p->part[i].markup, p->part[i].bytes);
        n += p->part[i].bytes;
    }
    all[n] = '\0';
    *span_ok = true;
    for (const cJSON *s = spans ? spans->child : NULL; s; s = s->next) {
        for (int b = s->child->valueint; b < s->child->next->valueint; b++)
            *span_ok = *span_ok && (size_t)b < n && !markup[b];
    }
    free(markup);
    return all;
}

static bool accepted(const cJSON *row, const char *text)
{
    if (strcmp(text, json_get(row, "prompt")->valuestring) == 0)
        return true;
    const cJSON *also = json_get(row, "also_accept");
    for (const cJSON *a = cJSON_IsArray(also) ? also->child : NULL; a; a = a->next) {
        if (cJSON_IsString(a) && strcmp(text, a->valuestring) == 0)
            return true;
    }
    return false;
}

static void show_difference(const struct row *r, const char *want, const char *got)
{
    size_t i = 0;
    while (want[i] && want[i] == got[i])
        i++;
    size_t from = i > 60 ? i - 60 : 0;
    fprintf(stderr, "  %s differs at byte %zu\n    want ...%.200s\n    got  ...%.200s\n", r->id, i,
            want + from, got + from);
}

static bool check_row(const struct row *r)
{
    const cJSON *tools = json_get(r->tree, "tools");
    const struct chat_format *f = chat_format_by_name(r->format);
    struct chat_options opt = options_of(json_get(r->tree, "options"));
    struct chat_prompt prompt;
    struct arena a;
    struct err e = {0};
    bool span_ok = false, ok;
    CHECK_MSG(f, "%s: no format %s", r->id, r->format);
    arena_init(&a, 0);
    if (chat_format_render(f, json_get(r->tree, "messages"), cJSON_IsArray(tools) ? tools : NULL,
                           &opt, &a, &prompt, &e)) {
        fprintf(stderr, "  %s: %s\n", r->id, e.msg);
        arena_free(&a);
        return false;
    }
    char *text = join(&prompt, json_get(r->tree, "text_spans"), &span_ok);
    ok = accepted(r->tree, text);
    if (!ok)
        show_difference(r, json_get(r->tree, "prompt")->valuestring, text);
    else if (!span_ok)
        fprintf(stderr, "  %s: caller's text lies in markup\n", r->id);
    free(text);
    arena_free(&a);
    return ok && span_ok;
}

TEST_LIMIT(every_row_renders_to_the_reference, 60)
{
    const char *const *name = chat_format_names();
    uint32_t passed[16] = {0}, rows[16] = {0}, failed = 0;
    FILE *f = fopen(test_fixture("chat/prompts.jsonl"), "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    CHECK(f != NULL);
    while ((n = getline(&line, &room, f)) > 0) {
        struct row r = {0};
        struct err e = {0};
        CHECK_OK(json_parse(&r.tree, line, (size_t)n, JSON_MAX_DEPTH, &e), e);
        CHECK_OK(chat_json_keep_numbers(r.tree, line, (size_t)n, &e), e);
        r.id = json_get(r.tree, "id")->valuestring;
        r.format = json_get(r.tree, "format")->valuestring;
        uint32_t k = 0;
        while (name[k] && strcmp(name[k], r.format) != 0)
            k++;
        CHECK_MSG(name[k], "%s: unknown format", r.id);
        rows[k]++;
        bool ok = check_row(&r);
        passed[k] += ok;
        failed += !ok;
        cJSON_Delete(r.tree);
    }
    free(line);
    fclose(f);
    for (uint32_t k = 0; name[k]; k++) {
        printf("     %-18s %u of %u rows\n", name[k], passed[k], rows[k]);
        CHECK(rows[k] > 0);
    }
    CHECK_MSG(failed == 0, "%u rows differ", failed);
}
