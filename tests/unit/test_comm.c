/* test_comm.c - ranks as threads: the same bits everywhere, and nobody waits for ever. */
#include "comm/line.h"
#include "comm_rig.h"

#include <netinet/in.h>
#include <sys/socket.h>

static void *host_open(uint32_t device, size_t bytes)
{
    (void)device;
    void *at = aligned_alloc(64, (bytes + 63) / 64 * 64);
    CHECK(at);
    memset(at, 0xFF, bytes);
    return at;
}

static unsigned char *host_area(void *self)
{
    return self;
}

static void *host_stream(void *self)
{
    (void)self;
    return NULL;
}

static void host_move(void *self, void *to, const void *from, size_t bytes)
{
    (void)self;
    memcpy(to, from, bytes);
}

static const struct rank_memory host_memory = {host_open, host_area, host_stream,
                                               host_move, host_move, free};

static const char *const kinds[] = {"threads", "tcp"};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* A rank on host memory that lives so; the test adds the rest. */
static struct rank rank_of(const char *kind, void (*life)(struct rank *))
{
    return (struct rank){
        .kind = kind, .memory = &host_memory, .life = life, .most = 5000, .calls = 150};
}

/* Goal: any sequence of calls, of any size, gives what it must, on 1 to 5 ranks; sums have the bits
 * of a sum in rank order. */
TEST_LIMIT(comm_random_life, 60)
{
    struct rng g = {test_seed()};
    for (uint32_t k = 0; k < 5 * N_KINDS; k++) {
        struct rank r[MOST_RANKS];
        uint64_t seed = rng_next(&g);
        uint32_t n = 1 + k / N_KINDS;
        atomic_store(&at_barrier, 0);
        for (uint32_t i = 0; i < n; i++) {
            r[i] = rank_of(kinds[k % N_KINDS], random_life);
            r[i].most = k % N_KINDS ? 20000 : 5000;
            r[i].seed = seed;
            r[i].open_ms = 10000; /* who cannot open is told of within the test's own limit */
        }
        run_ranks(r, n);
        for (uint32_t i = 0; i < n; i++)
            CHECK_MSG(!r[i].opened, "%s", r[i].err.msg);
    }
}

/* Goal: a rank that does not come ends the call of all others with one message that names it, the
 * call and its number, in time; nothing after that works. */
TEST(comm_a_rank_that_does_not_come)
{
    for (int k = 0; k < N_COMM_OPS * N_KINDS; k++) {
        int op = k / N_KINDS;
        struct rank r[3];
        char want[64];
        for (int i = 0; i < 3; i++) {
            r[i] = rank_of(kinds[k % N_KINDS], stay_away);
            r[i].timeout_ms = 100;
            r[i].calls = 4;
            r[i].op = (enum comm_op)op;
        }
        run_ranks(r, 3);
        snprintf(want, sizeof want, "rank 2 of 3 did not come to %s 4",
                 comm_op_name(op == COMM_ALL_TO_ALL ? COMM_ALL_TO_ALLV : (enum comm_op)op));
        for (int i = 0; i < 3; i++) {
            CHECK(r[i].n_good == 3 && r[i].err.code == ERR_COMM);
            CHECK_MSG(strstr(r[i].err.msg, want), "%s", r[i].err.msg);
            CHECK(!strcmp(r[i].err.msg, r[0].err.msg));
        }
        CHECK(r[0].waited_us >= 90000 || r[1].waited_us >= 90000);
    }
}

/* Goal: a call that fails on one rank fails on all, wherever it is; each operation, on its first
 * and a later passage, and the wait. */
TEST(comm_a_call_that_fails)
{
    for (int k = 0; k < (N_COMM_OPS + 1) * N_KINDS; k++)
        for (int at = 1, op = k / N_KINDS; at < 12; at += 5) {
            struct rank r[3];
            char spec[64];
            const char *name = op < N_COMM_OPS ? comm_op_name((enum comm_op)op) : "wait";
            snprintf(spec, sizeof spec, "comm.%s:%d", name, at);
            fault_arm(spec);
            for (int i = 0; i < 3; i++) {
                r[i] = rank_of(kinds[k % N_KINDS], call_until_broken);
                r[i].op = (enum comm_op)op;
            }
            run_ranks(r, 3);
            fault_arm(NULL);
            for (int i = 0; i < 3; i++) {
                CHECK(r[i].err.code == ERR_COMM && !strcmp(r[i].err.msg, r[0].err.msg));
                CHECK_MSG(strstr(r[i].err.msg, name), "%s", r[i].err.msg);
            }
        }
}

/* Goal: comm_abort() ends the calls of all ranks, long before their time-out. */
TEST(comm_abort_in_the_middle)
{
    struct rng g = {test_seed()};
    for (int k = 0; k < N_COMM_OPS * N_KINDS; k++) {
        int op = k / N_KINDS;
        struct rank r[4];
        int calls = (int)rng_below(&g, 20);
        uint64_t begin = clock_us();
        for (int i = 0; i < 4; i++) {
            r[i] = rank_of(kinds[k % N_KINDS], abort_in_the_middle);
            r[i].timeout_ms = 60000;
            r[i].calls = calls;
            r[i].op = (enum comm_op)op;
        }
        run_ranks(r, 4);
        for (int i = 0; i < 4; i++)
            CHECK_MSG(!strcmp(r[i].err.msg, "the test wants it"), "%s", r[i].err.msg);
        CHECK(clock_us() - begin < 10000000);
    }
}

static void come_with_another_call(struct rank *r)
{
    float x[64] = {0}, y[64];
    size_t n = r->rank == 1 ? 7 : 8, at[3] = {0, 16, 32}, bytes[3] = {16, 16, 16};
    CHECK_OK(comm_barrier(r->comm, NULL, &r->err), r->err);
    if (r->op == COMM_ALL_REDUCE) {
        CHECK(comm_all_reduce(r->comm, x, x, n, COMM_F32, NULL, &r->err));
    } else if (r->op == COMM_ALL_TO_ALLV) {
        struct comm_parts all = {at, bytes};
        size_t less[3] = {16, 12, 16};
        struct comm_parts recv = {at, r->rank == 2 ? less : bytes};
        CHECK(comm_all_to_allv(r->comm, x, all, y, recv, NULL, &r->err));
    } else {
        CHECK(r->rank == 1 ? comm_barrier(r->comm, NULL, &r->err)
                           : comm_all_reduce(r->comm, x, x, n, COMM_F32, NULL, &r->err));
    }
}

/* Goal: ranks that come to one call with another operation or size are told, all of them. */
TEST(comm_calls_that_do_not_agree)
{
    static const enum comm_op op[] = {COMM_ALL_REDUCE, COMM_ALL_TO_ALLV, COMM_BARRIER};
    static const char *const want[] = {
        "rank 0 came to all_reduce 2 of 8, rank 1 to all_reduce 2 of 7",
        "rank 1 sends 16 bytes to rank 2, who expects 12",
        "rank 0 came to all_reduce 2 of 8, rank 1 to barrier 2"};
    for (int k = 0; k < 3; k++) {
        struct rank r[3];
        for (int i = 0; i < 3; i++) {
            r[i] = rank_of("threads", come_with_another_call);
            r[i].op = op[k];
        }
        run_ranks(r, 3);
        for (int i = 0; i < 3; i++)
            CHECK_MSG(r[i].err.code == ERR_COMM && strstr(r[i].err.msg, want[k]), "%s",
                      r[i].err.msg);
    }
}

static void one_sum_of_another_size(struct rank *r)
{
    float x[8] = {0};
    size_t n = r->rank == 1 ? 7 : 8;
    CHECK(comm_all_reduce(r->comm, x, x, n, COMM_F32, NULL, &r->err) == ERR_COMM);
}

static void bytes_that_nobody_expects(struct rank *r)
{
    size_t at[3] = {0, 16, 32}, bytes[3] = {16, 16, 16}, less[3] = {16, 12, 16};
    struct comm_parts all = {at, bytes}, recv = {at, r->rank == 2 ? less : bytes};
    if (!comm_all_to_allv(r->comm, r->in, all, r->out, recv, NULL, &r->err))
        CHECK(comm_barrier(r->comm, NULL, &r->err) == ERR_COMM);
}

/* Goal: over TCP, too, where whoever sees it first tells it his way. */
TEST(comm_tcp_calls_that_do_not_agree)
{
    struct rank r[3];
    for (int i = 0; i < 3; i++)
        r[i] = rank_of("tcp", one_sum_of_another_size);
    run_ranks(r, 3);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(strstr(r[i].err.msg, "all_reduce 1 of 8") &&
                      strstr(r[i].err.msg, "all_reduce 1 of 7"),
                  "%s", r[i].err.msg);
    for (int i = 0; i < 3; i++)
        r[i] = rank_of("tcp", bytes_that_nobody_expects);
    run_ranks(r, 3);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(strstr(r[i].err.msg, "rank 1 sends 16 bytes to rank 2, who expects 12"), "%s",
                  r[i].err.msg);
}

static void too_large(struct rank *r)
{
    CHECK(comm_all_reduce(r->comm, r->in, r->in, r->most + 1, COMM_F32, NULL, &r->err) != ERR_OK);
}

TEST(comm_a_call_beyond_the_bound)
{
    struct rank r = rank_of("threads", too_large);
    run_ranks(&r, 1);
    CHECK(r.err.code == ERR_INVALID && strstr(r.err.msg, "20004 bytes: the bound is 20000"));
}

static void nothing(struct rank *r)
{
    (void)r;
}

/* Goal: a group whose ranks do not all join is no group: all are told, none waits for ever. */
TEST(comm_a_rank_that_cannot_join)
{
    static const char *const place[] = {"comm.open",    "comm.open:2",    "comm.open:3",
                                        "comm.threads", "comm.threads:3", "comm.group",
                                        "meeting.pin"};
    static const char *const tcp_place[] = {"comm.open:2", "comm.tcp",         "comm.tcp:3",
                                            "meeting.pin", "meeting.listen",   "meeting.connect",
                                            "line.send",   "meeting.connect:2"};
    enum { N = sizeof place / sizeof *place, N_TCP = sizeof tcp_place / sizeof *tcp_place };
    for (size_t k = 0; k < N + N_TCP; k++) {
        const char *kind = k < N ? "threads" : "tcp", *where = k < N ? place[k] : tcp_place[k - N];
        struct rank r[3];
        fault_arm(where);
        for (int i = 0; i < 3; i++) {
            r[i] = rank_of(kind, nothing);
            r[i].open_ms = 150;
        }
        run_ranks(r, 3);
        fault_arm(NULL);
        for (int i = 0; i < 3; i++)
            CHECK_MSG(r[i].opened == ERR_COMM || r[i].opened == ERR_NOMEM || r[i].opened == ERR_IO,
                      "%s %s rank %d: %s", kind, where, i, r[i].err.msg);
    }
}

/* Goal: a stranger at a door, one who says the wrong thing, and one who says nothing, are turned
 * away; those who are expected come in all the same. */
TEST(line_strangers)
{
    struct meeting *m;
    struct line_door door;
    struct sockaddr_in at;
    socklen_t size = sizeof at;
    struct err e;
    int line[2] = {-1, -1}, called, stranger[2];
    char word[16] = "open the door!!", got[16];
    CHECK_OK(meeting_create(&m, &e), e);
    CHECK_OK(line_open_door(&door, m, "door", &e), e);
    CHECK(line_open_door(&door, m, "door", &e) == ERR_INVALID && strstr(e.msg, "already"));
    CHECK(!getsockname(door.fd, (struct sockaddr *)&at, &size));
    for (int i = 0; i < 2; i++) {
        stranger[i] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(!connect(stranger[i], (struct sockaddr *)&at, sizeof at));
    }
    CHECK(line_send(stranger[0], word, sizeof word));
    CHECK_OK(line_call(&called, m, "door", 1, 1000, &e), e);
    CHECK_OK(line_answer(&door, line, 2, 1, 5000, &e), e);
    CHECK(line[0] == -1 && line[1] >= 0);
    CHECK(line_send(called, word, sizeof word) && line_receive(line[1], got, sizeof got));
    CHECK(!memcmp(word, got, sizeof word));
    line[0] = line[1];
    line[1] = -1;
    CHECK(line_answer(&door, line, 2, 1, 60, &e) == ERR_COMM && strstr(e.msg, "0 of 1 have come"));
    line_shut(called);
    CHECK(!line_receive(line[0], got, 1));
    for (int i = 0; i < 2; i++)
        line_close(stranger[i]);
    line_close(called);
    line_close(line[0]);
    line_close_door(&door);
    CHECK(line_call(&called, m, "door", 0, 100, &e) == ERR_COMM);
    meeting_destroy(m);
}

TEST(comm_refuses)
{
    struct err e;
    struct meeting *m;
    struct comm *c = NULL;
    struct comm_config good = {.kind = "threads", .group = "g", .n_ranks = 2, .open_ms = 20};
    struct comm_config bad;
    CHECK_OK(meeting_create(&m, &e), e);
    good.meeting = m;
    bad = good;
    bad.kind = "mail";
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID && strstr(e.msg, "\"mail\" is no kind"));
    CHECK(comm_kind_check("mail", &e) == ERR_INVALID && strstr(e.msg, "\"mail\" is no kind"));
    CHECK_OK(comm_kind_check("threads", &e), e);
    bad = good;
    bad.rank = 2;
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID && strstr(e.msg, "rank 2 of 2"));
    bad = good;
    bad.n_ranks = COMM_MAX_RANKS + 1;
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID);
    bad = good;
    bad.group = "";
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID);
    bad = good;
    bad.rank = 1; /* rank 0 is not there */
    CHECK(comm_open(&c, &bad, &e) == ERR_COMM && strstr(e.msg, "rank 0 did not come"));
    CHECK(comm_open(&c, &good, &e) == ERR_COMM && strstr(e.msg, "rank 1 of 2 did not come"));
    bad = good;
    bad.rank = 1; /* rank 0 was there, and has left */
    CHECK(comm_open(&c, &bad, &e) == ERR_COMM && strstr(e.msg, "after the group had ended"));
    CHECK(comm_open(&c, &good, &e) == ERR_INVALID && strstr(e.msg, "already"));
    CHECK(!c);
    meeting_destroy(m);
    fault_arm("meeting.create");
    CHECK(meeting_create(&m, &e) == ERR_NOMEM);
    fault_arm(NULL);
}

TEST(meeting_notes)
{
    struct err e;
    struct meeting *m;
    char back[8], big[MEETING_NAME_BYTES + 1];
    CHECK_OK(meeting_create(&m, &e), e);
    CHECK_OK(meeting_pin(m, "a", "abcd", 5, &e), e);
    CHECK_OK(meeting_read(m, "a", back, 5, 10, &e), e);
    CHECK(!strcmp(back, "abcd"));
    CHECK(meeting_read(m, "a", back, 4, 10, &e) == ERR_INVALID && strstr(e.msg, "has 5 bytes"));
    CHECK(meeting_read(m, "b", back, 4, 10, &e) == ERR_COMM && strstr(e.msg, "nobody pinned b"));
    memset(big, 'x', sizeof big);
    big[MEETING_NAME_BYTES] = '\0';
    CHECK(meeting_pin(m, big, "", 0, &e) == ERR_INVALID);
    CHECK(meeting_process() && meeting_process() == meeting_process());
    meeting_destroy(m);
}
