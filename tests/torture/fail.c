/* fail.c - a library to be preloaded: one chosen allocation or system call fails.
 *
 * A place is a call in the program or in a library that it uses (not in the C library): module and
 * offset of the instruction after it. With TORTURE_OUT=file the places that were passed, and how
 * often, are appended to that file when the process ends. With TORTURE_FAIL=module:offset:k the
 * k-th passage of that place fails as it would on a machine that has no more of what is asked for.
 * Counting begins in a forked child, where the test frame runs a test; with TORTURE_NOW=1 at once.
 *
 * What a crash was in is written to standard error: "torture: signal 11 at module:offset ...".
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_MODULES = 64, MAX_PLACES = 8192, MAX_NAME = 64, EARLY_BYTES = 1 << 16 };

struct module {
    uintptr_t base, begin, end; /* of its code */
    char name[MAX_NAME];        /* last part of the path; "" is the program */
};
static struct module module[MAX_MODULES];
static unsigned n_modules;

struct place {
    _Atomic uintptr_t at; /* 0: free */
    const char *what;
    _Atomic uint64_t n;
};
static struct place place[MAX_PLACES];

static char out_path[256];
static uintptr_t fail_at; /* 0: nothing fails */
static uint64_t fail_k;
static _Atomic uint64_t n_passed;
static _Atomic bool armed;
static bool ready;

static const struct module *module_of(uintptr_t at)
{
    for (unsigned i = 0; i < n_modules; i++)
        if (at >= module[i].begin && at < module[i].end)
            return &module[i];
    return NULL;
}

static void count(uintptr_t at, const char *what)
{
    for (uintptr_t i = (at >> 1) % MAX_PLACES, left = MAX_PLACES; left; left--) {
        uintptr_t none = 0;
        if (atomic_load(&place[i].at) == at ||
            atomic_compare_exchange_strong(&place[i].at, &none, at)) {
            place[i].what = what;
            atomic_fetch_add(&place[i].n, 1);
            return;
        }
        if (none == at) { /* somebody else was quicker with the same */
            atomic_fetch_add(&place[i].n, 1);
            return;
        }
        i = (i + 1) % MAX_PLACES;
    }
}

static bool fails(void *from, const char *what)
{
    uintptr_t at = (uintptr_t)from;
    if (!ready || !atomic_load_explicit(&armed, memory_order_relaxed))
        return false;
    if (fail_at)
        return at == fail_at && atomic_fetch_add(&n_passed, 1) + 1 == fail_k;
    if (out_path[0] && module_of(at))
        count(at, what);
    return false;
}
#define FAILS(what) fails(__builtin_return_address(0), what)

/* --- the real ones ---------------------------------------------------------------------------- */

static void *real(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f)
        abort();
    return f;
}
#define REAL(type, name, ...)                                                                      \
    static type (*real_##name)(__VA_ARGS__);                                                       \
    if (!real_##name)                                                                              \
    *(void **)&real_##name = real(#name)

/* dlsym() itself may allocate before the real calloc is known. */
static unsigned char early[EARLY_BYTES];
static size_t early_used;
static bool is_early(const void *p)
{
    return (const unsigned char *)p >= early && (const unsigned char *)p < early + EARLY_BYTES;
}
static void *early_alloc(size_t n)
{
    void *p = early + early_used;
    early_used += (n + 15) & ~(size_t)15;
    return early_used <= EARLY_BYTES ? p : NULL;
}

static void *(*real_malloc)(size_t), *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void (*real_free)(void *);
static bool looking;
static void look(void)
{
    looking = true;
    *(void **)&real_malloc = real("malloc");
    *(void **)&real_realloc = real("realloc");
    *(void **)&real_free = real("free");
    *(void **)&real_calloc = real("calloc");
    looking = false;
}

void *malloc(size_t n)
{
    if (!real_calloc) {
        if (looking)
            return early_alloc(n);
        look();
    }
    if (FAILS("malloc")) {
        errno = ENOMEM;
        return NULL;
    }
    return real_malloc(n);
}

void *calloc(size_t n, size_t each)
{
    if (!real_calloc) {
        if (looking)
            return early_alloc(n * each);
        look();
    }
    if (FAILS("calloc")) {
        errno = ENOMEM;
        return NULL;
    }
    return real_calloc(n, each);
}

void *realloc(void *p, size_t n)
{
    if (!real_calloc)
        look();
    if (FAILS("realloc")) {
        errno = ENOMEM;
        return NULL;
    }
    if (is_early(p)) {
        void *q = real_malloc(n);
        if (q)
            memcpy(q, p, n);
        return q;
    }
    return real_realloc(p, n);
}

void free(void *p)
{
    if (is_early(p))
        return;
    if (!real_calloc)
        look();
    real_free(p);
}

void *aligned_alloc(size_t align, size_t n)
{
    REAL(void *, aligned_alloc, size_t, size_t);
    if (FAILS("aligned_alloc")) {
        errno = ENOMEM;
        return NULL;
    }
    return real_aligned_alloc(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    REAL(int, posix_memalign, void **, size_t, size_t);
    return FAILS("posix_memalign") ? ENOMEM : real_posix_memalign(out, align, n);
}

char *strdup(const char *s)
{
    REAL(char *, strdup, const char *);
    if (FAILS("strdup")) {
        errno = ENOMEM;
        return NULL;
    }
    return real_strdup(s);
}

#define CALL(type, name, bad, error, params, args, ...)                                            \
    type name params                                                                               \
    {                                                                                              \
        REAL(type, name, __VA_ARGS__);                                                             \
        if (FAILS(#name)) {                                                                        \
            errno = (error);                                                                       \
            return bad;                                                                            \
        }                                                                                          \
        return real_##name args;                                                                   \
    }

CALL(void *, mmap, MAP_FAILED, ENOMEM, (void *p, size_t n, int prot, int flags, int fd, off_t at),
     (p, n, prot, flags, fd, at), void *, size_t, int, int, int, off_t)
CALL(int, madvise, -1, ENOMEM, (void *p, size_t n, int what), (p, n, what), void *, size_t, int)
CALL(FILE *, fopen, NULL, EMFILE, (const char *path, const char *mode), (path, mode), const char *,
     const char *)
CALL(DIR *, opendir, NULL, EMFILE, (const char *path), (path), const char *)
CALL(int, fstat, -1, EIO, (int fd, struct stat *st), (fd, st), int, struct stat *)
CALL(int, stat, -1, EIO, (const char *path, struct stat *st), (path, st), const char *,
     struct stat *)
CALL(ssize_t, read, -1, EIO, (int fd, void *to, size_t n), (fd, to, n), int, void *, size_t)
CALL(ssize_t, pread, -1, EIO, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), int, void *,
     size_t, off_t)
CALL(ssize_t, write, -1, EIO, (int fd, const void *from, size_t n), (fd, from, n), int,
     const void *, size_t)
CALL(ssize_t, recv, -1, ECONNRESET, (int fd, void *to, size_t n, int flags), (fd, to, n, flags),
     int, void *, size_t, int)
CALL(ssize_t, send, -1, ECONNRESET, (int fd, const void *from, size_t n, int flags),
     (fd, from, n, flags), int, const void *, size_t, int)
CALL(ssize_t, sendmsg, -1, ECONNRESET, (int fd, const struct msghdr *m, int flags), (fd, m, flags),
     int, const struct msghdr *, int)
CALL(int, socket, -1, EMFILE, (int domain, int type, int protocol), (domain, type, protocol), int,
     int, int)
CALL(int, bind, -1, EADDRINUSE, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n), int,
     const struct sockaddr *, socklen_t)
CALL(int, listen, -1, EADDRINUSE, (int fd, int n), (fd, n), int, int)
CALL(int, accept4, -1, EMFILE, (int fd, struct sockaddr *a, socklen_t *n, int flags),
     (fd, a, n, flags), int, struct sockaddr *, socklen_t *, int)
CALL(int, connect, -1, ECONNREFUSED, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n),
     int, const struct sockaddr *, socklen_t)
CALL(int, setsockopt, -1, ENOBUFS, (int fd, int level, int name, const void *v, socklen_t n),
     (fd, level, name, v, n), int, int, int, const void *, socklen_t)
CALL(int, getsockname, -1, ENOBUFS, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n), int,
     struct sockaddr *, socklen_t *)
CALL(int, shutdown, -1, ENOTCONN, (int fd, int how), (fd, how), int, int)
CALL(int, epoll_create1, -1, EMFILE, (int flags), (flags), int)
CALL(int, epoll_ctl, -1, ENOMEM, (int ep, int op, int fd, struct epoll_event *ev), (ep, op, fd, ev),
     int, int, int, struct epoll_event *)
CALL(int, eventfd, -1, EMFILE, (unsigned n, int flags), (n, flags), unsigned, int)
CALL(int, pipe2, -1, EMFILE, (int fd[2], int flags), (fd, flags), int *, int)

int pthread_create(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return FAILS("pthread_create") ? EAGAIN : real_pthread_create(out, attr, run, arg);
}

int open(const char *path, int flags, ...)
{
    REAL(int, open, const char *, int, mode_t);
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if (FAILS("open")) {
        errno = EMFILE;
        return -1;
    }
    return real_open(path, flags, mode);
}

/* --- begin and end ---------------------------------------------------------------------------- */

/* The program's code and that of the libraries it was linked with, without the C library's. */
static int add_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    static const char *const ours[] = {"", "libmicrohttpd", "libuv", "libcjson", "libpcre2"};
    const char *slash = strrchr(info->dlpi_name, '/'), *name = slash ? slash + 1 : info->dlpi_name;
    bool wanted = false;
    (void)size;
    (void)arg;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        wanted |= ours[i][0] ? !strncmp(name, ours[i], strlen(ours[i])) : !*name;
    for (int i = 0; wanted && i < info->dlpi_phnum && n_modules < MAX_MODULES; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X))
            continue;
        struct module *m = &module[n_modules++];
        m->base = info->dlpi_addr;
        m->begin = info->dlpi_addr + p->p_vaddr;
        m->end = m->begin + p->p_memsz;
        snprintf(m->name, sizeof m->name, "%s", name);
    }
    return 0;
}

static void on_crash(int number)
{
    void *frame[24];
    char line[1200];
    int n = backtrace(frame, 24), at = snprintf(line, sizeof line, "torture: signal %d at", number);
    for (int i = 0; i < n && at < (int)sizeof line - 100; i++) {
        const struct module *m = module_of((uintptr_t)frame[i]);
        if (m)
            at += snprintf(line + at, sizeof line - (size_t)at, " %s:%zx", m->name,
                           (size_t)((uintptr_t)frame[i] - m->base));
    }
    line[at++] = '\n';
    ssize_t done = syscall(SYS_write, STDERR_FILENO, line, (size_t)at); /* which nobody fails */
    (void)done;
    signal(number, SIG_DFL);
    raise(number);
}

static void arm(void)
{
    atomic_store(&armed, true);
}

__attribute__((constructor)) static void begin(void)
{
    const char *out = getenv("TORTURE_OUT"), *fail = getenv("TORTURE_FAIL");
    void *warm[2];
    if (!real_calloc)
        look();
    backtrace(warm, 2); /* loads what it needs now */
    dl_iterate_phdr(add_module, NULL);
    if (out)
        snprintf(out_path, sizeof out_path, "%s", out);
    if (fail) {
        const char *colon = strchr(fail, ':');
        size_t n = colon ? (size_t)(colon - fail) : 0;
        char *end = NULL;
        uintptr_t offset = colon ? strtoull(colon + 1, &end, 16) : 0;
        fail_k = end && *end == ':' ? strtoull(end + 1, NULL, 10) : 1;
        for (unsigned i = 0; i < n_modules; i++)
            if (strlen(module[i].name) == n && !strncmp(module[i].name, fail, n) &&
                module[i].base + offset >= module[i].begin &&
                module[i].base + offset < module[i].end)
                fail_at = module[i].base + offset;
        if (!fail_at)
            fail_at = 1; /* a place that is not there */
    }
    signal(SIGSEGV, on_crash);
    signal(SIGBUS, on_crash);
    signal(SIGFPE, on_crash);
    signal(SIGILL, on_crash);
    if (!getenv("TORTURE_KEEP_ABORT"))
        signal(SIGABRT, on_crash);
    pthread_atfork(NULL, NULL, arm);
    unsetenv("LD_PRELOAD"); /* what the program starts is left in peace */
    ready = true;
    if (getenv("TORTURE_NOW"))
        arm();
}

__attribute__((destructor)) static void end(void)
{
    bool was = atomic_exchange(&armed, false);
    if (!was || !out_path[0])
        return;
    FILE *f = fopen(out_path, "a");
    for (size_t i = 0; f && i < MAX_PLACES; i++) {
        uintptr_t at = atomic_load(&place[i].at);
        const struct module *m = at ? module_of(at) : NULL;
        if (m)
            fprintf(f, "%s:%zx %s %llu\n", m->name, (size_t)(at - m->base), place[i].what,
                    (unsigned long long)place[i].n);
    }
    if (f)
        fclose(f);
}
