//! Known faults, with the features that cause them. A failing test means that the fault is fixed, and that the
//! combination may be released. See BACKENDS.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::{FloatDType, backend::Backend};
use moi_backends::{Job, Kind, run};
use moi_engine::SelfCheck;

struct Check;

impl Job for Check {
    type Output = SelfCheck;

    fn run<B: Backend>(self, device: &B::Device) -> SelfCheck {
        SelfCheck::run::<B>(device, FloatDType::F32).unwrap()
    }
}

/// burn issue 5257: with `fusion` and `autotune` on Vulkan, the steps after a cached prompt are wrong.
#[test]
fn fusion_with_autotune_is_wrong_on_cached_steps() {
    let check = run(Kind::Vulkan.into(), Check).unwrap();
    println!("{check:?}");
    assert!(check.whole <= SelfCheck::EXACT, "not only cached steps are wrong now: {check:?}");
    assert!(
        !check.is_right(),
        "fusion and autotune are right together now: run the whole suite with both, and ship what is faster"
    );
}
