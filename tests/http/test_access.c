/* test_access.c - keys, their limits, and who may listen where. */
#include "rig.h"

#include "server/auth.h"

#include <math.h>

#define HELLO "{\"prompt\":\"Hi\",\"max_tokens\":3}"
#define ENDLESS "{\"prompt\":\"Hi\",\"max_tokens\":8000,\"stream\":true}"

static char key_path[300];

static void write_file(const char *text)
{
    if (!key_path[0])
        snprintf(key_path, sizeof key_path, "%s/keys", test_tmpdir());
    FILE *f = fopen(key_path, "w");
    CHECK(f && fputs(text, f) >= 0);
    fclose(f);
}

/* Lines for secrets "alice-secret" and so on; `limits` are split at spaces. */
static void add_line(char *out, const char *name, const char *limits)
{
    char line[500], secret[80], words[200], *limit[8], *rest = NULL;
    int n = 0;
    struct err e = {0};
    snprintf(secret, sizeof secret, "%s-secret", name);
    snprintf(words, sizeof words, "%s", limits);
    for (char *w = strtok_r(words, " ", &rest); w; w = strtok_r(NULL, " ", &rest))
        limit[n++] = w;
    CHECK_OK(auth_make_line(line, sizeof line, name, secret, limit, n, &e), e);
    strcat(strcat(out, line), "\n");
}

static char *ask_with(struct rig *r, const char *method, const char *path, const char *header,
                      const char *body)
{
    char request[1000];
    snprintf(request, sizeof request,
             "%s %s HTTP/1.1\r\nHost: x\r\n%s%sContent-Length: %zu\r\n\r\n%s", method, path, header,
             *header ? "\r\n" : "", strlen(body), body);
    return rig_ask(r, request);
}

static void check_with(struct rig *r, const char *method, const char *path, const char *header,
                       int status)
{
    char *a = ask_with(r, method, path, header, !strcmp(method, "POST") ? HELLO : "");
    CHECK_MSG(status_of(a) == status, "%s %s with %s: expected %d: %.300s", method, path, header,
              status, a);
    if (status == 401) {
        cJSON *v = body_of(a);
        CHECK(strcasestr(a, "\r\nwww-authenticate: bearer\r\n"));
        CHECK(!strcmp(text_at(v, "error.code"), "invalid_api_key"));
        CHECK(!strcmp(text_at(v, "error.type"), "authentication_error"));
        cJSON_Delete(v);
    }
    free(a);
}

/* Goal: with keys every path asks for one, known or not, but for health and preflights. */
TEST(keys_are_asked_for_everywhere_but_health)
{
    static const char *const paths[] = {"/metrics", "/version", "/v1/models", "/nothing",
                                        "/v1/models/fake"};
    char file[2000] = "# people\n\n";
    struct rig r;
    add_line(file, "alice", "");
    add_line(file, "bob", "requests=1000");
    write_file(file);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        check_with(&r, "GET", paths[i], "", 401);
        check_with(&r, "GET", paths[i], "Authorization: Bearer bob-secret",
                   strcmp(paths[i], "/nothing") ? 200 : 404);
    }
    check_with(&r, "POST", "/v1/completions", "", 401);
    check_with(&r, "POST", "/v1/completions", "Authorization: Bearer alice", 401);
    check_with(&r, "POST", "/v1/completions", "Authorization: Bearer alice-secret2", 401);
    check_with(&r, "POST", "/v1/completions", "Authorization: Bearer ", 401);
    check_with(&r, "POST", "/v1/completions", "Authorization: Basic alice-secret", 401);
    char *first =
        ask_with(&r, "POST", "/v1/completions", "Authorization: bEARER  alice-secret", HELLO);
    cJSON *v = body_of(first);
    int prompt_tokens = (int)number_at(v, "usage.prompt_tokens");
    char want[100];
    CHECK(status_of(first) == 200 && prompt_tokens >= 1);
    cJSON_Delete(v);
    free(first);
    check_with(&r, "POST", "/v1/completions", "x-api-key: bob-secret", 200);
    check_with(&r, "POST", "/v1/completions", "x-api-key: bob-secre", 401);
    check_with(&r, "DELETE", "/v1/models", "", 401);
    check_with(&r, "GET", "/health", "", 200);
    check_with(&r, "GET", "/health/ready", "", 200);
    check_with(&r, "GET", "/", "", 200); /* the page asks for the key itself */
    check_with(&r, "OPTIONS", "/v1/completions", "", 204);
    char *a = ask_with(&r, "GET", "/metrics", "Authorization: Bearer bob-secret", "");
    CHECK(strstr(a, "\ngaze_key_requests_total{key=\"bob\"} 1\n"));
    CHECK(strstr(a, "\ngaze_key_tokens_total{key=\"alice\",kind=\"generation\"} 3\n"));
    snprintf(want, sizeof want, "\ngaze_key_tokens_total{key=\"alice\",kind=\"prompt\"} %d\n",
             prompt_tokens);
    CHECK(strstr(a, want));
    CHECK(!strstr(a, "secret"));
    free(a);
    rig_stop(&r);
}

TEST(metrics_can_be_open)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "api-key", "only-this-one");
    rig_set(&r, "open-metrics", "on");
    rig_start(&r);
    check_with(&r, "GET", "/metrics", "", 200);
    check_with(&r, "GET", "/version", "", 401);
    rig_stop(&r);
}

TEST(a_single_key_from_the_settings)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "api-key", "only-this-one");
    rig_start(&r);
    check_with(&r, "POST", "/v1/completions", "", 401);
    check_with(&r, "POST", "/v1/completions", "Authorization: Bearer only-this-one", 200);
    rig_stop(&r);
}

static double number_of(const char *answer, const char *header)
{
    const char *h = strcasestr(answer, header);
    CHECK_MSG(h, "no %s in %.500s", header, answer);
    return strtod(h + strlen(header), NULL);
}

TEST(a_key_over_its_requests_is_429_with_the_time_to_wait)
{
    char file[1000] = "";
    struct rig r;
    add_line(file, "alice", "requests=2");
    write_file(file);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    const char *me = "Authorization: Bearer alice-secret";
    for (int i = 0; i < 2; i++) {
        char *a = ask_with(&r, "POST", "/v1/completions", me, HELLO);
        CHECK(status_of(a) == 200);
        CHECK(number_of(a, "\r\nx-ratelimit-limit-requests: ") == 2);
        CHECK(number_of(a, "\r\nx-ratelimit-remaining-requests: ") == 1 - i);
        CHECK(number_of(a, "\r\nx-ratelimit-reset-requests: ") > 29 * (i + 1));
        free(a);
    }
    char *a = ask_with(&r, "POST", "/v1/completions", me, HELLO);
    cJSON *v = body_of(a);
    CHECK(status_of(a) == 429 && !strcmp(text_at(v, "error.code"), "rate_limit_exceeded"));
    double wait = number_of(a, "\r\nretry-after: ");
    CHECK_MSG(wait >= 28 && wait <= 30, "%g", wait); /* one in 30 s flows in */
    cJSON_Delete(v);
    free(a);
    check_with(&r, "GET", "/v1/models", me, 200); /* not counted: no work for the engine */
    rig_stop(&r);
}

TEST(a_key_over_its_tokens_waits_until_they_are_paid)
{
    char file[1000] = "";
    struct rig r;
    add_line(file, "alice", "tokens=300");
    write_file(file);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    const char *me = "x-api-key: alice-secret";
    char *a = ask_with(&r, "POST", "/v1/completions", me, "{\"prompt\":\"Hi\",\"max_tokens\":98}");
    CHECK(status_of(a) == 200 && number_of(a, "\r\nx-ratelimit-remaining-tokens: ") >= 199);
    free(a);
    /* Some are left, so a request may begin; what it takes beyond them is owed: 300 - 100 - 402. */
    a = ask_with(&r, "POST", "/v1/completions", me, "{\"prompt\":\"Hi\",\"max_tokens\":400}");
    CHECK(status_of(a) == 200 && number_of(a, "\r\nx-ratelimit-remaining-tokens: ") == 0);
    free(a);
    a = ask_with(&r, "POST", "/v1/completions", me, HELLO);
    double wait = number_of(a, "\r\nretry-after: ");
    CHECK_MSG(status_of(a) == 429 && wait >= 38 && wait <= 41, "%g", wait); /* 202 of 5 a second */
    free(a);
    rig_stop(&r);
}

TEST(a_key_has_so_many_requests_at_once)
{
    char file[1000] = "";
    struct rig r;
    fake.token_us = 2000;
    add_line(file, "alice", "concurrent=2");
    add_line(file, "bob", "");
    write_file(file);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    int fd[2];
    for (int i = 0; i < 2; i++) {
        char request[400];
        fd[i] = client_open(&r);
        snprintf(request, sizeof request,
                 "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-api-key: alice-secret\r\n"
                 "Content-Length: %zu\r\n\r\n" ENDLESS,
                 strlen(ENDLESS));
        client_say(fd[i], request);
    }
    EVENTUALLY(fake_count.running == 2);
    check_with(&r, "POST", "/v1/completions", "x-api-key: alice-secret", 429);
    check_with(&r, "POST", "/v1/completions", "x-api-key: bob-secret", 200);
    close(fd[0]);
    EVENTUALLY(fake_count.running == 1);
    char *a;
    EVENTUALLY((a = ask_with(&r, "POST", "/v1/completions", "x-api-key: alice-secret", HELLO),
                status_of(a) == 200 ? (free(a), 1) : (free(a), 0)));
    close(fd[1]);
    EVENTUALLY(fake_count.running == 0);
    rig_stop(&r);
}

/* Goal: tenant, weight and the best priority come from the key, whatever the client says. */
TEST(the_scheduler_hears_of_the_key)
{
    char file[1000] = "";
    struct rig r;
    add_line(file, "alice", "weight=7");
    add_line(file, "root", "priority=-5");
    write_file(file);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    const char *wish = "{\"prompt\":\"Hi\",\"max_tokens\":1,\"priority\":-3}";
    char *a = ask_with(&r, "POST", "/v1/completions", "x-api-key: alice-secret", wish);
    CHECK(status_of(a) == 200 && (int32_t)fake_count.priority == 0);
    uint32_t alice = fake_count.tenant;
    CHECK(alice > 0 && fake_count.weight == 7);
    free(a);
    a = ask_with(&r, "POST", "/v1/completions", "x-api-key: root-secret", wish);
    CHECK(status_of(a) == 200 && (int32_t)fake_count.priority == -3);
    CHECK(fake_count.tenant > 0 && fake_count.tenant != alice && fake_count.weight == 1);
    free(a);
    rig_stop(&r);
}

TEST(keys_are_read_again_on_sighup)
{
    char first[1000] = "", second[1000] = "";
    struct rig r;
    fake.token_us = 2000;
    add_line(first, "alice", "requests=2");
    add_line(first, "bob", "");
    add_line(second, "alice", "requests=4");
    add_line(second, "carol", "");
    write_file(first);
    rig_prepare(&r);
    rig_set(&r, "key-file", key_path);
    rig_start(&r);
    check_with(&r, "POST", "/v1/completions", "x-api-key: alice-secret", 200);
    check_with(&r, "POST", "/v1/completions", "x-api-key: carol-secret", 401);
    int fd = client_open(&r); /* a request of a key that goes meanwhile lives on */
    char request[400];
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-api-key: bob-secret\r\n"
             "Content-Length: %zu\r\n\r\n" ENDLESS,
             strlen(ENDLESS));
    client_say(fd, request);
    EVENTUALLY(fake_count.running == 1);
    write_file("alice sha256:nonsense\n"); /* refused as a whole; the old keys stay */
    kill(getpid(), SIGHUP);
    usleep(100000);
    check_with(&r, "GET", "/version", "x-api-key: bob-secret", 200);
    write_file(second);
    kill(getpid(), SIGHUP);
    EVENTUALLY(({
                   char *b = ask_with(&r, "GET", "/version", "x-api-key: carol-secret", "");
                   int s = status_of(b);
                   free(b);
                   s;
               }) == 200);
    check_with(&r, "GET", "/version", "x-api-key: bob-secret", 401);
    CHECK(fake_count.running == 1);
    char *a = ask_with(&r, "POST", "/v1/completions", "x-api-key: alice-secret", HELLO);
    CHECK(status_of(a) == 200 && number_of(a, "\r\nx-ratelimit-limit-requests: ") == 4);
    CHECK(number_of(a, "\r\nx-ratelimit-remaining-requests: ") == 0); /* 2 - 1 - 1: not refilled */
    free(a);
    close(fd);
    EVENTUALLY(fake_count.running == 0);
    rig_stop(&r);
}

TEST(a_public_address_needs_a_key)
{
    static const char *const hosts[] = {"0.0.0.0", "::"};
    struct err e = {0};
    for (size_t i = 0; i < 2; i++) {
        struct rig r;
        rig_prepare(&r);
        rig_set(&r, "host", hosts[i]);
        CHECK(server_open(&r.sv, &r.settings, &fake_engine_api, &e) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, "--insecure") && strstr(e.msg, hosts[i]), "%s", e.msg);
        settings_free(&r.settings);
    }
    for (int i = 0; i < 2; i++) {
        struct rig r;
        rig_prepare(&r);
        rig_set(&r, "host", "0.0.0.0");
        rig_set(&r, i ? "api-key" : "insecure", i ? "some-secret" : "on");
        rig_start(&r);
        rig_stop(&r);
    }
}

TEST(bad_files_of_keys_are_refused_with_their_line)
{
    char good[500] = "", many[120000] = "";
    struct auth *a = NULL;
    struct err e = {0};
    add_line(good, "ok", "requests=5");
    for (int i = 0; i < 256; i++) {
        char name[20];
        snprintf(name, sizeof name, "k%d", i);
        add_line(many, name, "");
    }
    char twice[1100], limit[600], zero[600], use[600], tail[600];
    snprintf(twice, sizeof twice, "%s%s", good, good);
    snprintf(limit, sizeof limit, "# x\n%.*s cats=3\n", (int)strlen(good) - 1, good);
    snprintf(zero, sizeof zero, "%.*s tokens=0\n", (int)strlen(good) - 1, good);
    snprintf(use, sizeof use, "%.*s use=cats\n", (int)strlen(good) - 1, good);
    snprintf(tail, sizeof tail, "ok sha256:%.40s00\n", "0123456789abcdef0123456789abcdef:0123456");
    const struct {
        const char *text, *why;
    } bad[] = {{"", "holds no key"},
               {"# only a note\n", "holds no key"},
               {"alice\n", "sha256:SALT:HASH"},
               {"alice sk-plain\n", "sha256:SALT:HASH"},
               {tail, "sha256:SALT:HASH"},
               {"al\"ice sha256:00:11\n", "name"},
               {twice, "line 2: the name ok comes twice"},
               {limit, "line 2: key ok: \"cats=3\""},
               {zero, "tokens=0 is outside 1..1000000000"},
               {use, "use=cats: expected all, metrics or api"},
               {many, "line 256: there may be 255 keys"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file(bad[i].text);
        CHECK_MSG(auth_open(&a, key_path, "", &e) == ERR_INVALID, "case %zu", i);
        CHECK_MSG(strstr(e.msg, bad[i].why), "case %zu: %s", i, e.msg);
    }
    CHECK(auth_open(&a, "/nowhere/keys", "", &e) == ERR_INVALID);
    write_file(good);
    CHECK_OK(auth_open(&a, key_path, "", &e), e);
    CHECK(auth_find(a, "ok-secret", 9) && !auth_find(a, "ok-secret", 8) && !auth_find(a, "", 0));
    auth_close(a);
}

/* Goal:   over any time a key gets no more than its minute's worth and what flows in meanwhile.
 * Method: a random life of one key, against the sum of what it took. */
TEST(buckets_hold_over_a_random_life)
{
    struct rng g = {test_seed()};
    for (int life = 0; life < 200; life++) {
        struct auth_key k = {.name = "x", .valid = true, .limit.weight = 1};
        struct api_error ae;
        uint64_t begun = 1000000, now = begun;
        double requests = 0, tokens = 0;
        k.limit.requests = 1 + rng_below(&g, 100);
        k.limit.tokens = 1 + rng_below(&g, 5000);
        for (int i = 0; i < 300; i++) {
            now += rng_below(&g, 2000000);
            double most = 1 + (double)(now - begun) * 1e-6 / 60;
            double free_tokens = k.limit.tokens * most - tokens;
            if (auth_admit(&k, now, &ae)) {
                uint32_t n = rng_below(&g, 200);
                requests++;
                CHECK(free_tokens > 0);
                auth_charge(&k, now, n / 2, n - n / 2);
                tokens += n;
                auth_release(&k);
                CHECK_MSG(requests <= k.limit.requests * most + 1e-6, "%g requests", requests);
            } else {
                CHECK(ae.status == 429 && ae.retry_after_s >= 1);
                uint64_t later = now + ae.retry_after_s * (uint64_t)1000000;
                struct auth_key then = k; /* after the wait it is let in */
                CHECK(auth_admit(&then, later, &ae));
            }
        }
        CHECK(k.n_running == 0);
    }
}
