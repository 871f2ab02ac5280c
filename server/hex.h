/* hex.h - bytes as lower-case hex digits and back. Thread: any. */
#ifndef GAZE_SERVER_HEX_H
#define GAZE_SERVER_HEX_H

#include <stddef.h>
#include <stdint.h>

static inline int hex_value(char c) /* -1: no digit; capitals are none */
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Exactly n bytes; returns what follows them, NULL: there are not so many digits. */
static inline const char *hex_read(const char *s, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++, s += 2) {
        int high = hex_value(s[0]), low = high < 0 ? -1 : hex_value(s[1]);
        if (low < 0)
            return NULL;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return s;
}

/* 2 n digits and a NUL. */
static inline void hex_write(char *out, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = 0;
}

#endif
