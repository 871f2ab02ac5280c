/* err.c - see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum err_code err_set_at(struct err *e, enum err_code code, const char *file, int line,
                         const char *fmt, ...)
{
    va_list ap;
    e->code = code;
    e->file = file;
    e->line = line;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    return code;
}

enum err_code err_prefix(struct err *e, const char *fmt, ...)
{
    char old[sizeof e->msg];
    va_list ap;
    memcpy(old, e->msg, sizeof old);
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg) {
        size_t room = sizeof e->msg - (size_t)n;
        snprintf(e->msg + n, room, ": %.*s", (int)room, old);
    }
    return e->code;
}

const char *err_code_name(enum err_code code)
{
    switch (code) {
    case ERR_OK:
        return "ERR_OK";
    case ERR_NOMEM:
        return "ERR_NOMEM";
    case ERR_NO_PAGES:
        return "ERR_NO_PAGES";
    case ERR_BUSY:
        return "ERR_BUSY";
    case ERR_INVALID:
        return "ERR_INVALID";
    case ERR_IO:
        return "ERR_IO";
    case ERR_CUDA:
        return "ERR_CUDA";
    case ERR_COMM:
        return "ERR_COMM";
    case ERR_CLOSED:
        return "ERR_CLOSED";
    }
    return "ERR_UNKNOWN";
}
