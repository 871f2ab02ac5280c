/* test_groups.c - the real engine behind the server with several attention groups: the same answers
 * as with one, and an end that everybody hears of when a rank is lost. */
#include "rig.h"

#include "base/fault.h"

#define CHAT "/v1/chat/completions"
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"Tell me about the sea and its ships\"}]"

/* Prompts with a common beginning of several pages, several choices, log-probabilities; greedy and
 * sampled. */
enum { N_ASKED = 14, WORDS = 120 };
static char asked[N_ASKED][8192];
static void make_asked(void)
{
    for (int i = 0; i < N_ASKED; i++) {
        char words[4096] = "";
        for (int k = 0; k < WORDS + 9 * i; k++)
            snprintf(words + strlen(words), sizeof words - strlen(words), "%s%d ",
                     k % 3 ? "sea" : "ship", k < WORDS ? k : k * (i + 1));
        snprintf(asked[i], sizeof asked[i],
                 "{\"prompt\":\"%s\",\"max_tokens\":%d,\"n\":%d,\"temperature\":%s,\"seed\":%d,"
                 "\"logprobs\":2,\"ignore_eos\":true}",
                 i % 3 ? words : "Hello", 5 + 3 * i, i % 5 == 4 ? 3 : 1, i % 2 ? "0.8" : "0", i);
    }
}

/* Asks all at once; the texts and log-probabilities of the answers. */
static void ask_all(struct rig *r, char *out[N_ASKED])
{
    int fd[N_ASKED];
    for (int i = 0; i < N_ASKED; i++) {
        fd[i] = client_open(r);
        client_post(fd[i], "/v1/completions", asked[i]);
    }
    for (int i = 0; i < N_ASKED; i++) {
        char *a = client_answer(fd[i]);
        CHECK_MSG(status_of(a) == 200, "request %d: %s", i, a);
        cJSON *v = body_of(a);
        out[i] = cJSON_PrintUnformatted(at(v, "choices"));
        cJSON_Delete(v);
        free(a);
        close(fd[i]);
    }
}

static double group_number(struct rig *r, const char *name, const char *labels)
{
    char *a = rig_get(r, "/metrics"), line[200];
    snprintf(line, sizeof line, "\n%s{model_name=\"fake\",%s} ", name, labels);
    const char *at = strstr(a, line);
    CHECK_MSG(at, "no %s in the metrics", line + 1);
    double v = strtod(at + strlen(line), NULL);
    free(a);
    return v;
}

/* The sum of a metric's values, over all its labels. */
static double sum_of(struct rig *r, const char *name)
{
    char *a = rig_get(r, "/metrics"), line[80];
    double sum = 0.0;
    snprintf(line, sizeof line, "\n%s{", name);
    for (const char *at = a; (at = strstr(at, line));) {
        at = strchr(at + 1, '}') + 1;
        sum += strtod(at, NULL);
    }
    free(a);
    return sum;
}

static void start_layout(struct rig *r, const char *dp, const char *split)
{
    rig_prepare(r);
    rig_set(r, "dp", dp);
    rig_set(r, "split", split);
    rig_start_real(r);
}

/* Goal:   no layout of groups changes a byte of an answer, also when its pages went over and had to
 *         go twice; and /metrics tells what each group did.
 * Method: a crowd of requests in each layout, cold and warm, beside the answers of one group. */
TEST_LIMIT(layouts_give_the_same_answers, 120)
{
    static const struct {
        const char *dp, *split, *fault;
    } layouts[] = {{"2", "", NULL},
                   {"3", "", NULL},
                   {"1", "1:1", NULL},
                   {"4", "2:2", NULL},
                   {"1", "1:1", "pages.corrupt:20-40"},
                   {"1", "1:1", "pages.import:3-5"}};
    char *usual[N_ASKED], *got[N_ASKED];
    struct rig r;
    make_asked();
    start_layout(&r, "1", "");
    ask_all(&r, usual);
    rig_stop(&r);
    for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
        start_layout(&r, layouts[k].dp, layouts[k].split);
        fault_arm(layouts[k].fault);
        for (int round = 0; round < 2; round++) {
            ask_all(&r, got);
            for (int i = 0; i < N_ASKED; i++) {
                CHECK_MSG(!strcmp(usual[i], got[i]), "dp %s split %s, round %d, request %d: %s\n%s",
                          layouts[k].dp, layouts[k].split, round, i, usual[i], got[i]);
                free(got[i]);
            }
        }
        fault_arm(NULL);
        bool split = layouts[k].split[0];
        const char *role = split ? "group=\"0\",role=\"prefill\"" : "group=\"0\",role=\"both\"";
        char labels[100];
        snprintf(labels, sizeof labels, "%s,lane=\"prefill\"", role);
        CHECK(group_number(&r, "gaze_group_steps_total", labels) > 0);
        snprintf(labels, sizeof labels, "%s,lane=\"decode\"", role);
        CHECK((group_number(&r, "gaze_group_steps_total", labels) > 0) == !split);
        snprintf(labels, sizeof labels, "%s,result=\"arrived\"", role);
        CHECK((group_number(&r, "gaze_group_moves_total", labels) > 0) == split);
        snprintf(labels, sizeof labels, "%s,result=\"failed\"", role);
        CHECK((group_number(&r, "gaze_group_moves_total", labels) > 0) == !!layouts[k].fault);
        EVENTUALLY(group_number(&r, "gaze_group_sequences", role) == 0);
        rig_stop(&r);
    }
    for (int i = 0; i < N_ASKED; i++)
        free(usual[i]);
}

/* Goal: where a model is cut over ranks, answers are those of their layout, whatever runs beside
 * them and from whichever group; each key of a layout reaches the engine; and experts' rows are
 * counted once. */
TEST_LIMIT(cut_models_answer_the_same_each_time, 120)
{
    static const char *const layouts[][3] = {/* tp, dp, ep */
                                             {"2", "1", "1"},
                                             {"2", "1", "2"},
                                             {"1", "2", "2"},
                                             {"2", "2", "4"}};
    make_asked();
    for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
        char *first[N_ASKED], *got[N_ASKED];
        struct rig r;
        rig_prepare(&r);
        rig_set(&r, "tp", layouts[k][0]);
        rig_set(&r, "dp", layouts[k][1]);
        rig_set(&r, "ep", layouts[k][2]);
        rig_start_real(&r);
        ask_all(&r, first);
        for (int round = 0; round < 2; round++) {
            ask_all(&r, got);
            for (int i = 0; i < N_ASKED; i++) {
                CHECK_MSG(!strcmp(first[i], got[i]), "tp %s dp %s ep %s, request %d: %s\n%s",
                          layouts[k][0], layouts[k][1], layouts[k][2], i, first[i], got[i]);
                free(got[i]);
            }
        }
        for (int i = 0; i < N_ASKED; i++)
            free(first[i]);
        /* one layer with experts, four of them for each row, whichever rank counts it */
        EVENTUALLY(sum_of(&r, "gaze_expert_rows_total") == 4 * sum_of(&r, "gaze_rows_total"));
        CHECK(sum_of(&r, "gaze_expert_rows_total") > 1000);
        CHECK(sum_of(&r, "gaze_expert_imbalance_ratio") > 1.0);
        rig_stop(&r);
    }
}

/* Asks for the health until it is bad, and for a text then: from before the loss on, as the server
 * stays for less than a second after it. */
struct probe {
    struct rig *r;
    char *health, *text;
};

static void *probe_until_lost(void *arg)
{
    struct probe *p = arg;
    for (;;) {
        char *a = rig_get(p->r, "/health");
        if (status_of(a) != 200) {
            p->health = a;
            p->text = rig_post(p->r, CHAT, "{" HI ",\"max_tokens\":3}");
            return NULL;
        }
        free(a);
        usleep(5000);
    }
}

/* Whatever a client was at when the rank was lost, it hears the reason; in a group that goes on
 * until it is noticed, an answer may have been whole before. A stream that came after the loss was
 * refused, 503, as others are. Returns the number of streams that heard of it as an event. */
static int check_loss(struct rig *r, const char *why, bool all, uint64_t begun_us)
{
    static const char *const body[] = {
        "{\"prompt\":\"a\",\"max_tokens\":1900,\"ignore_eos\":true,\"stream\":true}",
        "{\"prompt\":\"b\",\"max_tokens\":1900,\"ignore_eos\":true}",
        "{\"prompt\":\"c\",\"max_tokens\":1900,\"ignore_eos\":true,\"stream\":true}",
        "{\"prompt\":\"d\",\"max_tokens\":1900,\"ignore_eos\":true}"};
    enum { N = sizeof body / sizeof *body };
    int fd[N], n_told = 0, n_events = 0;
    for (int i = 0; i < N; i++) {
        fd[i] = client_open(r);
        client_post(fd[i], "/v1/completions", body[i]);
    }
    struct probe p = {.r = r};
    pthread_t prober;
    struct err e;
    CHECK(thread_start(&prober, "probe", probe_until_lost, &p, &e) == ERR_OK);
    for (int i = 0; i < N; i++) {
        bool streams = i % 2 == 0;
        char *a = streams ? client_read(fd[i], "\r\n0\r\n\r\n", PATIENCE_US / 1000)
                          : client_answer(fd[i]);
        bool told = strstr(a, "engine_lost") && strstr(a, why);
        CHECK_MSG(told || (!all && status_of(a) == 200), "request %d: %s", i, a);
        bool event = told && streams && status_of(a) == 200;
        CHECK_MSG(!told || event || status_of(a) == 503, "request %d: %s", i, a);
        n_told += told;
        n_events += event;
        free(a);
        close(fd[i]);
    }
    CHECK(n_told > 0);
    thread_join(prober);
    CHECK_MSG(status_of(p.health) == 503 && strstr(p.health, "engine_lost") &&
                  strstr(p.health, why),
              "%s", p.health);
    CHECK_MSG(status_of(p.text) == 503 && strstr(p.text, "engine_lost"), "%s", p.text);
    free(p.health);
    free(p.text);
    thread_join(r->thread);
    double took_s = (double)(clock_us() - begun_us) * 1e-6;
    printf("  ended after %.2f s, %d of %d told: %s\n", took_s, n_told, N, r->err.msg);
    CHECK(r->exit_code == SERVER_LOST && strstr(r->err.msg, why));
    CHECK_MSG(took_s < 10, "it took %.2f s to end", took_s);
    settings_free(&r->settings);
    return n_events;
}

/* Goal:   within 10 s after a rank is lost every client has heard so and the server has ended.
 * Method: a step whose communication fails, and one that never ends, in a prefill and in a decode
 *         step, with and without roles; time runs from the first request. */
TEST_LIMIT(a_lost_rank_is_told_and_ends_the_server, 120)
{
    static const struct {
        const char *dp, *split, *fault, *why;
        bool all;
    } cases[] = {{"2", "", "worker.rank:9", "is gone", true},
                 {"1", "1:1", "worker.rank:9", "is gone", true},
                 {"1", "1:1", "worker.rank:1", "is gone", true},
                 {"2", "", "worker.hang:9", "has not ended for 3 s", false},
                 {"1", "1:1", "worker.hang:9", "has not ended for 3 s", true}};
    int n_events = 0;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct rig r;
        rig_prepare(&r);
        rig_set(&r, "dp", cases[k].dp);
        rig_set(&r, "split", cases[k].split);
        rig_set(&r, "step-limit", "3");
        rig_start_real(&r);
        fault_arm(cases[k].fault);
        n_events += check_loss(&r, cases[k].why, cases[k].all, clock_us());
        fault_arm(NULL);
    }
    CHECK(n_events > 0);
}

/* Goal: a client that waits before its first token, and one in the middle of its text, hear of it
 * from the server, when the engine itself says no more. */
TEST(a_lost_engine_that_says_nothing_more)
{
    struct rig r;
    rig_prepare(&r);
    fake.token_us = 50000;
    rig_start(&r);
    int waits = client_open(&r);
    client_post(waits, CHAT, "{" HI ",\"max_tokens\":900}");
    int reads = client_open(&r);
    client_post(reads, CHAT, "{" HI ",\"max_tokens\":900,\"stream\":true}");
    free(client_read(reads, "tok", PATIENCE_US / 1000));
    fake.lost = true;
    char *a = client_read(reads, "engine_lost", PATIENCE_US / 1000);
    CHECK_MSG(strstr(a, "rank 3 of 8 did not come"), "%s", a);
    free(a);
    a = client_answer(waits);
    CHECK_MSG(status_of(a) == 503 && strstr(a, "rank 3 of 8 did not come"), "%s", a);
    free(a);
    close(waits);
    close(reads);
    thread_join(r.thread);
    CHECK(r.exit_code == SERVER_LOST);
    settings_free(&r.settings);
}

TEST(layouts_that_cannot_be_are_refused)
{
    static const struct {
        const char *dp, *split, *says;
    } cases[] = {{"2", "2:1", "dp is 2"}, {"1", "0:2", "no P:D"},  {"1", "2", "no P:D"},
                 {"1", "1:x", "no P:D"},  {"1", "1:-1", "no P:D"}, {"1", "60:60", "no P:D"}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct rig r;
        struct engine_options o;
        struct err e = {0};
        rig_prepare(&r);
        rig_set(&r, "device", "cpu");
        rig_set(&r, "dp", cases[k].dp);
        rig_set(&r, "split", cases[k].split);
        CHECK(settings_engine(&r.settings, &o, &e) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, cases[k].says), "%s", e.msg);
        settings_free(&r.settings);
    }
}
