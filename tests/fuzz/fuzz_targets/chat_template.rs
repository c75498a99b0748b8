#![no_main]

use libfuzzer_sys::fuzz_target;
use moi_text::{ChatTemplate, TemplateTokens};

fuzz_target!(|bytes: &[u8]| {
    let source = String::from_utf8_lossy(bytes);
    let tokens = TemplateTokens { bos: Some("<s>".into()), ..TemplateTokens::default() };
    if let Ok(template) = ChatTemplate::new(&source, tokens) {
        let _ = template.render(&moi_fuzz::conversation(), true);
    }
});
