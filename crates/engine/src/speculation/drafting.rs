//! What a sequence keeps to draft tokens.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use moi_speculation::{
    Draft, DraftTree, Drafter, Growth, HitRate, JoinedDrafter, LookupDrafter, LookupSettings,
    RecyclingDrafter, RecyclingTable,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::{DraftSource, DrafterChoice, Speculated, Speculation, SpeculationReport};
use crate::{EngineError, sampler::uniform};

/// The stream of random numbers for drafts. The sampler has the streams before it.
const STREAM: u64 = 2;

/// The drafter of a sequence, and what it has achieved.
#[derive(Debug)]
pub(crate) struct Drafting {
    drafter: Box<dyn Drafter>,
    settings: Speculation,
    random: ChaCha8Rng,
    /// How often the input behind a token is the token's own embedding, so that a drafted one can be right.
    plain_inputs: HitRate,
    /// How many times as fast as without drafts passes gave tokens lately.
    pace: f64,
    /// Number of tokens for which nothing is drafted.
    rest: usize,
    report: SpeculationReport,
    /// The pass that is being walked.
    tree: Arc<DraftTree>,
    depth: usize,
    /// Time that drafting it took.
    draft_time: Duration,
    /// Seconds that passes without drafts take, once there was one.
    plain_time: Option<f64>,
}

/// Where passes with drafts are less than this times as fast as those without, drafting rests.
const LEAST_PACE: f64 = 0.95;
/// How many tokens drafting rests.
const REST: usize = 32;
/// What a pass counts in the average after the next one.
const PACE_MEMORY: f64 = 0.8;

/// What the drafters of all sequences of an engine share.
pub(crate) struct Shared<'a> {
    pub(crate) table: &'a dyn Fn() -> Arc<Mutex<RecyclingTable>>,
    pub(crate) model: Option<&'a dyn DraftSource>,
    pub(crate) is_gpu: bool,
}

impl Drafting {
    /// What a request asks for, for a sequence that begins with a prompt; `None` if it asks for nothing.
    ///
    /// # Errors
    /// If it asks for a draft model, and there is none.
    pub(crate) fn new(
        settings: &Speculation,
        shared: &Shared<'_>,
        (prompt, seed): (&[u32], u64),
    ) -> Result<Option<Self>, EngineError> {
        let lookup = || Box::new(LookupDrafter::new(LookupSettings::default()));
        let recycling = || Box::new(RecyclingDrafter::new((shared.table)()));
        let mut drafter: Box<dyn Drafter> = match &settings.drafter {
            DrafterChoice::None => return Ok(None),
            // On a GPU, recycling would read the logits of every pass back.
            DrafterChoice::Auto if shared.is_gpu => lookup(),
            DrafterChoice::Auto => Box::new(JoinedDrafter::new(vec![lookup(), recycling()])),
            DrafterChoice::Lookup => lookup(),
            DrafterChoice::Recycling => recycling(),
            DrafterChoice::Model => {
                shared.model.ok_or(EngineError::NoDraftModel)?.drafter(settings.draft_min_p)
            }
            DrafterChoice::Own(own) => own.make(),
        };
        prompt.iter().for_each(|&token| drafter.push(token));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(STREAM);
        let report = SpeculationReport { drafter: settings.drafter.name(), ..SpeculationReport::default() };
        Ok(Some(Self {
            drafter,
            settings: settings.clone(),
            random,
            plain_inputs: HitRate::new(0.9),
            pace: 1.2,
            // The first pass tells what one without drafts takes. An app's own drafter drafts from the start.
            rest: usize::from(!matches!(settings.drafter, DrafterChoice::Own(_))) * 2,
            report,
            tree: Arc::default(),
            depth: 0,
            draft_time: Duration::ZERO,
            plain_time: None,
        }))
    }

    /// The most tokens that are drafted for a pass.
    pub(crate) fn budget(&self) -> usize {
        self.settings.draft_budget
    }

    /// Whether as many drafts run as pay by what they promise. What an app's own drafter drafts always runs.
    pub(crate) fn adapts(&self) -> bool {
        !matches!(self.settings.drafter, DrafterChoice::Own(_))
    }

    /// Drafts tokens that `passes`, up to `depth` behind each other and `nodes` in all. A drafter that fails drafts
    /// nothing.
    pub(crate) fn draft(&mut self, depth: usize, nodes: usize, passes: impl Fn(u32) -> bool) -> Draft {
        let growth = Growth {
            depth: depth.min(self.settings.draft_tokens),
            nodes: nodes.min(self.settings.draft_budget),
            ..Growth::default()
        };
        if self.rest > 0 || growth.depth == 0 || growth.nodes == 0 {
            return Draft::default();
        }
        let random = &mut self.random;
        let mut source = || uniform(random);
        let Ok(Draft { tree, mut values }) = self.drafter.draft(&growth, &mut source) else {
            return Draft::default();
        };
        // An app's own drafter may promise nothing, or draft more than it was asked for.
        values.resize(tree.drafted(), 0.0);
        // A draft counts only if the inputs before it are right, too.
        let plain = self.plain_inputs.get();
        for (node, value) in (1..).zip(&mut values) {
            *value *= plain.powi(tree.depth(node) as i32);
        }
        let mut passing = tree.passing(passes);
        passing.retain(|&node| tree.depth(node) <= growth.depth);
        passing.truncate(growth.nodes);
        if passing.len() == tree.drafted() {
            return Draft { tree, values };
        }
        let values = passing.iter().map(|&node| values[node - 1]).collect();
        Draft { tree: tree.subtree(&passing), values }
    }

    /// Begins a pass with these drafts.
    pub(crate) fn begin(&mut self, tree: DraftTree, time: Duration) {
        self.report.drafted += tree.drafted();
        self.report.draft_time += time;
        self.draft_time = time;
        self.tree = Arc::new(tree);
        self.depth = 0;
    }

    /// Counts the token that was chosen behind a node of the pass, which has taken this time until now.
    pub(crate) fn emitted(&mut self, node: usize, token: u32, is_last: bool, time: Duration) -> Speculated {
        let depth = self.depth;
        let (has_drafts, accepted) =
            (!self.tree.drafts(node).is_empty(), self.tree.child(node, token).is_some());
        self.report.rounds += usize::from(depth == 0);
        self.report.count(depth, has_drafts, accepted);
        self.rest = self.rest.saturating_sub(1);
        self.drafter.push(token);
        self.depth += 1;
        let report = is_last.then(|| {
            let verify_time = self.report.verify_time + time.saturating_sub(self.draft_time);
            Box::new(SpeculationReport { verify_time, ..self.report.clone() })
        });
        Speculated {
            round: self.report.rounds - 1,
            depth,
            accepted,
            tree: (depth == 0 && !self.tree.is_empty()).then(|| Arc::clone(&self.tree)),
            report,
        }
    }

    /// Notes whether the input behind a token was the token's own embedding.
    pub(crate) fn was_plain(&mut self, is_plain: bool) {
        self.plain_inputs.observe(is_plain);
    }

    /// Ends a pass, which took this time with drafting.
    pub(crate) fn end(&mut self, time: Duration) {
        self.report.verify_time += time.saturating_sub(self.draft_time);
        if !self.adapts() {
            return;
        }
        let (time, mix) =
            (time.as_secs_f64(), |old: f64, new: f64| old * PACE_MEMORY + new * (1.0 - PACE_MEMORY));
        if self.tree.is_empty() {
            self.plain_time = Some(self.plain_time.map_or(time, |old| mix(old, time)));
            return;
        }
        let Some(plain) = self.plain_time.filter(|_| time > 0.0) else { return };
        self.pace = mix(self.pace, self.depth as f64 * plain / time);
        if self.pace < LEAST_PACE {
            // The next pass with drafts then decides whether it rests again.
            (self.rest, self.pace) = (REST, LEAST_PACE + 0.02);
        }
    }

    /// Whether the drafter learns from the logits behind each token.
    pub(crate) fn learns(&self) -> bool {
        self.drafter.learns()
    }

    /// Tells the logits behind a token that ran.
    pub(crate) fn learn(&mut self, token: u32, logits: &[f32]) {
        self.drafter.learn(token, logits);
    }
}
