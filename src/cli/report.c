/* report.c: numbers of a finished answer as text and JSON (contract in report.h). Any thread. */
#include "cli/report.h"

#include "base/buf.h"
#include "base/utf8.h"

static double rate(uint32_t n_tokens, int64_t us)
{
    return n_tokens > 0 && us > 0 ? n_tokens * 1e6 / (double)us : 0;
}

double qw_report_prefill_rate(const qw_usage *usage, const qw_timings *timings)
{
    return rate(usage->prompt_tokens - usage->cached_tokens, timings->prefill_us);
}

double qw_report_decode_rate(const qw_usage *usage, const qw_timings *timings)
{
    return rate(usage->completion_tokens > 0 ? usage->completion_tokens - 1 : 0, timings->decode_us);
}

const char *qw_report_finish(qw_finish finish)
{
    switch (finish) {
    case QW_FINISH_NONE: return "none";
    case QW_FINISH_STOP: return "stop";
    case QW_FINISH_TOOL_CALLS: return "tool_calls";
    case QW_FINISH_LENGTH: return "length";
    case QW_FINISH_CONTEXT: return "context";
    case QW_FINISH_CANCELLED: return "cancelled";
    case QW_FINISH_DEADLINE: return "deadline";
    case QW_FINISH_REPETITION: return "repetition";
    }
    return "none";
}

json_t *qw_report_text(qw_text text)
{
    if (text.n == 0) return json_string("");
    if (qw_utf8_valid(text.s, text.n)) return json_stringn(text.s, text.n);
    qw_buf b;
    qw_buf_init(&b, 4 * (size_t)QW_PROMPT_BYTES_MAX, "text");
    qw_status status = QW_OK;
    for (size_t i = 0; i < text.n && status == QW_OK;) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(text.s + i, text.n - i, &cp);
        status = len > 0 ? qw_buf_add(&b, text.s + i, (size_t)len, NULL)
                         : qw_buf_add_str(&b, "\xEF\xBF\xBD", NULL);
        i += len > 0 ? (size_t)len : 1;
    }
    json_t *out = status == QW_OK ? json_stringn(b.data, b.n) : NULL;
    qw_buf_free(&b);
    return out;
}

json_t *qw_report_usage(const qw_usage *usage)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "prompt_tokens", (json_int_t)usage->prompt_tokens, "cached_tokens",
                     (json_int_t)usage->cached_tokens, "completion_tokens", (json_int_t)usage->completion_tokens,
                     "reasoning_tokens", (json_int_t)usage->reasoning_tokens);
}

json_t *qw_report_timings(const qw_usage *usage, const qw_timings *timings)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "queue_ms", (double)timings->queue_us / 1e3, "prefill_ms",
                     (double)timings->prefill_us / 1e3, "decode_ms", (double)timings->decode_us / 1e3,
                     "prefill_tokens_per_s", qw_report_prefill_rate(usage, timings), "decode_tokens_per_s",
                     qw_report_decode_rate(usage, timings));
}
