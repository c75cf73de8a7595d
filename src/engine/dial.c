/* dial.c: see dial.h. */
#include "engine/dial.h"

#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Is this the last word of the text? */
static bool ends_with_word(qw_text s, const char *word)
{
    size_t n = strlen(word);
    while (s.n > 0 && is_space(s.s[s.n - 1])) s.n--;
    return s.n >= n && memcmp(s.s + s.n - n, word, n) == 0 && (s.n == n || is_space(s.s[s.n - n - 1]));
}

/* The switch that Qwen3 introduced: the last word of a message, the newest one counts. */
static qw_switch said_in_words(const qw_request *r)
{
    for (size_t i = r->n_messages; i-- > 0;) {
        const qw_message *m = &r->messages[i];
        if (!m->role || (strcmp(m->role, "user") != 0 && strcmp(m->role, "system") != 0)) continue;
        if (ends_with_word(m->content, "/no_think")) return QW_SWITCH_OFF;
        if (ends_with_word(m->content, "/think")) return QW_SWITCH_ON;
    }
    return QW_SWITCH_DEFAULT;
}

static int64_t effort_tokens(qw_effort effort)
{
    return effort == QW_EFFORT_LOW ? QW_LOW_EFFORT_TOKENS : effort == QW_EFFORT_MEDIUM ? QW_MEDIUM_EFFORT_TOKENS : 0;
}

qw_dial qw_dial_of(qw_chat_format format, const qw_request *r)
{
    if (r->kind != QW_PROMPT_CHAT) return (qw_dial){0};
    qw_dial dial = {.chat = r->chat, .tokens_max = r->thinking_tokens_max};
    qw_chat_traits traits = qw_chat_format_traits(format);
    if (dial.chat.thinking == QW_SWITCH_DEFAULT && traits.switches) dial.chat.thinking = said_in_words(r);
    if (dial.tokens_max == 0 && !traits.efforts) dial.tokens_max = effort_tokens(r->chat.effort);
    return dial;
}

qw_thinking_use qw_dial_use(qw_chat_format format, const qw_request *r)
{
    const qw_dial dial = qw_dial_of(format, r);
    if (r->kind != QW_PROMPT_CHAT || !qw_chat_thinks(format, &dial.chat)) return (qw_thinking_use){0};
    qw_effort told = dial.chat.effort == QW_EFFORT_DEFAULT ? QW_EFFORT_XHIGH : dial.chat.effort;
    return (qw_thinking_use){.on = true, .tokens_max = dial.tokens_max,
                             .effort = qw_chat_format_traits(format).efforts ? told : QW_EFFORT_DEFAULT};
}
