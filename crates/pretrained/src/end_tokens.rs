//! The tokens that end a generation: those that a model's files declare, and those whose texts are known to end one.
//!
//! Files often declare too few end tokens: a fine-tuned model names its end of turn only in `tokenizer_config.json`,
//! or keeps its base model's `generation_config.json`; an old GGUF file names one token of several. vLLM unites the
//! end tokens of a directory's files, and llama.cpp recognises end tokens by their texts, whatever their kind in the
//! vocabulary; this module does both.

/// Texts of tokens that end a turn or a document, from llama.cpp's vocabulary loader, and DeepSeek's.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<end_of_utterance>",
    "</s>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
];

/// Tokens of fill-in-the-middle prompts at which llama.cpp also ends a generation: padding, the name of the next
/// repository, and of the next file. In each group, the first one in the vocabulary counts. They only count for GGUF
/// files: transformers and vLLM continue behind them, which models that write several files of a repository need.
const FILL_IN_ENDS: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// The end tokens without repetitions: first the `declared` ones in order, then known ones in the vocabulary. `id`
/// looks up a text in the vocabulary.
pub(crate) fn end_tokens(
    declared: impl IntoIterator<Item = u32>,
    id: impl Fn(&str) -> Option<u32>,
) -> Vec<u32> {
    let known = END_TEXTS.iter().filter(|text| ends_turns(text, &id)).filter_map(|text| id(text));
    let mut ids: Vec<u32> = Vec::new();
    for token in declared.into_iter().chain(known) {
        if !ids.contains(&token) {
            ids.push(token);
        }
    }
    ids
}

/// The end tokens of fill-in-the-middle prompts in the vocabulary.
pub(crate) fn fill_in_ends(id: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    FILL_IN_ENDS.iter().filter_map(|texts| texts.iter().find_map(|text| id(text))).collect()
}

/// Markers of fill-in-the-middle prompts, which llama.cpp also turns into control tokens.
const FILL_IN_MARKS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
    "<PRE>",
    "\u{2581}<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
    "<SUF>",
    "\u{2581}<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
    "<MID>",
    "\u{2581}<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// An HTML tag that only vocabularies with HTML tags have.
const HTML: &str = "</table>";

/// Whether llama.cpp makes a token of this text a control token in this vocabulary, whatever kind the file states.
pub(crate) fn is_control(text: &str, id: impl Fn(&str) -> Option<u32>) -> bool {
    let fills_in = FILL_IN_ENDS.iter().any(|texts| texts.contains(&text)) || FILL_IN_MARKS.contains(&text);
    fills_in || (END_TEXTS.contains(&text) && ends_turns(text, &id))
}

/// Whether the decisions in this module depend on a token of this text.
pub(crate) fn is_looked_up(text: &str) -> bool {
    // This fast check excludes most tokens; in some vocabularies, half of the tokens begin with the space marker.
    (text.starts_with(['<', '_', '[']) || text.starts_with("\u{2581}<"))
        && (text == HTML
            || END_TEXTS.contains(&text)
            || FILL_IN_MARKS.contains(&text)
            || FILL_IN_ENDS.iter().any(|texts| texts.contains(&text)))
}

/// Whether a known text ends a generation in this vocabulary. gpt-oss and Solar end messages, not turns, with
/// `<|end|>`. In Gemma's vocabularies, `</s>` is one of several HTML tags.
fn ends_turns(text: &str, id: impl Fn(&str) -> Option<u32>) -> bool {
    let has = |text: &str| id(text).is_some();
    match text {
        "<|end|>" => {
            let calls = has("<|call|>") || has("<|calls|>");
            !(calls && (has("<|return|>") || has("<|flush|>")))
        }
        "</s>" => !has("<|tool_response>") && !has(HTML),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(declared: &[u32], vocabulary: &[&str]) -> Vec<u32> {
        let id = |text: &str| vocabulary.iter().position(|token| *token == text).map(|id| id as u32);
        end_tokens(declared.iter().copied(), id)
    }

    #[test]
    fn declared_and_known_ends_are_united() {
        assert_eq!(ends(&[7], &["a", "<|im_end|>", "b", "</s>"]), [7, 1, 3]);
        assert_eq!(ends(&[1, 1], &["a", "<|im_end|>"]), [1]);
        assert_eq!(ends(&[], &["a", "im_end", "<|im_start|>"]), [0u32; 0]);
    }

    #[test]
    fn texts_that_mean_something_else_are_no_ends() {
        assert_eq!(ends(&[], &["<|return|>", "<|call|>", "<|end|>"]), [0, 1]);
        assert_eq!(ends(&[], &["<|flush|>", "<|calls|>", "<|end|>"]), [1, 0]);
        assert_eq!(ends(&[], &["<|return|>", "<|end|>"]), [1, 0]);
        assert_eq!(ends(&[], &["</table>", "</s>", "<eos>"]), [2]);
        assert_eq!(ends(&[], &["<|tool_response>", "</s>"]), [0]);
    }
}
