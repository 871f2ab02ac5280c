/* log.c - see log.h. */
#include "base/log.h"

#include "base/json.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 6144 }; /* bytes of an event */

static _Atomic int current_level = LOG_INFO, current_format = LOG_TEXT;
static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};

void log_set_level(enum log_level level)
{
    atomic_store(&current_level, (int)level);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load(&current_level);
}

bool log_level_parse(const char *name, enum log_level *out)
{
    for (int i = LOG_DEBUG; i <= LOG_OFF; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

void log_set_format(enum log_format format)
{
    atomic_store(&current_format, (int)format);
}

/* --- writing into a bounded line ---------------------------------------------------------------
 */

struct text { /* n counts on when it is full, so that it shows */
    char *s;
    size_t n, max;
};

static void put(struct text *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++, t->n++)
        if (t->n < t->max)
            t->s[t->n] = s[i];
}

static void put_str(struct text *t, const char *s)
{
    put(t, s, strlen(s));
}

/* Nothing that could end a line, or pass for something else on a terminal. */
static void put_plain(struct text *t, const char *s)
{
    bool utf8 = utf8_valid(s, strlen(s), NULL);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool bad = c < ' ' || c == 0x7F || (c >= 0x80 && !utf8);
        put(t, bad ? "?" : s, 1);
    }
}

const char *log_escape(char *out, size_t bytes, const char *value)
{
    bool utf8 = utf8_valid(value, strlen(value), NULL);
    size_t n = 0;
    for (; *value && n + 3 <= bytes; value++) {
        unsigned char c = (unsigned char)*value;
        if (c == '"' || c == '\\')
            out[n++] = '\\';
        out[n++] = c < ' ' || c == 0x7F || (c >= 0x80 && !utf8) ? '?' : *value;
    }
    if (utf8 && *value) { /* cut: not within a character */
        while (n && ((unsigned char)*value & 0xC0) == 0x80) {
            value--;
            n--;
        }
    }
    out[n] = 0;
    return out;
}

/* --- key=value to JSON -------------------------------------------------------------------------
 */

static bool is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/* How long the key at s is; 0: there is none with a '=' behind it. */
static size_t key_length(const char *s)
{
    size_t n = 0;
    while (is_key_char(s[n]))
        n++;
    return n && s[n] == '=' ? n : 0;
}

/* A quote ends a value where the line ends or another key follows: messages have quotes of their
 * own. s is behind the opening one. */
static size_t quoted_length(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++) {
        if (s[n] == '\\' && (s[n + 1] == '"' || s[n + 1] == '\\'))
            n++;
        else if (s[n] == '"' && (!s[n + 1] || (s[n + 1] == ' ' && key_length(s + n + 2))))
            break;
    }
    return n;
}

static bool is_number(const char *s, size_t n)
{
    size_t i = n && s[0] == '-', digits = i;
    while (i < n && s[i] >= '0' && s[i] <= '9')
        i++;
    if (i == digits || (s[digits] == '0' && i > digits + 1) || i - digits > 15)
        return false;
    if (i == n)
        return true;
    if (s[i++] != '.' || i == n)
        return false;
    while (i < n && s[i] >= '0' && s[i] <= '9')
        i++;
    return i == n;
}

/* unescape: \" and \\ stand for themselves. */
static void put_json_string(struct text *t, const char *s, size_t n, bool unescape)
{
    put(t, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        if (unescape && s[i] == '\\' && i + 1 < n && (s[i + 1] == '"' || s[i + 1] == '\\'))
            i++;
        if (s[i] == '"' || s[i] == '\\')
            put(t, "\\", 1);
        put(t, s + i, 1);
    }
    put(t, "\"", 1);
}

/* Words without a key; returns what follows them. */
static const char *put_message(struct text *t, const char *s)
{
    const char *end = s;
    while (*end && !key_length(end)) {
        end += strcspn(end, " ");
        end += strspn(end, " ");
    }
    size_t n = (size_t)(end - s);
    while (n && s[n - 1] == ' ')
        n--;
    put_str(t, ",\"message\":");
    put_json_string(t, s, n, false);
    return end;
}

/* The event has been made plain: no control characters, valid UTF-8. */
static void put_members(struct text *t, const char *s)
{
    while (*s) {
        size_t n = key_length(s);
        if (!n) {
            s = put_message(t, s);
            continue;
        }
        put(t, ",\"", 2);
        put(t, s, n);
        put(t, "\":", 2);
        s += n + 1;
        bool quoted = *s == '"';
        s += quoted;
        n = quoted ? quoted_length(s) : strcspn(s, " ");
        if (!quoted && is_number(s, n))
            put(t, s, n);
        else
            put_json_string(t, s, n, quoted);
        s += n + (quoted && s[n]);
        s += strspn(s, " ");
    }
}

size_t log_line(char *out, size_t bytes, enum log_format format, enum log_level level,
                const struct timespec *at, const char *module, const char *event)
{
    char when[40], plain[LINE];
    struct tm tm;
    struct text clean = {plain, 0, sizeof plain - 1}, line = {out, 0, bytes};
    gmtime_r(&at->tv_sec, &tm);
    size_t n = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + n, sizeof when - n, ".%03ldZ", at->tv_nsec / 1000000);
    put_plain(&clean, event);
    plain[clean.n < clean.max ? clean.n : clean.max] = 0;
    if (format == LOG_JSON) {
        put_str(&line, "{\"time\":\"");
        put_str(&line, when);
        put_str(&line, "\",\"level\":\"");
        put_str(&line, level_names[level]);
        put_str(&line, "\",\"module\":\"");
        put_str(&line, module);
        put_str(&line, "\"");
        put_members(&line, plain);
        put_str(&line, "}\n");
        if (line.n <= line.max)
            return line.n;
        /* An object that is cut is none: say what is left as text in one. */
        line.n = 0;
        plain[bytes / 4 < LINE ? bytes / 4 : LINE - 1] = 0;
        while (plain[0] && !utf8_valid(plain, strlen(plain), NULL))
            plain[strlen(plain) - 1] = 0;
        put_str(&line, "{\"level\":\"");
        put_str(&line, level_names[level]);
        put_str(&line, "\",\"cut\":");
        put_json_string(&line, plain, strlen(plain), false);
        put_str(&line, "}\n");
        return line.n < line.max ? line.n : 0;
    }
    put_str(&line, when);
    put_str(&line, " ");
    put_str(&line, level_names[level]);
    put_str(&line, " ");
    put_str(&line, module);
    put_str(&line, " ");
    put_str(&line, plain);
    if (line.n > line.max - 1)
        line.n = line.max - 1; /* a line that is too long is cut, never split */
    put_str(&line, "\n");
    return line.n;
}

void log_at(enum log_level level, const char *module, const char *fmt, ...)
{
    if ((int)level < atomic_load(&current_level))
        return;
    char event[LINE], line[2 * LINE];
    struct timespec now;
    va_list ap;
    clock_gettime(CLOCK_REALTIME, &now);
    va_start(ap, fmt);
    vsnprintf(event, sizeof event, fmt, ap);
    va_end(ap);
    size_t n = log_line(line, sizeof line, (enum log_format)atomic_load(&current_format), level,
                        &now, module, event);
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written; /* nowhere left to complain to */
}
