/* schema_format.c - the formats that are asserted, as patterns of whole texts.
 *
 * Each holds only texts that all common validators take: RFC 3339 dates and times (no leap second,
 * since whether there is one depends on the date), RFC 5321's plain addresses, RFC 3986, and so on.
 * A `regex` is one whose groups nest at most three deep, without references and bounds.
 */
#include "grammar/schema_impl.h"

#include <string.h>

/* A year's last days: February's 29th in years that 4 divides, centuries those that 400 does. */
#define LEAP "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
#define YEAR "(?:(?!0000)\\d{4})"
#define DATE                                                                                       \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|"  \
    "30)|02-(?:0[1-9]|1\\d|2[0-8]))|(?!0000)" LEAP "-02-29)"
#define CLOCK "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?"
#define ZONE "(?:[zZ]|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"

#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"

#define BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4 BYTE "(?:\\." BYTE "){3}"
#define H16 "[0-9A-Fa-f]{1,4}"
#define LS32 "(?:" H16 ":" H16 "|" IPV4 ")"
#define IPV6                                                                                       \
    "(?:(?:" H16 ":){6}" LS32 "|::(?:" H16 ":){5}" LS32 "|(?:" H16 ")?::(?:" H16 ":){4}" LS32      \
    "|(?:(?:" H16 ":){0,1}" H16 ")?::(?:" H16 ":){3}" LS32 "|(?:(?:" H16 ":){0,2}" H16 ")?::(?:"   \
    "" H16 ":){2}" LS32 "|(?:(?:" H16 ":){0,3}" H16 ")?::" H16 ":" LS32 "|(?:(?:" H16              \
    ":){0,4}" H16 ")?::" LS32 "|(?:(?:" H16 ":){0,5}" H16 ")?::" H16 "|(?:(?:" H16 ":){0,6}" H16   \
    ")?::)"

#define PCT "%[0-9A-Fa-f]{2}"
#define UNRESERVED "A-Za-z0-9._~\\-"
#define SUB "!$&'()*+,;="
#define PCHAR "(?:[" UNRESERVED SUB ":@]|" PCT ")"
#define SEGMENTS "(?:/" PCHAR "*)*"
#define HOST "(?:\\[" IPV6 "\\]|(?:[" UNRESERVED SUB "]|" PCT ")+)"
#define AUTHORITY "(?:(?:[" UNRESERVED SUB ":]|" PCT ")*@)?" HOST "(?::\\d{1,5})?"
#define TAIL "(?:\\?(?:" PCHAR "|[/?])*)?(?:#(?:" PCHAR "|[/?])*)?"
#define SCHEME "[A-Za-z][A-Za-z0-9+.-]*:"
#define PATH "(?:/" PCHAR "+" SEGMENTS "|/|" PCHAR "+" SEGMENTS ")"
#define URI SCHEME "(?://" AUTHORITY SEGMENTS "|" PATH ")" TAIL
#define NO_COLON "(?:[" UNRESERVED SUB "@]|" PCT ")+"
#define URI_REFERENCE                                                                              \
    "(?:" URI "|(?://" AUTHORITY SEGMENTS "|/" PCHAR "+" SEGMENTS "|/|" NO_COLON SEGMENTS          \
    ")?" TAIL ")"
#define VARIABLE "(?:[A-Za-z0-9_]|" PCT ")+(?:\\.(?:[A-Za-z0-9_]|" PCT ")+)*(?::[1-9]\\d{0,3}|\\*)?"
#define URI_TEMPLATE                                                                               \
    "(?:[" UNRESERVED "!#$&()*+,/:;=?@\\[\\]]|" PCT "|\\{[+#./;?&=,!@|]?" VARIABLE "(?:," VARIABLE \
    ")*\\})*"

#define POINTER "(?:/(?:[^~/]|~[01])*)*"

/* One piece of a regular expression, what may follow it, and what holds such. */
#define CLASS "\\[\\^?(?:a-z|A-Z|0-9|\\\\[dDwWsS.\\]\\[\\\\-]|[A-Za-z0-9 _.,:;/@!#%&=<>'\"])+\\]"
#define PIECE "[^\\\\()\\[\\]{}|*+?^$/]|/|\\\\[dDwWsSnrt./\\\\()\\[\\]{}|*+?^$-]|" CLASS
#define HOW "(?:[*+?]\\?{0,1}){0,1}"
#define RUN0 "(?:(?:" PIECE ")" HOW "|[\\^$])*"
#define ALTS0 RUN0 "(?:\\|" RUN0 ")*"
#define GROUP0 "\\((?:\\?:)?" ALTS0 "\\)" HOW "|\\(\\?(?:=|!|<=|<!)" ALTS0 "\\)"
#define RUN1 "(?:(?:" PIECE ")" HOW "|[\\^$]|" GROUP0 ")*"
#define ALTS1 RUN1 "(?:\\|" RUN1 ")*"
#define GROUP1 "\\((?:\\?:)?" ALTS1 "\\)" HOW "|\\(\\?(?:=|!|<=|<!)" ALTS1 "\\)"
#define RUN2 "(?:(?:" PIECE ")" HOW "|[\\^$]|" GROUP1 ")*"
#define REGEX RUN2 "(?:\\|" RUN2 ")*"

static const struct {
    const char *name, *pattern;
} formats[] = {
    {"date", DATE},
    {"time", CLOCK ZONE},
    {"date-time", DATE "[tT]" CLOCK ZONE},
    {"duration",
     "P(?:\\d+W|(?=.)(?:\\d+Y(?:\\d+M(?:\\d+D)?)?|\\d+M(?:\\d+D)?|\\d+D)?(?:T(?:\\d+H(?:"
     "\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S))?)"},
    {"email", ATOM "(?:\\." ATOM ")*@(?:" LABEL "\\.)+" LABEL},
    {"hostname", "(?=.{1,253}$)" LABEL "(?:\\." LABEL ")*"},
    {"ipv4", IPV4},
    {"ipv6", IPV6},
    {"uri", URI},
    {"uri-reference", URI_REFERENCE},
    {"uri-template", URI_TEMPLATE},
    {"uuid", "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"},
    {"regex", REGEX},
    {"json-pointer", POINTER},
    {"relative-json-pointer", "(?:0|[1-9]\\d*)(?:#|" POINTER ")"},
};

const char *schema_format(const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(formats[i].name, name))
            return formats[i].pattern;
    return NULL;
}
