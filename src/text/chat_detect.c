/* chat_detect.c: which format a model's template is. The template is read as text and never executed. */
#include <openssl/sha.h>
#include <string.h>

#include "text/chat.h"
#include "text/py_text.h"

enum { HEX_BYTES = 2 * SHA256_DIGEST_LENGTH, WITH_MAX = 4, WITHOUT_MAX = 4 };

/* SHA-256 of template texts that tests/parity/chat.py compares with. */
static const struct {
    qw_chat_format format;
    char sha256[HEX_BYTES + 1];
} known_templates[] = {
    {QW_CHAT_QWEN25, "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"},
    {QW_CHAT_QWEN25_BRACES, "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4"},
    {QW_CHAT_QWEN25_1M, "44d5f08f3f72b837eaad09f13a54c1f9f4eb58d75240334548b7fd52a5437fa5"},
    {QW_CHAT_QWEN25_OLD, "89d726e7795b101935db5c909c75a7d403a47deedad53a64947e9b079ba94def"},
    {QW_CHAT_QWQ, "61433aea8393589935ac6fdc49e937f991c796925e27241bd2b1d1080d9cf9af"},
    {QW_CHAT_QWQ_LAST, "5ed15374ce53e19a7798710736a2c9fe41c79f7385e8421a2080d6575a80ef1b"},
    {QW_CHAT_QWEN3, "13e4d4e5d0161c2d6625008905857c049f60f2ebbacf1ba2796cec9daf11c483"},
    {QW_CHAT_QWEN3, "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5"},
    {QW_CHAT_QWEN3_THINKING, "3802169b2a02b81e6adb7ab4f64f91ff02db753c8c3a64a01c35192d3a61d8d7"},
    {QW_CHAT_QWEN3_THINKING, "36e042fe45641f067b1f2381fcc8955d10d956a3ed333ecdf7f7eb0916f68956"},
    {QW_CHAT_QWEN3_INSTRUCT, "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326"},
    {QW_CHAT_QWEN3_SPLITS, "40c21f34cf67d8c760ef72f8ad3ae5afad514299d4b06e91dd9a8d705af7b541"},
    {QW_CHAT_QWEN3_CODER, "7e0648e7a298d820992b258648406f1e563c7067e55be5ac31fa5c24538735d4"},
    {QW_CHAT_QWEN3_CODER_TOOLS, "d287fb2edf144207f868ae1b282755dc19db2a3f1c5b3a3d57e9e5abffa98392"},
    {QW_CHAT_QWEN35, "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715"},
    {QW_CHAT_QWEN36, "e84f32a23fdda27689f868aa4a1a5621f41133e51a48d7f3efcbea2839574259"},
    {QW_CHAT_QWEN38, "c3cf9e34abf4f9e36c2d72165aa9c132d3e2a725b6c2586aaa3a8af9d7a81041"},
    {QW_CHAT_QWEN38_MAX, "40ce34a5bcbc0231462740761215bc31a83882a8b3a4b6aa1c6e869b95945e4e"},
};

#define CHATML "<|im_start|>"
#define JSON_CALL "<tool_call>\\n{\\\"name\\\": <function-name>"
#define JSON_CALL_BRACES "<tool_call>\\n{{\\\"name\\\": <function-name>"
#define BY_QWEN "You are Qwen, created by Alibaba Cloud."
#define HELPFUL "You are a helpful assistant."
#define PROMPT_THINKS "<|im_start|>assistant\\n<think>\\n"

/* Marks of templates with an unknown hash: the first row all of whose `with` and none of whose `without`
 * occur. Line breaks and quotes are as in the template's source. */
static const struct {
    qw_chat_format format;
    const char *with[WITH_MAX], *without[WITHOUT_MAX];
} marks[] = {
    {QW_CHAT_QWEN38_MAX, {CHATML, "<function=", "Reasoning effort is set to", "Disabling thinking is not"}, {0}},
    {QW_CHAT_QWEN38, {CHATML, "<function=", "Reasoning effort is set to"}, {0}},
    {QW_CHAT_QWEN36, {CHATML, "<function=", "preserve_thinking", "<think>"}, {0}},
    {QW_CHAT_QWEN35, {CHATML, "<function=", "enable_thinking", "<think>"}, {0}},
    {QW_CHAT_QWEN3_CODER_TOOLS, {CHATML, "<function=", "</parameters>", "following tools"}, {"think"}},
    {QW_CHAT_QWEN3_CODER_NEXT, {CHATML, "<function=", "</parameters>", "# Tools"}, {"think"}},
    {QW_CHAT_QWEN3_CODER, {CHATML, "<function=", "</parameters>"}, {"think"}},
    {QW_CHAT_QWEN3, {CHATML, JSON_CALL, "reasoning_content", "enable_thinking"}, {"<function="}},
    {QW_CHAT_QWEN3_THINKING, {CHATML, JSON_CALL, "reasoning_content", PROMPT_THINKS}, {"<function="}},
    {QW_CHAT_QWEN3_SPLITS, {CHATML, JSON_CALL, "reasoning_content"}, {"<function=", BY_QWEN, HELPFUL}},
    {QW_CHAT_QWQ_LAST, {CHATML, JSON_CALL, "split('</think>')", "enable_thinking"}, {"<function="}},
    {QW_CHAT_QWQ, {CHATML, JSON_CALL, "split('</think>')", PROMPT_THINKS}, {"<function="}},
    {QW_CHAT_QWEN25_BRACES, {CHATML, JSON_CALL_BRACES, BY_QWEN}, {"think", "<function="}},
    {QW_CHAT_QWEN25, {CHATML, JSON_CALL, BY_QWEN}, {"think", "<function="}},
    {QW_CHAT_QWEN25_MATH, {CHATML, JSON_CALL, "Please reason step by step, and"}, {"think", "<function="}},
    {QW_CHAT_QWEN25_OLD, {CHATML, JSON_CALL_BRACES, HELPFUL}, {"think", "<function="}},
    {QW_CHAT_QWEN25_1M, {CHATML, JSON_CALL, HELPFUL}, {"think", "<function="}},
    {QW_CHAT_QWEN3_INSTRUCT, {CHATML, JSON_CALL}, {"think", "<function=", BY_QWEN, HELPFUL}},
    {QW_CHAT_QWEN2, {CHATML, "<|im_end|>", "You are a helpful assistant.<|im_end|>"}, {"think", "tool", "<function="}},
};

static bool fits(qw_text text, const char *const with[WITH_MAX], const char *const without[WITHOUT_MAX])
{
    for (size_t k = 0; k < WITH_MAX; k++)
        if (with[k] && !qw_py_has(text, with[k])) return false;
    for (size_t k = 0; k < WITHOUT_MAX; k++)
        if (without[k] && qw_py_has(text, without[k])) return false;
    return true;
}

qw_chat_format qw_chat_detect(qw_text template_text, bool *known)
{
    unsigned char hash[SHA256_DIGEST_LENGTH];
    char hex[HEX_BYTES];
    *known = false;
    if (template_text.n == 0) return QW_CHAT_NONE;
    SHA256((const unsigned char *)template_text.s, template_text.n, hash);
    for (int i = 0; i < HEX_BYTES; i++) hex[i] = "0123456789abcdef"[hash[i / 2] >> (i % 2 ? 0 : 4) & 15];
    for (size_t i = 0; i < sizeof known_templates / sizeof *known_templates; i++)
        if (memcmp(known_templates[i].sha256, hex, HEX_BYTES) == 0) {
            *known = true;
            return known_templates[i].format;
        }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (fits(template_text, marks[i].with, marks[i].without)) return marks[i].format;
    return QW_CHAT_NONE;
}
