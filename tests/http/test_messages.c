/* test_messages.c - /v1/messages and count_tokens over a fake engine that writes markup. */
#include "rig.h"

#define MESSAGES "/v1/messages"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]"
#define SCHEMA "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"}}}"
#define TOOLS "\"tools\":[{\"name\":\"get_weather\",\"input_schema\":" SCHEMA "}]"
#define THINK "\"thinking\":{\"type\":\"enabled\"}"
#define CALL_BEGIN "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
#define CALL_SEP "<｜tool▁sep｜>"
#define CALL_END "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
#define CALL CALL_BEGIN "get_weather" CALL_SEP "{\"city\": \"Paris\"}" CALL_END

enum { MAX_EVENTS = 500 };

static void start(struct rig *r, const char *text, uint32_t piece_bytes)
{
    fake.text = text;
    atomic_store(&fake.piece_bytes, piece_bytes);
    rig_prepare(r);
    rig_start(r);
}

TEST(whole_answer)
{
    struct rig r;
    start(&r, "a plan</think>I look." CALL, 5);
    char *a = rig_post(&r, MESSAGES,
                       "{\"max_tokens\":200," USER "," TOOLS "," THINK ",\"system\":\"Be.\"}");
    CHECK_MSG(status_of(a) == 200, "%s", a);
    cJSON *v = body_of(a);
    CHECK(!strncmp(text_at(v, "id"), "msg_", 4) && !strcmp(text_at(v, "type"), "message"));
    CHECK(!strcmp(text_at(v, "content.0.thinking"), "a plan"));
    CHECK(!strcmp(text_at(v, "content.1.text"), "I look."));
    CHECK(!strcmp(text_at(v, "content.2.type"), "tool_use"));
    CHECK(!strcmp(text_at(v, "content.2.input.city"), "Paris"));
    CHECK(!strcmp(text_at(v, "stop_reason"), "tool_use"));
    CHECK(number_at(v, "usage.input_tokens") + number_at(v, "usage.cache_read_input_tokens") ==
          atomic_load(&fake_count.n_prompt));
    CHECK(number_at(v, "usage.output_tokens") > 1);
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

/* Every block starts, gets its deltas and stops before the next one starts. */
static void check_stream(struct rig *r)
{
    static cJSON *ev[MAX_EVENTS];
    struct buf text[3] = {{0}, {0}, {0}};
    int open = -1, n_blocks = 0;
    bool done;
    char *a = rig_stream(r, MESSAGES,
                         "{\"max_tokens\":400,\"stream\":true," USER "," TOOLS "," THINK "}");
    int n = events_of(a, ev, MAX_EVENTS, &done);
    CHECK_MSG(n > 8 && !done && strstr(a, "event: message_start\ndata: {"), "%s", a);
    for (int i = 0; i < n; i++) {
        const char *type = text_at(ev[i], "type");
        if (i == 0 || i >= n - 2)
            CHECK(!strcmp(type, !i           ? "message_start"
                                : i == n - 1 ? "message_stop"
                                             : "message_delta"));
        if (!strcmp(type, "content_block_start")) {
            CHECK(open < 0 && number_at(ev[i], "index") == n_blocks && n_blocks < 3);
            open = n_blocks++;
        } else if (!strcmp(type, "content_block_delta")) {
            static const char *const key[] = {"delta.thinking", "delta.text", "delta.partial_json"};
            CHECK(open >= 0 && number_at(ev[i], "index") == open);
            buf_str(&text[open], text_at(ev[i], key[open]));
        } else if (!strcmp(type, "content_block_stop")) {
            CHECK(open >= 0 && number_at(ev[i], "index") == open);
            open = -1;
        } else if (!strcmp(type, "message_delta")) {
            CHECK(open < 0 && !strcmp(text_at(ev[i], "delta.stop_reason"), "tool_use"));
            CHECK(number_at(ev[i], "usage.output_tokens") > 0);
        }
        cJSON_Delete(ev[i]);
    }
    CHECK(n_blocks == 3 && !strcmp(text[0].s, "a plan") && !strcmp(text[1].s, "I look."));
    CHECK(!strcmp(text[2].s, "{\"city\": \"Paris\"}"));
    for (int i = 0; i < 3; i++)
        buf_free(&text[i]);
    free(a);
}

TEST(streamed_at_every_cut)
{
    static const uint32_t pieces[] = {1, 2, 3, 5, 11, 1000};
    struct rig r;
    start(&r, "a plan</think>I look." CALL, 1);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        atomic_store(&fake.piece_bytes, pieces[i]);
        check_stream(&r);
    }
    rig_stop(&r);
}

/* The prompt is the one that the same conversation has in the chat endpoint's shape. */
TEST(a_tool_loop_counts_as_chat_does)
{
    struct rig r;
    start(&r, NULL, 4);
    char *a = rig_post(&r, MESSAGES "/count_tokens",
                       "{\"system\":\"Be "
                       "brief.\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
                       "\"text\":\"Hi\"}]},{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_"
                       "use\",\"id\":\"c1\","
                       "\"name\":\"get_weather\",\"input\":{\"city\":\"Paris\"}}]},{\"role\":"
                       "\"user\",\"content\":[{"
                       "\"type\":\"tool_result\",\"tool_use_id\":\"c1\",\"content\":\"sun\"}]}]}");
    char *b = rig_post(
        &r, "/tokenize",
        "{\"thinking\":{\"type\":\"disabled\"},\"messages\":[{\"role\":\"system\",\"content\":\"Be "
        "brief.\"},{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"tool_calls\":[{"
        "\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"arguments\":{"
        "\"city\":\"Paris\"}}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"sun\"}]"
        "}");
    cJSON *va = body_of(a), *vb = body_of(b);
    CHECK_MSG(number_at(va, "input_tokens") > 0 &&
                  number_at(va, "input_tokens") == number_at(vb, "count"),
              "%s\n%s", a, b);
    cJSON_Delete(va);
    cJSON_Delete(vb);
    free(a);
    free(b);
    rig_stop(&r);
}

static void check_refused(struct rig *r, const char *body, int status, const char *type,
                          const char *says)
{
    char *a = rig_post(r, MESSAGES, body);
    cJSON *v = body_of(a);
    CHECK_MSG(status_of(a) == status && !strcmp(text_at(v, "type"), "error") &&
                  !strcmp(text_at(v, "error.type"), type) &&
                  strstr(text_at(v, "error.message"), says) && at(v, "request_id"),
              "%s", a);
    cJSON_Delete(v);
    free(a);
}

TEST(errors_have_the_other_shape)
{
    static const char bad[] = "invalid_request_error";
    struct rig r;
    start(&r, NULL, 4);
    check_refused(&r, "{" USER "}", 400, bad, "max_tokens");
    check_refused(&r, "{\"max_tokens\":9}", 400, bad, "messages");
    check_refused(&r, "{\"max_tokens\":9," USER ",\"temperature\":1.5}", 400, bad, "temperature");
    check_refused(&r, "{\"max_tokens\":9," USER ",\"tools\":[{\"name\":\"x\"}]}", 400, bad,
                  "tools[0].input_schema");
    check_refused(&r, "{\"max_tokens\":9," USER ",\"tool_choice\":{\"type\":\"all\"}}", 400, bad,
                  "tool_choice.type");
    check_refused(
        &r, "{\"max_tokens\":9," USER ",\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":-1}}",
        400, bad, "thinking.budget_tokens");
    check_refused(&r,
                  "{\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":"
                  "\"image\"}]}]}",
                  400, bad, "messages[0].content[0].type");
    check_refused(&r, "{\"max_tokens\":9,\"model\":\"nope\"," USER "}", 404, "not_found_error",
                  "nope");
    check_refused(&r, "{", 400, bad, "");
    rig_stop(&r);
}
