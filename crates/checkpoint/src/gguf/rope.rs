//! Converts a GGUF file's rotary metadata to the `rope_parameters` of a `config.json`.

use serde_json::{Value, json};

use super::{
    config::{Fields, Meta, object, set},
    names::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS},
};
use crate::CheckpointError;

impl Meta<'_> {
    pub(super) fn rope(&self) -> Result<Fields, CheckpointError> {
        let theta = self.f64("rope.freq_base").unwrap_or(10_000.0);
        let mut rope = object(json!({ "rope_type": "default", "rope_theta": theta }));
        let kind = self.str("rope.scaling.type");
        if let Some(tensor) = [ROPE_FACTORS, LONG_FACTORS].into_iter().find(|tensor| self.has(tensor)) {
            if let Some(kind) = kind.filter(|&kind| kind != "none" && kind != "longrope") {
                let what = format!("rope scaling `{kind}` together with {tensor} is not supported");
                return Err(self.file.wrong("metadata".into(), what));
            }
            set(&mut rope, self.factors(tensor, theta)?);
            return Ok(rope);
        }
        let stretched = self.f64("rope.scaling.attn_factor").filter(|&factor| factor != 1.0);
        let extrapolated = self.f64("rope.scaling.yarn_ext_factor").filter(|&factor| factor != 1.0);
        let unread = match kind {
            Some("yarn") => extrapolated.map(|_| "yarn_ext_factor"),
            _ => stretched.map(|_| "attn_factor").or(extrapolated.map(|_| "yarn_ext_factor")),
        };
        if let Some(key) = unread {
            let what = format!(
                "{} is not supported for this rope scaling",
                self.key(&format!("rope.scaling.{key}"))
            );
            return Err(self.file.wrong("metadata".into(), what));
        }
        // Files of 2023 have `rope.scale_linear` instead of `rope.scaling.factor`, and not always a type.
        let factor = self.f64("rope.scaling.factor").or(self.f64("rope.scale_linear")).filter(|&f| f > 0.0);
        match kind.or(factor.map(|_| "linear")) {
            None | Some("none") => {}
            // Without a factor, llama.cpp's runtime scales nothing.
            Some("linear") if factor.is_none() => {}
            Some("yarn") => set(&mut rope, self.yarn(factor.unwrap_or(1.0))),
            Some(kind) => set(&mut rope, json!({ "rope_type": kind, "factor": factor })),
        }
        Ok(rope)
    }

    fn yarn(&self, factor: f64) -> Value {
        // llama.cpp's runtime multiplies YaRN's own factor by the file's.
        let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        let given = self.f64("rope.scaling.attn_factor").map(|given| given * own);
        // This key holds the whole factor of the model's config; llama.cpp's runtime does not read it.
        let whole = || self.f64("rope.scaling.yarn_attn_factor");
        json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": self.usize("rope.scaling.original_context_length"),
            "attention_factor": given.or_else(whole),
            "beta_fast": self.f64("rope.scaling.yarn_beta_fast"),
            "beta_slow": self.f64("rope.scaling.yarn_beta_slow"),
        })
    }

    fn factors(&self, tensor: &str, theta: f64) -> Result<Value, CheckpointError> {
        let read = |tensor: &str| Ok::<_, CheckpointError>(self.file.tensor(tensor)?.read());
        let factors = read(tensor)?;
        if tensor == LONG_FACTORS {
            return Ok(json!({
                "rope_type": "longrope",
                "long_factor": factors,
                "short_factor": read(SHORT_FACTORS)?,
                "attention_factor": self.f64("rope.scaling.attn_factor"),
            }));
        }
        Ok(match llama3(&factors, theta) {
            Some(parameters) => parameters,
            None => json!({ "rope_type": "factors", "factors": factors }),
        })
    }
}

/// The usual parameters of the llama3 scaling, if these divisors result from them; the converter assumes an original
/// context of 8192.
fn llama3(factors: &[f32], theta: f64) -> Option<Value> {
    const ORIGINAL: f64 = 8192.0;
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = f64::from(factors.iter().copied().fold(0.0, f32::max));
    let expected = |pair: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(pair as f64 / factors.len() as f64);
        let smooth = ((ORIGINAL / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let close = |(pair, &found): (usize, &f32)| (f64::from(found) / expected(pair) - 1.0).abs() < 1e-5;
    (factor > 1.0 && factors.iter().enumerate().all(close)).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as usize,
        })
    })
}
