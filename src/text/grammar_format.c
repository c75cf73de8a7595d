/* grammar_format.c: the formats of JSON Schema as regular expressions.
 *
 * Each expression describes a part of what its format allows, all of it right by the format's own rules: days that
 * every year has, host names without what only registries decide. Sources: RFC 3339 (date, time, duration), 5321
 * (email), 1123 (hostname), 4291 (ipv6), 3986 (uri), 9562 (uuid), 6901 (json-pointer). Owner: the thread that compiles.
 */
#include "text/grammar_private.h"

#define DATE "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|" \
             "02-(?:0[1-9]|1[0-9]|2[0-8]))"
#define TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define NUMBER "[0-9]{1,4}"
#define DURATION_DAYS "(?:" NUMBER "Y(?:" NUMBER "M(?:" NUMBER "D)?)?|" NUMBER "M(?:" NUMBER "D)?|" NUMBER "D)"
#define DURATION_TIME "T(?:" NUMBER "H(?:" NUMBER "M(?:" NUMBER "S)?)?|" NUMBER "M(?:" NUMBER "S)?|" NUMBER "S)"
#define LABEL "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"
#define HOST "(?:" LABEL "\\.){0,3}[A-Za-z][A-Za-z0-9]{1,19}"
#define OCTET "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define H16 "[0-9A-Fa-f]{1,4}"
#define PCHAR "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
#define ATOM "[A-Za-z0-9_+-]{1,20}"

static const struct {
    const char *name, *pattern;
} formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P(?:" NUMBER "W|" DURATION_DAYS "(?:" DURATION_TIME ")?|" DURATION_TIME ")"},
    {"email", ATOM "(?:\\." ATOM "){0,2}@" HOST},
    {"hostname", HOST},
    {"ipv4", OCTET "(?:\\." OCTET "){3}"},
    {"ipv6", "(?:" H16 ":){7}" H16 "|(?:" H16 ":){1,7}:|(?:" H16 ":){1,6}:" H16 "|(?:" H16 ":){1,5}(?::" H16 "){2}|"
             "(?:" H16 ":){1,4}(?::" H16 "){3}|(?:" H16 ":){1,3}(?::" H16 "){4}|(?:" H16 ":){1,2}(?::" H16 "){5}|"
             H16 ":(?::" H16 "){6}|:(?::" H16 "){1,7}|::"},
    {"uri", "[a-z][a-z0-9+.-]{1,15}:(?://" HOST "(?::[0-9]{1,4})?(?:/(?:" PCHAR "|/)*)?|" PCHAR "(?:" PCHAR "|/)*)"
            "(?:\\?(?:" PCHAR "|[/?])*)?(?:#(?:" PCHAR "|[/?])*)?"},
    {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
    {"json-pointer", "(?:/(?:[^~/]|~[01])*)*"},
};

uint32_t grammar_format_ast(grammar_build *b, qw_text name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (name.n == strlen(formats[i].name) && memcmp(name.s, formats[i].name, name.n) == 0)
            return grammar_regex_ast(b, (qw_text){formats[i].pattern, strlen(formats[i].pattern)}, true, formats[i].name);
    return 0;
}
