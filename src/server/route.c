/* route.c: which request goes where, and the rules every request has to pass first.
 *
 * Event loop's thread. The rules: Host must name this machine (else a web page could reach the service through a
 * name that resolves to 127.0.0.1), JSON must be declared as such (a form of a foreign page cannot do that), and
 * no CORS header is ever sent. Nothing of a body is ever logged.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/service.h"

/* Made from web/ by scripts/embed.py. */
extern const char qw_web_index_html[], qw_web_app_js[], qw_web_app_css[];
extern const size_t qw_web_index_html_bytes, qw_web_app_js_bytes, qw_web_app_css_bytes;

#define PAGE_HEADERS                                                                                             \
    "Cache-Control: no-cache\r\n"                                                                                \
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "     \
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"                      \
    "Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n"

/* ---- replies ---------------------------------------------------------------------------------- */

void qw_reply_json(qw_conn *c, int status, const char *headers, json_t *object)
{
    char *line = qw_json_line(object);
    static const char lost[] = "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\","
                               "\"param\":null,\"code\":null}}";
    const char *body = line != NULL ? line : lost;
    qw_conn_reply(c, &(qw_reply){.status = line != NULL ? status : 503,
                                 .content_type = "application/json",
                                 .headers = headers != NULL ? headers : "Cache-Control: no-store\r\n",
                                 .body = body,
                                 .body_bytes = strlen(body)});
    free(line);
}

static void reply_error_with(qw_conn *c, const qw_api_error *e, const char *more)
{
    char headers[256], retry[40] = "";
    if (e->retry_after_s > 0) snprintf(retry, sizeof(retry), "Retry-After: %d\r\n", e->retry_after_s);
    snprintf(headers, sizeof(headers), "Cache-Control: no-store\r\n%s%s", retry, more);
    qw_reply_json(c, e->http, headers, qw_api_error_object(e));
}

void qw_reply_error(qw_conn *c, const qw_api_error *e)
{
    reply_error_with(c, e, "");
}

static void fail(qw_conn *c, int http, const char *code, const char *text)
{
    qw_api_error e;
    qw_api_error_set(&e, http, code, "", text);
    e.retry_after_s = http == 503;
    qw_reply_error(c, &e);
}

void qw_route_refuse(void *service, qw_conn *c, int status, const char *reason)
{
    (void)service;
    fail(c, status, NULL, reason);
}

/* ---- rules ------------------------------------------------------------------------------------ */

/* host: without port, in lower or upper case. */
static bool is_address(const char *host, bool *loopback)
{
    struct in_addr v4;
    struct in6_addr v6;
    char bare[64];
    size_t n = strlen(host);
    if (inet_pton(AF_INET, host, &v4) == 1) {
        *loopback = (ntohl(v4.s_addr) >> 24) == 127;
        return true;
    }
    if (n < 3 || n >= sizeof(bare) || host[0] != '[') return false;
    snprintf(bare, sizeof(bare), "%.*s", (int)(n - 2), host + 1);
    if (inet_pton(AF_INET6, bare, &v6) != 1) return false;
    *loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    return true;
}

/* Names that mean this machine. An address cannot be the work of a foreign name server, so every address is
 * good where other machines may connect. */
static bool host_allowed(const qw_service *s, const char *header)
{
    char host[256];
    bool loopback = false;
    const char *end = header[0] == '[' ? strchr(header, ']') : NULL;
    size_t n = end != NULL ? (size_t)(end - header) + 1 : strcspn(header, ":");
    if (n >= sizeof(host)) return false;
    snprintf(host, sizeof(host), "%.*s", (int)n, header);
    if (is_address(host, &loopback)) return loopback || !s->loopback;
    if (strcasecmp(host, "localhost") == 0 || strcasecmp(host, s->o.host) == 0) return true;
    if (!s->loopback && strcasecmp(host, s->host_name) == 0) return true;
    for (size_t i = 0; i < s->o.n_hosts; i++)
        if (strcasecmp(host, s->o.hosts[i]) == 0) return true;
    return false;
}

static bool is_json(const char *content_type)
{
    static const char json[] = "application/json";
    size_t n = sizeof(json) - 1;
    if (content_type == NULL || strncasecmp(content_type, json, n) != 0) return false;
    content_type += n + strspn(content_type + n, " \t");
    return *content_type == 0 || *content_type == ';';
}

/* ---- what is served --------------------------------------------------------------------------- */

typedef struct page {
    const char *content_type, *data;
    const size_t *bytes;
} page;

typedef struct route {
    const char *path;    /* one that ends in / serves what is below it */
    const char *method;  /* GET means HEAD too */
    void (*serve)(qw_service *s, qw_conn *c, const struct route *r);
    page file;
} route;

static void serve_page(qw_service *s, qw_conn *c, const route *r)
{
    (void)s;
    qw_conn_reply(c, &(qw_reply){.status = 200, .content_type = r->file.content_type, .headers = PAGE_HEADERS,
                                 .body = r->file.data, .body_bytes = *r->file.bytes});
}

/* What the engine's cache did, counted since the start. */
static json_t *engine_object(qw_service *s)
{
    qw_engine_stats st;
    qw_engine_get_stats(s->engine, &st);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:{s:I, s:I, s:I}, s:{s:I, s:I, s:I, s:I, s:I}}", "waiting",
                     (json_int_t)st.n_waiting, "running", (json_int_t)st.n_running, "requests", (json_int_t)st.requests,
                     "reused_tokens", (json_int_t)st.reused_tokens, "computed_tokens", (json_int_t)st.computed_tokens,
                     "preemptions", (json_int_t)st.preemptions, "missed", "unknown",
                     (json_int_t)st.missed[QW_MISS_UNKNOWN], "evicted", (json_int_t)st.missed[QW_MISS_EVICTED],
                     "no_snapshot", (json_int_t)st.missed[QW_MISS_SNAPSHOT], "cache", "tokens",
                     (json_int_t)st.cached_pages * QW_PAGE_TOKENS, "snapshots", (json_int_t)st.cached_snapshots,
                     "evicted_tokens", (json_int_t)st.evicted_pages * QW_PAGE_TOKENS, "evicted_snapshots",
                     (json_int_t)st.evicted_snapshots, "save_failures", (json_int_t)st.save_failures);
}

static void serve_health(qw_service *s, qw_conn *c, const route *r)
{
    const char *status = s->failed ? "failed" : s->draining ? "draining" : "ok";
    (void)r;
    json_t *object = json_pack("{s:s, s:s, s:{s:I, s:I}, s:{s:I, s:I, s:I, s:I}}", "status", status, "model",
                               s->o.model_id, "now", "connections", (json_int_t)s->conns.n, "answers",
                               (json_int_t)s->n_answers, "since_start", "answers", (json_int_t)s->totals.answers,
                               "prompt_tokens", (json_int_t)s->totals.prompt_tokens, "completion_tokens",
                               (json_int_t)s->totals.completion_tokens, "warnings",
                               (json_int_t)s->totals.warnings);
    if (object != NULL) json_object_set_new(object, "engine", engine_object(s));
    qw_reply_json(c, s->failed || s->draining ? 503 : 200, NULL, object);
}

static void serve_models(qw_service *s, qw_conn *c, const route *r)
{
    json_t *list = json_array();
    (void)r;
    json_array_append_new(list, qw_model_object(s->o.model_id, s->started_s));
    for (size_t i = 0; i < s->o.n_aliases; i++)
        json_array_append_new(list, qw_model_object(s->o.aliases[i], s->started_s));
    qw_reply_json(c, 200, NULL, json_pack("{s:s, s:o}", "object", "list", "data", list));
}

static int hex(char c)
{
    const char *digits = "0123456789abcdef0123456789ABCDEF", *at = c != 0 ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) % 16 : -1;
}

/* Percent-decoding of a path's end; false when it does not fit or is not well formed. */
static bool decode_name(const char *s, char *out, size_t cap)
{
    size_t n = 0;
    for (; *s != 0; s++) {
        char c = *s;
        if (c == '%') {
            int high = hex(s[1]), low = high >= 0 ? hex(s[2]) : -1;
            if (low < 0 || high * 16 + low == 0) return false;
            c = (char)(high * 16 + low);
            s += 2;
        }
        if (n + 1 >= cap) return false;
        out[n++] = c;
    }
    out[n] = 0;
    return true;
}

static void serve_model(qw_service *s, qw_conn *c, const route *r)
{
    char name[256];
    bool known = false;
    if (decode_name(qw_http_path(&c->http) + strlen(r->path), name, sizeof(name))) {
        known = strcmp(name, s->o.model_id) == 0;
        for (size_t i = 0; i < s->o.n_aliases; i++) known = known || strcmp(name, s->o.aliases[i]) == 0;
    }
    if (known)
        qw_reply_json(c, 200, NULL, qw_model_object(name, s->started_s));
    else
        fail(c, 404, "model_not_found", "no model of this name is served here; /v1/models lists them");
}

static void serve_chat(qw_service *s, qw_conn *c, const route *r)
{
    (void)r;
    qw_answer_begin(s, c);
}

static const route routes[] = {
    {"/", "GET", serve_page, {"text/html; charset=utf-8", qw_web_index_html, &qw_web_index_html_bytes}},
    {"/app.js", "GET", serve_page, {"text/javascript; charset=utf-8", qw_web_app_js, &qw_web_app_js_bytes}},
    {"/app.css", "GET", serve_page, {"text/css; charset=utf-8", qw_web_app_css, &qw_web_app_css_bytes}},
    {"/health", "GET", serve_health, {0}},
    {"/v1/models", "GET", serve_models, {0}},
    {"/v1/models/", "GET", serve_model, {0}},
    {"/v1/chat/completions", "POST", serve_chat, {0}},
};

static const route *find_route(const char *path)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
        size_t n = strlen(routes[i].path);
        bool below = n > 1 && routes[i].path[n - 1] == '/';
        if (below ? strncmp(path, routes[i].path, n) == 0 && path[n] != 0 : strcmp(path, routes[i].path) == 0)
            return &routes[i];
    }
    return NULL;
}

/* The route, or NULL after the request was refused. */
static const route *admit(const qw_service *s, qw_conn *c)
{
    const qw_http_parser *h = &c->http;
    const char *host = qw_http_find(h, "Host"), *coding = qw_http_find(h, "Content-Encoding");
    const route *r = find_route(qw_http_path(h));
    qw_api_error e;
    if (host != NULL && !host_allowed(s, host)) {
        fail(c, 403, "host_not_allowed", "Host does not name this machine; qw serve --allow-host NAME adds a name");
        return NULL;
    }
    if (r == NULL) {
        fail(c, 404, NULL, "there is nothing at this path; the chat is at /v1/chat/completions");
        return NULL;
    }
    bool is_get = strcmp(h->method, "GET") == 0 || strcmp(h->method, "HEAD") == 0;
    if (strcmp(r->method, "GET") == 0 ? !is_get : strcmp(h->method, r->method) != 0) {
        qw_api_error_set(&e, 405, NULL, "", "this path does not take this method; Allow names those it takes");
        reply_error_with(c, &e, strcmp(r->method, "GET") == 0 ? "Allow: GET, HEAD\r\n" : "Allow: POST\r\n");
        return NULL;
    }
    if (strcmp(r->method, "POST") != 0) return r;
    if (!is_json(qw_http_find(h, "Content-Type"))) {
        fail(c, 415, NULL, "Content-Type must be application/json");
        return NULL;
    }
    if (coding != NULL && strcasecmp(coding, "identity") != 0) {
        fail(c, 415, NULL, "a compressed body is not taken; send it without Content-Encoding");
        return NULL;
    }
    if (s->draining) {
        fail(c, 503, "shutting_down", "the service is shutting down");
        return NULL;
    }
    return r;
}

void qw_route_head(void *service, qw_conn *c)
{
    (void)admit(service, c);
}

void qw_route_request(void *service, qw_conn *c)
{
    qw_service *s = service;
    const route *r = admit(s, c);
    if (r != NULL) r->serve(s, c, r);
}
