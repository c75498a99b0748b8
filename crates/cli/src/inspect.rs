//! `moi inspect`.

use anyhow::{Context, Result};
use moi_pretrained::Inspection;

use crate::{
    args::{Format, InspectArgs},
    model, output,
};

/// Prints the description of a model.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let path = model::find(&args.model, args.revision.as_deref())?;
    let inspection =
        Inspection::of(&path).with_context(|| format!("cannot use the model `{}`", args.model))?;
    if args.format == Format::Json {
        return output::print_json(&inspection);
    }
    let mut text = inspection.to_string();
    if args.tensors {
        for (name, tensor) in &inspection.tensors {
            let kind = tensor.storage.map(|kind| format!(" {kind}")).unwrap_or_default();
            text += &format!("{name} {:?}{kind}\n", tensor.shape);
        }
    }
    output::print_bytes(text.as_bytes())
}
