/* json_same.c: see json_same.h. Both texts are brought into the usual form and compared as slices of it. */
#include "text/json_same.h"

#include <math.h>
#include <string.h>

#include "base/buf.h"
#include "text/json_number.h"
#include "text/json_text.h"
#include "text/json_view.h"

enum { TEXT_BYTES_MAX = 64 << 20 };

static bool same_bytes(qw_text a, qw_text b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.s, b.s, a.n) == 0);
}

static bool same_number(qw_text a, qw_text b)
{
    static const double exact = 9007199254740992.0; /* 2^53: beyond it different whole numbers share a double */
    if (qw_json_first(a) != 0 || qw_json_first(b) != 0) return false;
    double x = qw_json_double_value(a.s, a.n), y = qw_json_double_value(b.s, b.n);
    return x == y && fabs(x) < exact;
}

static bool same(qw_text a, qw_text b); /* containers nest at most QW_JSON_DEPTH_MAX deep */

static bool find_member(qw_text object, qw_text key, qw_text *value)
{
    qw_text name;
    for (size_t pos = 0, n = 0; n < QW_JSON_UNORDERED_MAX && qw_json_next(object, &pos, &name, value); n++)
        if (same_bytes(name, key)) return true;
    return false;
}

/* Element by element; members of an object that stand at other places are looked for. */
static bool same_members(qw_text a, qw_text b)
{
    qw_text key_a, key_b, value_a, value_b;
    size_t pos_a = 0, pos_b = 0;
    for (;;) {
        bool more_a = qw_json_next(a, &pos_a, &key_a, &value_a), more_b = qw_json_next(b, &pos_b, &key_b, &value_b);
        if (!more_a || !more_b) return more_a == more_b;
        if (!same_bytes(key_a, key_b) && !find_member(b, key_a, &value_b)) return false;
        if (!same(value_a, value_b)) return false;
    }
}

static bool same(qw_text a, qw_text b)
{
    char kind = qw_json_first(a);
    if (same_bytes(a, b)) return true;
    if (kind != qw_json_first(b)) return false;
    return kind == '{' || kind == '[' ? same_members(a, b) : same_number(a, b);
}

bool qw_json_same(qw_text a, qw_text b)
{
    qw_buf x, y;
    if (same_bytes(a, b)) return true;
    qw_buf_init(&x, TEXT_BYTES_MAX, "JSON");
    qw_buf_init(&y, TEXT_BYTES_MAX, "JSON");
    bool ok = qw_json_rewrite(a, &x, NULL) == QW_OK && qw_json_rewrite(b, &y, NULL) == QW_OK &&
              same((qw_text){qw_buf_str(&x), x.n}, (qw_text){qw_buf_str(&y), y.n});
    qw_buf_free(&x);
    qw_buf_free(&y);
    return ok;
}
