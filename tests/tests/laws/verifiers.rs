//! Verifiers that accept or reject drafts must give the distribution of a run without drafts.

use std::{collections::HashMap, sync::Arc};

use burn_flex::Flex;
use moi_engine::{
    DrafterChoice, Engine, OwnDrafter, Prompt, Request, Sampling, Speculation, TokenEvent, Verify,
    speculation::{
        Chance, Draft, DraftError, DraftTree, Drafter, Growth, PassCosts, draft_dynamic, draft_greedy,
        draft_paths,
    },
};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::golden::Golden;

use super::{speculation::run, tokens};

/// Tokens of the prompt.
const PROMPT: usize = 12;
/// Tokens of each generation.
const TOKENS: usize = 5;
/// Generations of each verifier.
const DRAWS: u64 = 3000;
/// Candidates for each token.
const TOP_K: usize = 2;

fn engine() -> Engine<Flex, Decoder<Flex>> {
    let golden = Golden::read("llama");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let draft = model.with_layers(&[0]).unwrap();
    let costs = PassCosts::new(vec![(1, 1.0), (8, 1.0)]);
    Engine::new(model, Default::default()).with_draft_model(draft).unwrap().with_pass_costs(costs)
}

fn request(rule: &str) -> Request<Flex> {
    let mut request = Request::new(Prompt::Ids(tokens(2, PROMPT)));
    request.rule = rule.parse().unwrap();
    request.sampling = Sampling { temperature: 0.8.into(), top_k: TOP_K.into(), ..Sampling::default() };
    (request.stop.max_tokens, request.stop.ignore_eos) = (Some(TOKENS), true);
    request
}

/// The probability of each text, by runs whose first tokens are forced.
fn law(engine: &Engine<Flex, Decoder<Flex>>, rule: &str) -> HashMap<Vec<u32>, f64> {
    let mut texts = HashMap::from([(Vec::new(), 1.0)]);
    for len in 0..TOKENS {
        let mut longer = HashMap::new();
        for (text, share) in texts {
            let mut request = Request { forced: text.clone(), logprobs: TOP_K, ..request(rule) };
            request.stop.max_tokens = Some(len + 1);
            let last = run(engine, request).pop().unwrap();
            let weights: Vec<f64> = last.likeliest.iter().map(|(_, logprob)| (logprob / 0.8).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for ((token, _), weight) in last.likeliest.iter().zip(weights) {
                longer.insert([&text[..], &[*token]].concat(), share * weight / sum);
            }
        }
        texts = longer;
    }
    texts
}

/// What chi-square of so many cells exceeds once in 100,000 times, by Wilson and Hilferty.
fn quantile(cells: i32) -> f64 {
    let freedom = f64::from(cells - 1);
    freedom * (1.0 - 2.0 / (9.0 * freedom) + 4.3 * (2.0 / (9.0 * freedom)).sqrt()).powi(3)
}

/// Compares how often each text came with how often it should. Returns the numbers of drafts, and of accepted ones by
/// depth.
fn check(
    engine: &Engine<Flex, Decoder<Flex>>,
    rule: &str,
    law: &HashMap<Vec<u32>, f64>,
    speculation: &Speculation,
) -> (usize, [usize; 4]) {
    let mut found: HashMap<Vec<u32>, f64> = HashMap::new();
    let (mut drafted, mut accepted) = (0, [0; 4]);
    for seed in 0..DRAWS {
        let steps = run(engine, Request { seed, speculation: speculation.clone(), ..request(rule) });
        let report = steps.last().unwrap().speculated.clone().unwrap().report.unwrap();
        drafted += report.drafted;
        report.by_depth.iter().zip(&mut accepted).for_each(|(depth, sum)| *sum += depth.accepted);
        *found.entry(steps.iter().map(|step: &TokenEvent| step.token).collect()).or_default() += 1.0;
    }
    let what = format!("{rule}, {}", speculation.verify);
    assert!(found.keys().all(|text| law.contains_key(text)), "{what}: a text that cannot come");
    // Texts that are seldom expected are counted together.
    let (mut chi, mut rest, mut cells) = (0.0, (0.0, 0.0), 0);
    for (text, share) in law {
        let (expected, count) = (share * DRAWS as f64, found.get(text).copied().unwrap_or(0.0));
        if expected < 8.0 {
            rest = (rest.0 + expected, rest.1 + count);
        } else {
            chi += (count - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rest.0 > 0.0 {
        chi += (rest.1 - rest.0).powi(2) / rest.0;
        cells += 1;
    }
    let most = quantile(cells);
    assert!(chi < most && cells > 4, "{what}: chi-square {chi:.1} of {cells} cells, at most {most:.1}");
    println!(
        "{what}: chi-square {chi:.1} of {cells} cells; of {drafted} drafts accepted by depth {accepted:?}"
    );
    (drafted, accepted)
}

/// A drafter whose distributions are flatter than the model's, and give tokens that cannot come, too.
#[derive(Debug)]
struct Flat {
    verify: Verify,
    law: Arc<HashMap<Vec<u32>, f64>>,
    text: Vec<u32>,
}

impl Flat {
    fn row(&self, ahead: &[u32]) -> Vec<f64> {
        let before = [&self.text[PROMPT..], ahead].concat();
        let mut row = vec![0.0; 256];
        row[1] = 0.01;
        for (text, share) in self.law.iter().filter(|(text, _)| text.starts_with(&before)) {
            if let Some(&next) = text.get(before.len()) {
                row[next as usize] += share;
            }
        }
        row.iter_mut().for_each(|weight| *weight = weight.powf(0.3));
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
        row
    }
}

impl Drafter for Flat {
    fn draft(
        &mut self,
        ahead: &[u32],
        growth: &Growth,
        source: &mut dyn Chance,
    ) -> Result<Draft, DraftError> {
        let rows = |tree: &DraftTree, node: usize| {
            Ok::<_, DraftError>(self.row(&[ahead, &tree.path(node)].concat()))
        };
        let length = growth.depth.min(growth.nodes / 2).max(1);
        let tree = match self.verify {
            Verify::Match | Verify::Rejection => draft_dynamic(growth, rows, source)?.0,
            Verify::KSeq => draft_paths(2, length, rows, source)?,
            Verify::Greedy => draft_greedy(&vec![2; length.min(2)], rows, source)?,
        };
        Ok(Draft { tree, values: Vec::new() })
    }

    fn push(&mut self, token: u32) {
        self.text.push(token);
    }
}

fn verifies(verify: Verify, law: &HashMap<Vec<u32>, f64>) -> Speculation {
    let law = Arc::new(law.clone());
    let own = OwnDrafter::new(move || Box::new(Flat { verify, law: Arc::clone(&law), text: Vec::new() }));
    Speculation { verify, draft_tokens: 3, draft_budget: 6, ..Speculation::by(DrafterChoice::Own(own)) }
}

#[test]
fn drawn_drafts_follow_the_law_of_the_model() {
    let engine = engine();
    let law = law(&engine, "token");
    for verify in [Verify::Rejection, Verify::KSeq, Verify::Greedy] {
        let (drafted, accepted) = check(&engine, "token", &law, &verifies(verify, &law));
        assert!(drafted > 3000 && accepted[0] > 1500 && accepted[1] > 300, "{verify}: {accepted:?}");
    }
}

/// With a floor, and with guesses of mixtures: tokens stay as drawn, and only their inputs get better.
#[test]
fn drawn_drafts_follow_the_law_of_a_rule_that_mixes() {
    let engine = engine();
    // Gates of `beta=30` are small, so that guesses are kept and accepted beyond the first.
    for (rule, tolerance, deep) in [
        ("moi:floor=0.4", None, 0),
        ("moi", None, 0),
        ("moi:beta=30", None, 0),
        ("moi:beta=30", Some(1e-2), 300),
    ] {
        let law = law(&engine, rule);
        let speculation = Speculation { tolerance, ..verifies(Verify::Rejection, &law) };
        let (drafted, accepted) = check(&engine, rule, &law, &speculation);
        assert!(drafted > 3000 && accepted[0] > 1000 && accepted[1] >= deep, "{rule}: {accepted:?}");
    }
}

/// A rule with noise of its own: its numbers are none of those that draw and verify drafts.
#[test]
fn the_noise_of_a_rule_is_independent_of_drafts() {
    let engine = engine();
    let texts = |seeds: std::ops::Range<u64>, speculation: &Speculation| {
        let mut found: HashMap<Vec<u32>, f64> = HashMap::new();
        for seed in seeds {
            let request = Request { seed, speculation: speculation.clone(), ..request("k-sample:k=2") };
            let text = run(&engine, request).iter().map(|step| step.token).collect();
            *found.entry(text).or_default() += 1.0;
        }
        found
    };
    let plain = texts(0..DRAWS, &Speculation::default());
    let law = plain.iter().map(|(text, count)| (text.clone(), count / DRAWS as f64)).collect();
    let drafted = texts(DRAWS..2 * DRAWS, &verifies(Verify::Rejection, &law));
    // Of two samples of one law, the squared difference of two counts is their sum on average.
    let (mut chi, mut cells) = (0.0, 0);
    for (text, count) in &plain {
        let other = drafted.get(text).copied().unwrap_or(0.0);
        if count + other >= 16.0 {
            chi += (count - other).powi(2) / (count + other);
            cells += 1;
        }
    }
    let most = quantile(cells);
    assert!(chi < most && cells > 8, "chi-square {chi:.1} of {cells} cells, at most {most:.1}");
}

/// A seed gives the same tokens again, and without temperature those of a run without drafts.
#[test]
fn a_seed_repeats_and_greedy_is_greedy() {
    let engine = engine();
    for verify in Verify::ALL {
        let mut asked = request("token");
        asked.speculation = Speculation { verify, draft_min_p: 0.0, ..Speculation::by(DrafterChoice::Model) };
        asked.stop.max_tokens = Some(40);
        let ids =
            |request: Request<Flex>| run(&engine, request).iter().map(|step| step.token).collect::<Vec<_>>();
        assert_eq!(ids(asked.clone()), ids(asked.clone()), "{verify}");
        asked.sampling.temperature = 0.0.into();
        let plain = Request { speculation: Speculation::default(), ..asked.clone() };
        assert_eq!(ids(asked), ids(plain), "{verify}");
    }
}
