//! Answers that are constrained by a JSON schema, a regular expression or a grammar, with llguidance.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// What an answer must match. Where a model thinks first, its thoughts are not constrained.
///
/// # Examples
/// ```
/// use moi_engine::{Grammar, Prompt, Request};
///
/// let mut request = Request::<burn_flex::Flex>::new(Prompt::Ids(vec![1, 2, 3]));
/// request.grammar = Some(Grammar::JsonSchema(serde_json::json!({
///     "type": "object",
///     "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
///     "required": ["name", "age"],
/// })));
/// // As JSON:
/// let grammar: Grammar = serde_json::from_str(r#"{"regex": "(yes|no)"}"#)?;
/// assert_eq!(grammar, Grammar::Regex("(yes|no)".into()));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grammar {
    /// A JSON schema.
    JsonSchema(serde_json::Value),
    /// A regular expression, for the whole answer.
    Regex(String),
    /// A context-free grammar in llguidance's variant of Lark.
    Lark(String),
    /// A Lark grammar in which some rules are JSON schemas.
    LarkWithSchemas {
        /// The grammar without these rules.
        lark: String,
        /// The schemas, by the names of their rules.
        schemas: BTreeMap<String, serde_json::Value>,
    },
}

/// What a grammar may cost before its first token. The cost of each step is limited by llguidance's own counts (fuel
/// of regular expressions, their states, items of a parse), which are the same on every machine.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, GrammarLimits};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let limits = GrammarLimits { max_bytes: 1 << 16, ..GrammarLimits::default() };
/// assert_eq!(limits.max_compiling, 8);
/// let engine = Engine::new(model, device).with_grammar_limits(limits);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of the grammar's text; of a schema, its JSON.
    pub max_bytes: usize,
    /// How long compiling may take, which grows with the square of some grammars; `None` is no limit. After this time
    /// the request is refused, while the compiling thread runs to its end.
    pub max_time: Option<Duration>,
    /// How many grammars may be compiled at once, including those whose requests have been refused meanwhile.
    pub max_compiling: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_time: Some(Duration::from_secs(60)), max_compiling: 8 }
    }
}

#[cfg(feature = "grammar")]
pub(crate) use with::{Compiler, Constraint};
#[cfg(not(feature = "grammar"))]
pub(crate) use without::{Compiler, Constraint};

#[cfg(feature = "grammar")]
mod with {
    use std::{
        fmt,
        sync::{
            Arc, Mutex, PoisonError,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
    use moi_text::brief;
    use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

    use super::{Grammar, GrammarLimits};
    use crate::{EngineError, schema::prepared, text::Tokenizer};

    /// Compiles grammars for a vocabulary.
    pub(crate) struct Compiler {
        factory: Arc<ParserFactory>,
        /// The grammars compiled last, by their texts, the latest last, each in its state before the first token.
        compiled: Mutex<Vec<(String, Matcher)>>,
        /// How many grammars are being compiled.
        compiling: Arc<AtomicUsize>,
    }

    /// How many compiled grammars are kept.
    const MAX_COMPILED: usize = 32;

    impl fmt::Debug for Compiler {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Compiler")
        }
    }

    impl Compiler {
        pub(crate) fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<Self, EngineError> {
            let words: Vec<Vec<u8>> = (0..vocab as u32).map(|id| word(tokenizer, id)).collect();
            // An end token without an embedding row is never sampled, so it is no word of the trie.
            let eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < vocab).collect();
            let Some(&first) = eos.first() else {
                return Err(EngineError::Grammar("the model has no end token".to_owned()));
            };
            let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, first), &words).with_eos_tokens(&eos);
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&environment).map_err(failed)?;
            factory.quiet();
            Ok(Self { factory: Arc::new(factory), compiled: Mutex::default(), compiling: Arc::default() })
        }

        pub(crate) fn compile(
            &self,
            grammar: &Grammar,
            limits: &GrammarLimits,
        ) -> Result<Constraint, EngineError> {
            let text = serde_json::to_string(grammar).map_err(failed)?;
            let bytes = match grammar {
                Grammar::JsonSchema(schema) => schema.to_string().len(),
                Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
                Grammar::LarkWithSchemas { lark, schemas } => {
                    lark.len() + schemas.values().map(|schema| schema.to_string().len()).sum::<usize>()
                }
            };
            if bytes > limits.max_bytes {
                let what = format!("it has {bytes} bytes, and at most {} are taken", limits.max_bytes);
                return Err(EngineError::Grammar(what));
            }
            if let Some(known) = self.find(&text) {
                return Ok(known);
            }
            // No lock is held from here on, so other threads can compile, too.
            let compiling = Compiling::begin(&self.compiling, limits.max_compiling)?;
            let (factory, grammar) = (Arc::clone(&self.factory), grammar.clone());
            let work = move || {
                let _compiling = compiling;
                matcher(&factory, &grammar)
            };
            let matcher = on_a_large_stack(limits.max_time, work).map_err(EngineError::Grammar)?;
            let constraint = Constraint::new(&matcher);
            let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            if compiled.iter().all(|(known, _)| *known != text) {
                compiled.push((text, matcher));
            }
            let more = compiled.len().saturating_sub(MAX_COMPILED);
            compiled.drain(..more);
            Ok(constraint)
        }

        /// Finds a compiled grammar by its text and makes it the latest.
        fn find(&self, text: &str) -> Option<Constraint> {
            let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            let at = compiled.iter().position(|(known, _)| known == text)?;
            let found = compiled.remove(at);
            let constraint = Constraint::new(&found.1);
            compiled.push(found);
            Some(constraint)
        }

        /// The texts of the grammars that are kept, the latest last.
        #[cfg(test)]
        pub(crate) fn compiled(&self) -> Vec<String> {
            let kept = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().map(|(text, _)| text.clone()).collect()
        }
    }

    /// Counts as a grammar that is being compiled until it is dropped.
    struct Compiling(Arc<AtomicUsize>);

    impl Compiling {
        fn begin(count: &Arc<AtomicUsize>, most: usize) -> Result<Self, EngineError> {
            if count.fetch_add(1, Relaxed) < most {
                return Ok(Self(Arc::clone(count)));
            }
            count.fetch_sub(1, Relaxed);
            Err(EngineError::Busy(most))
        }
    }

    impl Drop for Compiling {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }

    fn matcher(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, String> {
        let grammar = match grammar {
            Grammar::JsonSchema(schema) => {
                TopLevelGrammar::from_json_schema(with_short_spaces(prepared(schema)?))
            }
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Grammar::LarkWithSchemas { lark, schemas } => {
                let mut all = lark.clone();
                for (name, schema) in schemas {
                    all += &format!("\n{name}: %json {}\n", with_short_spaces(prepared(schema)?));
                }
                TopLevelGrammar::from_lark(all)
            }
        };
        let parser = factory.create_parser(grammar).map_err(in_words)?;
        let matcher = Matcher::new(Ok(parser));
        if let Some(error) = matcher.get_error() {
            return Err(in_words(error));
        }
        // Some grammars are found to admit no text only by the first mask. It is computed on a copy, so that its cost
        // does not count against a row's limits.
        match matcher.deep_clone().compute_mask_or_eos() {
            Ok(_) => Ok(matcher),
            Err(error) => Err(in_words(error)),
        }
    }

    /// Runs `work`, which recurses as deep as a schema is nested, on a thread with a large stack. llguidance takes 14
    /// KB of stack for each schema within another one, and other threads have as little as 1 MB.
    #[cfg(not(target_family = "wasm"))]
    fn on_a_large_stack<T: Send + 'static>(
        max_time: Option<Duration>,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        use std::sync::mpsc::{RecvTimeoutError, sync_channel};

        const STACK_BYTES: usize = 64 << 20;
        let (done, wait) = sync_channel(1);
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // The receiver may have given up waiting.
            let _ = done.send(work());
        });
        let thread = thread.map_err(|error| format!("no thread can be started for it: {error}"))?;
        let received = match max_time {
            Some(max_time) => wait.recv_timeout(max_time),
            None => wait.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "compiling it takes longer than {} s; give one with fewer parts",
                max_time.unwrap_or_default().as_secs_f32()
            )),
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                // A panic of the compiler is reported as an error of the grammar.
                Err(_) => Err("the compiler of grammars fails at it".to_owned()),
                Ok(()) => Err("its thread ended without a result".to_owned()),
            },
        }
    }

    /// Wasm has no threads, and the page determines the size of the stack, so schemas cannot be nested as deep.
    #[cfg(target_family = "wasm")]
    fn on_a_large_stack<T>(
        _max_time: Option<Duration>,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        work()
    }

    /// The schema with at most a line end and an indentation between its parts, unless the schema says otherwise.
    /// Without this, a model in doubt could write spaces for ever.
    fn with_short_spaces(mut schema: serde_json::Value) -> serde_json::Value {
        if let Some(object) = schema.as_object_mut() {
            let options = object.entry("x-guidance").or_insert_with(|| serde_json::json!({}));
            if let Some(options) =
                options.as_object_mut().filter(|options| !options.contains_key("whitespace_flexible"))
            {
                options.entry("whitespace_pattern").or_insert_with(|| SPACES.into());
            }
        }
        schema
    }

    /// A space, or a line end and an indentation.
    const SPACES: &str = r"( |\n {0,16})";

    /// A token's bytes. Those of a control token are marked, so that no text is mistaken for it. Very long tokens
    /// become empty, and no grammar allows them, because the library has no room for a thousand bytes.
    fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
        const MAX_LENGTH: usize = 1000;
        let marked = |text: &str| [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
        let word = match tokenizer.special_text(id) {
            Some(text) => marked(text),
            None => tokenizer.token_bytes(id).unwrap_or_default(),
        };
        if word.len() > MAX_LENGTH { Vec::new() } else { word }
    }

    fn failed(error: impl fmt::Display) -> EngineError {
        EngineError::Grammar(in_words(error))
    }

    /// The library's message without its parser's state and without control characters for a terminal. Messages about
    /// the library's own parts are put into the terms of whoever wrote the grammar.
    fn in_words(error: impl fmt::Display) -> String {
        let text = error.to_string();
        let what = text.split("\n<state>").next().unwrap_or_default();
        let what = what.split("<backtrace>").next().unwrap_or_default().trim();
        if what == "NoExtensionBias" {
            return "no text fits it, or none that the model's tokens can spell".to_owned();
        }
        let keys = what.strip_prefix("Unimplemented keys: [").and_then(|rest| rest.split(']').next());
        if let Some(keys) = keys {
            return format!("the schema has {}, which cannot be enforced", brief(&keys.replace('"', "`")));
        }
        if what.starts_with("oneOf constraints are not supported") {
            return "the schema has a `oneOf` whose options may fit the same value, which cannot be enforced; \
                    `anyOf` can"
                .to_owned();
        }
        if what.starts_with("circular references with sibling keys") {
            return "the schema has a definition that can only be made of itself".to_owned();
        }
        brief(what)
    }

    /// The state of a grammar in one row.
    pub(crate) struct Constraint {
        matcher: Box<Matcher>,
        mask: SimpleVob,
    }

    impl fmt::Debug for Constraint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Constraint")
        }
    }

    impl Constraint {
        /// The state before the first token. It is a deep copy, so that no row waits for another row or has other
        /// limits left because of it.
        fn new(matcher: &Matcher) -> Self {
            Self { matcher: Box::new(matcher.deep_clone()), mask: SimpleVob::new() }
        }

        /// Computes the tokens that may come next.
        pub(crate) fn compute(&mut self) -> Result<(), EngineError> {
            self.mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
            Ok(())
        }

        pub(crate) fn allows(&self, token: u32) -> bool {
            self.mask.get(token as usize)
        }

        /// Accepts a token. Returns whether nothing can follow it.
        pub(crate) fn push(&mut self, token: u32) -> Result<bool, EngineError> {
            self.matcher.consume_token(token).map_err(failed)?;
            Ok(self.matcher.is_stopped())
        }
    }
}

#[cfg(not(feature = "grammar"))]
mod without {
    use super::{Grammar, GrammarLimits};
    use crate::{EngineError, text::Tokenizer};

    /// Without the feature `grammar` there is no compiler, so this type has no values.
    #[derive(Debug)]
    pub(crate) enum Compiler {}

    impl Compiler {
        pub(crate) fn new(_: &Tokenizer, _vocab: usize, _eos: &[u32]) -> Result<Self, EngineError> {
            Err(EngineError::Grammar("this build has no grammars: the feature `grammar` is off".to_owned()))
        }

        pub(crate) fn compile(&self, _: &Grammar, _: &GrammarLimits) -> Result<Constraint, EngineError> {
            match *self {}
        }
    }

    /// Without the feature `grammar` there are no constraints, so this type has no values.
    #[derive(Debug)]
    pub(crate) enum Constraint {}

    impl Constraint {
        pub(crate) fn compute(&mut self) -> Result<(), EngineError> {
            match *self {}
        }

        pub(crate) fn allows(&self, _token: u32) -> bool {
            match *self {}
        }

        pub(crate) fn push(&mut self, _token: u32) -> Result<bool, EngineError> {
            match *self {}
        }
    }
}
