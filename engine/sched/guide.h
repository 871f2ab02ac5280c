/* guide.h - a choice whose text a grammar steers: which tokens may come next.
 *
 * The order of a token: guide_fill() makes the mask, the sampler chooses within it, guide_put()
 * takes the token. A guide first waits, where its request says so:
 *   after_thinking   until `</think>`; then only plain tokens and the one that closes may come, so
 *                    the answer cannot end inside reasoning, nor begin it anew
 *   after_id         until that token (the opening marker of tool calls), which need not come: then
 *                    everything may, and an end
 * Then every token is one of the grammar's, and end ids come where the grammar accepts.
 *
 * Thread: the scheduler's. Ownership: the grammar is the request's; the matcher the guide's.
 */
#ifndef GAZE_SCHED_GUIDE_H
#define GAZE_SCHED_GUIDE_H

#include "request.h"

enum guide_state { GUIDE_OFF, GUIDE_THINKING, GUIDE_FREE, GUIDE_ON };

struct guide { /* zeroed: off */
    enum guide_state state;
    struct grammar_matcher *matcher;
    const struct guide_vocab *v;
    uint32_t after_id; /* UINT32_MAX: the grammar begins at once */
    unsigned spelled;  /* bytes of "</think>" that the text ends with, in plain tokens */
    uint32_t *mask;    /* [n_words], in the request's arena */
};

/* Off when r has no grammar. ERR_NOMEM. */
MUST_CHECK enum err_code guide_open(struct guide *gd, struct gen_request *r, struct err *e);
void guide_close(struct guide *gd);

/* Fills the mask: what the grammar lets come, of `allowed` (NULL: all), without the banned ids; the
 * end ids where it accepts, unless they are banned. *over: the text is whole, and nothing at all
 * can follow. ERR_INVALID: nothing is left although the text is not whole, or the grammar ran into
 * one of its bounds; ERR_NOMEM. */
struct guide_rules {
    const uint32_t *allowed;
    const uint32_t *banned, *end_id;
    uint32_t n_banned, n_end;
    bool may_end; /* the end ids are not waiting for min_tokens */
};
MUST_CHECK enum err_code guide_fill(struct guide *gd, const struct guide_rules *rules, bool *over,
                                    struct err *e);
/* Takes a token that is no end. */
MUST_CHECK enum err_code guide_put(struct guide *gd, uint32_t id, struct err *e);
/* The tokens that must come next whatever is chosen, up to GUIDE_MAX_FORCED; *n 0: there is a
 * choice. They are those that the tokenizer makes of the text that must come, but for its last
 * ones, which could be other ones together with what follows. Call it behind guide_fill().
 * ERR_NOMEM. */
enum { GUIDE_MAX_FORCED = 32 };
MUST_CHECK enum err_code guide_forced(struct guide *gd, uint32_t *id, uint32_t *n, struct err *e);
/* Whether the sampler has to keep to gd->mask. */
static inline bool guide_masks(const struct guide *gd)
{
    return gd->state == GUIDE_ON || gd->state == GUIDE_THINKING;
}

#endif
