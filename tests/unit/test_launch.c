/* test_launch.c - several processes find each other, and notice when one is gone. */
#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "comm/launch.h"
#include "comm/meeting.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void clear_environment(void)
{
    static const char *const name[] = {"RANK",
                                       "WORLD_SIZE",
                                       "LOCAL_RANK",
                                       "LOCAL_WORLD_SIZE",
                                       "MASTER_ADDR",
                                       "MASTER_PORT",
                                       "OMPI_COMM_WORLD_RANK",
                                       "OMPI_COMM_WORLD_SIZE",
                                       "OMPI_COMM_WORLD_LOCAL_RANK",
                                       "OMPI_COMM_WORLD_LOCAL_SIZE",
                                       "PMI_RANK",
                                       "PMI_SIZE",
                                       "MPI_LOCALRANKID",
                                       "MPI_LOCALNRANKS",
                                       "SLURM_PROCID",
                                       "SLURM_STEP_NUM_TASKS",
                                       "SLURM_LOCALID",
                                       "SLURM_STEP_NUM_NODES",
                                       "SLURM_STEP_NODELIST"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        unsetenv(name[i]);
}

/* "A=1 B=2" into the environment. */
static void set_environment(const char *text)
{
    char copy[400], *rest = NULL;
    clear_environment();
    CHECK(strlen(text) < sizeof copy);
    memcpy(copy, text, strlen(text) + 1);
    for (char *one = strtok_r(copy, " ", &rest); one; one = strtok_r(NULL, " ", &rest)) {
        char *equals = strchr(one, '=');
        CHECK(equals);
        *equals = '\0';
        setenv(one, equals + 1, 1);
    }
}

TEST(launch_by_each_launcher)
{
    static const struct {
        const char *environment, *by, *host;
        uint32_t process, n, local, port;
    } row[] = {
        {"", "nobody", "", 0, 1, 0, 0},
        {"RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=node-a MASTER_PORT=1234", "torchrun",
         "node-a", 1, 2, 0, 1234},
        {"RANK=0 WORLD_SIZE=1", "torchrun", "", 0, 1, 0, 0},
        {"RANK=3 WORLD_SIZE=4 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4", "torchrun", "127.0.0.1", 3, 4, 3,
         29500},
        {"OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "MASTER_ADDR=10.0.0.1",
         "Open MPI", "10.0.0.1", 2, 4, 1, 29500},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2", "Open MPI",
         "127.0.0.1", 1, 2, 0, 29500},
        {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 MASTER_PORT=7", "PMI",
         "127.0.0.1", 1, 2, 1, 7},
        {"SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=4 "
         "SLURM_STEP_NODELIST=gpu[03-05,07]",
         "Slurm", "gpu03", 5, 8, 1, 29500},
        {"SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1", "Slurm", "127.0.0.1", 1, 2,
         0, 29500},
        /* torchrun within srun */
        {"SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 RANK=0 WORLD_SIZE=2 MASTER_ADDR=::1", "torchrun",
         "::1", 0, 2, 0, 29500},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct launch l;
        struct err e;
        set_environment(row[i].environment);
        CHECK_OK(launch_read(&l, &e), e);
        CHECK_MSG(!strcmp(l.by, row[i].by) && !strcmp(l.host, row[i].host) &&
                      l.process == row[i].process && l.n_processes == row[i].n &&
                      l.local == row[i].local && l.port == row[i].port,
                  "%s: %s, %u of %u, %u here, at %s:%u", row[i].environment, l.by, l.process,
                  l.n_processes, l.local, l.host, l.port);
    }
}

TEST(launch_refuses)
{
    static const struct {
        const char *environment, *says;
    } row[] = {
        {"RANK=2 WORLD_SIZE=2 MASTER_ADDR=a", "RANK: \"2\" is no number below 2"},
        {"RANK=x WORLD_SIZE=2 MASTER_ADDR=a", "RANK: \"x\""},
        {"RANK=0 WORLD_SIZE=0", "WORLD_SIZE: 0 processes"},
        {"RANK=0 WORLD_SIZE=65", "WORLD_SIZE: \"65\" is no number below 65"},
        {"RANK=0 WORLD_SIZE=2", "MASTER_ADDR is not set"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=", "MASTER_ADDR: \"\" is no host"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=65536", "MASTER_PORT: \"65536\""},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=0", "MASTER_PORT: 0"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a LOCAL_RANK=-1", "LOCAL_RANK: \"-1\""},
        {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=[", "SLURM_STEP_NODELIST: "},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct launch l;
        struct err e = {0};
        set_environment(row[i].environment);
        CHECK(launch_read(&l, &e) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, row[i].says), "%s: %s", row[i].environment, e.msg);
    }
}

TEST(launch_first_hosts)
{
    static const char *const good[][2] = {{"a", "a"},         {"a,b", "a"},
                                          {"gpu[7]", "gpu7"}, {"gpu[07-09],x", "gpu07"},
                                          {"n[1,3-4]", "n1"}, {"[1-2]", "1"}};
    static const char *const bad[] = {"", ",a", "gpu[", "gpu[]", "gpu[1", "averylongname"};
    char host[10];
    struct err e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK_OK(launch_first_host(host, sizeof host, good[i][0], &e), e);
        CHECK_MSG(!strcmp(host, good[i][1]), "%s: %s", good[i][0], host);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_MSG(launch_first_host(host, sizeof host, bad[i], &e) == ERR_INVALID, "%s", bad[i]);
}

/* ---- processes ---- */

enum { MOST = 4 };

/* What the processes tell the test; shared memory. */
struct result {
    enum err_code joined;
    char said[256];
    _Atomic bool ready, lost;
    char why[256];
    uint64_t lost_after_us;
    bool group_broken; /* a communicator of it was, too */
};
static struct result *result;
static _Atomic uint64_t *struck_us; /* when the blow fell */

/* A port that is free now. */
static uint16_t free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&at, sizeof at));
    CHECK(!getsockname(fd, (struct sockaddr *)&at, &size));
    close(fd);
    return ntohs(at.sin_port);
}

static void on_lost(void *arg, const struct err *why)
{
    struct result *r = arg;
    r->lost_after_us = clock_us() - atomic_load(struck_us);
    memcpy(r->why, why->msg, sizeof r->why);
    atomic_store(&r->lost, true);
}

struct scene {
    uint32_t n;
    uint16_t port;
    uint32_t open_ms, silence_ms;
    const char *fault[MOST]; /* for each process */
    void (*life)(struct meeting *m, struct result *r, uint32_t process);
    void (*direct)(const struct scene *s, const pid_t *pid); /* the test's own part; may be NULL */
};

static _Noreturn void process_main(const struct scene *s, uint32_t i)
{
    struct launch l = {
        .by = "the test", .process = i, .n_processes = s->n, .host = "127.0.0.1", .port = s->port};
    struct meeting_watch w = {s->open_ms, s->silence_ms, on_lost, &result[i]};
    struct meeting *m;
    struct err e = {0};
    fault_arm(s->fault[i]);
    result[i].joined = meeting_join(&m, &l, &w, &e);
    memcpy(result[i].said, e.msg, sizeof e.msg);
    if (!result[i].joined) {
        s->life(m, &result[i], i);
        meeting_destroy(m);
    }
    _exit(0);
}

static void play(const struct scene *s)
{
    pid_t pid[MOST];
    size_t bytes = MOST * sizeof *result + sizeof *struck_us;
    result = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(result != MAP_FAILED);
    struck_us = (void *)(result + MOST);
    for (uint32_t i = s->n; i-- > 0;) { /* process 0 comes last */
        pid[i] = fork();
        CHECK(pid[i] >= 0);
        if (!pid[i])
            process_main(s, i);
    }
    if (s->direct)
        s->direct(s, pid);
    for (uint32_t i = 0; i < s->n; i++) {
        int status;
        CHECK(waitpid(pid[i], &status, 0) == pid[i]);
        CHECK_MSG(WIFEXITED(status) ? !WEXITSTATUS(status) : WTERMSIG(status) == SIGKILL,
                  "process %u: status %d", i, status);
    }
}

/* Each pins a note and reads all, then all wait for all before they leave. */
static void exchange_notes(struct meeting *m, struct result *r, uint32_t process)
{
    struct err e;
    char name[40];
    for (uint32_t round = 0; round < 20; round++) {
        uint32_t note = process * 1000 + round;
        snprintf(name, sizeof name, "note/%u/%u", process, round);
        CHECK_OK(meeting_pin(m, name, &note, sizeof note, &e), e);
        for (uint32_t i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "note/%u/%u", i, round);
            CHECK_OK(meeting_read(m, name, &note, sizeof note, 10000, &e), e);
            CHECK(note == i * 1000 + round);
        }
    }
    atomic_store(&r->ready, true);
    for (uint32_t i = 0; i < 3; i++)
        while (!atomic_load(&result[i].ready))
            usleep(1000);
}

TEST(meeting_notes_go_to_all_processes)
{
    struct scene s = {.n = 3, .port = free_port(), .open_ms = 20000, .life = exchange_notes};
    play(&s);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(!result[i].joined && atomic_load(&result[i].ready), "%s", result[i].said);
}

/* Waits until it is lost, with a group of its own open meanwhile. */
static void wait_for_loss(struct meeting *m, struct result *r, uint32_t process)
{
    struct comm *c;
    struct err e;
    char group[20];
    snprintf(group, sizeof group, "own %u", process);
    struct comm_config cfg = {.kind = "threads", .group = group, .n_ranks = 1, .meeting = m};
    CHECK_OK(comm_open(&c, &cfg, &e), e);
    atomic_store(&r->ready, true);
    while (!atomic_load(&r->lost))
        usleep(1000);
    r->group_broken = comm_error(c, &e) == ERR_COMM && !strcmp(e.msg, r->why);
    comm_close(c);
}

static void wait_ready(const struct scene *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        while (!atomic_load(&result[i].ready))
            usleep(1000);
    atomic_store(struck_us, clock_us());
}

static void kill_last(const struct scene *s, const pid_t *pid)
{
    wait_ready(s);
    kill(pid[s->n - 1], SIGKILL);
}

static void kill_first(const struct scene *s, const pid_t *pid)
{
    wait_ready(s);
    kill(pid[0], SIGKILL);
}

static void freeze_last(const struct scene *s, const pid_t *pid)
{
    wait_ready(s);
    kill(pid[s->n - 1], SIGSTOP);
    for (uint32_t i = 0; i + 1 < s->n; i++)
        while (!atomic_load(&result[i].lost))
            usleep(1000);
    kill(pid[s->n - 1], SIGKILL);
}

static void check_lost(uint32_t begin, uint32_t end, const char *why, uint64_t most_us)
{
    for (uint32_t i = begin; i < end; i++) {
        CHECK_MSG(atomic_load(&result[i].lost), "process %u: %s", i, result[i].said);
        CHECK_MSG(strstr(result[i].why, why), "process %u: %s", i, result[i].why);
        CHECK_MSG(result[i].lost_after_us < most_us, "process %u: %llu us", i,
                  (unsigned long long)result[i].lost_after_us);
        CHECK(result[i].group_broken);
    }
}

/* Goal: whoever dies, all others know at once who it was, and their groups are broken. */
TEST(meeting_a_process_that_is_killed)
{
    struct scene s = {
        .n = 4, .port = free_port(), .open_ms = 20000, .life = wait_for_loss, .direct = kill_last};
    play(&s);
    check_lost(0, 3, "process 3 of 4", 3000000);
    CHECK(strstr(result[1].why, "is gone: its connection ended"));
}

TEST(meeting_process_0_is_killed)
{
    struct scene s = {
        .n = 3, .port = free_port(), .open_ms = 20000, .life = wait_for_loss, .direct = kill_first};
    play(&s);
    check_lost(1, 3, "process 0 of 3", 3000000);
}

/* Goal: one that lives but does nothing is noticed by its silence, in less than 10 s by default. */
TEST(meeting_a_process_that_is_frozen)
{
    struct scene s = {.n = 3,
                      .port = free_port(),
                      .open_ms = 20000,
                      .silence_ms = 2500,
                      .life = wait_for_loss,
                      .direct = freeze_last};
    static_assert(MEETING_SILENCE_MS + 2000 < 10000, "known within 10 s");
    play(&s);
    check_lost(0, 2, "process 2 of 3", 5000000);
    CHECK(strstr(result[0].why, "was not heard for 2500 ms"));
}

static void fail_or_wait(struct meeting *m, struct result *r, uint32_t process)
{
    if (process == 1) {
        for (uint32_t i = 0; i < 3; i += 2)
            while (!atomic_load(&result[i].ready))
                usleep(1000);
        atomic_store(struck_us, clock_us());
        meeting_fail(m, "process 1: its GPU is on fire");
        while (!atomic_load(&result[0].lost) || !atomic_load(&result[2].lost))
            usleep(1000);
    } else {
        wait_for_loss(m, r, process);
    }
}

TEST(meeting_a_process_that_gives_up)
{
    struct scene s = {.n = 3, .port = free_port(), .open_ms = 20000, .life = fail_or_wait};
    play(&s);
    check_lost(0, 1, "its GPU is on fire", 3000000);
    check_lost(2, 3, "its GPU is on fire", 3000000);
}

static void leave_or_wait(struct meeting *m, struct result *r, uint32_t process)
{
    if (process != 1)
        wait_for_loss(m, r, process);
    else
        for (uint32_t i = 0; i < 3; i += 2)
            while (!atomic_load(&result[i].ready))
                usleep(1000);
    if (process == 1)
        atomic_store(struck_us, clock_us());
}

TEST(meeting_a_process_that_leaves)
{
    struct scene s = {.n = 3, .port = free_port(), .open_ms = 20000, .life = leave_or_wait};
    play(&s);
    check_lost(0, 1, "process 1 of 3", 3000000);
    check_lost(2, 3, "process 1 of 3", 3000000);
    CHECK(strstr(result[0].why, "has left"));
}

static void nothing(struct meeting *m, struct result *r, uint32_t process)
{
    (void)m;
    (void)r;
    (void)process;
}

/* Goal: each way in which a process cannot join is told, to it and to those that wait for it. */
TEST(meeting_processes_that_cannot_join)
{
    static const struct {
        const char *fault[3];
        const char *says[3];
    } row[] = {
        {{"meeting.listen", NULL, NULL}, {"port", "process 0 is not at", "process 0 is not at"}},
        {{"meeting.link", NULL, NULL}, {"meeting of 3", "process 0 is not", "process 0 is not"}},
        {{NULL, "meeting.link", NULL},
         {"process 1 of 3 did not come", "meeting of 3",
          "process 0 says: meeting: process 1 of 3"}},
        {{NULL, NULL, "meeting.create"},
         {"process 2 of 3 did not come", "process 0 says: meeting: process 2 of 3", "meeting"}},
        {{NULL, "meeting.send", NULL},
         {"process 1 of 3 did not come", "process 0 at 127.0.0.1", "process 1 of 3 did not come"}},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct scene s = {.n = 3, .port = free_port(), .open_ms = 500, .life = nothing};
        memcpy(s.fault, row[i].fault, sizeof row[i].fault);
        play(&s);
        for (int k = 0; k < 3; k++)
            CHECK_MSG(result[k].joined && strstr(result[k].said, row[i].says[k]),
                      "row %zu, process %d: %s", i, k, result[k].said);
    }
}

/* A refused attempt is made again. */
TEST(meeting_joins_late)
{
    struct scene s = {.n = 3,
                      .port = free_port(),
                      .open_ms = 20000,
                      .fault = {NULL, "meeting.connect:1", "meeting.connect:2"},
                      .life = exchange_notes};
    play(&s);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(!result[i].joined, "%s", result[i].said);
}

static void call_strangely(const struct scene *s, const pid_t *pid)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(s->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char noise[1000];
    (void)pid;
    memset(noise, 'x', sizeof noise);
    for (int i = 0; i < 3; i++) { /* one says nothing, one hangs up, one talks nonsense */
        int fd;
        uint64_t end_us = clock_us() + 5000000;
        do
            fd = socket(AF_INET, SOCK_STREAM, 0);
        while (connect(fd, (struct sockaddr *)&at, sizeof at) && !close(fd) && clock_us() < end_us);
        if (i == 1)
            close(fd);
        if (i == 2)
            (void)!send(fd, noise, sizeof noise, MSG_NOSIGNAL);
    }
    fault_arm(NULL);
}

/* Goal: strangers who call hold nobody up: process 1 comes after them. */
static void come_late(struct meeting *m, struct result *r, uint32_t process)
{
    (void)m;
    (void)process;
    atomic_store(&r->ready, true);
    while (!atomic_load(&result[0].ready) || !atomic_load(&result[1].ready))
        usleep(1000);
}

TEST(meeting_strangers_call)
{
    struct scene s = {.n = 2,
                      .port = free_port(),
                      .open_ms = 20000,
                      .fault = {NULL, "meeting.connect:1"},
                      .life = come_late,
                      .direct = call_strangely};
    play(&s);
    CHECK_MSG(!result[0].joined && !result[1].joined, "%s", result[0].said);
}

/* A launch of one process is a meeting of its own. */
TEST(meeting_of_one_process)
{
    struct launch l = {.by = "nobody", .n_processes = 1};
    struct meeting_watch w = {0};
    struct meeting *m;
    struct err e;
    uint32_t note = 5, back = 0;
    CHECK_OK(meeting_join(&m, &l, &w, &e), e);
    CHECK_OK(meeting_pin(m, "a", &note, sizeof note, &e), e);
    CHECK_OK(meeting_read(m, "a", &back, sizeof back, 10, &e), e);
    CHECK(back == 5);
    meeting_fail(m, "nobody hears it");
    meeting_destroy(m);
}
