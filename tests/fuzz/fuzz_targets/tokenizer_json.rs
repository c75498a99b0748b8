//! What a `tokenizer.json` holds; it encodes and decodes a text that is no longer than a prompt's first lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moi_text::Tokenizer;

const TEXT: &str = " The <s> thab\u{2581}\u{e9}\u{1F4A5} 12345 'S\n\n\t</s><0x0A>";

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else { return };
    let Ok(ids) = tokenizer.encode(TEXT, true) else { return };
    let _ = tokenizer.decode(&ids);
    let all: Vec<u32> = (0..tokenizer.vocab_size().min(200) as u32).collect();
    let _ = tokenizer.decode(&all);
    let _ =
        (tokenizer.bos(), tokenizer.thinking_markers(), tokenizer.token_beyond(1), tokenizer.strips_spaces());
});
