/* wire.h - steps as bytes, from the process that has the scheduler to those that follow it, and
 * what they chose back.
 *
 * Both ends are the same program, so values travel as they lie in memory, each array at a multiple
 * of 8 bytes: a step that was read points into the bytes. All that a reader's arrays depend on is
 * checked against its limits, since a step beyond them would be read as one.
 *
 * Thread: a buffer has one owner.
 */
#ifndef GAZE_EXEC_WIRE_H
#define GAZE_EXEC_WIRE_H

#include "model/ops.h"

struct wire { /* grows as needed, and is kept for the next message; all zero: empty */
    unsigned char *at;
    size_t n, room, pos; /* bytes of the message; reserved; read so far */
    bool failed;         /* no memory, or an end before the end */
};
void wire_clear(struct wire *w);             /* to write a message */
bool wire_reserve(struct wire *w, size_t n); /* to read one of n bytes; false: no memory */
void wire_free(struct wire *w);

/* What a reader can take. */
struct wire_limits {
    uint32_t max_rows, max_seqs, max_out; /* max_out: of sample_out too, n_more is 0 */
    uint32_t max_context, n_pages, vocab;
};
/* A reader's arrays for one step. */
struct wire_room {
    struct step_seq *seq;         /* [max_seqs] */
    struct sample_row *sample;    /* [max_out] */
    struct sample_params *params; /* [max_out] */
    struct sample_out *out;       /* [max_out] */
};
MUST_CHECK enum err_code wire_room_create(struct wire_room *out, const struct wire_limits *l,
                                          struct err *e);
void wire_room_free(struct wire_room *r);

/* samples: the reader chooses tokens; else its rows ask for the likeliest, and are not asked.
 * n_more is 0: ranks of several do not go on by themselves. */
void wire_put_step(struct wire *w, const struct step *s, bool samples, uint32_t vocab);
/* *out lives as long as w's bytes and room. ERR_COMM: what is beyond the limits. */
MUST_CHECK enum err_code wire_get_step(struct wire *w, struct step *out,
                                       const struct wire_room *room, const struct wire_limits *l,
                                       struct err *e);

/* What came of it: why, and with ERR_OK and samples the step's out. */
void wire_put_result(struct wire *w, const struct step *s, bool samples, const struct err *why);
/* s->out is filled; *why is the other process's error. False: the message is not one. */
MUST_CHECK bool wire_get_result(struct wire *w, const struct step *s, bool samples,
                                struct err *why);

#endif
