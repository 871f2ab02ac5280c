/* engine.h - all that server/ sees: open, submit, cancel, take_events, stats, drain, close.
 *
 * The engine is one model with its KV pool, a scheduler thread and two workers. Requests go in by
 * engine_submit(), events come out by engine_take_events(); `wake` is called (from the scheduler's
 * thread) when events have become available and the taker may be asleep.
 *
 * Threads: open and close by one; submit, cancel and take_events by one thread (the loop); stats
 * and the text functions (tokenizer, chat formats) by any.
 */
#ifndef GAZE_ENGINE_H
#define GAZE_ENGINE_H

#include "base/err.h"
#include "model/config.h"
#include "model/cost.h"
#include "model/forward.h"
#include "model/ops.h"
#include "request.h"
#include "text/chat_format.h"
#include "text/chat_json.h"
#include "text/guide_vocab.h"
#include "text/output_parser.h"
#include "text/tokenizer.h"

struct engine; /* opaque */

struct engine_options {
    const char *model_dir;
    const char *chat_format; /* NULL: by the model directory */
    enum precision precision;
    bool precision_by_model; /* PRECISION_FP8 instead, for an FP8 checkpoint on a GPU that has fast
                                products for it */
    enum latent_form latent;
    bool latent_by_precision; /* instead: f32 with the exact precision; FP8 with PRECISION_FP8,
                                 where the rank is made of whole groups of 128; else bf16 */
    enum index_form index;
    bool load_dummy;           /* random weights of the directory's configuration */
    uint32_t n_layers;         /* 0: all; else cut to the first n, for timing */
    uint32_t n_threads;        /* CPU; 0: all */
    uint32_t tp;               /* ranks of each attention group; 0: 1 */
    uint32_t dp;               /* attention groups; 0: 1 */
    uint32_t ep;               /* parts of the experts; 0: 1; see model/parallel.h */
    enum expert_form expert;   /* what experts read */
    uint32_t ranks_per_gpu;    /* 0: 1; more: for tests */
    const char *comm;          /* kind of communicator of ranks on GPUs; NULL: what fits */
    const char *placement;     /* a file that says which part holds which experts, or NULL */
    uint32_t n_prefill_groups; /* the first ones only prefill, the others decode; 0: all do both */
    /* The launcher's environment says how many processes share the ranks, and which one this is
     * (comm/launch.h); with one rank it is not asked. */
    bool by_launcher;
    uint32_t n_processes; /* set by the opening; 0: 1 */
    int32_t cuda_device;  /* of the first rank here; -1: the CPU */
    uint32_t max_context; /* tokens of one sequence; 0: the model's, or what memory holds */
    uint32_t max_seqs;    /* running at once in a group: rows of a decode step */
    uint32_t max_queued;  /* waiting requests; beyond: ERR_BUSY */
    /* Of one prefill step. 0: 512 on a CPU; on a GPU 2048, or half or a quarter of them where only
     * that leaves the KV pages of one whole context. */
    uint32_t prefill_tokens;
    /* Plan as if so many bytes were free, on a GPU on each; one that is not here is taken for a
     * Hopper. 0: what is there. */
    uint64_t plan_for;
    uint64_t kv_bytes; /* of each group's KV pool; 0: enough for max_context, a share of memory */
    bool prefix_cache;
    weights_progress *progress; /* may be NULL */
    void *progress_arg;
    uint32_t step_limit_s; /* a step that is out for longer means a lost rank; 0: see engine_lost */
    void (*wake)(void *arg);
    void *wake_arg;
};
void engine_options_default(struct engine_options *o);
/* Sets the environment that ranks on GPUs need, where the user has not (comm.h). Before
 * engine_device(), while there is one thread. */
void engine_prepare_ranks(void);
/* options.cuda_device for "auto" (a GPU when a usable one is there), "cpu", "cuda" (the first) or
 * "cuda:N". ERR_INVALID, ERR_CUDA: what is missing, in one sentence that offers the CPU. */
MUST_CHECK enum err_code engine_device(int32_t *out, const char *name, struct err *e);
/* The same for a plan: the GPU need not be there, only the back end in this build. */
MUST_CHECK enum err_code engine_planned_device(int32_t *out, const char *name, struct err *e);
const char *engine_backends(void); /* of this build: "cpu" or "cpu cuda" */

/* The memory plan: what is reserved at start; nothing is added after. */
struct engine_plan {
    char model_type[32];
    size_t weight_bytes, kv_bytes, workspace_bytes, tokenizer_bytes;
    size_t program_bytes; /* scheduler, running requests' arenas, program, libraries, buffers */
    size_t total_bytes;
    int32_t device; /* the GPU that weights, pages and workspace lie on; -1: none, and two zeros */
    /* Of it, planned; free when the plan was made. Each rank has a GPU, the next ones, with the
     * same on it; free is the least of them. */
    size_t device_bytes, device_free_bytes;
    size_t page_bytes; /* one page of KV_PAGE_TOKENS tokens, all layers, both planes */
    uint32_t n_ranks;  /* tp * dp */
    uint32_t n_groups, n_prefill_groups; /* attention groups; those that only prefill */
    uint32_t n_pages, max_seqs;          /* of each group */
    uint32_t max_context, prefill_tokens;
    enum precision precision; /* these two, and prefill_tokens, as they were chosen */
    enum latent_form latent;
    uint64_t kv_tokens; /* n_groups * n_pages * KV_PAGE_TOKENS */
};
/* Without loading weights. ERR_IO, ERR_INVALID (what does not fit, with both numbers). */
MUST_CHECK enum err_code engine_make_plan(struct engine_plan *out, const struct engine_options *o,
                                          struct err *e);

/* Reads, checks and reserves everything, then starts the threads. A failure leaves nothing behind.
 */
MUST_CHECK enum err_code engine_open(struct engine **out, const struct engine_options *o,
                                     struct err *e);
/* Ends running requests (GEN_ERROR, ERR_CLOSED, which are dropped with the engine) and all threads.
 * Where a rank is lost and its step does not come back within 0.2 s, threads and memory are left
 * to the end of the process, which should be near. */
void engine_close(struct engine *en);

/* Which process of how many this is: 0 of 1 where nobody launched several for these ranks. Process
 * 0 opens an engine; the others follow it. ERR_INVALID: an environment that says nonsense, or does
 * not fit the options. */
MUST_CHECK enum err_code engine_launched(uint32_t *process, uint32_t *n_processes,
                                         const struct engine_options *o, struct err *e);
/* Opens this process's ranks, calls ready(), and runs what process 0's engine has it run; returns
 * when that engine is closed, after ending(). ERR_COMM: a process or a rank is lost; then threads
 * and memory are left to the end of the process, which should be near, and ending() is not called.
 * Others as engine_open()'s. */
struct engine_follower; /* opaque; from ready() on until ending() has returned */
struct engine_follow_calls {
    void (*ready)(void *arg, struct engine_follower *f);
    void (*ending)(void *arg);
    void *arg;
};
MUST_CHECK enum err_code engine_follow(const struct engine_options *o,
                                       const struct engine_follow_calls *calls, struct err *e);
/* Of a follower, as of an engine: any thread. */
const struct model_config *engine_follower_model(const struct engine_follower *f);
const struct engine_plan *engine_follower_plan(const struct engine_follower *f);
void engine_follower_expert_rows(struct engine_follower *f, uint64_t *rows);
void engine_follower_selection_reuse(struct engine_follower *f, struct reuse_count *count);

/* Takes req in any case. ERR_BUSY: the queue is full. ERR_CLOSED: draining. ERR_COMM: a rank is
 * lost, with the reason. ERR_INVALID: it can never fit, with both numbers. On ERR_OK *id names it
 * until its GEN_DONE or GEN_ERROR was taken. */
MUST_CHECK enum err_code engine_submit(struct engine *en, struct gen_request *req,
                                       struct req_id *id, struct err *e);
/* Its pages are free within a step; it ends with GEN_DONE (choices FINISH_CANCELLED) all the same.
 */
void engine_cancel(struct engine *en, struct req_id id);
/* All events so far, oldest first, linked by mail.next; the caller frees each with
 * gen_event_free(). */
struct gen_event *engine_take_events(struct engine *en);

/* Whether a rank is lost, and why: it said so, another one waited for it in vain (ERR_COMM), or a
 * step has been out for step_limit_s (0: ENGINE_STEP_LIMIT_S with several ranks, without limit with
 * one, whose hanging shows in the stats and may pass). Then every request has ended with GEN_ERROR
 * (ERR_COMM), none is taken any more, `wake` was called, and the process should end:
 * an engine does not come back from it. Any thread. */
enum { ENGINE_STEP_LIMIT_S = 8 };
bool engine_lost(struct engine *en, struct err *why);

/* Takes no new requests (ERR_CLOSED); running ones go on. */
void engine_drain(struct engine *en);

enum { ENGINE_HIST_BUCKETS = 24 };
struct engine_hist {                     /* cumulative counts are made by the reader */
    uint64_t count[ENGINE_HIST_BUCKETS]; /* last: above all bounds */
    uint64_t n;
    double sum;
};
/* Bounds of the histograms, in seconds resp. tokens; ENGINE_HIST_BUCKETS - 1 of them. */
extern const double engine_hist_seconds[ENGINE_HIST_BUCKETS - 1];
extern const double engine_hist_tokens[ENGINE_HIST_BUCKETS - 1];

/* Attention groups: what a group does, and how it is doing. A request's sequences run in one group;
 * where groups prefill for others, its pages go over to one that decodes. */
enum { ENGINE_MAX_GROUPS = 64 };
enum group_role { GROUP_BOTH, GROUP_PREFILL, GROUP_DECODE, N_GROUP_ROLES };
extern const char *const engine_role_names[N_GROUP_ROLES]; /* "both" "prefill" "decode" */
struct engine_group_stats {
    enum group_role role;
    uint32_t running; /* sequences that are here, or will be */
    uint32_t pages, pages_used, pages_cached;
    uint64_t prefill_steps, decode_steps;
    /* Sequences that were handed on from here: with pages, bytes and the time it took; moves that
     * failed, and those after which a page's sums differed; sequences that were computed again. */
    uint64_t moves, moved_pages, moved_bytes, move_us, moves_failed, moves_corrupt, recomputed;
};

struct engine_stats {
    uint32_t running, waiting; /* sequences; requests */
    uint32_t pages, pages_used,
        pages_cached; /* used: held by sequences; cached: kept for reuse only */
    uint64_t prompt_tokens, generation_tokens, cached_tokens; /* exact totals */
    uint64_t forced_tokens;               /* of the generated: a grammar left no choice */
    uint64_t prefix_queries, prefix_hits; /* tokens asked, tokens found */
    uint64_t finished_stop, finished_length, cancelled, failed, refused_busy, refused_size;
    uint64_t prefill_steps, decode_steps;
    uint64_t rows_dense, rows_sparse;     /* tokens run by attention path */
    uint64_t busy_us[N_LANES];            /* of all steps, failed ones too: the workers' time */
    uint64_t phase_us[N_LANES][N_PHASES]; /* of all steps; see forward.h */
    uint64_t device_us[N_LANES];          /* of all steps, on the GPU's clock; 0 without one */
    struct engine_hist ttft_s, inter_token_s, e2e_s, queue_s, prefill_s, decode_s;
    struct engine_hist prompt_len, generation_len, step_tokens;
    /* clock_us() when the step that is out and began first began; without one, the heartbeat. */
    uint64_t last_step_us;
    bool step_in_flight; /* one is out: with last_step_us, stuck or not */
    bool draining;
    uint32_t n_groups;
    struct engine_group_stats group[ENGINE_MAX_GROUPS];
};
void engine_get_stats(struct engine *en, struct engine_stats *out);
/* rows[n_layers * n_experts] = the rows that each expert has been given so far by the ranks of this
 * process, each row of a group once. On a GPU up to a second old. Any thread. */
void engine_get_expert_rows(struct engine *en, uint64_t *rows);
/* count[REUSE_LAYERS] = how alike selections of steps that follow each other were, by sampled layer
 * (model/reuse.h), of the groups whose first rank is in this process. As old; any thread. */
void engine_get_selection_reuse(struct engine *en, struct reuse_count *count);

/* What the machine can do at most on the engine's threads, measured now (some tens of ms). */
struct engine_limits {
    double flops, bytes; /* per second: multiply-adds of the engine's precision, two each; reads */
};
MUST_CHECK enum err_code engine_measure_limits(const struct engine *en, struct engine_limits *out,
                                               struct err *e);
/* What a step must cost at least; shape's forms and weight_bytes are filled in here. */
struct step_cost engine_step_cost(const struct engine *en, struct step_shape shape);

const struct model_config *engine_model(const struct engine *en);
const struct tokenizer *engine_tokenizer(const struct engine *en);
const struct chat_format *engine_chat_format(const struct engine *en);
const struct engine_plan *engine_get_plan(const struct engine *en);
const char *engine_backend_name(const struct engine *en); /* "cpu avx512 fast" */
/* A hash of build, model and numeric settings: equal fingerprints promise equal tokens. */
const char *engine_fingerprint(const struct engine *en);

#endif
