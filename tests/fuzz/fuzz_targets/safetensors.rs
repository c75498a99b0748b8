#![no_main]

use libfuzzer_sys::fuzz_target;
use moi_checkpoint::open_safetensors;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = open_safetensors(&moi_fuzz::file("safetensors", bytes)) {
        moi_fuzz::read(checkpoint);
    }
});
