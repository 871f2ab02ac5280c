/* markup_glm.c - calls of GLM-4.6, GLM-5 and GLM-5.2.
 *
 *   <tool_call>get_weather
 *   <arg_key>city</arg_key>
 *   <arg_value>Paris</arg_value>
 *   </tool_call>
 *
 * From GLM-5 on without the newlines; both forms are read. A value is text: the schema of the tool
 * decides what it is (markup_arguments.h). JSON in place of the arguments is taken as it stands.
 */
#include "text/markup_machine.h"

enum { ID_KEY = MARK_MACHINE, ID_KEY_END, ID_VALUE, ID_VALUE_END, ID_CALL, ID_CALL_END };
enum { IN_NAME, IN_BODY, IN_KEY, AFTER_KEY, IN_VALUE, IN_JSON };
enum { SET_BODY, SET_KEY, SET_VALUE, SET_JSON };

static const struct marker outer[] = {
    {"<tool_call>", MARK_CALL}, {"</tool_call>", MARK_STRAY}, {0}};
/* The newline before a call is the template's. */
static const struct marker outer_46[] = {
    {"<tool_call>", MARK_CALL}, {"\n<tool_call>", MARK_CALL}, {"</tool_call>", MARK_STRAY}, {0}};
static const struct marker in_body[] = {{"<arg_key>", ID_KEY}, {"<tool_call>", ID_CALL}, {0}};
static const struct marker in_key[] = {{"</arg_key>", ID_KEY_END}, {0}};
static const struct marker after_key[] = {{"<arg_value>", ID_VALUE}, {0}};
static const struct marker in_value[] = {{"</arg_value>", ID_VALUE_END}, {0}};
static const struct marker next_call[] = {{"<tool_call>", ID_CALL}, {0}};
static const struct marker end[] = {{"</tool_call>", ID_CALL_END}, {0}};

static void setup(struct output_parser *p)
{
    marker_set_add(&p->inner[SET_BODY], in_body);
    marker_set_add(&p->inner[SET_BODY], in_key);
    marker_set_add(&p->inner[SET_BODY], after_key);
    marker_set_add(&p->inner[SET_BODY], in_value);
    marker_set_add(&p->inner[SET_BODY], end);
    marker_set_add(&p->inner[SET_KEY], in_key);
    marker_set_add(&p->inner[SET_KEY], after_key);
    marker_set_add(&p->inner[SET_KEY], end);
    marker_set_add(&p->inner[SET_VALUE], in_value);
    marker_set_add(&p->inner[SET_VALUE], end);
    marker_set_add(&p->inner[SET_JSON], next_call);
    marker_set_add(&p->inner[SET_JSON], end);
}

static void enter(struct output_parser *p, uint8_t state)
{
    static const uint8_t set[] = {
        [IN_NAME] = SET_BODY,   [IN_BODY] = SET_BODY,   [IN_KEY] = SET_KEY,
        [AFTER_KEY] = SET_BODY, [IN_VALUE] = SET_VALUE, [IN_JSON] = SET_JSON};
    p->state = state;
    p->set = &p->inner[set[state]];
}

static void open_call(struct output_parser *p)
{
    p->named = false;
    p->word.n = 0;
    enter(p, IN_NAME);
}

static void end_name(struct output_parser *p)
{
    markup_begin_call(p, p->word.text, p->word.n); /* nameless: read, not reported */
    enter(p, IN_BODY);
}

static void begin_value(struct output_parser *p)
{
    if (p->named) {
        uint8_t kinds = markup_parameter_kinds(p->parameters, p->word.text, p->word.n);
        markup_typed_key(&p->typed, &p->out, p->word.text, p->word.n);
        markup_typed_begin(&p->typed, &p->out, kinds);
    }
    enter(p, IN_VALUE);
}

static void end_call(struct output_parser *p, bool complete)
{
    if (!p->named)
        return;
    if (p->typed.in_value)
        markup_typed_end(&p->typed, &p->out);
    if (p->state == IN_JSON)
        markup_raw_end(&p->raw, &p->out);
    else
        markup_typed_close(&p->typed, &p->out);
    markup_out_call_end(&p->out, complete);
    p->named = false;
}

static void name_text(struct output_parser *p, char c)
{
    if (c == '\n') {
        if (!markup_word_is_blank(&p->word))
            end_name(p);
    } else if (p->word.n == OUTPUT_MAX_NAME) { /* this is prose */
        markup_leave(p);
        markup_give_back(p, p->word.text, p->word.n);
        markup_give_back(p, &c, 1);
    } else {
        p->word.text[p->word.n++] = c;
    }
}

static void call_text(struct output_parser *p, char c)
{
    if (p->state == IN_NAME && c == '{') {
        if (markup_word_is_blank(&p->word)) { /* JSON, but of what? */
            markup_leave(p);
            markup_give_back(p, &c, 1);
            return;
        }
        end_name(p);
    }
    switch (p->state) {
    case IN_NAME:
        name_text(p, c);
        return;
    case IN_KEY:
        if (p->word.n < sizeof p->word.text)
            p->word.text[p->word.n++] = c;
        return;
    case IN_VALUE:
        if (p->named && !markup_typed_put(&p->typed, &p->out, c))
            p->failed = true;
        return;
    case AFTER_KEY: /* text between the tags says nothing */
        return;
    case IN_BODY:
        if (c != '{' || p->typed.n_written)
            return;
        enter(p, IN_JSON);
        break;
    default:
        break;
    }
    if (p->named)
        markup_raw_put(&p->raw, &p->out, c);
}

static void call_marker(struct output_parser *p, uint8_t id)
{
    if (p->state == IN_NAME)
        end_name(p);
    switch (id) {
    case ID_KEY:
        p->word.n = 0;
        enter(p, IN_KEY);
        return;
    case ID_KEY_END:
        if (p->state == IN_KEY)
            enter(p, AFTER_KEY);
        return;
    case ID_VALUE: /* without a key it is only text between tags */
        if (p->state == IN_KEY || p->state == AFTER_KEY)
            begin_value(p);
        return;
    case ID_VALUE_END:
        if (p->named && p->typed.in_value)
            markup_typed_end(&p->typed, &p->out);
        enter(p, IN_BODY);
        return;
    case ID_CALL:
        end_call(p, true);
        open_call(p);
        return;
    default:
        end_call(p, true);
        markup_leave(p);
        return;
    }
}

static void finish_call(struct output_parser *p, bool cut)
{
    if (!cut && p->state == IN_NAME && markup_find_tool(p->tools, p->word.text, p->word.n))
        end_name(p); /* the model stopped behind the name of a tool that there is */
    if (!p->named)
        return;
    bool whole = !cut && p->state == IN_JSON && json_check_whole(&p->out.check);
    if (whole || (p->state == IN_BODY && (!cut || p->typed.n_written)))
        end_call(p, !cut);
    else
        markup_out_call_end(&p->out, false);
    p->named = false;
}

const struct markup markup_glm = {outer, setup, open_call, call_text, call_marker, finish_call};
const struct markup markup_glm_46 = {outer_46,  setup,       open_call,
                                     call_text, call_marker, finish_call};
