//! What a sequence keeps to draft tokens.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use moi_speculation::{
    Draft, DraftTree, Drafter, Growth, HitRate, InputTolerance, JoinedDrafter, LookupDrafter, LookupSettings,
    RecyclingDrafter, RecyclingTable, Verifier,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::{
    DraftSource, DrafterChoice, InputLimits, Speculated, Speculation, SpeculationReport, Verify, model::Asked,
};
use crate::{EngineError, sampler::uniform};

/// The stream of random numbers for drafts. The sampler and the noise of rules count their streams from 0.
const STREAM: u64 = u64::MAX;

/// The drafter of a sequence, and what it has achieved.
#[derive(Debug)]
pub(crate) struct Drafting {
    drafter: Box<dyn Drafter>,
    settings: Speculation,
    random: ChaCha8Rng,
    /// What the input rule allows, and what was let through.
    limits: InputLimits,
    tolerance: InputTolerance,
    /// How often the input behind a token is near the token's own embedding, so that a drafted one can be right.
    plain_inputs: HitRate,
    /// How often a guess that was kept is right.
    kept: HitRate,
    /// Whether the next input is a mixture that need not be met exactly.
    in_window: bool,
    /// Number of passes without a right guess of such an input since the last one.
    fruitless: usize,
    /// How many times as fast as without drafts passes gave tokens lately.
    pace: f64,
    /// Number of tokens for which nothing is drafted.
    rest: usize,
    /// How long the next rest is.
    next_rest: usize,
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
/// How many tokens drafting rests, at first and at most: twice as many each time that it did not pay in between, where
/// each try costs a pass over many positions.
const REST: usize = 32;
const LONGEST_REST: usize = 512;
/// Where a position is fed several times before its input is right, a draft that is right less often than this costs
/// more than it gains.
const LEAST_VALUE: f64 = 0.4;
/// After so many passes without a right guess, guessing is given up where errors need not shrink.
const FRUITLESS: usize = 8;
/// What a pass counts in the average after the next one.
const PACE_MEMORY: f64 = 0.9;

/// What the drafters of all sequences of an engine share.
pub(crate) struct Shared<'a> {
    pub(crate) table: &'a dyn Fn() -> Arc<Mutex<RecyclingTable>>,
    pub(crate) model: Option<&'a dyn DraftSource>,
    pub(crate) is_gpu: bool,
    pub(crate) vocab: usize,
}

impl Drafting {
    /// What a request asks for, for a sequence that begins with a prompt; `None` if it asks for nothing.
    ///
    /// # Errors
    /// If it asks for a draft model, and there is none.
    pub(crate) fn new(
        settings: &Speculation,
        shared: &Shared<'_>,
        (limits, temperature): (InputLimits, f64),
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
                let Speculation { draft_min_p: min_p, verify, .. } = *settings;
                let asked = Asked { min_p, verify, temperature, vocab: shared.vocab };
                shared.model.ok_or(EngineError::NoDraftModel)?.drafter(asked)
            }
            DrafterChoice::Own(own) => own.make(),
        };
        prompt.iter().for_each(|&token| drafter.push(token));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(STREAM);
        let (drafter_name, verify) = (settings.drafter.name(), settings.verify);
        let report = SpeculationReport { drafter: drafter_name, verify, ..SpeculationReport::default() };
        Ok(Some(Self {
            drafter,
            settings: settings.clone(),
            random,
            limits,
            tolerance: InputTolerance::new(limits.tolerance),
            plain_inputs: HitRate::new(0.9),
            kept: HitRate::new(0.8),
            in_window: false,
            fruitless: 0,
            pace: 1.2,
            // The first pass tells what one without drafts takes.
            rest: if adapts(settings) { 2 } else { 0 },
            next_rest: REST,
            report,
            tree: Arc::default(),
            depth: 0,
            draft_time: Duration::ZERO,
            plain_time: None,
        }))
    }

    /// The most positions behind the next one that any pass runs.
    pub(crate) fn budget(&self) -> usize {
        self.most(false).max(self.most(self.limits.tolerance > 0.0))
    }

    /// Whether drafting rests where passes with drafts are slower than those without. What an app's own drafter drafts
    /// always runs. So do drafts that decide tokens, because a seed's tokens must not depend on how long a pass took.
    pub(crate) fn adapts(&self) -> bool {
        adapts(&self.settings)
    }

    /// Whether as many drafts run as pay by what they promise. Guesses of mixtures pay only later.
    pub(crate) fn promises(&self) -> bool {
        self.adapts() && !self.in_window
    }

    /// Tells whether the next input is a mixture that need not be met exactly.
    pub(crate) fn enter(&mut self, in_window: bool) {
        self.in_window = in_window;
    }

    /// Whether drafting rests, so that nothing is drafted for the next pass.
    pub(crate) fn rests(&self) -> bool {
        let has_given_up = self.in_window && self.limits.is_full && self.fruitless >= FRUITLESS;
        self.rest > 0 || has_given_up
    }

    /// How tokens are decided.
    pub(crate) fn verifier(&self) -> Verifier {
        self.settings.verify.verifier()
    }

    /// Whether it is computed how often the best possible verifier would accept a draft.
    pub(crate) fn measures_optimum(&self) -> bool {
        self.settings.optimum
    }

    /// What the input rule allows.
    pub(crate) fn limits(&self) -> InputLimits {
        self.limits
    }

    /// Whether the rows behind an input that was not near enough are guesses for the next pass.
    pub(crate) fn refines(&self) -> bool {
        self.limits.refines && matches!(self.settings.verify, Verify::Match | Verify::Rejection)
    }

    /// The most positions behind the next one that a pass runs, guesses that were kept included. `in_window` says whether
    /// the rule mixes there and inputs need not be exact.
    pub(crate) fn most(&self, in_window: bool) -> usize {
        if in_window { self.settings.window - 1 } else { self.settings.draft_budget }
    }

    /// Drafts tokens that `passes`, up to `depth` behind each other and `nodes` in all, behind tokens that are expected.
    /// A drafter that fails drafts nothing.
    pub(crate) fn draft(
        &mut self,
        ahead: &[u32],
        (depth, nodes): (usize, usize),
        passes: impl Fn(u32) -> bool,
    ) -> Draft {
        let depth = depth.min(self.settings.draft_tokens);
        let growth = Growth { depth, nodes, ..Growth::default() };
        if depth == 0 || nodes == 0 {
            return Draft::default();
        }
        let random = &mut self.random;
        let mut source = || uniform(random);
        let Ok(Draft { tree, mut values }) = self.drafter.draft(ahead, &growth, &mut source) else {
            return Draft::default();
        };
        // An app's own drafter may promise nothing, or draft more than it was asked for.
        values.resize(tree.drafted(), 0.0);
        if self.limits.mixes && !self.in_window {
            // A draft counts only if the inputs before it are right, too. In a window they get right pass by pass.
            let plain = self.plain_inputs.get();
            for (node, value) in (1..).zip(&mut values) {
                *value *= plain.powi(tree.depth(node) as i32);
            }
        }
        let mut passing = tree.passing(passes);
        passing.retain(|&node| tree.depth(node) <= growth.depth);
        if self.in_window && self.adapts() {
            passing.retain(|&node| values[node - 1] >= LEAST_VALUE);
        }
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
    /// `optimal` is how often the best possible verifier would have accepted a draft there, if that was computed.
    pub(crate) fn emitted(
        &mut self,
        (node, token, is_last): (usize, u32, bool),
        time: Duration,
        optimal: Option<f64>,
    ) -> Speculated {
        let depth = self.depth;
        let (has_drafts, accepted) =
            (!self.tree.drafts(node).is_empty(), self.tree.child(node, token).is_some());
        self.report.rounds += usize::from(depth == 0);
        self.report.count(depth, (has_drafts, accepted), optimal);
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

    /// The estimated probability that the first, the first two, .. of some kept guesses are right.
    pub(crate) fn kept_values(&self, count: usize) -> Vec<f64> {
        (1..=count as i32).map(|depth| self.kept.get().powi(depth)).collect()
    }

    /// Notes the error of the input that a pass was fed behind a token: a guess that was kept, or the token's own
    /// embedding. Returns whether it may stay.
    pub(crate) fn was_fed(&mut self, error: f64, was_kept: bool) -> bool {
        let is_near = self.tolerance.passes(error);
        (self.report.inexact, self.report.worst) = (self.tolerance.inexact, self.tolerance.worst);
        if was_kept { &mut self.kept } else { &mut self.plain_inputs }.observe(is_near);
        is_near
    }

    /// Ends a pass, which took this time with drafting.
    pub(crate) fn end(&mut self, time: Duration) {
        self.report.verify_time += time.saturating_sub(self.draft_time);
        if self.in_window && !self.tree.is_empty() {
            self.fruitless = if self.depth > 1 { 0 } else { self.fruitless + 1 };
        }
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
            // The next passes with drafts then decide whether it rests again.
            (self.rest, self.pace) = (self.next_rest, 1.0);
            // Lookup and recycling draft only what promises to pay, so that it costs little to ask them again.
            if self.limits.tolerance > 0.0 || self.settings.drafter == DrafterChoice::Model {
                self.next_rest = (2 * self.next_rest).min(LONGEST_REST);
            }
        } else if self.pace > 1.1 {
            self.next_rest = REST;
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

fn adapts(settings: &Speculation) -> bool {
    settings.verify == Verify::Match && !matches!(settings.drafter, DrafterChoice::Own(_))
}
