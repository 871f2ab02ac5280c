/* kv.h - how a position's latent lies in its slot, and reading it back.
 *
 * A record, kv_lora = R values of latent, rope_dim = D of key:
 *   F32   R + D floats        BF16   R + D bf16
 *   FP8   R e4m3 | ceil(R / 128) f32 power-of-two scales, one per 128 values | D bf16
 * Records of a page follow each other. An FP8 scale may be at an odd address when R is odd.
 * Thread: any; a slot has one writer.
 */
#ifndef GAZE_CPU_KV_H
#define GAZE_CPU_KV_H

#include "cpu/backend.h"

size_t kv_record_bytes(const struct model_config *c, enum latent_form f);

/* out[R + D] = the record of position pos: latent, then key, as fp32 (exact). */
void kv_load(const struct cpu_backend *b, uint32_t layer, const struct step_seq *s, uint32_t pos,
             float *out);

/* x -> Hx / sqrt(n), H the Walsh-Hadamard matrix in natural order; n a power of two. */
void hadamard(float *x, uint32_t n);

/* What a query or a key of the indexer goes through in the FP8 form after its rotation: rounded to
 * bf16, turned by the Hadamard matrix, rounded again, quantised. Gives the scale; code[n]. x is
 * overwritten. */
float index_quantise(float *x, uint32_t n, uint8_t *code);

#endif
