/* grammar_walk.h - whether a grammar takes a whole text, for tests. */
#ifndef GAZE_TESTS_GRAMMAR_WALK_H
#define GAZE_TESTS_GRAMMAR_WALK_H

#include "test.h"

#include "grammar/grammar.h"

/* Byte by byte, as an output comes: s, up to its NUL, is a complete text of g. */
static inline bool complete(struct grammar *g, const char *s)
{
    struct grammar_matcher *m;
    struct err e;
    size_t taken;
    bool ok = true;
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    for (; *s && ok; s++)
        ok = grammar_matcher_accept(m, s, 1, &taken);
    ok &= grammar_matcher_may_end(m);
    CHECK(!grammar_matcher_failed(m));
    grammar_matcher_close(m);
    return ok;
}

#endif
