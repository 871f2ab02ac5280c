/* chat_format.c - the list of formats, which one a model directory means, and the way in. */
#include "text/chat_format.h"

#include "base/json.h"
#include "text/chat_parts.h"

#include <string.h>

static const struct chat_format *const formats[] = {
    &chat_deepseek_v3,      &chat_deepseek_r1,  &chat_deepseek_r1_0528, &chat_deepseek_v31,
    &chat_deepseek_v32_exp, &chat_deepseek_v32, &chat_glm_46,           &chat_glm_5,
    &chat_glm_52,           &chat_kimi_k2};
enum { N_FORMATS = sizeof formats / sizeof *formats };

const struct chat_format *chat_format_by_name(const char *name)
{
    for (size_t i = 0; i < N_FORMATS; i++) {
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    }
    return NULL;
}

const char *chat_format_name(const struct chat_format *f)
{
    return f->name;
}

const char *const *chat_format_names(void)
{
    static const char *const names[] = {"deepseek-v3",
                                        "deepseek-r1",
                                        "deepseek-r1-0528",
                                        "deepseek-v3.1",
                                        "deepseek-v3.2-exp",
                                        "deepseek-v3.2",
                                        "glm-4.6",
                                        "glm-5",
                                        "glm-5.2",
                                        "kimi-k2",
                                        NULL};
    return names;
}

static bool has_token(const struct tokenizer *tok, const char *text)
{
    return tokenizer_find(tok, text, strlen(text)) != UINT32_MAX;
}

/* Telltales of the published templates, the most telling first. */
static const struct chat_format *by_template(const char *t, const char *model_type)
{
    if (strstr(t, "<|im_system|>"))
        return &chat_kimi_k2;
    if (strstr(t, "[gMASK]") || strstr(t, "<|observation|>")) {
        if (strstr(t, "Reasoning Effort"))
            return &chat_glm_52;
        return strstr(t, "/nothink") ? &chat_glm_46 : &chat_glm_5;
    }
    if (strstr(t, "DSML"))
        return &chat_deepseek_v32;
    /* V3.1 put thinking behind a switch of the template; its successor kept that text and
     * model_type alone tells them apart. */
    if (strstr(t, "thinking"))
        return strcmp(model_type, "deepseek_v32") == 0 ? &chat_deepseek_v32_exp
                                                       : &chat_deepseek_v31;
    if (strstr(t, "<think>\\n"))
        return &chat_deepseek_r1;
    if (strstr(t, "</think>"))
        return &chat_deepseek_r1_0528;
    return &chat_deepseek_v3;
}

const struct chat_format *chat_format_detect(const struct tokenizer *tok, const char *model_type,
                                             const char **why)
{
    const char *template = tokenizer_chat_template(tok);
    if (template) {
        *why = "the model directory's chat template";
        return by_template(template, model_type);
    }
    if (strcmp(model_type, "glm_moe_dsa") == 0) {
        *why = "no chat template, model_type glm_moe_dsa";
        return &chat_glm_5;
    }
    if (has_token(tok, "<|im_middle|>")) {
        *why = "no chat template, Kimi's role tokens";
        return &chat_kimi_k2;
    }
    if (strcmp(model_type, "deepseek_v32") == 0) {
        *why = "no chat template, model_type deepseek_v32";
        return &chat_deepseek_v32;
    }
    if (has_token(tok, "</think>")) {
        *why = "no chat template, a vocabulary with </think>";
        return &chat_deepseek_v31;
    }
    *why = "no chat template, no think tokens";
    return &chat_deepseek_v3;
}

enum err_code chat_format_render(const struct chat_format *f, const cJSON *messages,
                                 const cJSON *tools, const struct chat_options *opt,
                                 struct arena *a, struct chat_prompt *out, struct err *e)
{
    struct chat_trees trees = {0};
    struct chat_message *message = NULL;
    struct chat_out text = {.arena = a};
    struct chat_job job = {.opt = opt, .out = &text};
    if (cJSON_IsNull(tools))
        tools = NULL;
    if (tools && chat_check_tools(tools, e))
        return e->code;
    if (chat_read_messages(messages, opt->continue_final_message, f->reads_arguments, a, &trees,
                           &message, &job.n_messages, e))
        goto free_trees;
    job.message = message;
    job.tools = tools && tools->child ? tools : NULL;
    job.thinking = opt->thinking == TRI_UNSET ? f->thinks : opt->thinking == TRI_TRUE;
    if (f->render(&job, f->style, e))
        goto free_trees;
    if (text.failed) {
        err_set(e, ERR_NOMEM, "a prompt of %zu messages", job.n_messages);
        goto free_trees;
    }
    *out = (struct chat_prompt){
        .part = text.part, .n_parts = text.n, .thinking_open = job.thinking_open};
    e->code = ERR_OK;
free_trees:
    chat_free_trees(&trees);
    return e->code;
}
