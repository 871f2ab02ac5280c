/* err.h - how a function says what the world did to it.
 *
 * What the world may do to us is an `err`; what only a mistake of ours can cause is an assert, kept
 * in release builds. Zero is success everywhere. A function that can fail takes `struct err *` last
 * (never NULL), returns e->code, and writes its results on success alone. The one who handles an
 * error logs it.
 *
 * Thread: any; a struct err belongs to its caller.
 */
#ifndef GAZE_BASE_ERR_H
#define GAZE_BASE_ERR_H

#include <assert.h>

#if defined(__GNUC__)
#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define MUST_CHECK
#define PRINTF_LIKE(fmt, args)
#endif

enum err_code {
    ERR_OK = 0,
    ERR_NOMEM,    /* the machine has no memory left */
    ERR_NO_PAGES, /* the KV pool has not enough free pages now */
    ERR_BUSY,     /* a bounded queue is full: try again later */
    ERR_INVALID,  /* the input is wrong; the message says which field and which numbers */
    ERR_IO,       /* a file or socket could not be read or written */
    ERR_CUDA,     /* the device refused */
    ERR_COMM,     /* another rank is gone, late or out of step: its group is broken */
    ERR_CLOSED    /* draining or closed: nothing new is taken */
};

struct err {
    enum err_code code;
    const char *file; /* where it arose, with line */
    int line;
    char msg[256]; /* one sentence naming the thing and the number, without a full stop */
};

/* Fills e (replacing what it held) and returns code, so that `return err_set(e, ERR_IO, ...)`
 * works. */
#define err_set(e, code, ...) err_set_at((e), (code), __FILE__, __LINE__, __VA_ARGS__)

enum err_code err_set_at(struct err *e, enum err_code code, const char *file, int line,
                         const char *fmt, ...) PRINTF_LIKE(5, 6);

/* Puts "prefix: " before e's message, e.g. the file that a parser was reading. Returns e->code. */
enum err_code err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

const char *err_code_name(enum err_code code); /* "ERR_INVALID"; static storage */

#ifdef NDEBUG
#error "asserts stay in release builds: do not define NDEBUG"
#endif
/* For per-token loops: only in the sanitizer builds. */
#ifdef GAZE_DEBUG
#define debug_assert(x) assert(x)
#else
#define debug_assert(x) ((void)0)
#endif

#endif
