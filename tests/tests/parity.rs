//! Tests every device that this build supports and this machine has, against transformers, the formulas and the CPU:
//! see `moi_tests::suite`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::collections::BTreeSet;

use moi_pretrained::Pretrained;
use moi_tests::{golden_directory, suite};

#[test]
fn the_suite_uses_every_option_of_the_decoder() {
    let used = |name: &str| {
        let pretrained = Pretrained::open(&golden_directory().join("tiny").join(name)).unwrap();
        suite::options(&pretrained.architecture.config)
    };
    let covered: BTreeSet<String> = suite::CHECKPOINTS.iter().flat_map(|name| used(name)).collect();
    for entry in std::fs::read_dir(golden_directory().join("tiny")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let missing: Vec<String> = used(&name).difference(&covered).cloned().collect();
        assert!(missing.is_empty(), "{name} uses {missing:?}, which no checkpoint of the suite does");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn kernels_are_plain_loops() {
    suite::kernels();
}

#[cfg(feature = "gpu")]
#[test]
#[ignore = "launches are counted for a whole process: `cargo xtask parity` gives it one"]
fn a_token_takes_few_launches() {
    suite::few_launches();
}

#[test]
fn mixing_follows_the_formulas() {
    suite::mixing();
}

#[test]
fn small_products_are_right() {
    suite::products();
}

#[test]
fn logits_are_those_of_transformers() {
    suite::logits();
}

#[test]
fn halves_are_close() {
    suite::halves();
}

#[test]
fn broken_numbers_are_traced() {
    suite::broken_numbers();
}

#[test]
fn self_checks() {
    suite::self_checks();
}

#[test]
fn greedy_decodes_are_those_of_transformers() {
    suite::greedy_decodes();
}

#[test]
fn batches_are_as_alone_and_seeds_as_on_the_cpu() {
    suite::batches();
}

#[test]
fn sequences_of_any_lengths_run_together() {
    suite::ragged_batches();
}

#[test]
fn packed_weights_are_those_of_the_cpu() {
    suite::packed_weights();
}
