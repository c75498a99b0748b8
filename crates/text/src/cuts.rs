//! Pre-tokenizers by llama.cpp's names (`tokenizer.ggml.pre`): the patterns that split text before BPE merges.
//!
//! The patterns are those of the models' own tokenizers. llama.cpp approximates some of them:
//! `tests/reference/pre_tokenizers.py` lists where, and compares all others with it.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        split::{Split, SplitPattern},
    },
};

use crate::TextError;

/// The name of llama.cpp's default pre-tokenizer, which llama.cpp also uses for files without `tokenizer.ggml.pre`.
/// No model is known to have been trained with it, so such files give worse answers.
pub const DEFAULT_PRE_TOKENIZER: &str = "default";

/// GPT-2's pattern, as the `ByteLevel` step of the `tokenizers` library has it.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Every digit becomes a piece of its own.
pub(crate) const EACH_DIGIT: &str = r"\p{N}";
/// Each run of digits is one piece.
pub(crate) const DIGITS: &str = r"\p{N}+";
/// Digits are cut into groups of three, from the left.
const THREE_DIGITS: &str = r"\p{N}{1,3}";
/// Llama 3's pattern, which is tiktoken's cl100k without possessive repetitions.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pattern: Llama 3's, with every digit as a piece of its own.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's pattern: Qwen 2's, with combining marks counted as part of words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pattern without English contractions.
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral NeMo's pattern: runs of letters end where capitals begin, as in OpenAI's o200k.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// OpenAI's o200k pattern, which Phi-4-mini and others use.
pub(crate) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k, with every digit as a piece of its own.
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Korean letters, CJK punctuation, Bopomofo, and Chinese with Japanese: each run is a piece of its own.
const YOUTU_SCRIPTS: &str = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
/// Kimi K2's pattern: o200k, with Chinese separated from other letters.
const KIMI: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Ling's pattern: Qwen 2's, in an older tiktoken form.
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Seed-Coder's pattern: line ends are never part of punctuation.
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of EXAONE 4's mixture-of-experts model: several words with blanks between them are one piece.
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
/// MiniCPM 5's pattern, applied after digits were cut into groups of three.
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's pattern, with combining marks and joiners counted as part of words.
const K2_HORIZON: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}|\p{M}|\x{200C}|\x{200D})+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's pattern, with runs of blanks cut at powers of two.
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
/// BLOOM's pattern: words with the blank before them, whichever characters they consist of.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Falcon's punctuation pattern.
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
/// The punctuation pattern of llama.cpp's default pre-tokenizer.
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
/// Every line-end character becomes a piece of its own.
const LINE_END: &str = r"[\r\n]";
/// DeepSeek LLM's letter pattern: letters of scripts that have capitals. Escapes stand for the characters that
/// Unicode normalisation would change.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// DeepSeek LLM's punctuation pattern.
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
/// DeepSeek LLM's pattern for scripts without capitals, from U+0800 on.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
/// DeepSeek V3's pattern for Chinese and Japanese.
const DEEPSEEK_V3_CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// DeepSeek V3's pattern: punctuation goes with the ASCII letters behind it.
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// DeepSeek V3's pattern, with every line end as a piece of its own.
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// Trinity's pattern for scripts that are written without blanks.
const AFMOE_SCRIPTS: &str = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+";
/// The one or two digits before groups of three, in a piece that consists of digits only. With [`DIGITS`] before it
/// and [`THREE_DIGITS`] behind it, digits are cut at thousands without a look-ahead from each digit, which would take
/// time quadratic in their number.
const FIRST_DIGITS: &str = r"^\p{N}{1,2}(?=(?:\p{N}{3})+$)";
/// The empty positions at thousands separators.
const SUPERBPE_THOUSANDS: &str = r"(?=(\d{3})+(?!\d))";
/// Groups of digits at thousands, in numbers that no letter follows.
const AYA_THOUSANDS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";

/// A pre-tokenizer: the names that stand for the same patterns.
struct Cut {
    names: &'static [&'static str],
    /// Patterns applied one after the other; both the matches and the text between matches become pieces.
    patterns: &'static [&'static str],
}

/// The first name of a pre-tokenizer is the one that a converted model gets.
const CUTS: &[Cut] = &[
    Cut { names: &["default"], patterns: &[DEFAULT_PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]"] },
    Cut {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        patterns: &[GPT2],
    },
    Cut {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[EACH_DIGIT, GPT2],
    },
    Cut {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "glm4",
            "glm5",
        ],
        patterns: &[LLAMA3],
    },
    Cut { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], patterns: &[LLAMA3] },
    Cut {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[QWEN2],
    },
    Cut { names: &["qwen35"], patterns: &[QWEN35] },
    Cut { names: &["tekken"], patterns: &[TEKKEN] },
    Cut { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], patterns: &[GPT4O] },
    Cut { names: &["granite-embed-multi-97m"], patterns: &[GPT4O] },
    Cut { names: &["falcon"], patterns: &[FALCON_PUNCTUATION, GPT2, "[0-9][0-9][0-9]"] },
    Cut {
        names: &["deepseek-llm"],
        patterns: &[LINE_END, DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, DIGITS],
    },
    Cut {
        names: &["deepseek-coder"],
        patterns: &[LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, EACH_DIGIT],
    },
    Cut {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        patterns: &[THREE_DIGITS, DEEPSEEK_V3_CJK, DEEPSEEK_V3],
    },
    Cut { names: &["spark2_5"], patterns: &[THREE_DIGITS, DEEPSEEK_V3_CJK, SPARK, EACH_DIGIT] },
    Cut { names: &["youtu"], patterns: &[YOUTU_SCRIPTS, YOUTU] },
    Cut { names: &["poro-chat", "bloom", "gpt3-finnish"], patterns: &[BLOOM] },
    Cut { names: &["viking"], patterns: &[BLOOM, EACH_DIGIT] },
    Cut {
        names: &["chameleon"],
        patterns: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            EACH_DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
    },
    Cut { names: &["tiny_aya", "cohere2moe"], patterns: &[AYA_THOUSANDS, GPT4O] },
    Cut { names: &["kimi-k2"], patterns: &[KIMI] },
    Cut { names: &["superbpe"], patterns: &[DIGITS, SUPERBPE_THOUSANDS] },
    Cut { names: &["bailingmoe", "bailingmoe2", "llada-moe"], patterns: &[BAILING] },
    Cut { names: &["seed-coder"], patterns: &[SEED_CODER] },
    Cut { names: &["ufakzeka"], patterns: &[UFAKZEKA] },
    Cut { names: &["afmoe"], patterns: &[DIGITS, FIRST_DIGITS, THREE_DIGITS, AFMOE_SCRIPTS, DEEPSEEK_V3] },
    Cut { names: &["laguna"], patterns: &[r"[^\n]+|[\n]+", QWEN2] },
    Cut { names: &["exaone-moe"], patterns: &[EXAONE_MOE] },
    Cut { names: &["minicpm5"], patterns: &[THREE_DIGITS, MINICPM5] },
    Cut { names: &["k2-horizon"], patterns: &[K2_HORIZON] },
    Cut { names: &["jais-2"], patterns: &[JAIS2] },
];

/// Names of pre-tokenizers whose whole pieces are looked up in the vocabulary before merges are applied
/// (`ignore_merges`).
const WHOLE_PIECES: &[&str] = &[
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "glm4",
    "glm5",
    "tekken",
    "granite-embed-multi-97m",
    "youtu",
    "minicpm5",
];

/// Names of pre-tokenizers whose models get a begin token if the file does not say.
const BEGINS: &[&str] = &[
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

/// Only Qwen's tokenizers are known to apply NFC; the models that share their patterns do not say.
const COMPOSES: &[&str] = &["qwen2", "deepseek-r1-qwen", "qwen35"];

/// Other spellings that tokenizers use for patterns of this file, and that match the same text.
const SPELLINGS: &[(&str, &str)] = &[
    // This spelling has possessive repetitions; the matches are the same because these repetitions never backtrack
    // anyway.
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        BAILING,
    ),
    // This spelling has a character class within the class.
    (" ?[^(\\s|[.,!?…。，、।۔،])]+", BLOOM),
];

/// How a named pre-tokenizer is carried out by the `tokenizers` library.
pub(crate) struct PreTokenizer {
    /// Steps applied one after the other; the last one writes bytes as characters.
    pub(crate) steps: Vec<PreTokenizerWrapper>,
    /// Whether whole pieces are looked up in the vocabulary before merges are applied (`ignore_merges`).
    pub(crate) whole_pieces: bool,
    /// Whether text is normalised to NFC first.
    pub(crate) composes: bool,
}

/// Whether llama.cpp puts a begin token before a prompt if the file has this `tokenizer.ggml.pre` and does not say.
///
/// # Examples
/// ```
/// use moi_text::{DEFAULT_PRE_TOKENIZER, adds_begin_token};
///
/// assert!(adds_begin_token("llama-bpe"));
/// assert!(!adds_begin_token("qwen2") && !adds_begin_token(DEFAULT_PRE_TOKENIZER));
/// ```
pub fn adds_begin_token(pre: &str) -> bool {
    BEGINS.contains(&pre)
}

/// Returns the pre-tokenizer of this name.
///
/// # Errors
/// If no pre-tokenizer has this name.
pub(crate) fn pre_tokenizer(name: &str) -> Result<PreTokenizer, TextError> {
    let Some(cut) = CUTS.iter().find(|cut| cut.names.contains(&name)) else {
        let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        let known = known.join(", ");
        let what = format!("pre-tokenizer `{name}` is not supported (supported: {known})");
        return Err(TextError::Vocabulary(what));
    };
    Ok(PreTokenizer {
        steps: steps(cut.patterns)?,
        whole_pieces: WHOLE_PIECES.contains(&name),
        composes: COMPOSES.contains(&name),
    })
}

fn steps(patterns: &[&str]) -> Result<Vec<PreTokenizerWrapper>, TextError> {
    // The byte-level step splits by GPT-2's pattern itself.
    let (patterns, by_gpt2) = match patterns {
        [before @ .., last] if *last == GPT2 => (before, true),
        all => (all, false),
    };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::with_capacity(patterns.len() + 1);
    for &pattern in patterns {
        if pattern == EACH_DIGIT {
            steps.push(Digits::new(true).into());
        } else {
            let regex = SplitPattern::Regex(pattern.to_owned());
            steps.push(Split::new(regex, SplitDelimiterBehavior::Isolated, false)?.into());
        }
    }
    steps.push(ByteLevel::new(false, true, by_gpt2).into());
    Ok(steps)
}

/// llama.cpp's name of the pre-tokenizer that applies these patterns one after the other, with or without a look-up
/// of whole pieces first. The patterns may be spelled as the models' own tokenizers spell them.
pub(crate) fn name_of(patterns: &[String], whole_pieces: bool) -> Option<&'static str> {
    let spelled: Vec<&str> = patterns.iter().map(|pattern| spelling(pattern)).collect();
    let is_same = |cut: &&Cut| cut.patterns == spelled.as_slice();
    let names = || CUTS.iter().filter(is_same).filter_map(|cut| cut.names.first().copied());
    let alike = names().find(|name| WHOLE_PIECES.contains(name) == whole_pieces);
    match alike {
        // Only Llama 3's pattern has common names both with and without the look-up; for the others, the first name
        // is common.
        Some(name) if spelled == [LLAMA3] => Some(name),
        _ => names().next(),
    }
}

fn spelling(pattern: &str) -> &str {
    SPELLINGS.iter().find(|(theirs, _)| *theirs == pattern).map_or(pattern, |(_, ours)| *ours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::expansion_limit::Expansion;

    #[test]
    fn names_are_told_apart() {
        let names: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for list in [WHOLE_PIECES, BEGINS, COMPOSES, &[DEFAULT_PRE_TOKENIZER]] {
            assert!(list.iter().all(|name| names.contains(name)), "{list:?}");
        }
    }

    /// A tokenizer made from a GGUF file is written as a `tokenizer.json`, which must pass the limits when it is read
    /// again.
    #[test]
    fn all_patterns_are_cheap_enough_for_a_file() {
        for cut in CUTS {
            let steps = serde_json::to_value(steps(cut.patterns).unwrap()).unwrap();
            assert_eq!(Expansion::default().then(&steps).check(), Ok(()), "{:?}", cut.names);
        }
    }

    #[test]
    fn patterns_have_the_name_that_they_are_found_by() {
        for cut in CUTS {
            let patterns: Vec<String> = cut.patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            for whole in [false, true] {
                let name = name_of(&patterns, whole).unwrap();
                let found = CUTS.iter().find(|cut| cut.names.contains(&name)).unwrap();
                assert_eq!(found.patterns, cut.patterns, "{name}");
            }
        }
        let of = |pattern: &str, whole| name_of(&[pattern.to_owned()], whole);
        assert_eq!((of(LLAMA3, true), of(LLAMA3, false)), (Some("llama-bpe"), Some("dbrx")));
        assert_eq!((of(GPT4O, true), of(GPT4O, false)), (Some("gpt-4o"), Some("gpt-4o")));
        assert_eq!(
            (of(SPELLINGS[0].0, false), of(SPELLINGS[1].0, true)),
            (Some("bailingmoe"), Some("poro-chat"))
        );
        assert_eq!(of(r"\w+", false), None);
    }
}
