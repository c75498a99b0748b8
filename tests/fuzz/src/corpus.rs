//! Makes the first inputs of each target out of the golden files: `corpus GOLDEN OUT`.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use moi_checkpoint::{
    Storage,
    gguf::{Exported, Gguf, NewTensor, Value, export, write_gguf},
};
use safetensors::SafeTensors;

/// The documents that the survey of the tests mutates.
#[allow(dead_code, reason = "the survey of GGUF files uses the rest")]
#[path = "../../src/hostile/tokenizer.rs"]
mod tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1).map(PathBuf::from);
    let (golden, out) = (args.next().ok_or("GOLDEN is missing")?, args.next().ok_or("OUT is missing")?);
    for target in ["safetensors", "gguf", "gguf_tokenizer", "tokenizer_json", "chat_template"] {
        fs::create_dir_all(out.join(target))?;
    }
    for path in files(&golden.join("gguf"))? {
        fs::write(out.join("gguf").join(name(&path)), first_layer(&path)?)?;
    }
    let blocks = golden.join("../../crates/checkpoint/tests/reference/blocks.gguf");
    fs::copy(&blocks, out.join("gguf/blocks.gguf"))?;
    for directory in files(&golden.join("tiny"))? {
        for path in
            files(&directory)?.iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        {
            let seed = format!("{}-{}", name(&directory), name(path));
            fs::write(out.join("safetensors").join(seed), smallest_tensors(&fs::read(path)?)?)?;
        }
    }
    fs::copy(golden.join("../src/hostile/template.jinja"), out.join("chat_template/template.jinja"))?;
    for (at, document) in tokenizer::documents().iter().enumerate() {
        fs::write(out.join("tokenizer_json").join(at.to_string()), document.to_string())?;
    }
    let token = |kind: char, text: &str| format!("{kind}{text}\n");
    let letters: String = ('!'..='~').map(|c| token('1', &c.to_string())).collect();
    let words =
        ["th", "the", "\u{120}", "\u{120}the", "\u{2581}", "\u{2581}a"].map(|word| token('1', word)).concat();
    let control = token('2', "<unk>") + &token('3', "<s>") + &token('3', "</s>") + &token('6', "<0x0A>");
    for choices in (0..16u8).chain([64, 66]) {
        let lists = format!("{control}{letters}{words}\nt h\nth e\n\u{120} the\n");
        let seed = [&[choices], lists.as_bytes()].concat();
        fs::write(out.join("gguf_tokenizer").join(choices.to_string()), seed)?;
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    all.sort();
    Ok(all)
}

/// A GGUF file with the small tensors of its first layer and of those beside the layers, all of them zero.
fn first_layer(path: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    /// Values of the largest tensor.
    const MAX_COUNT: usize = 4096;
    let file = Gguf::open(path)?;
    let (architecture, config, checkpoint) = (file.architecture()?, file.config()?, file.checkpoint()?);
    let exported =
        checkpoint.tensors().iter().filter_map(|(name, tensor)| export(architecture, &config, name, tensor));
    let mut tensors: BTreeMap<String, NewTensor> = BTreeMap::new();
    for Exported { name, tensor, expert, .. } in exported {
        let is_first = !name.starts_with("blk.") || name.starts_with("blk.0.");
        let mut shape = tensor.shape().to_vec();
        // Two experts are a stack, too.
        shape.splice(0..0, expert.map(|_| 2));
        if is_first && shape.iter().product::<usize>() <= MAX_COUNT {
            tensors.insert(name.clone(), NewTensor { name, shape, storage: Storage::BF16 });
        }
    }
    let tensors: Vec<NewTensor> = tensors.into_values().collect();
    let metadata: Vec<(String, Value)> =
        file.metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut bytes = Vec::new();
    write_gguf(&mut bytes, &metadata, &tensors, |index, to| {
        to.write_all(&vec![0; tensors[index].num_bytes()])
    })?;
    Ok(bytes)
}

/// A file of some of its tensors: with all their bytes mutations would hardly ever meet the header.
fn smallest_tensors(bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut tensors = SafeTensors::deserialize(bytes)?.tensors();
    tensors.sort_by_key(|(name, tensor)| (tensor.data().len(), name.clone()));
    tensors.truncate(4);
    Ok(safetensors::serialize(tensors, None)?)
}
