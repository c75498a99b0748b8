#![no_main]

use libfuzzer_sys::fuzz_target;
use moi_checkpoint::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = Gguf::open(&moi_fuzz::file("gguf", bytes)) {
        let _ = file.config();
        if let Ok(checkpoint) = file.checkpoint() {
            moi_fuzz::read(checkpoint);
        }
    }
});
