/* markup_dsml.c - calls of DeepSeek-V3.2.
 *
 *   <｜DSML｜function_calls>
 *   <｜DSML｜invoke name="get_weather">
 *   <｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
 *   </｜DSML｜invoke>
 *   </｜DSML｜function_calls>
 *
 * string="true": the value as it stands is a string; "false": it is JSON; not given: the schema
 * says. Names and values are not escaped, so a tag ends at the first `">`. A body that begins with
 * { instead of a parameter is the arguments as JSON.
 */
#include "text/markup_machine.h"

#include <string.h>

#define D "｜DSML｜"

enum { ID_PARAMETER = MARK_MACHINE, ID_PARAMETER_END, ID_INVOKE, ID_INVOKE_END, ID_NOTHING };
enum { IN_INVOKE_TAG, IN_BODY, IN_PARAMETER_TAG, IN_VALUE, IN_JSON };
enum { SET_TAG, SET_BODY, SET_VALUE, SET_JSON };

static const char invoke[] = "<" D "invoke";

/* The empty line before the block is the encoder's. */
static const struct marker outer[] = {{"\n\n<" D "function_calls>", MARK_SECTION},
                                      {"\n<" D "function_calls>", MARK_SECTION},
                                      {"<" D "function_calls>", MARK_SECTION},
                                      {"\n\n<" D "invoke", MARK_CALL},
                                      {"\n<" D "invoke", MARK_CALL},
                                      {invoke, MARK_CALL},
                                      {"</" D "parameter>", MARK_STRAY},
                                      {"</" D "invoke>", MARK_STRAY},
                                      {"</" D "function_calls>", MARK_STRAY},
                                      {0}};
static const struct marker ends[] = {
    {"</" D "invoke>", ID_INVOKE_END}, {"</" D "function_calls>", ID_INVOKE_END}, {0}};
static const struct marker next_call[] = {
    {invoke, ID_INVOKE}, {"<" D "function_calls>", ID_NOTHING}, {0}};
static const struct marker parameter[] = {{"<" D "parameter", ID_PARAMETER}, {0}};
static const struct marker parameter_end[] = {{"</" D "parameter>", ID_PARAMETER_END}, {0}};

static void setup(struct output_parser *p)
{
    marker_set_add(&p->inner[SET_TAG], ends);
    marker_set_add(&p->inner[SET_BODY], ends);
    marker_set_add(&p->inner[SET_BODY], next_call);
    marker_set_add(&p->inner[SET_BODY], parameter);
    marker_set_add(&p->inner[SET_BODY], parameter_end);
    marker_set_add(&p->inner[SET_VALUE], ends);
    marker_set_add(&p->inner[SET_VALUE], parameter_end);
    marker_set_add(&p->inner[SET_JSON], ends);
    marker_set_add(&p->inner[SET_JSON], next_call);
}

static void enter(struct output_parser *p, uint8_t state)
{
    static const uint8_t set[] = {[IN_INVOKE_TAG] = SET_TAG,
                                  [IN_BODY] = SET_BODY,
                                  [IN_PARAMETER_TAG] = SET_TAG,
                                  [IN_VALUE] = SET_VALUE,
                                  [IN_JSON] = SET_JSON};
    p->state = state;
    p->set = &p->inner[set[state]];
}

/* ---- tags ---- */

struct span {
    const char *s;
    size_t n;
};

static struct span find_last(struct span in, const char *mark)
{
    size_t n = strlen(mark);
    for (size_t at = in.n >= n ? in.n - n + 1 : 0; at-- > 0;)
        if (memcmp(in.s + at, mark, n) == 0)
            return (struct span){in.s + at, n};
    return (struct span){NULL, 0};
}

/* From behind the first name=" to the last quote, or to string=" when that comes behind it. */
static struct span tag_name(struct span tag)
{
    static const char begin[] = "name=\"";
    size_t n = sizeof begin - 1, at = 0;
    while (at + n <= tag.n && memcmp(tag.s + at, begin, n) != 0)
        at++;
    if (at + n > tag.n)
        return (struct span){"", 0};
    struct span name = {tag.s + at + n, tag.n - at - n};
    struct span end = find_last(name, "\" string=\"");
    if (!end.s)
        end = find_last(name, "\"");
    if (end.s)
        name.n = (size_t)(end.s - name.s);
    return name;
}

static uint8_t tag_kinds(const struct output_parser *p, struct span tag, struct span name)
{
    struct span string = find_last(tag, "string=\"");
    if (string.s) {
        size_t left = tag.n - (size_t)(string.s + string.n - tag.s);
        if (left >= 5 && memcmp(string.s + string.n, "true\"", 5) == 0)
            return JSON_KIND_STRING;
        if (left >= 6 && memcmp(string.s + string.n, "false\"", 6) == 0)
            return JSON_KIND_ANY;
    }
    return markup_parameter_kinds(p->parameters, name.s, name.n);
}

/* A > ends the tag when nothing is quoted, or right behind a closing quote. */
static bool tag_ends(const struct markup_word *w)
{
    return w->n_quotes == 0 || (w->n_quotes >= 2 && w->last == '"');
}

static void open_tag(struct output_parser *p, uint8_t state)
{
    p->word.n = p->word.n_quotes = 0;
    p->word.last = '\0';
    enter(p, state);
}

static void open_call(struct output_parser *p)
{
    p->named = false;
    open_tag(p, IN_INVOKE_TAG);
}

static void tag_text(struct output_parser *p, char c)
{
    struct markup_word *w = &p->word;
    if (c == '>' && tag_ends(w)) {
        struct span tag = {w->text, w->n}, name = tag_name(tag);
        if (p->state == IN_INVOKE_TAG) {
            markup_begin_call(p, name.s, name.n); /* nameless: read, not reported */
            enter(p, IN_BODY);
            return;
        }
        if (p->named) {
            markup_typed_key(&p->typed, &p->out, name.s, name.n);
            markup_typed_begin(&p->typed, &p->out, tag_kinds(p, tag, name));
        }
        enter(p, IN_VALUE);
        return;
    }
    /* A name of full length has its tag around it: name="" and two white spaces. */
    if (p->state == IN_INVOKE_TAG && w->n == OUTPUT_MAX_NAME + 9) {
        markup_leave(p);
        markup_give_back(p, invoke, sizeof invoke - 1);
        markup_give_back(p, w->text, w->n);
        markup_give_back(p, &c, 1);
        return;
    }
    if (w->n < sizeof w->text)
        w->text[w->n++] = c;
    w->n_quotes += c == '"';
    if (!markup_is_space(c))
        w->last = c;
}

/* ---- bodies ---- */

static void end_value(struct output_parser *p)
{
    if (p->named && p->typed.in_value)
        markup_typed_end(&p->typed, &p->out);
}

static void end_call(struct output_parser *p, bool complete)
{
    if (!p->named)
        return;
    end_value(p);
    if (p->state == IN_JSON)
        markup_raw_end(&p->raw, &p->out);
    else
        markup_typed_close(&p->typed, &p->out);
    markup_out_call_end(&p->out, complete);
    p->named = false;
}

static void call_text(struct output_parser *p, char c)
{
    switch (p->state) {
    case IN_INVOKE_TAG:
    case IN_PARAMETER_TAG:
        tag_text(p, c);
        return;
    case IN_VALUE:
        if (p->named && !markup_typed_put(&p->typed, &p->out, c))
            p->failed = true;
        return;
    case IN_BODY: /* text between the tags says nothing */
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
    switch (id) {
    case ID_PARAMETER:
        open_tag(p, IN_PARAMETER_TAG);
        return;
    case ID_PARAMETER_END:
        end_value(p);
        enter(p, IN_BODY);
        return;
    case ID_INVOKE:
        end_call(p, true);
        open_call(p);
        return;
    case ID_NOTHING:
        return;
    default:
        end_call(p, true);
        markup_leave(p);
        return;
    }
}

static void finish_call(struct output_parser *p, bool cut)
{
    if (!p->named)
        return;
    bool whole = !cut && p->state == IN_JSON && json_check_whole(&p->out.check);
    if (whole || (p->state == IN_BODY && (!cut || p->typed.n_written)))
        end_call(p, !cut);
    else
        markup_out_call_end(&p->out, false);
    p->named = false;
}

const struct markup markup_dsml = {outer, setup, open_call, call_text, call_marker, finish_call};
