"""The few functions of llama.cpp that vocabularies need, out of the xllamacpp package, whose wheel holds a whole llama.cpp
(used: xllamacpp 2026.10.11549)."""

import ctypes
import glob
import os

import gguf
import xllamacpp

VERSION = f"llama.cpp of xllamacpp {xllamacpp.__version__}"


class Params(ctypes.Structure):
    """llama_model_params of the llama.cpp in the wheel; only vocab_only is written."""

    _fields_ = [
        ("devices", ctypes.c_void_p),
        ("overrides", ctypes.c_void_p),
        ("layers", ctypes.c_int32),
        ("split", ctypes.c_int),
        ("load", ctypes.c_int),
        ("lazy", ctypes.c_int),
        ("gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress", ctypes.c_void_p),
        ("progress_data", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("others", ctypes.c_bool * 7),
    ]


class Library:
    def __init__(self):
        path = glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "*.so"))[0]
        lib = self.lib = ctypes.CDLL(path)
        pointer, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)
        lib.llama_model_default_params.restype = Params
        lib.llama_model_load_from_file.restype = pointer
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
        lib.llama_model_get_vocab.restype = pointer
        lib.llama_model_get_vocab.argtypes = [pointer]
        lib.llama_model_free.argtypes = [pointer]
        lib.llama_vocab_get_add_bos.restype = ctypes.c_bool
        lib.llama_vocab_get_add_bos.argtypes = [pointer]
        for name in ["llama_vocab_is_eog", "llama_vocab_is_control"]:
            getattr(lib, name).restype = ctypes.c_bool
            getattr(lib, name).argtypes = [pointer, ctypes.c_int32]
        lib.llama_tokenize.argtypes = [
            pointer, ctypes.c_char_p, ctypes.c_int32, out, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]
        callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)
        self.quiet = callback(lambda level, text, data: None)
        lib.llama_log_set(self.quiet, None)

    def read(self, path, ask):
        """What `ask` finds of the vocabulary of a file; None where llama.cpp refuses it."""
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            return None
        found = ask(Vocabulary(self.lib, self.lib.llama_model_get_vocab(model)))
        self.lib.llama_model_free(model)
        return found


class Vocabulary:
    def __init__(self, lib, vocab):
        self.lib, self.vocab = lib, vocab

    def encode(self, text, special=False):
        text = text.encode()
        out = (ctypes.c_int32 * (len(text) + 8))()
        count = self.lib.llama_tokenize(self.vocab, text, len(text), out, len(out), False, special)
        assert count >= 0
        return list(out[:count])

    def adds_begin_token(self):
        return self.lib.llama_vocab_get_add_bos(self.vocab)

    def ends(self, id):
        return self.lib.llama_vocab_is_eog(self.vocab, id)

    def is_control(self, id):
        return self.lib.llama_vocab_is_control(self.vocab, id)


def write_gguf(path, pre, tokens, merges, kinds, eos=None, bos=None):
    """A file with a byte-level vocabulary and nothing else; without the name of a cut where there is none."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if eos is not None:
        writer.add_eos_token_id(eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
