/* blocks_tool.c: our block codecs as a filter, for tests/parity/blocks.py.
 *
 *     blocks_tool dequantize|quantize TYPE N [weights] < in > out
 *
 * dequantize reads a row of N elements in TYPE and writes N floats; quantize reads N floats (with the word
 * `weights` another N floats of importances after them) and writes the row. Exit 2 on wrong use, 1 when
 * the input is too short or too long.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/blocks.h"

static int usage(const char *what)
{
    fprintf(stderr, "blocks_tool: %s\nuse: blocks_tool dequantize|quantize TYPE N [weights] < in > out\n", what);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc > 5) return usage("three or four arguments are needed");
    bool decode = strcmp(argv[1], "dequantize") == 0;
    if (!decode && strcmp(argv[1], "quantize") != 0) return usage("the first word is dequantize or quantize");
    qw_type type;
    if (!qw_type_parse(argv[2], &type)) return usage("unknown type");
    char *end;
    unsigned long n = strtoul(argv[3], &end, 10);
    if (*end || n == 0 || n > 1ul << 28) return usage("N is a number of elements, at most 2^28");
    if (n % qw_type_get((uint32_t)type)->block_n) return usage("N is no multiple of the type's block");
    bool weighted = argc == 5;
    if (weighted && (decode || strcmp(argv[4], "weights") != 0)) return usage("the last word can be weights");

    size_t float_bytes = n * sizeof(float), row_bytes = qw_type_row_bytes(type, n);
    size_t in_bytes = decode ? row_bytes : float_bytes * (weighted ? 2 : 1);
    size_t out_bytes = decode ? float_bytes : row_bytes;
    char *in = malloc(in_bytes), *out = malloc(out_bytes);
    int code = 1;
    if (!in || !out) {
        fprintf(stderr, "blocks_tool: out of memory\n");
    } else if (fread(in, 1, in_bytes, stdin) != in_bytes || getchar() != EOF) {
        fprintf(stderr, "blocks_tool: want exactly %zu bytes of input\n", in_bytes);
    } else {
        const float *x = (const float *)(const void *)in;
        if (decode)
            qw_dequantize_row(type, in, (float *)(void *)out, n);
        else
            qw_quantize_row(type, x, out, n, weighted ? x + n : NULL);
        code = fwrite(out, 1, out_bytes, stdout) == out_bytes && fflush(stdout) == 0 ? 0 : 1;
    }
    free(in);
    free(out);
    return code;
}
