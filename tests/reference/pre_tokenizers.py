#!/usr/bin/env python3
"""Writes the ids that llama.cpp gives for hostile texts under every `tokenizer.ggml.pre` that moi knows:
crates/text/tests/pre_tokenizers.json, replayed by crates/text/tests/pre_tokenizers.rs.

Needs tokenizers, gguf and xllamacpp (llama_cpp.py).

Where llama.cpp only approximates the model's own tokenizer, moi follows that one. Those names are listed in KNOWN with
the reason; for them the expected ids are those of the `tokenizers` package with the model's own patterns, and the table
keeps llama.cpp's beside them. Any other difference between the two ends this script with an error.
"""

import json
import pathlib
import sys
import tempfile

import llama_cpp
import tokenizers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

FILE = pathlib.Path(__file__).parents[2] / "crates/text/tests/pre_tokenizers.json"

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + ENDS
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def cased(upper, lower, suffix, numbers, rest):
    """The patterns of o200k's family: runs of letters end where capitals begin."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return f"{lead}[{upper}]*[{lower}]+{suffix}|{lead}[{upper}]+[{lower}]*{suffix}|{numbers}|{rest}"


SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + ENDS
GPT4O = cased(UPPER, LOWER, CONTRACTIONS + "?", r"\p{N}{1,3}", SLASHED)
TEKKEN = cased(UPPER, LOWER, "", r"\p{N}", SLASHED)
NOT_HAN = r"&&[^\p{Han}]"
KIMI = r"\p{Han}+|" + cased(UPPER + NOT_HAN, LOWER + NOT_HAN, CONTRACTIONS + "?", r"\p{N}{1,3}", REST)
DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
DEEPSEEK_V3_CJK = "[一-龥぀-ゟ゠-ヿ]+"
PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
DEEPSEEK_V3 = PUNCTUATED + r"[\r\n]*|" + ENDS
# Written as escapes: the characters that normalising a text, as editors do, would change.
DEEPSEEK_LETTERS = (
    r"\s?"
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdb"
    "ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
# Digits in groups of three from the right, without looking ahead from each digit: a run first, then its one or two
# leading digits, then threes.
THOUSANDS = [r"\p{N}+", r"^\p{N}{1,2}(?=(?:\p{N}{3})+$)", r"\p{N}{1,3}"]
BLANKS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
JAIS2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{BLANKS}|\s{{1,2}}(?!\S)|\s{{1}}"

# How each cut is made: texts are split by one pattern after the other, matches and what is between them isolated.
CUTS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt2": [GPT2],
    "digits": [r"\p{N}", GPT2],
    "llama3": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + ENDS
    ],
    "tekken": [TEKKEN],
    "gpt4o": [GPT4O],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "deepseek-llm": [
        r"[\r\n]",
        DEEPSEEK_LETTERS,
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        DEEPSEEK_CJK,
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", DEEPSEEK_V3_CJK, DEEPSEEK_V3],
    "spark": [r"\p{N}{1,3}", DEEPSEEK_V3_CJK, PUNCTUATED + r"|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"],
    "youtu": [
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + DEEPSEEK_V3_CJK,
        cased(UPPER, LOWER, CONTRACTIONS + "?", r"\p{N}", SLASHED),
    ],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "chameleon": [
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2,
    ],
    "tiny-aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "kimi": [KIMI],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "bailing": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "seed-coder": [rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{ENDS}"],
    "ufakzeka": [rf"{WORDS}|\p{{N}}|{REST}"],
    "afmoe": [*THOUSANDS, AFMOE_SCRIPTS, DEEPSEEK_V3],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "exaone-moe": [
        CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "minicpm5": [r"\p{N}{1,3}", rf"{CONTRACTIONS}|{WORDS}|\p{{N}}+|{REST}"],
    "k2-horizon": [
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}|\p{M}|\x{200C}|\x{200D})+|\p{N}{1,3}|" + REST
    ],
    "jais2": [JAIS2],
}

# The names of each cut.
NAMES = {
    "default": ["default"],
    "gpt2": "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code "
    "roberta-bpe mpt olmo jais trillion granite-docling exaone4".split(),
    "digits": "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2".split(),
    "llama3": "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe "
    "glm4 glm5".split(),
    "qwen2": "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2".split(),
    "qwen35": ["qwen35"],
    "tekken": ["tekken"],
    "gpt4o": "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m".split(),
    "falcon": ["falcon"],
    "deepseek-llm": ["deepseek-llm"],
    "deepseek-coder": ["deepseek-coder"],
    "deepseek-v3": ["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
    "spark": ["spark2_5"],
    "youtu": ["youtu"],
    "bloom": ["poro-chat", "bloom", "gpt3-finnish"],
    "viking": ["viking"],
    "chameleon": ["chameleon"],
    "tiny-aya": ["tiny_aya", "cohere2moe"],
    "kimi": ["kimi-k2"],
    "superbpe": ["superbpe"],
    "bailing": ["bailingmoe", "bailingmoe2", "llada-moe"],
    "seed-coder": ["seed-coder"],
    "ufakzeka": ["ufakzeka"],
    "afmoe": ["afmoe"],
    "laguna": ["laguna"],
    "exaone-moe": ["exaone-moe"],
    "minicpm5": ["minicpm5"],
    "k2-horizon": ["k2-horizon"],
    "jais2": ["jais-2"],
}
# Names whose whole pieces are looked up before they are merged.
WHOLE = set(
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5 tekken minicpm5 youtu "
    "granite-embed-multi-97m".split()
)
# Names under which the model's own tokenizer composes characters, which llama.cpp does not do.
COMPOSED = {"qwen2", "deepseek-r1-qwen", "qwen35"}
# Why llama.cpp is known to differ from the model's own tokenizer, by cut.
KNOWN = {
    "tekken": "llama.cpp tells small letters from capitals in ASCII only, and takes no mark for a letter",
    "gpt4o": "likewise",
    "youtu": "likewise",
    "tiny-aya": "likewise; and it groups digits that letters follow",
    "kimi": "llama.cpp ends no run of letters where capitals begin, and takes no mark for a letter",
    "deepseek-llm": "llama.cpp makes blanks beyond ASCII one ASCII blank, so U+2028 is not of the CJK class's range",
    "deepseek-coder": "likewise",
    "afmoe": "llama.cpp leaves what stands before a run of digits in one piece with the first of them",
    "superbpe": "llama.cpp groups ASCII digits only",
}

TEXTS = [
    "Hello, world! How are you?",
    "1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 1,000,000.50 -42 +7e10 0x1F 1_000 99% $19.99",
    "abc123def 12ab 4th 1234abc x86_64 v2.0.1-rc1",
    "I'm you're he'll we've she'd it's don't",
    "I'M YOU'RE HE'LL WE'VE SHE'D IT'S DON'T",
    "'S 'T 'RE 'VE 'M 'LL 'D 's't 're've x'sy o'clock 'quoted'",
    "can’t it’s l’été",
    "line one\r\nline two\r\n\r\nline four\r\n",
    "a\nb\n\nc\n\n\nd",
    "a \n b  \n\n  c \r\n\t d\r\r e",
    "\n\n\n",
    "tab\tseparated\t\tvalues\t\t\tend\t",
    " leading and trailing ",
    "two  three   four    five     sixteen                x",
    "   ",
    " ",
    "blank at end  ",
    "    def f(x):\n        return x ** 2  # square\n\n\tif x:\n\t\tpass",
    "for (int i = 0; i < n; ++i) { a[i] += b->c * 2; } // loop",
    "https://example.com/path?q=1&r=2#frag user@mail.org C:\\dir\\file.txt",
    "snake_case __init__ CamelCase HTTPServer XMLHttpRequest iPhone McDonald",
    "<|im_start|>user<tag attr=\"v\">text</tag>&amp;",
    "!!! ??? ... --- *** ((())) [[]] {{}} <<>> ~~ `` ^^ || $$ ++ ==",
    "\"Quoted,\" she said; (really?) -- yes... / no/ //",
    "end.\n/next\n//comment\r\n/* x */\n",
    "crème brûlée naïve façade Zürich Straße ÀÉÎ",
    "cre\u0300me bru\u0302le\u0301e nai\u0308ve e\u0301\u0302 A\u030a x\u0301y",
    "\u0301start \u0301 mark",
    "Привет, МИР! Как дела? ЁЛКА Пиши123",
    "Ελληνικά ΑΒΓ γειά σου, ΜΆΪΟΣ",
    "السلام عليكم، كيف حالك؟ ١٢٣٤ ۱۲۳۴۵",
    "שָׁלוֹם עולם 12",
    "नमस्ते दुनिया। १२३४ क्षत्रिय",
    "สวัสดีครับ ผมชื่อ ๑๒๓๔",
    "你好，世界！今天是2026年8月13日。",
    "日本語のテキスト、カタカナ ひらがな 漢字ＡＢＣ１２３",
    "한국어 문장입니다. 안녕하세요? ㄱㄴㄷ",
    "中文English混排123数字 と かな",
    "ភាសាខ្មែរ မြန်မာ ລາວ",
    "ㄅㄆㄇ 「引用」『書名』…—— ：；",
    "🎉👍🏽👨‍👩‍👧‍👦 🇩🇪 ok🙂ok 🤖",
    "½ ² ³ Ⅷ ① ๕ ፲ 1½ x²",
    "a\u00a0b\u2003c\u3000d \u2028 e\u0085f",
    "zero\u200bwidth\u200cjoin\u200der \ufeffbom",
    "می‌خواهم कर्‍म",
    "K\u017f 'ſ ǅungla ŉ ﬁ ª º",
    "x \u0000 y \u0007\u001b[0m",
    "price: €5, £6, ¥700, ₹80 © ® ™ ° ± × ÷",
    "math: ∀x∈ℝ, ∑ᵢ xᵢ² ≤ ∞ → α≠β",
    "“curly” ‘single’ «guillemets» –—― …",
    "IMGIMGABCZ <sentinel:12> IMGIMGA x",
    "a,b.c!d?e…f。g，h、i(j)k|l",
    "    four\n  two\n      six\t\tx",
    "one two three four five six",
    "UPPER lower Title mIxEd ABCdefGHI aB Ab",
    "Ünïcödé ÄÖÜäöü ÉcoleÉCOLE ñandúÑ",
    "1st 2nd 3rd 100km 5'10\" 7'11",
    "x=1;y=22;z=333;w=4444;",
    "unmergeable wholepiece unmergeable",
    "\t\n \t\n  x\n\n  ",
    "a" * 40 + " " * 40 + "b",
    "9" * 31 + " " + "8" * 30,
    "e   2x  00 and  12345   1234567",
    "٣٤٥٦٧ １２３４ 123４５６７",
    "\U00020000\U0002A700 字 \U000E0001 \ue000 \u0378",
]
# Tokens that no merges make: only a look-up of the whole piece finds them.
UNMERGED = ["Ġunmergeable", "unmergeable", "Ġwholepiece", "wholepiece"]


def byte_characters():
    """GPT-2's characters for bytes."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) if byte in own else chr(256 + others.index(byte)) for byte in range(256)]


def learnt():
    """Merges across all boundaries: the cut then shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 1400, initial_alphabet=byte_characters(), show_progress=False, max_token_length=12
    )
    known = [text.replace("unmergeable", "").replace("wholepiece", "") for text in TEXTS]
    tokenizer.train_from_iterator(known * 2, trainer)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = byte_characters() + [merge.replace(" ", "") for merge in merges]
    tokens = list(dict.fromkeys(tokens)) + UNMERGED
    return tokens, merges


def own_ids(name, cut, tokens, merges):
    """The ids of the `tokenizers` package, as moi builds its pipeline."""
    vocab = {token: id for id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=name in WHOLE))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[cut]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


def compact(tokens, merges, expected, begins, deviations):
    """Each different list of ids once; of a name, which of them each text has."""
    pool = [[] for _ in TEXTS]

    def place(text, ids):
        if ids not in pool[text]:
            pool[text].append(ids)
        return pool[text].index(ids)

    names = {name: [place(text, ids) for text, ids in enumerate(rows)] for name, rows in expected.items()}
    others = {
        name: [[text, place(text, ids)] for text, ids in rows.items()] for name, rows in deviations.items() if rows
    }
    texts = [{"text": text, "ids": pool[at]} for at, text in enumerate(TEXTS)]
    return {
        "written_by": f"tests/reference/pre_tokenizers.py: {llama_cpp.VERSION}, "
        f"tokenizers {tokenizers.__version__}",
        "unmerged": UNMERGED,
        "merges": merges,
        "begins": begins,
        "names": names,
        "llama_cpp_differs": others,
        "texts": texts,
    }


def main():
    tokens, merges = learnt()
    llama = llama_cpp.Library()
    expected, begins, deviations, wrong = {}, [], {}, 0
    with tempfile.TemporaryDirectory() as directory:
        for cut, names in NAMES.items():
            for name in names + ([""] if cut == "default" else []):
                path = pathlib.Path(directory) / "vocabulary.gguf"
                end = len(tokens)
                kinds = [1] * len(tokens) + [3]
                llama_cpp.write_gguf(path, name, [*tokens, "<s>"], merges, kinds, eos=end, bos=end)
                found = llama.read(path, lambda vocabulary: (
                    [vocabulary.encode(text) for text in TEXTS], vocabulary.adds_begin_token()))
                if found is None:
                    sys.exit(f"llama.cpp does not know {name}")
                rows, adds = found
                own = own_ids(name, cut, tokens, merges)
                differ = {at: rows[at] for at in range(len(TEXTS)) if rows[at] != own[at]}
                if differ and cut not in KNOWN and name not in COMPOSED:
                    wrong += 1
                    for at in differ:
                        show = lambda ids: "|".join(tokens[id] for id in ids)
                        print(f"{name} {TEXTS[at]!r}\n  llama.cpp  {show(rows[at])}\n  tokenizers {show(own[at])}")
                if differ:
                    print(f"{name or '(none)'}: {len(differ)} texts differ: {list(differ)}")
                expected[name], deviations[name] = own, differ
                if adds:
                    begins.append(name)
    if wrong:
        sys.exit(f"{wrong} names differ without a known reason")
    table = compact(tokens, merges, expected, begins, deviations)
    FILE.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
