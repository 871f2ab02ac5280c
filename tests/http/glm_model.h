/* glm_model.h - a model whose vocabulary has GLM's markers. */
#ifndef GAZE_HTTP_GLM_MODEL_H
#define GAZE_HTTP_GLM_MODEL_H

#include "server/json_out.h"
#include "test.h"

#include <stdio.h>
#include <unistd.h>

/* The bundled model with GLM's markers in the places of markers that it does not use. */
static inline void glm_model_make(const char *dir)
{
    static const char *const names[][2] = {{"<｜fim▁hole｜>", "<tool_call>"},
                                           {"<｜fim▁begin｜>", "</tool_call>"},
                                           {"<｜fim▁end｜>", "<arg_key>"},
                                           {"<｜tool▁outputs▁begin｜>", "</arg_key>"},
                                           {"<｜tool▁outputs▁end｜>", "<arg_value>"},
                                           {"<｜tool▁output▁begin｜>", "</arg_value>"}};
    static const char *const same[] = {"config.json", "generation_config.json", "model.safetensors",
                                       "tokenizer_config.json"};
    char path[600], from[600];
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, same[i]);
        snprintf(from, sizeof from, "config/models/ember/%s", same[i]);
        char *whole = realpath(from, NULL);
        CHECK(whole && !symlink(whole, path));
        free(whole);
    }
    FILE *f = fopen("config/models/ember/tokenizer.json", "rb");
    struct buf text = {0};
    char piece[4096];
    CHECK(f != NULL);
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;)
        buf_add(&text, piece, n);
    fclose(f);
    buf_add(&text, "", 1);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    for (const char *at = text.s; *at;) {
        size_t k = 0;
        while (k < 6 && strncmp(at, names[k][0], strlen(names[k][0])) != 0)
            k++;
        fputs(k < 6 ? names[k][1] : (char[2]){*at, 0}, f);
        at += k < 6 ? strlen(names[k][0]) : 1;
    }
    fclose(f);
    buf_free(&text);
}

#endif
