/* unicode_news.h - the letters, marks, numbers, punctuation and symbols that Unicode 15 and 16
 * added.
 *
 * Tokenizers were trained with tables of Unicode 16; Debian 12's PCRE2 knows Unicode 14, so
 * patterns are rewritten to know the rest (pretokenize.h), or texts with new scripts would split
 * elsewhere.
 */
#ifndef GAZE_TEXT_UNICODE_NEWS_H
#define GAZE_TEXT_UNICODE_NEWS_H

/* What to put into a class beside \p{L}, \p{M}, \p{N}, \p{P} or \p{S}; NULL for other letters. */
const char *unicode_news(char category);

enum { UNICODE_NEWS_MAX_BYTES = 4096 }; /* the longest of them is shorter */

#endif
