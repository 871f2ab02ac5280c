/* sequence.h - the tokens of one choice while they grow: what it knows of itself, without the
 * others.
 *
 * A sequence holds its tokens (prompt, then output), its block table, its part of the prefix tree,
 * its text, and the rules by which it ends. All arrays are reserved for the worst case when it
 * opens, from the request's arena, so a token costs no allocation; only the detokenizer lives on
 * the heap.
 *
 * The order of a token: sequence_ban() says what must not come, the sampler chooses, sequence_put()
 * takes the token and says whether it ended the sequence:
 *   an end id (the model's unless ignore_eos, or the request's stop ids), once min_tokens are out:
 *     FINISH_STOP; the token counts, its text goes out only with include_stop
 *   a stop string, complete in a token after the first min_tokens: FINISH_STOP
 *   max_tokens: FINISH_LENGTH
 * Where a grammar steers, an end id comes only where the text is whole; and once it is whole and
 * nothing can follow, it ends without one: FINISH_STOP, whatever min_tokens says.
 * Where reasoning is bounded, sequence_must_close() says when the token that ends it must come; a
 * model that spells `</think>` in other tokens has ended it, too. A bad word is matched within the
 * output, not across the border of the prompt.
 *
 * Thread:    the scheduler's. While a step runs, its worker reads token[], page[] and banned[].
 * Invariant: n_computed < n_tokens while it runs: the last token always still has to be run, and
 * with it the forced ones before it.
 */
#ifndef GAZE_SCHED_SEQUENCE_H
#define GAZE_SCHED_SEQUENCE_H

#include "request.h"
#include "sched/guide.h"
#include "sched/kv_pool.h"
#include "sched/prefix_cache.h"
#include "text/detok.h"

enum seq_state {
    SEQ_FREE,
    SEQ_PREFILL,
    SEQ_MOVE, /* its prompt is run; its pages are to go, or are going, to its target group */
    SEQ_REDO, /* they would not go: it waits for pages to run its prompt again */
    SEQ_DECODE
};

struct request; /* scheduler_impl.h */

struct sequence {
    uint32_t index; /* in the scheduler's array; fixed */
    uint32_t run;   /* its own number among all that ever were; not 0 */
    enum seq_state state;
    bool in_flight;  /* in a batch or a move that is out */
    uint32_t n_step; /* tokens of that batch */
    uint32_t choice;
    struct request *req;
    const struct gen_request *ask;
    struct sequence *prev, *next; /* in its group's list of those in its state */

    uint32_t *token; /* [n_prompt + max_tokens] */
    uint32_t n_prompt, n_tokens;
    uint32_t n_computed; /* tokens whose slots are written */
    uint32_t group;      /* where its pages are */
    uint32_t target;     /* where it decodes */
    struct block_table table;
    struct block_table moved;  /* its pages in the target group while they go there */
    uint32_t n_moved_promised; /* pages that it may still take there, if that is another group */
    uint32_t n_moves, n_redos; /* moves that failed since it was last run; how often it was rerun */
    struct prefix_node **node; /* [n_nodes] the first pages as nodes of the tree */
    uint32_t n_nodes, max_nodes;
    uint32_t n_promised; /* pages that it may still take in its group */
    uint32_t top_k;
    uint32_t canonical_tokens; /* slots below are written as a prefill would write them */
    bool publish;              /* pages beyond the chain go into the tree, too */

    const uint32_t *end_id; /* stop ids, then the model's */
    uint32_t n_end;
    uint32_t *banned; /* [n_never + n_bad_words + n_end] */
    uint32_t n_banned;
    struct stop_list stop;
    struct detok *detok; /* NULL: no text */
    bool thinking;       /* inside reasoning that is bounded */
    uint32_t n_thought;  /* tokens of it */
    unsigned n_spelled;  /* bytes of "</think>" that the text ends with */
    struct guide guide;
    struct sample_params sample;       /* the request's, within the guide's mask */
    uint32_t forced[GUIDE_MAX_FORCED]; /* tokens that are to be put before the next is chosen */
    uint32_t n_forced, forced_at;

    uint64_t last_token_us, kv_since_us;
    double kv_page_us; /* pages held, integrated over time, up to kv_since_us */
};

/* How many tokens get KV slots at most: the last one of the output is never run. */
uint64_t sequence_kv_tokens(const struct gen_request *r);
/* Pages of a prompt that can be shared: whole ones, without the last token, which is always run. */
uint32_t sequence_shared_pages(const struct gen_request *r);

/* Fills s (but for index, links and nodes) for choice `choice` of r. ERR_NOMEM leaves nothing but
 * memory in r's arena. end ids: eos[n_eos] are the model's. */
MUST_CHECK enum err_code sequence_open(struct sequence *s, struct gen_request *r, uint32_t choice,
                                       const uint32_t *eos, uint32_t n_eos,
                                       const struct tokenizer *tok, struct err *e);
void sequence_close(struct sequence *s); /* its pages were given back before */

/* How many tokens behind the next one may be chosen before anyone has seen it: those that are still
 * to come at all; 0 where a choice hangs on the tokens before it by more than the model (a grammar,
 * penalties, bad words, min_tokens, bounded reasoning), or tokens are forced. */
uint32_t sequence_unwatched(const struct sequence *s);

static inline uint32_t sequence_n_output(const struct sequence *s)
{
    return s->n_tokens - s->n_prompt;
}

/* Whether the step that ends its prompt chooses a token: not where only the prompt is run, nor
 * where it is run again. */
static inline bool sequence_wants_first(const struct sequence *s)
{
    return s->ask->max_tokens && s->n_tokens == s->n_prompt;
}

/* Whether the next token ends reasoning, whose budget is used up: *id. The step that would choose
 * it is run all the same, and gives its log-probability. */
bool sequence_must_close(const struct sequence *s, uint32_t *id);
/* Writes banned[0, n_banned): ids that must not be chosen next. */
void sequence_ban(struct sequence *s);

struct seq_text {
    const char *text; /* borrowed until the next call; not NUL-terminated */
    size_t bytes;
    enum gen_finish finish; /* FINISH_NONE: it goes on */
    int32_t stop_reason;    /* as in gen_event */
};
/* Appends a token. On an error (ERR_NOMEM) the request must end. */
MUST_CHECK enum err_code sequence_put(struct sequence *s, uint32_t token, struct seq_text *out,
                                      struct err *e);
/* The next token of the text that the grammar leaves no choice about; false: the next is sampled.
 * Forced tokens are put like others and run together, without a step for each. */
bool sequence_forced(struct sequence *s, uint32_t *token);
/* The rest of the text, once it has ended. */
void sequence_flush(struct sequence *s, struct seq_text *out);

/* Adds the pages held since the last call to kv_page_us; before each change of the table. */
void sequence_count_pages(struct sequence *s, uint64_t now_us);

#endif
