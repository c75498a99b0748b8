//! What passes through a model cost on this machine: measured once, and kept in the cache.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use burn::tensor::backend::Backend;
use moi_engine::{DrafterChoice, Engine, Speculation, speculation::PassCosts};
use moi_models::Decoder;

use crate::ui;

/// The name of the file in the cache.
const FILE: &str = "pass-costs.json";
/// The most models, devices and settings whose costs are kept.
const MAX_KEPT: usize = 256;

/// The costs by what they depend on: positions and seconds.
type Kept = BTreeMap<String, Vec<(usize, f64)>>;

/// Gives an engine what passes cost, if drafting depends on it: from the cache, or measured and kept there.
pub(crate) fn with_costs<B: Backend>(
    engine: Engine<B, Decoder<B>>,
    speculation: &Speculation,
) -> Engine<B, Decoder<B>> {
    if speculation.drafter == DrafterChoice::None {
        return engine;
    }
    let Ok(cache) = moi_hub::Cache::from_env() else { return engine };
    let (path, key) = (cache.root().join(FILE), key(&engine));
    let mut kept = read(&path);
    if let Some(measured) = kept.get(&key).filter(|measured| is_whole(measured)) {
        return engine.with_pass_costs(PassCosts::new(measured.clone()));
    }
    let costs = engine.pass_costs();
    ui::detail(&format!(
        "measured what a pass costs (kept in {}): 1, 2, 4, 8 positions {}",
        path.display(),
        [1, 2, 4, 8].map(|positions| format!("{:.2}", costs.relative(positions))).join(", ")
    ));
    if !is_whole(costs.measured()) {
        return engine;
    }
    if kept.len() >= MAX_KEPT {
        kept.clear();
    }
    kept.insert(key, costs.measured().to_vec());
    // The file only saves time.
    let _: std::io::Result<()> = write(&path, &kept);
    engine
}

/// Whether a measurement tells what drafts cost: more than one size, each with a time.
fn is_whole(measured: &[(usize, f64)]) -> bool {
    measured.len() > 1
        && measured.iter().all(|&(positions, cost)| positions > 0 && cost.is_finite() && cost > 0.0)
}

/// What the costs depend on.
fn key<B: Backend>(engine: &Engine<B, Decoder<B>>) -> String {
    let model = engine.model();
    let [vocab, width] = moi_models::CausalLm::embedding(model).dims();
    format!(
        "{}, {vocab} x {width}, {} layers, {} bytes a token, {:?}, {}, {:?}, {} threads, {}",
        env!("CARGO_PKG_VERSION"),
        model.config().layers.len(),
        model.bytes_per_token(),
        model.activations(),
        std::any::type_name::<B>(),
        engine.device(),
        moi_backends::threads(),
        std::env::var("MOI_KERNELS").unwrap_or_default(),
    )
}

fn read(path: &Path) -> Kept {
    let text = fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = moi_hub::new_file_in(directory)?;
    file.write_all(serde_json::to_string_pretty(kept)?.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
