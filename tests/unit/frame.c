/* frame.c - see test.h. */
#include "test.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(GAZE_DEBUG)
enum { SLOWER = 10 };
#else
enum { SLOWER = 1 };
#endif
enum { EXIT_SKIPPED = 77 };

static struct test_case *cases, **cases_tail = &cases;
static uint64_t used_seed;
static bool seed_used;
static char tmp_path[64];

void test_register(struct test_case *t)
{
    *cases_tail = t;
    cases_tail = &t->next;
}

static void remove_tmpdir(void)
{
    if (!tmp_path[0])
        return;
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", tmp_path);
    if (system(cmd) != 0)
        fprintf(stderr, "cannot remove %s\n", tmp_path);
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "  %s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    if (seed_used)
        fprintf(stderr, "  SEED=%llu\n", (unsigned long long)used_seed);
    fflush(stderr);
    remove_tmpdir();
    _exit(1);
}

void test_skip(const char *why)
{
    fprintf(stderr, "  skipped: %s\n", why);
    fflush(stderr);
    remove_tmpdir();
    _exit(EXIT_SKIPPED);
}

uint64_t test_seed(void)
{
    const char *s = getenv("SEED");
    used_seed = s ? strtoull(s, NULL, 10) : rng_entropy() % 1000000000;
    seed_used = true;
    return used_seed;
}

const char *test_fixture(const char *rel)
{
    static char path[4][PATH_MAX];
    static int turn;
    const char *root = getenv("GAZE_FIXTURES");
    char *p = path[turn++ % 4];
    snprintf(p, PATH_MAX, "%s/%s", root ? root : "tests/fixtures", rel);
    return p;
}

char *test_tmpdir(void)
{
    if (!tmp_path[0]) {
        snprintf(tmp_path, sizeof tmp_path, "/tmp/gaze-test-XXXXXX");
        if (!mkdtemp(tmp_path))
            test_fail(__FILE__, __LINE__, "mkdtemp");
    }
    return tmp_path;
}

static struct sigaction before_abort; /* a leak checker's or another tool's own */

/* An assertion of the code under test, or the time limit: the seed is known here alone. */
static void on_fatal(int number)
{
    char line[48];
    int n = snprintf(line, sizeof line, "  SEED=%llu\n", (unsigned long long)used_seed);
    if (seed_used && write(STDERR_FILENO, line, (size_t)n) != n)
        _exit(1);
    if (number == SIGABRT)
        sigaction(SIGABRT, &before_abort, NULL);
    raise(number); /* our handler was taken away */
}

static void tell_seed_of_fatal_signals(void)
{
    struct sigaction a = {.sa_handler = on_fatal, .sa_flags = (int)SA_RESETHAND | SA_NODEFER};
    sigaction(SIGABRT, &a, &before_abort);
    sigaction(SIGALRM, &a, NULL);
}

/* 0 passed, 1 failed, 2 skipped */
static int run_one(struct test_case *t)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0); /* so that what the test started ends with it */
        tell_seed_of_fatal_signals();
        alarm(t->limit_s * SLOWER);
        t->run();
        remove_tmpdir();
        fflush(NULL);
        exit(0); /* exit, not _exit: leak checkers run here */
    }
    int status = 0;
    waitpid(pid, &status, 0);
    kill(-pid, SIGKILL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    double ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
    bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    bool skipped = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED;
    printf("%s %s (%.0f ms)", ok ? "ok  " : skipped ? "skip" : "FAIL", t->name, ms);
    if (WIFSIGNALED(status))
        printf(" %s", WTERMSIG(status) == SIGALRM ? "time limit" : strsignal(WTERMSIG(status)));
    putchar('\n');
    return ok ? 0 : skipped ? 2 : 1;
}

int main(int argc, char **argv)
{
    int count[3] = {0, 0, 0};
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        for (struct test_case *t = cases; t; t = t->next)
            puts(t->name);
        return 0;
    }
    for (struct test_case *t = cases; t; t = t->next) {
        bool chosen = argc < 2;
        for (int i = 1; i < argc; i++)
            chosen |= strstr(t->name, argv[i]) != NULL;
        if (chosen)
            count[run_one(t)]++;
    }
    printf("%d passed, %d failed, %d skipped\n", count[0], count[1], count[2]);
    return count[1] != 0;
}
