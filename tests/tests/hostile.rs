//! Mutation tests of untrusted model files, see `moi_tests::hostile`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_flex::Flex;
use moi_convert::{Options, Target, convert};
use moi_models::CausalLm;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    allocations::{Counting, counted},
    golden_directory,
    hostile::{self, Dice, Ending, json, pytorch, survey, template, tokenizer, weights},
};
use moi_text::{ChatTemplate, Message, TemplateTokens, Tokenizer};
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The memory that opening and running any of these small models takes, whatever the file says.
const BASE: usize = 64 << 20;

/// Opens a model and uses it as the binary does: tokenizer, template, weights, and one step.
fn run(path: &Path) -> Ending {
    let pretrained = Pretrained::open(path).map_err(|error| error.to_string())?;
    for tensor in pretrained.checkpoint.tensors().values() {
        assert_eq!(tensor.read().len(), tensor.shape().iter().product::<usize>());
    }
    let device = Default::default();
    let model =
        pretrained.load::<Flex>(&device, WeightForm::F32, |_| {}).map_err(|error| error.to_string())?;
    pretrained.footprint::<Flex>(&device, WeightForm::Stored, 64).map_err(|error| error.to_string())?;
    let tokenizer = pretrained.tokenizer.into_inner().map_err(|error| error.to_string())?;
    if let Some(tokenizer) = &tokenizer {
        use_tokenizer(tokenizer)?;
        if let Some(template) = pretrained.chat_template.map_err(|error| error.to_string())? {
            template.encode(&conversation(), tokenizer).map_err(|error| error.to_string())?;
        }
    }
    forward(&model);
    Ok(())
}

fn forward<B: Backend, M: CausalLm<B>>(model: &M) {
    let device = Default::default();
    let ids = Tensor::<B, 1, Int>::zeros([model.context_length().min(3)], &device);
    let hidden = model.forward_whole(model.embed(ids)).unwrap();
    let logits = model.logits(hidden).into_data();
    assert!(logits.num_elements() > 0);
}

fn use_tokenizer(tokenizer: &Tokenizer) -> Ending {
    let text = " The <s> thab\u{2581}\u{e9}\u{1F4A5} 12345 'S\n\n\t</s><0x0A>";
    let ids = tokenizer.encode(text, true).map_err(|error| error.to_string())?;
    let plain = "{{ bos_token }}{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}";
    let template = ChatTemplate::new(plain, TemplateTokens::default()).unwrap();
    template.encode(&conversation(), tokenizer).map_err(|error| error.to_string())?;
    tokenizer.decode(&ids).map_err(|error| error.to_string())?;
    let all: Vec<u32> = (0..tokenizer.vocab_size().min(200) as u32).collect();
    tokenizer.decode(&all).map_err(|error| error.to_string())?;
    for id in all {
        let _ = (tokenizer.token(id), tokenizer.token_bytes(id), tokenizer.special_text(id));
    }
    let _ = (tokenizer.kind(), tokenizer.bos(), tokenizer.thinking_markers(), tokenizer.strips_spaces());
    Ok(())
}

fn conversation() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief. <s>"),
        Message::new("user", "What is 2+2?\n"),
        Message::new("assistant", "<think>easy</think> 4"),
        Message::new("user", "\u{F0000} {{ x }} </s>"),
    ]
}

fn tiny(name: &str) -> PathBuf {
    golden_directory().join("tiny").join(name)
}

/// A directory `$TMP/hostile-NAME/model` with links to all files of a golden checkpoint except `own`.
fn copy_of(golden: &Path, own: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name != own && !name.to_string_lossy().starts_with("golden") {
            fs::copy(entry.path(), directory.path().join(name)).unwrap();
        }
    }
    directory
}

#[test]
fn safetensors() {
    let golden = tiny("llama");
    let good = weights::File::parse(&fs::read(golden.join("model.safetensors")).unwrap());
    let directory = copy_of(&golden, "model.safetensors");
    let path = directory.path().join("model.safetensors");
    let make = |dice: &mut Dice| {
        let bytes = weights::mutate(dice, &good);
        fs::write(&path, &bytes).unwrap();
        bytes.len()
    };
    survey("safetensors", &["model.safetensors"], |bytes| BASE + 16 * bytes, make, || run(directory.path()));
}

#[test]
fn shard_index() {
    let golden = tiny("qwen2");
    let name = "model.safetensors.index.json";
    let good: Value = serde_json::from_slice(&fs::read(golden.join(name)).unwrap()).unwrap();
    let directory = copy_of(&golden, name);
    let path = directory.path().join(name);
    #[cfg(unix)]
    odd_files(directory.path());
    let make = |dice: &mut Dice| {
        let bytes = weights::mutate_index(dice, &good);
        fs::write(&path, &bytes).unwrap();
        bytes.len()
    };
    survey(
        "shard index",
        &[name, ".safetensors", "config.json"],
        |bytes| BASE + 64 * bytes,
        make,
        || run(directory.path()),
    );
}

/// A JSON file of a model that is cut off anywhere must be refused, and the error must name it.
#[test]
fn json_that_is_cut_off() {
    let named = |path: &Path, read: &dyn Fn() -> Ending| {
        let whole = fs::read(path).unwrap();
        read().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let end = whole.trim_ascii_end().len();
        for cut in 0..end {
            fs::write(path, &whole[..cut]).unwrap();
            let error = read().unwrap_err();
            let what = if cut == 0 { ["empty", "cut off"] } else { ["cut off"; 2] };
            assert!(error.contains(name) && what.iter().any(|what| error.contains(what)), "{cut}: {error}");
        }
    };
    let opened = |path: &Path| Pretrained::open(path).map(drop).map_err(|error| error.to_string());
    for (model, name) in [("qwen2", "model.safetensors.index.json"), ("llama", "config.json")] {
        let directory = copy_of(&tiny(model), "");
        named(&directory.path().join(name), &|| opened(directory.path()));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    fs::write(&path, tokenizer::documents()[0].to_string()).unwrap();
    named(&path, &|| Tokenizer::from_file(&path).map(drop).map_err(|error| error.to_string()));
}

/// Adds directory entries that are not regular files.
#[cfg(unix)]
fn odd_files(directory: &Path) {
    use std::os::unix::fs::symlink;
    symlink("loop.safetensors", directory.join("loop.safetensors")).unwrap();
    symlink("/dev/zero", directory.join("outside.safetensors")).unwrap();
    fs::create_dir(directory.join("directory.safetensors")).unwrap();
    let pipe = directory.join("pipe.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
}

#[test]
fn config() {
    let names = [
        "llama",
        "gpt2",
        "gemma2",
        "gemma3-linear",
        "mixtral-sliding",
        "nemotron-nas",
        "phi3-longrope",
        "llama-yarn",
        "llama-dynamic",
        "llama3-rope",
        "olmo2",
        "gpt-neox",
        "granite",
        "qwen3-moe",
        "smollm3-sliding",
    ];
    let models: Vec<(tempfile::TempDir, Value)> = names
        .iter()
        .map(|name| {
            let config = serde_json::from_slice(&fs::read(tiny(name).join("config.json")).unwrap()).unwrap();
            (copy_of(&tiny(name), "config.json"), config)
        })
        .collect();
    let chosen = std::cell::Cell::new(0);
    let make = |dice: &mut Dice| {
        chosen.set(dice.below(models.len()));
        let (directory, good) = &models[chosen.get()];
        let bytes = json::mutate(dice, good);
        fs::write(directory.path().join("config.json"), &bytes).unwrap();
        bytes.len()
    };
    // The error for a config that does not fit the weights names the model, not the config.
    let names = ["config.json", "model"];
    survey("config.json", &names, |bytes| BASE + 64 * bytes, make, || run(models[chosen.get()].0.path()));
}

#[test]
fn gguf() {
    let tokens = tokenizer::listed();
    let kinds: Vec<u32> = (0..tokens.len() as u32).map(|id| [2, 3, 3, 1][id.min(3) as usize]).collect();
    let scores: Vec<u32> = (0..tokens.len() as u32).collect();
    let template = fs::read_to_string(golden_directory().join("../src/hostile/template.jinja")).unwrap();
    let with_tokenizer = |file: hostile::gguf::File, byte_level: bool| {
        let file = file
            .with_text("tokenizer.ggml.model", if byte_level { "gpt2" } else { "llama" })
            .with_text("tokenizer.chat_template", &template)
            .with_texts("tokenizer.ggml.tokens", &tokens)
            .with_numbers("tokenizer.ggml.token_type", &kinds, false);
        match byte_level {
            true => file
                .with_text("tokenizer.ggml.pre", "llama-bpe")
                .with_texts("tokenizer.ggml.merges", &["t h".to_owned(), "th e".to_owned()]),
            false => file.with_numbers("tokenizer.ggml.scores", &scores, true),
        }
    };
    let mut files: Vec<_> =
        fs::read_dir(golden_directory().join("gguf")).unwrap().flatten().map(|e| e.path()).collect();
    files.sort();
    let files: Vec<hostile::gguf::File> = files
        .iter()
        .enumerate()
        .map(|(at, path)| {
            with_tokenizer(hostile::gguf::File::parse(&fs::read(path).unwrap()), at.is_multiple_of(2))
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for file in &files {
        fs::write(&path, file.to_bytes()).unwrap();
        run(&path).unwrap();
    }
    let make = |dice: &mut Dice| {
        let good = dice.pick(&files);
        let bytes = hostile::gguf::mutate(dice, good);
        fs::write(&path, &bytes).unwrap();
        bytes.len()
    };
    survey("GGUF", &["model.gguf"], |bytes| BASE + 32 * bytes, make, || run(&path));
}

#[test]
fn pytorch_files() {
    let directory = tempfile::tempdir().unwrap();
    let golden = golden_directory().join("pytorch/whole");
    fs::copy(golden.join("config.json"), directory.path().join("config.json")).unwrap();
    let (path, output) = (directory.path().join("pytorch_model.bin"), directory.path().join("converted"));
    let read = || {
        let options = Options {
            to: Target::Safetensors,
            dtype: None,
            quantize: None,
            max_shard_bytes: usize::MAX,
            source_name: "an untrusted source".to_owned(),
        };
        let made = convert::<Flex>(directory.path(), &output, &options, None, |_| {});
        assert_eq!(output.exists(), made.is_ok());
        assert!(!directory.path().join(".converted.partial").exists());
        if made.is_ok() {
            fs::remove_dir_all(&output).unwrap();
        }
        made.map(drop).map_err(|error| error.to_string())
    };
    let good = pytorch::File::parse(&fs::read(golden.join("pytorch_model.bin")).unwrap());
    for pickle in pytorch::bombs() {
        fs::write(&path, good.clone().with_pickle(pickle).to_bytes()).unwrap();
        let (ending, usage) = counted(read);
        assert!(
            ending.unwrap_err().contains("pytorch_model.bin: data.pkl") && usage.peak < BASE,
            "{usage:?}"
        );
    }
    fs::write(&path, good.clone().with_pickle(pytorch::views(1000)).to_bytes()).unwrap();
    let error = read().unwrap_err();
    assert!(
        error.contains("which share storages, would come to 32768000 bytes, expected at most 4 times"),
        "{error}"
    );
    let make = |dice: &mut Dice| {
        let bytes = pytorch::mutate(dice, &good);
        fs::write(&path, &bytes).unwrap();
        bytes.len()
    };
    survey("PyTorch", &["pytorch_model.bin", "config.json"], |bytes| BASE + 64 * bytes, make, read);
}

/// A stack of experts is one line in the table, and one tensor per expert.
#[test]
fn stacks_of_experts() {
    let good = hostile::gguf::File::parse(&fs::read(golden_directory().join("gguf/mixtral.gguf")).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let layers = (100..140).map(|layer| format!("blk.{layer}.ffn_up_exps.weight"));
    fs::write(&path, good.with_tensors(layers, &[1, 1, 4000]).to_bytes()).unwrap();
    let (ending, usage) = counted(|| run(&path));
    let error = ending.unwrap_err();
    assert!(
        error.contains("model.gguf: tensor `blk.1") && error.contains("more than 131072 tensors"),
        "{error}"
    );
    assert!(usage.peak < 2 * BASE, "{usage:?}");
}

#[test]
fn tokenizer_json() {
    let documents = tokenizer::documents();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    let make = |dice: &mut Dice| {
        let document = dice.pick(&documents);
        let bytes = json::mutate(dice, document);
        fs::write(&path, &bytes).unwrap();
        bytes.len()
    };
    let read = || {
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| error.to_string())?;
        use_tokenizer(&tokenizer)
    };
    for document in &documents {
        fs::write(&path, document.to_string()).unwrap();
        read().unwrap();
    }
    survey("tokenizer.json", &["tokenizer.json", "the tokenizer"], |bytes| BASE + 64 * bytes, make, read);
}

#[test]
fn chat_template() {
    let good = fs::read_to_string(golden_directory().join("../src/hostile/template.jinja")).unwrap();
    let text = std::cell::RefCell::new(String::new());
    let make = |dice: &mut Dice| {
        *text.borrow_mut() = template::mutate(dice, &good);
        if std::env::var_os("MOI_TEST_SEED").is_some() {
            println!("{}", text.borrow());
        }
        text.borrow().len()
    };
    let read = || {
        let tokens = TemplateTokens { bos: Some("<s>".into()), ..TemplateTokens::default() };
        let template = ChatTemplate::new(&text.borrow(), tokens).map_err(|error| error.to_string())?;
        template.render(&conversation(), true).map_err(|error| error.to_string()).map(drop)
    };
    // A template that is cut off anywhere is another valid template or an error.
    for (cut, _) in good.char_indices() {
        *text.borrow_mut() = good[..cut].to_owned();
        assert!(read().err().is_none_or(|error| error.contains("the chat template")), "{cut}");
    }
    // A short template can produce huge output, so its output must be bounded.
    survey("chat template", &["the chat template"], |bytes| (96 << 20) + 64 * bytes, make, read);
}
