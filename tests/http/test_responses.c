/* test_responses.c - /v1/responses over a fake engine that writes markup. */
#include "rig.h"
#include "server/response_store.h"

#define RESPONSES "/v1/responses"
#define SCHEMA "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"}}}"
#define TOOL "{\"type\":\"function\",\"name\":\"get_weather\",\"parameters\":" SCHEMA "}"
#define TOOLS "\"tools\":[" TOOL "]"
#define THINK "\"reasoning\":{\"effort\":\"high\"}"
#define CALL_BEGIN "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
#define CALL_SEP "<｜tool▁sep｜>"
#define CALL_END "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
#define CALL CALL_BEGIN "get_weather" CALL_SEP "{\"city\": \"Paris\"}" CALL_END

enum { MAX_EVENTS = 1000, MAX_ITEMS = 8 };

static void start(struct rig *r, const char *text, uint32_t piece_bytes)
{
    fake.text = text;
    atomic_store(&fake.piece_bytes, piece_bytes);
    rig_prepare(r);
}

static cJSON *ask(struct rig *r, const char *body)
{
    char *a = rig_post(r, RESPONSES, body);
    CHECK_MSG(status_of(a) == 200, "%s", a);
    cJSON *v = body_of(a);
    free(a);
    return v;
}

static cJSON *get(struct rig *r, const char *method, const char *id, const char *verb, int status)
{
    char request[300];
    snprintf(request, sizeof request, "%s " RESPONSES "/%s%s HTTP/1.1\r\nHost: x\r\n\r\n", method,
             id, verb);
    char *a = rig_ask(r, request);
    CHECK_MSG(status_of(a) == status, "%s", a);
    cJSON *v = body_of(a);
    free(a);
    return v;
}

TEST(whole_answer)
{
    static const char *const nulls[] = {"error", "incomplete_details", "previous_response_id",
                                        "max_tool_calls"};
    struct rig r;
    start(&r, "a plan</think>I look." CALL, 5);
    rig_start(&r);
    cJSON *v = ask(&r, "{\"input\":\"Weather?\"," TOOLS "," THINK
                       ",\"instructions\":\"Be.\",\"metadata\":{\"a\":\"b\"},\"temperature\":0.5}");
    CHECK(!strncmp(text_at(v, "id"), "resp_", 5) && !strcmp(text_at(v, "object"), "response"));
    CHECK(!strcmp(text_at(v, "status"), "completed"));
    CHECK(!strcmp(text_at(v, "output.0.type"), "reasoning"));
    CHECK(!strcmp(text_at(v, "output.0.content.0.text"), "a plan"));
    CHECK(!strcmp(text_at(v, "output.1.content.0.text"), "I look."));
    CHECK(!strcmp(text_at(v, "output.2.type"), "function_call"));
    CHECK(!strcmp(text_at(v, "output.2.arguments"), "{\"city\": \"Paris\"}"));
    CHECK(!strncmp(text_at(v, "output.2.call_id"), "call_", 5) && !at(v, "output.3"));
    CHECK(!strcmp(text_at(v, "instructions"), "Be.") && !strcmp(text_at(v, "metadata.a"), "b"));
    CHECK(number_at(v, "temperature") == 0.5 && number_at(v, "top_p") <= 1);
    CHECK(!strcmp(text_at(v, "tools.0.name"), "get_weather"));
    CHECK(cJSON_IsTrue(at(v, "store")) && !strcmp(text_at(v, "reasoning.effort"), "high"));
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        CHECK(cJSON_IsNull(at(v, nulls[i])));
    CHECK(number_at(v, "usage.input_tokens") == atomic_load(&fake_count.n_prompt));
    CHECK(number_at(v, "usage.total_tokens") ==
          number_at(v, "usage.input_tokens") + number_at(v, "usage.output_tokens"));
    CHECK(number_at(v, "usage.output_tokens_details.reasoning_tokens") > 0);
    CHECK(number_at(v, "usage.input_tokens_details.cached_tokens") >= 0);
    cJSON_Delete(v);
    rig_stop(&r);
}

struct heard { /* one item, put together from its events */
    char id[64], type[20];
    struct buf text, done;
    int added, part_added, part_done, item_done;
};

static void hear(struct heard *item, int *n, const cJSON *ev)
{
    const char *type = text_at(ev, "type");
    int index = (int)number_at(ev, "output_index");
    if (!strcmp(type, "response.output_item.added")) {
        CHECK(index == *n && *n < MAX_ITEMS);
        snprintf(item[index].id, sizeof item->id, "%s", text_at(ev, "item.id"));
        snprintf(item[index].type, sizeof item->type, "%s", text_at(ev, "item.type"));
        item[index].added = 1;
        ++*n;
        return;
    }
    CHECK_MSG(index == *n - 1, "%s", type); /* items do not interleave */
    struct heard *it = &item[index];
    CHECK(!it->item_done);
    if (!strcmp(type, "response.output_item.done")) {
        const char *path =
            !strcmp(it->type, "function_call") ? "item.arguments" : "item.content.0.text";
        CHECK(!strcmp(text_at(ev, "item.id"), it->id));
        CHECK(!strcmp(text_at(ev, "item.status"), "completed"));
        CHECK(!strcmp(text_at(ev, path), it->text.s));
        it->item_done = 1;
        return;
    }
    CHECK(!strcmp(text_at(ev, "item_id"), it->id));
    if (strstr(type, ".delta")) {
        CHECK(!it->done.n);
        buf_str(&it->text, text_at(ev, "delta"));
    } else if (!strcmp(type, "response.content_part.added")) {
        it->part_added++;
    } else if (!strcmp(type, "response.content_part.done")) {
        it->part_done++;
    } else {
        CHECK_MSG(strstr(type, ".done"), "%s", type);
        buf_str(&it->done, text_at(ev, !strcmp(it->type, "function_call") ? "arguments" : "text"));
    }
}

static void check_stream(struct rig *r)
{
    static cJSON *ev[MAX_EVENTS];
    struct heard item[MAX_ITEMS] = {0};
    static const char *const texts[] = {"a plan", "I look.", "{\"city\": \"Paris\"}"};
    int n_items = 0;
    bool done;
    char *a =
        rig_stream(r, RESPONSES, "{\"input\":\"Weather?\",\"stream\":true," TOOLS "," THINK "}");
    int n = events_of(a, ev, MAX_EVENTS, &done);
    CHECK_MSG(n > 12 && !done && strstr(a, "event: response.created\ndata: {"), "%s", a);
    for (int i = 0; i < n; i++) {
        CHECK(number_at(ev[i], "sequence_number") == i);
        if (i > 1 && i < n - 1)
            hear(item, &n_items, ev[i]);
    }
    CHECK(!strcmp(text_at(ev[0], "type"), "response.created"));
    CHECK(!strcmp(text_at(ev[0], "response.status"), "in_progress"));
    CHECK(!strcmp(text_at(ev[1], "type"), "response.in_progress"));
    CHECK(!strcmp(text_at(ev[n - 1], "type"), "response.completed"));
    CHECK(n_items == 3);
    for (int i = 0; i < 3; i++) {
        int parts = i < 2;
        CHECK(item[i].part_added == parts && item[i].part_done == parts && item[i].item_done);
        CHECK(!strcmp(item[i].text.s, texts[i]) && !strcmp(item[i].done.s, texts[i]));
        buf_free(&item[i].text);
        buf_free(&item[i].done);
    }
    CHECK(cJSON_GetArraySize(at(ev[n - 1], "response.output")) == 3);
    CHECK(number_at(ev[n - 1], "response.usage.output_tokens") > 0);
    for (int i = 0; i < n; i++)
        cJSON_Delete(ev[i]);
    free(a);
}

TEST(streamed_at_every_cut)
{
    static const uint32_t pieces[] = {1, 2, 3, 5, 11, 1000};
    struct rig r;
    start(&r, "a plan</think>I look." CALL, 1);
    rig_start(&r);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        atomic_store(&fake.piece_bytes, pieces[i]);
        check_stream(&r);
    }
    rig_stop(&r);
}

TEST(a_limit_leaves_it_incomplete)
{
    struct rig r;
    start(&r, NULL, 4);
    rig_start(&r);
    cJSON *v = ask(&r, "{\"input\":\"Hi\",\"max_output_tokens\":3}");
    CHECK(!strcmp(text_at(v, "status"), "incomplete"));
    CHECK(!strcmp(text_at(v, "incomplete_details.reason"), "max_output_tokens"));
    CHECK(!strcmp(text_at(v, "output.0.status"), "incomplete"));
    CHECK(number_at(v, "usage.output_tokens") == 3);
    cJSON_Delete(v);
    char *a =
        rig_stream(&r, RESPONSES, "{\"input\":\"Hi\",\"max_output_tokens\":3,\"stream\":true}");
    CHECK(strstr(a, "event: response.incomplete\n") && !strstr(a, "response.completed"));
    free(a);
    rig_stop(&r);
}

/* How many tokens a conversation in the chat endpoint's shape has. */
static double count_of(struct rig *r, const char *messages)
{
    char body[3000];
    snprintf(body, sizeof body, "{\"messages\":[%s]}", messages);
    char *a = rig_post(r, "/tokenize", body);
    cJSON *v = body_of(a);
    double n = number_at(v, "count");
    CHECK_MSG(n > 0, "%s", a);
    cJSON_Delete(v);
    free(a);
    return n;
}

/* The prompt of a conversation that goes on is the one that chat would have for all of it. */
TEST(a_previous_response_is_gone_on_from)
{
    char body[1000];
    struct rig r;
    start(&r, "I look." CALL, 5);
    rig_start(&r);
    cJSON *first = ask(&r, "{\"input\":\"Weather?\",\"instructions\":\"Be brief.\"}");
    CHECK(!strcmp(text_at(first, "output.0.content.0.text"), "I look.")); /* no tools, no markup */
    cJSON_Delete(first);
    first = ask(&r, "{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":"
                    "\"Weather?\"}]}]," TOOLS ",\"instructions\":\"Be brief.\"}");
    const char *id = text_at(first, "id"), *call = text_at(first, "output.1.call_id");
    snprintf(body, sizeof body,
             "{\"previous_response_id\":\"%s\",\"input\":[{\"type\":\"function_call_output\","
             "\"call_id\":\"%s\",\"output\":\"sun\"}],\"instructions\":\"Be long.\"}",
             id, call);
    cJSON *second = ask(&r, body);
    CHECK(!strcmp(text_at(second, "previous_response_id"), id));
    CHECK(number_at(second, "usage.input_tokens") ==
          count_of(&r, "{\"role\":\"system\",\"content\":\"Be long.\"},"
                       "{\"role\":\"user\",\"content\":\"Weather?\"},{\"role\":\"assistant\","
                       "\"content\":\"I look.\",\"tool_calls\":[{\"id\":\"c\",\"type\":"
                       "\"function\",\"function\":{\"name\":\"get_weather\",\"arguments\":"
                       "\"{\\\"city\\\": \\\"Paris\\\"}\"}}]},"
                       "{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"sun\"}"));
    /* The same as items of the input. */
    double prompt = number_at(second, "usage.input_tokens");
    cJSON_Delete(second);
    second = ask(&r, "{\"store\":false,\"instructions\":\"Be long.\",\"input\":[{\"role\":\"user\","
                     "\"content\":\"Weather?\"},{\"type\":\"reasoning\",\"summary\":[]},{\"type\":"
                     "\"message\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\","
                     "\"text\":\"I look.\"}]},{\"type\":\"function_call\",\"call_id\":\"c\","
                     "\"name\":\"get_weather\",\"arguments\":\"{\\\"city\\\": \\\"Paris\\\"}\"},"
                     "{\"type\":\"function_call_output\",\"call_id\":\"c\",\"output\":\"sun\"}]}");
    CHECK(number_at(second, "usage.input_tokens") == prompt);
    CHECK(cJSON_IsFalse(at(second, "store")));
    cJSON_Delete(get(&r, "GET", text_at(second, "id"), "", 404)); /* as it was asked */
    cJSON_Delete(second);
    cJSON_Delete(first);
    rig_stop(&r);
}

TEST(kept_read_and_deleted)
{
    char id[64];
    struct rig r;
    start(&r, "Fine.", 3);
    rig_set(&r, "stored-responses", "2");
    rig_start(&r);
    cJSON *v = ask(&r, "{\"input\":\"Hi\"}");
    snprintf(id, sizeof id, "%s", text_at(v, "id"));
    cJSON *kept = get(&r, "GET", id, "", 200);
    CHECK(cJSON_Compare(v, kept, true));
    cJSON_Delete(kept);
    cJSON_Delete(v);
    v = get(&r, "POST", id, "/cancel", 400);
    CHECK(!strcmp(text_at(v, "error.code"), "response_not_cancellable"));
    cJSON_Delete(v);
    v = get(&r, "DELETE", id, "", 200);
    CHECK(!strcmp(text_at(v, "id"), id) && cJSON_IsTrue(at(v, "deleted")));
    cJSON_Delete(v);
    static const char *const methods[] = {"GET", "DELETE"};
    for (int i = 0; i < 2; i++) {
        v = get(&r, methods[i], id, "", 404);
        CHECK(!strcmp(text_at(v, "error.code"), "response_not_found"));
        CHECK(!strcmp(text_at(v, "error.param"), "response_id"));
        cJSON_Delete(v);
    }
    /* The third one takes the place of the one that was used longest ago. */
    cJSON *a = ask(&r, "{\"input\":\"a\"}"), *b = ask(&r, "{\"input\":\"b\"}");
    cJSON_Delete(get(&r, "GET", text_at(a, "id"), "", 200));
    cJSON *c = ask(&r, "{\"input\":\"c\"}");
    cJSON_Delete(get(&r, "GET", text_at(a, "id"), "", 200));
    cJSON_Delete(get(&r, "GET", text_at(b, "id"), "", 404));
    cJSON_Delete(get(&r, "GET", text_at(c, "id"), "", 200));
    cJSON_Delete(a);
    cJSON_Delete(b);
    cJSON_Delete(c);
    rig_stop(&r);
}

/* One that is being made can be read and cancelled. */
TEST(a_running_one_is_cancelled)
{
    char id[64];
    struct rig r;
    start(&r, NULL, 4);
    atomic_store(&fake.token_us, 2000);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, RESPONSES, "{\"input\":\"Hi\",\"stream\":true}");
    char *a = client_read(fd, "output_text.delta", PATIENCE_US / 1000);
    const char *at_id = strstr(a, "\"id\":\"resp_");
    CHECK_MSG(at_id, "%s", a);
    snprintf(id, sizeof id, "%.*s", (int)strcspn(at_id + 6, "\""), at_id + 6);
    free(a);
    cJSON *v = get(&r, "GET", id, "", 200);
    CHECK(!strcmp(text_at(v, "status"), "in_progress"));
    cJSON_Delete(v);
    v = get(&r, "POST", id, "/cancel", 200);
    CHECK(!strcmp(text_at(v, "status"), "cancelled"));
    cJSON_Delete(v);
    a = client_read(fd, "\r\n0\r\n\r\n", PATIENCE_US / 1000);
    CHECK_MSG(strstr(a, "\"status\":\"cancelled\"") && strstr(a, "response.incomplete"), "%s", a);
    free(a);
    close(fd);
    rig_stop(&r);
}

TEST(a_failure_in_a_stream)
{
    struct rig r;
    start(&r, NULL, 4);
    fake.fail_at = 3;
    rig_start(&r);
    char *a = rig_stream(&r, RESPONSES, "{\"input\":\"Hi\",\"stream\":true}");
    CHECK_MSG(strstr(a, "event: error\ndata: {\"type\":\"error\",") &&
                  strstr(a, "event: response.failed\n") && strstr(a, "\"status\":\"failed\""),
              "%s", a);
    free(a);
    rig_stop(&r);
}

TEST(errors)
{
    static const struct {
        const char *body;
        int status;
        const char *param, *code;
    } bad[] = {
        {"{}", 400, "input", "invalid_value"},
        {"{\"input\":[]}", 400, "input", "invalid_value"},
        {"{\"input\":7}", 400, "input", "invalid_value"},
        {"{\"input\":[7]}", 400, "input[0]", "invalid_value"},
        {"{\"input\":[{\"type\":\"item_reference\"}]}", 400, "input[0].type", "invalid_value"},
        {"{\"input\":[{\"role\":\"king\",\"content\":\"\"}]}", 400, "input[0].role",
         "invalid_value"},
        {"{\"input\":[{\"role\":\"user\"}]}", 400, "input[0].content", "invalid_value"},
        {"{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\"}]}]}", 400,
         "input[0].content[0].type", "invalid_value"},
        {"{\"input\":[{\"type\":\"function_call\",\"name\":\"x\",\"arguments\":\"{}\"}]}", 400,
         "input[0].call_id", "invalid_value"},
        {"{\"input\":[{\"type\":\"function_call_output\",\"call_id\":\"x\"}]}", 400,
         "input[0].output", "invalid_value"},
        {"{\"input\":\"a\",\"model\":\"nope\"}", 404, "model", "model_not_found"},
        {"{\"input\":\"a\",\"max_output_tokens\":0}", 400, "max_output_tokens", "invalid_value"},
        {"{\"input\":\"a\",\"max_output_tokens\":99999999}", 400, "input",
         "context_length_exceeded"},
        {"{\"input\":\"a\",\"temperature\":3}", 400, "temperature", "invalid_value"},
        {"{\"input\":\"a\",\"previous_response_id\":\"resp_1\"}", 400, "previous_response_id",
         "previous_response_not_found"},
        {"{\"input\":\"a\",\"background\":true}", 400, "background", "invalid_value"},
        {"{\"input\":\"a\",\"conversation\":\"c\"}", 400, "conversation", "invalid_value"},
        {"{\"input\":\"a\",\"prompt\":{\"id\":\"p\"}}", 400, "prompt", "invalid_value"},
        {"{\"input\":\"a\",\"truncation\":\"auto\"}", 400, "truncation", "invalid_value"},
        {"{\"input\":\"a\",\"include\":[\"file_search_call.results\"]}", 400, "include",
         "invalid_value"},
        {"{\"input\":\"a\",\"reasoning\":{\"effort\":\"very\"}}", 400, "reasoning.effort",
         "invalid_value"},
        {"{\"input\":\"a\",\"tools\":[{\"type\":\"web_search\"}]}", 400, "tools[0].type",
         "invalid_value"},
        {"{\"input\":\"a\",\"tools\":[{\"type\":\"function\"}]}", 400, "tools[0].name",
         "invalid_value"},
        {"{\"input\":\"a\",\"tool_choice\":\"required\"}", 400, "tool_choice", "invalid_value"},
        {"{\"input\":\"a\"," TOOLS ",\"tool_choice\":{\"type\":\"function\"}}", 400,
         "tool_choice.name", "invalid_value"},
        {"{\"input\":\"a\",\"metadata\":1}", 400, "metadata", "invalid_value"},
        {"{\"input\":\"a\",\"store\":1}", 400, "store", "invalid_value"},
        {"{\"input\":\"a\",\"top_logprobs\":3}", 400, "top_logprobs", "invalid_value"},
        {"{", 400, NULL, "invalid_json"},
    };
    struct rig r;
    start(&r, NULL, 4);
    rig_start(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *a = rig_post(&r, RESPONSES, bad[i].body);
        cJSON *v = body_of(a);
        const cJSON *param = at(v, "error.param");
        CHECK_MSG(status_of(a) == bad[i].status &&
                      (bad[i].param ? !strcmp(text_at(v, "error.param"), bad[i].param)
                                    : cJSON_IsNull(param)) &&
                      !strcmp(text_at(v, "error.code"), bad[i].code) &&
                      !strcmp(text_at(v, "error.type"), "invalid_request_error"),
                  "%s\n%s", bad[i].body, a);
        cJSON_Delete(v);
        free(a);
    }
    rig_stop(&r);
}

TEST(the_store_is_bounded)
{
    static const size_t bytes[] = {400, 500};
    static char text[500];
    struct response_store *s;
    struct err e = {0};
    uint32_t n;
    char id[24];
    memset(text, 'x', sizeof text);
    CHECK_OK(response_store_open(&s, 100, 10000, &e), e);
    for (int i = 0; i < 1000; i++) {
        snprintf(id, sizeof id, "resp_%d", i);
        CHECK(response_store_put(s, id, 7, (const char *const[]){text, text}, bytes));
        CHECK(response_store_bytes(s, &n) <= 10000 && n <= 11);
        CHECK(response_store_bytes(s, &n) == n * 900);
    }
    size_t got = 0;
    char *t = response_store_get(s, "resp_999", 7, RESPONSE_TALK, &got);
    CHECK(t && got == 500 && strlen(t) == 500);
    free(t);
    CHECK(!response_store_get(s, "resp_999", 8, RESPONSE_TALK, &got)); /* somebody else's */
    CHECK(!response_store_get(s, "resp_0", 7, RESPONSE_TALK, &got));
    CHECK(!response_store_put(s, "big", 7, (const char *const[]){text, text},
                              (const size_t[]){400, 10000}));
    CHECK(response_store_bytes(s, &n) == 9900 && n == 11);
    CHECK(response_store_delete(s, "resp_999", 7) && !response_store_delete(s, "resp_999", 7));
    response_store_close(s);
}
