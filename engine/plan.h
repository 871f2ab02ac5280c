/* plan.h - the memory plan: how large everything is before anything is reserved.
 *
 * Weights + KV pages + workspace of both workers + tokenizer + scheduler, requests and the program
 * itself. engine_make_plan() (engine.h) prints from it and engine_open() reserves by it, so they
 * cannot differ. Thread: any; nothing is kept.
 */
#ifndef GAZE_PLAN_H
#define GAZE_PLAN_H

#include "engine.h"

struct plan_detail {
    struct engine_plan plan;
    struct ops_limits limits; /* what the back end is opened with */
    uint32_t max_requests;    /* req_id slots: queued and running */
};

/* Decides context, pages, prefill_tokens (where the options do not) and limits from the options and
 * the machine's memory; the forms are chosen already. weight_bytes and tokenizer_bytes were
 * measured by the caller. ERR_INVALID: what does not fit, with both numbers.
 */
MUST_CHECK enum err_code plan_make(struct plan_detail *out, const struct engine_options *o,
                                   const struct model_config *cfg, size_t weight_bytes,
                                   size_t tokenizer_bytes, struct err *e);

/* The error again, as one of a GPU that has too little memory, with the offer of the CPU. */
enum err_code plan_offer_cpu(struct err *e, uint32_t device);

/* Attention groups that the options ask for. */
uint32_t plan_groups(const struct engine_options *o);
/* Results that one step may give: the scheduler's max_out. prefill_tokens is decided. */
uint32_t plan_max_out(const struct engine_options *o);

/* Bytes that this process may still take: available memory, the cgroup's limit included. */
uint64_t plan_available_bytes(void);

/* Payload of the tensors of dir that cfg uses (layers beyond its depth are left out). */
MUST_CHECK enum err_code plan_weight_bytes(size_t *out, const char *dir,
                                           const struct model_config *cfg, struct err *e);

/* Precision and latents, where the options leave them to the model and the device: see struct
 * engine_options. */
void plan_choose_forms(struct engine_options *o, const struct model_config *cfg);

#endif
