/* moves.c - a prompt that was run in one group goes to another to decode.
 *
 * Its first token is out by then. A move takes all pages of the prompt at once, a group hands on
 * one sequence at a time, in the order in which they were done. The executor sums each page where
 * it was read and where it lies; when all sums are equal the sequence decodes there, and its old
 * pages stay behind for the prefix cache. A move that failed, or after which a sum differs, is made
 * again, behind the others, MAX_MOVES times in all; then the prompt is computed again, on pages of
 * its own and from nothing that is cached (a page that cannot be read here may be why), without a
 * word to the client, whose first token was right; and when that does not go over, either, the
 * request ends with the error. Nothing ever runs on a page before its sums were found equal.
 *
 * Why nobody waits for ever: a request enters with all that it will need at both ends, seats and
 * pages, promised at once. From then on a sequence waits for
 *   - a step or a move that is out: the executor ends each, or says that a rank is lost;
 *   - a page that another sequence of its group computes: that one has all it needs, too, and who
 *     goes before a page is computed leaves it to an heir (pages.c);
 *   - its turn in a list whose head waits for no more than this: each turn ends, as a sequence is
 *     moved MAX_MOVES times, and run MAX_REDOS times more, at most;
 *   - pages to run its prompt again. It has no page in its group then, and its promise in the
 * target group is used by no one else, so it keeps nobody from going on. Newcomers are kept out of
 * its group; those that are in it go, by the above, and give their pages back. It needs no more
 *     than it was admitted with, which fits an empty group, so it gets its turn.
 * Nothing above waits for a newcomer, and no sequence holds a page while it waits for one that is
 * not promised to it: there is no circle.
 */
#include "base/log.h"
#include "sched/scheduler_impl.h"

enum { MAX_MOVES = 3, MAX_REDOS = 1 };

static void change_state(struct scheduler *s, struct sequence *seq, enum seq_state state)
{
    struct group *g = &s->group[seq->group];
    struct seq_list *from = group_list(g, seq->state), *to = group_list(g, state);
    if (from)
        seq_list_remove(from, seq);
    seq->state = state;
    if (state == SEQ_PREFILL)
        prefill_list_add(s, seq);
    else if (to)
        seq_list_insert(to, seq, to->tail);
    g->n_decoding += state == SEQ_DECODE;
}

void prompt_is_run(struct scheduler *s, struct sequence *seq)
{
    change_state(s, seq, seq->target == seq->group ? SEQ_DECODE : SEQ_MOVE);
    if (seq->req->counted)
        return;
    seq->req->counted = true;
    s->stats.prompt_tokens += seq->n_prompt;
}

bool plan_move(struct scheduler *s, struct group *g, uint64_t now_us)
{
    struct sequence *seq = g->moving.head;
    struct page_move *m = &g->move;
    if (!seq)
        return false;
    assert(!seq->in_flight);
    assert(seq->n_computed == seq->n_prompt);
    pages_reserve_target(s, seq, now_us);
    m->target = seq->target;
    m->seq_slot = seq->index;
    m->n_pages = kv_pages_for(seq->n_computed);
    m->from = seq->table.page;
    m->to = seq->moved.page;
    assert(m->n_pages <= m->max_pages);
    assert(m->n_pages == seq->moved.n_pages);
    assert(m->n_pages <= seq->table.n_pages);
    seq->in_flight = true;
    return true;
}

void plan_redo(struct scheduler *s, struct group *g)
{
    while (g->redo.head && pages_redo(s, g->redo.head)) {
        g->stats.recomputed++;
        change_state(s, g->redo.head, SEQ_PREFILL);
    }
}

/* ERR_OK when every page arrived as it left. */
static enum err_code check_move(struct group *g, struct page_move *m, struct err *e)
{
    if (m->err.code) {
        *e = m->err;
        return e->code;
    }
    for (uint32_t i = 0; i < m->n_pages; i++) {
        if (m->sum_from[i] == m->sum_to[i])
            continue;
        g->stats.moves_corrupt++;
        return err_set(e, ERR_IO, "page %u of %u arrived with another sum in group %u", i + 1,
                       m->n_pages, m->target);
    }
    return ERR_OK;
}

static void move_failed(struct scheduler *s, struct sequence *seq, const struct err *why,
                        uint64_t now_us)
{
    struct group *g = &s->group[seq->group];
    seq->n_moves++;
    g->stats.moves_failed++;
    log_warn("sched", "request=%s move=%u source=%u target=%u error=\"%s\"", seq->ask->name,
             seq->n_moves, seq->group, seq->target, why->msg);
    if (seq->n_moves < MAX_MOVES) { /* the next in the list may have more luck */
        seq_list_remove(&g->moving, seq);
        seq_list_insert(&g->moving, seq, g->moving.tail);
        return;
    }
    if (seq->n_redos == MAX_REDOS) {
        request_fail(s, seq->req, why, now_us);
        return;
    }
    seq->n_redos++;
    seq->n_moves = 0;
    pages_discard(s, seq, now_us);
    pages_release(s, seq, now_us);
    seq->publish = false;
    seq->n_computed = 0;
    change_state(s, seq, SEQ_REDO);
}

void scheduler_move_done(struct scheduler *s, struct page_move *m, uint64_t now_us)
{
    struct group *g = &s->group[m->source];
    struct sequence *seq = &s->sequence[m->seq_slot];
    struct err e = {0};
    assert(m == &g->move);
    assert(g->move_out);
    assert(seq->state == SEQ_MOVE);
    assert(seq->in_flight);
    g->move_out = false;
    seq->in_flight = false;
    bool arrived = !check_move(g, m, &e);
    if (arrived) {
        g->stats.moves++;
        g->stats.moved_pages += m->n_pages;
        g->stats.moved_bytes += (uint64_t)m->n_pages * s->cfg.page_bytes;
        g->stats.move_us += m->end_us > m->start_us ? m->end_us - m->start_us : 0;
    }
    if (request_is_over(seq->req)) {
        struct request *r = seq->req;
        sequence_drop(s, seq, now_us);
        request_settle(s, r, now_us);
    } else if (arrived) {
        seq_list_remove(&g->moving, seq);
        pages_arrive(s, seq, now_us);
        seq->state = SEQ_DECODE;
        s->group[seq->group].n_decoding++;
    } else {
        move_failed(s, seq, &e, now_us);
    }
    s->stats.last_step_us = now_us;
}
