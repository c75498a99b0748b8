//! An app that loads a checkpoint and runs two requests with different rules in one engine: in each round both sequences go
//! through the model together.
//!
//! ```text
//! cargo run --release --bin two-requests -- MODEL [PROMPT]
//! ```

use std::{collections::HashMap, error::Error, path::Path};

use burn_flex::Flex;
use moi_engine::{Engine, InputRule, Prompt, Request, SequenceId, TokenEvent};
use moi_pretrained::{Pretrained, WeightForm};

/// Tokens of each answer.
const TOKENS: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("give the path of a GGUF file or of a model's directory")?;
    let prompt = args.next().unwrap_or_else(|| "The sky is blue because".to_owned());
    let device = Default::default();

    let pretrained = Pretrained::open(Path::new(&model))?;
    // Weights as the file has them, quantised or not.
    let decoder = pretrained.load::<Flex>(&device, WeightForm::Stored, |_| {})?;
    let tokenizer = pretrained.tokenizer.into_inner()?;
    let engine = Engine::new(decoder, device).with_tokenizer(tokenizer).with_eos(pretrained.eos);

    let mut batch = engine.batch();
    let mut answers: HashMap<SequenceId, (InputRule, Vec<TokenEvent>)> = HashMap::new();
    for rule in ["token", "moi:beta=0.5"] {
        let rule: InputRule = rule.parse()?;
        let mut request = Request::new(Prompt::Text(prompt.clone()));
        request.rule = rule.clone();
        request.stop.max_tokens = Some(TOKENS);
        answers.insert(batch.add(request)?, (rule, Vec::new()));
    }
    while !batch.is_empty() {
        for step in batch.round()? {
            let step = step?;
            if let Some((_, steps)) = answers.get_mut(&step.row) {
                steps.push(step);
            }
        }
    }

    let mut answers: Vec<_> = answers.into_iter().collect();
    answers.sort_by_key(|(row, _)| *row);
    for (_, (rule, steps)) in answers {
        let text: String = steps.iter().map(|step| step.text.as_str()).collect();
        let mean = steps.iter().map(|step| step.gate).sum::<f32>() / steps.len().max(1) as f32;
        println!("{rule} ({} tokens, mean gate {mean:.3}):\n{prompt}{text}\n", steps.len());
    }
    Ok(())
}
