"""llama.cpp as a peer: a thin layer over the low-level interface of llama-cpp-python.

Use: imported by bench/llama_runner.py and tests/parity/llama_*.py, which run in the "peer" environment
(scripts/venv.py peer). Settings are the ones every comparison of this project names: flash attention on, keys and
values in f16, llama.cpp's own default batch sizes (2048 logical, 512 physical), no GPU.
"""

import ctypes
import sys

import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def _log(level, text, user_data):
    """Keeps errors (ggml level 4), drops the rest."""
    if level == 4:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


def quiet():
    """Errors only, from here on."""
    llama.llama_log_set(_log, ctypes.c_void_p(0))


class Peer:
    """One model and one context. Owns both until close()."""

    def __init__(self, path, n_ctx, n_threads, n_streams=1, all_logits=False, float_cache=False):
        """n_ctx: positions per stream; n_streams: sequences that can be decoded together; float_cache: keys and values in
        f32, and attention that computes with them so (flash attention makes them f16 first)."""
        quiet()
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), self._model_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = llama.llama_context_default_params()
        params.n_ctx = n_streams * ((n_ctx + 255) // 256 * 256)
        params.n_seq_max = n_streams
        params.n_threads = n_threads
        params.n_threads_batch = n_threads
        params.flash_attn_type = (llama.LLAMA_FLASH_ATTN_TYPE_DISABLED if float_cache
                                  else llama.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.type_k = params.type_v = llama.GGML_TYPE_F32 if float_cache else llama.GGML_TYPE_F16
        if all_logits:
            params.n_outputs_max = 0
            params.n_outputs_max_per_seq = 0
        self.n_batch = params.n_batch
        self.n_streams = n_streams
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {params.n_ctx} positions")
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab = llama.llama_vocab_n_tokens(self.vocab)
        self.batch = llama.llama_batch_init(self.n_batch, 0, 1)

    @staticmethod
    def _model_params():
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        return params

    def clear(self):
        """Forgets every sequence."""
        llama.llama_memory_clear(self.memory, True)

    def decode(self, tokens, positions, streams, wanted):
        """Runs one batch, at most n_batch tokens, and waits for it. wanted: flags, which tokens need logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = int(token)
            batch.pos[i] = int(positions[i])
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = int(streams[i])
            batch.logits[i] = 1 if wanted[i] else 0
        status = llama.llama_decode(self.context, batch)
        if status != 0:
            sys.exit(f"llama.cpp: llama_decode failed with status {status}")
        llama.llama_synchronize(self.context)

    def prefill(self, tokens, stream=0, start=0):
        """Runs a prompt in pieces of n_batch; logits for the last token only."""
        for begin in range(0, len(tokens), self.n_batch):
            piece = tokens[begin:begin + self.n_batch]
            n = len(piece)
            last = begin + n == len(tokens)
            self.decode(piece, range(start + begin, start + begin + n), [stream] * n,
                        [False] * (n - 1) + [last])

    def logits(self, n_rows):
        """The logits of the last batch, float32 [n_rows, n_vocab]; borrowed until the next decode."""
        pointer = llama.llama_get_logits(self.context)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)),
                                     (n_rows, self.n_vocab))

    def tokenize(self, text):
        """Token ids of text, control tokens in it recognised."""
        data = text.encode()
        room = (llama.llama_token * (len(data) + 8))()
        n = llama.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        if n < 0:
            sys.exit("llama.cpp: llama_tokenize failed")
        return list(room[:n])

    def close(self):
        """Gives everything back."""
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)
        self.context = self.model = None


def system_info():
    """llama.cpp's own line about instruction sets and features."""
    return llama.llama_print_system_info().decode().strip()


def version():
    """Version of the Python package."""
    return llama.__version__
