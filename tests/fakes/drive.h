/* drive.h - a real engine, driven from a test: submit requests, wait, collect what came back. */
#ifndef GAZE_TEST_DRIVE_H
#define GAZE_TEST_DRIVE_H

#include "engine.h"

enum { DRIVE_MAX_TOKENS = 256, DRIVE_MAX_CHOICES = 8 };

struct drive_wish { /* one request; zero means the default */
    const uint32_t *prompt;
    uint32_t n_prompt, max_tokens, n, top_k_dsa, n_top;
    float temperature;
    uint64_t seed, salt;
    bool prompt_logprobs;
    uint32_t cancel_after; /* tokens of all choices; 0: never */
};

struct drive_choice {
    uint32_t n;
    struct sample_out out[DRIVE_MAX_TOKENS];
    enum gen_finish finish;
    char text[4096];
};

struct drive_result {
    struct drive_choice choice[DRIVE_MAX_CHOICES];
    uint32_t n_prompt_out;
    struct sample_out prompt_out[1024];
    struct gen_usage usage;
    struct err err; /* ERR_OK unless GEN_ERROR or a refusal */
    bool done;
};

/* Submits all wishes at once and waits for every end. */
void drive(struct engine *en, const struct drive_wish *wish, uint32_t n, struct drive_result *out);
/* Asserts that two results have the same tokens and log-probabilities, bit for bit. */
void drive_check_equal(const struct drive_result *a, const struct drive_result *b,
                       const char *what);

#endif
