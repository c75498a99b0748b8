#!/usr/bin/env python3
"""Trains tiny tokenizers of the kinds that models had before `tokenizer.json`, and writes them with the ids of some texts:
crates/pretrained/tests/slow, replayed by crates/pretrained/tests/slow_tokenizers.rs. The ids are those of transformers; of
SentencePiece itself where that is the file's library. Needs sentencepiece, tokenizers and transformers, and no
mistral-common, by which transformers would read tekken.json."""

import base64
import json
import pathlib
import shutil
import tempfile

import sentencepiece
import tokenizers
import transformers

HERE = pathlib.Path(__file__).parents[2]
TO = HERE / "crates/pretrained/tests/slow"
CORPUS = [HERE / "README.md", *sorted(HERE.glob("crates/text/src/*.rs"))]
TEXTS = [
    "",
    " ",
    "   ",
    "a",
    "Hello world",
    " Hello world",
    "  Hello  world  ",
    "Hello\nworld\n",
    "\n\n\tHello",
    "tokenizer tokenizers Tokenizer",
    "1234567890 12 345",
    "3.14159 * 2 = 6.28318",
    "It's we're I'll don't CAN'T",
    "snake_case camelCase kebab-case",
    'fn main() { println!("{}", 1); }',
    "for i in range(10):\n    print(i)\n",
    "é à ü ß ñ",
    "e\u0301 (decomposed)",
    "中文字符 日本語 한국어",
    "Привет мир",
    "مرحبا بالعالم",
    "🙂 👩‍👩‍👧 🇩🇪",
    "\u2581 marked \u2581space",
    "a\u00a0b\u3000c",
    "tab\tand\r\nreturn",
    "!!! ??? ... --- ***",
    "<unk> <s> </s> <|endoftext|>",
    "<|x|>",
    "a<|x|>",
    "<|x|> b <|x|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "        eight spaces",
    "word" * 12,
    "MixedCASE and UPPER and lower",
    "https://example.com/a?b=c&d=%20",
    "\x00\x01\x7f",
    "\ud7a3\uac00\u1100",
    "½ ² ① Ⅷ",
    "“quotes” ‘single’ — dash…",
    "The end.",
]


# Texts in which control tokens are meant.
PROMPTS = [
    "hi</s>x<s>",
    "[INST]hi[/INST]",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b",
    "<tool>a <|x|>b",
]
NEMO = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def sentence_piece(name, **settings):
    """Trains a model of SentencePiece."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "sentence_iterator": iter("\n".join(path.read_text() for path in CORPUS).splitlines()),
            "model_prefix": f"{directory}/m",
            "vocab_size": 450,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "character_coverage": 0.99,
            "num_threads": 1,
            "minloglevel": 2,
            **settings,
        }
        sentencepiece.SentencePieceTrainer.train(**settings)
        shutil.copy(f"{directory}/m.model", TO / f"{name}.model")


def byte_pairs(name, split):
    """Trains byte-level BPE and writes a vocab.json and a merges.txt."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = split
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in CORPUS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (TO / f"{name}.vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (TO / f"{name}.merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def tekken(name, special, specials):
    """A tekken.json of bytes and of what the byte-level BPE of GPT-2's kind has learnt."""
    vocab = json.loads((TO / "gpt2.vocab.json").read_text())
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    of = {chr(byte): byte for byte in own} | {chr(256 + at): byte for at, byte in enumerate(others)}
    learnt = [bytes(of[c] for c in token) for token in vocab if token != "<|endoftext|>"]
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in learnt if len(token) > 1]
    config = {"pattern": NEMO, "num_vocab_tokens": len(tokens), "version": "v3"}
    # The last five are padding.
    sizes = {"default_vocab_size": len(tokens) + specials - 5, "default_num_special_tokens": specials}
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(tokens)
    ]
    listed = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special)]
    file = {"config": config | sizes, "vocab": vocab, "special_tokens": listed}
    (TO / f"{name}.json").write_text(json.dumps(file, separators=(",", ":")))


def listed(texts, first):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(first + at): {"content": text, **flags} for at, text in enumerate(texts)}


SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
LLAMA |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
QWEN = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
IM = ["<|im_start|>", "<|im_end|>"]
BEGINS = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "special": True}
BYTE_PAIRS = {
    kind: {file: f"{kind}.{file}" for file in ["vocab.json", "merges.txt"]} for kind in ["gpt2", "qwen"]
}
# Files of a directory, its tokenizer_config.json, the kind of model that its config.json names, and other JSON files.
DIRECTORIES = {
    "llama": ({"tokenizer.model": "llama.model"}, LLAMA | {"legacy": True}, "llama", {}),
    "llama, not legacy": (
        {"tokenizer.model": "symbols.model"},
        LLAMA | {"legacy": False, "add_bos_token": False},
        "llama",
        {},
    ),
    "llama, more tokens": (
        {"tokenizer.model": "llama.model"},
        LLAMA
        | {"legacy": True, "add_eos_token": True}
        | {"added_tokens_decoder": listed(SPECIAL[:3], 0) | listed(IM, 450)},
        "llama",
        {},
    ),
    "a model alone": ({"tokenizer.model": "llama.model"}, None, "unheard-of", {}),
    "gemma": ({"tokenizer.model": "gemma.model"}, {"add_bos_token": True}, "unheard-of", {}),
    "unigram": ({"tokenizer.model": "unigram.model"}, {"add_bos_token": False}, "unheard-of", {}),
    "gpt2": (BYTE_PAIRS["gpt2"], GPT2, "gpt2", {}),
    "gpt2 without a class": (BYTE_PAIRS["gpt2"], None, "gpt2", {}),
    "gpt2, begins": (
        BYTE_PAIRS["gpt2"],
        GPT2 | {"add_bos_token": True, "add_prefix_space": True, "bos_token": BEGINS},
        "gpt2",
        {},
    ),
    "neox": (BYTE_PAIRS["gpt2"], {"tokenizer_class": "GPTNeoXTokenizerFast"}, "gpt_neox", {}),
    "qwen": (
        BYTE_PAIRS["qwen"],
        QWEN | {"added_tokens_decoder": listed(["<|endoftext|>"], 0) | listed(IM, 450)},
        "qwen2",
        {},
    ),
    "qwen, old": (
        BYTE_PAIRS["qwen"],
        QWEN | {"additional_special_tokens": ["<|im_start|>"]},
        "qwen2",
        {"added_tokens.json": {"<|im_start|>": 450, "<|im_end|>": 451, "<tool>": 452}},
    ),
    "tekken": ({"tekken.json": "tekken.json"}, None, "mistral", {}),
}


def train():
    level = tokenizers.pre_tokenizers.ByteLevel
    sentence_piece("llama", split_digits=True, allow_whitespace_only_pieces=True)
    sentence_piece("symbols", split_digits=True, user_defined_symbols=["<|x|>"])
    symbols = ["<|x|>", "\u2581\u2581", "\n\n"]
    sentence_piece("gemma", add_dummy_prefix=False, user_defined_symbols=symbols)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        # The whole of NFKC has 240 KB.
        rules.write(
            "00A0\t20\n3000\t20\n2026\t2E 2E 2E\nBD\t31 2044 32\nB2\t32\n65 301\tE9\n09\t20\n0A\t20\n"
        )
        rules.flush()
        settings = {"normalization_rule_tsv": rules.name, "remove_extra_whitespaces": True}
        sentence_piece("unigram", model_type="unigram", **settings)
    byte_pairs("gpt2", level(add_prefix_space=False))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated")
    byte_pairs("qwen", tokenizers.pre_tokenizers.Sequence([split, level(False, use_regex=False)]))
    tekken("tekken", SPECIAL, 8)


def judged(name, files, config, model_type, others):
    """The ids of texts in which nothing is a control token, and of those in which control tokens are meant."""
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        for file, source in files.items():
            shutil.copy(TO / source, directory / file)
        written = others | {"config.json": {"model_type": model_type}}
        written |= {} if config is None else {"tokenizer_config.json": config}
        for file, content in written.items():
            (directory / file).write_text(json.dumps(content))
        if name == "tekken":
            library = transformers.PreTrainedTokenizerFast.from_pretrained(
                directory, vocab_file=str(directory / "tekken.json")
            )
        else:
            library = transformers.AutoTokenizer.from_pretrained(directory)
        prompts = [library.encode(text) for text in PROMPTS]
        texts = [library.encode(text, split_special_tokens=True) for text in TEXTS]
        if name in ["tekken", "a model alone"]:
            # transformers puts no begin token before them, the libraries that the files are of do.
            texts, prompts = ([[1, *ids] for ids in lists] for lists in [texts, prompts])
        if "tokenizer.model" in files:
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
            begin = [1] * (config is None or config.get("add_bos_token", False))
            end = [2] * (config is not None and config.get("add_eos_token", False))
            exact = [begin + pieces.encode(text) + end for text in TEXTS]
            for at, text in enumerate(TEXTS):
                # transformers' Llama class drops a space in front, which older ones and SentencePiece keep.
                if texts[at] != exact[at]:
                    print(f"{name}: {text!r}: transformers {texts[at]}, SentencePiece {exact[at]}")
                    texts[at] = exact[at] if not config or config.get("legacy", True) else texts[at]
    written = {file: json.dumps(content) for file, content in written.items()}
    return {"name": name, "copied": files, "written": written, "texts": texts, "prompts": prompts}


def main():
    shutil.rmtree(TO, ignore_errors=True)
    TO.mkdir(parents=True)
    train()
    cases = [judged(name, *parts) for name, parts in DIRECTORIES.items()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    versions = {"transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__}
    head = json.dumps({**versions, "texts": TEXTS, "prompts": PROMPTS})[:-1]
    (TO / "cases.json").write_text(f'{head},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
