//! The tokens that end a generation: those that a model's files declare, and those whose texts are known to end one.
//!
//! Files often declare too few: a fine-tuned model names its end of turn in `tokenizer_config.json` alone, or keeps its
//! base model's `generation_config.json`; an old GGUF file names one token of several. vLLM unites what the files of a
//! directory say, llama.cpp knows end tokens by their texts whatever their kind in the vocabulary; both are done here.

/// Texts of tokens that end a turn or a document, as llama.cpp's vocabulary loader has them, and DeepSeek's.
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

/// Tokens of fill-in-the-middle prompts with which llama.cpp ends a generation, too: padding, the name of the next
/// repository, and of the next file. The first of each group that the vocabulary has. They count in GGUF files alone:
/// transformers and vLLM go on behind them, and models that write several files of a repository need that.
const FILL_IN_ENDS: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// The end tokens: `declared` ones in order, then known ones that the vocabulary has; each once. `id` looks a text up in
/// the vocabulary.
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

/// The end tokens of fill-in-the-middle prompts that the vocabulary has.
pub(crate) fn fill_in_ends(id: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    FILL_IN_ENDS.iter().filter_map(|texts| texts.iter().find_map(|text| id(text))).collect()
}

/// Marks of fill-in-the-middle prompts, which llama.cpp takes for control tokens as it does known ends.
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

/// A tag that vocabularies have that have HTML in them.
const HTML: &str = "</table>";

/// Whether a token of this text is a control token in such a vocabulary, whatever kind the file gives it.
pub(crate) fn is_control(text: &str, id: impl Fn(&str) -> Option<u32>) -> bool {
    let fills_in = FILL_IN_ENDS.iter().any(|texts| texts.contains(&text)) || FILL_IN_MARKS.contains(&text);
    fills_in || (END_TEXTS.contains(&text) && ends_turns(text, &id))
}

/// Whether anything here depends on the token of this text.
pub(crate) fn is_looked_up(text: &str) -> bool {
    // Few tokens begin like that; half of some vocabularies begins with the mark of a space.
    (text.starts_with(['<', '_', '[']) || text.starts_with("\u{2581}<"))
        && (text == HTML
            || END_TEXTS.contains(&text)
            || FILL_IN_MARKS.contains(&text)
            || FILL_IN_ENDS.iter().any(|texts| texts.contains(&text)))
}

/// Whether a known text means an end in this vocabulary. gpt-oss and Solar end messages, not turns, with `<|end|>`. Gemma's
/// vocabularies have `</s>` as a tag of HTML, among others.
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
