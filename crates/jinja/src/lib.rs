//! Jinja for chat templates: renders as Python's transformers does, with bounded time and memory.
//!
//! The engine is [minijinja]. Its compiled instructions are changed before they run: each operator, filter, test and
//! field becomes one that counts what it reads and makes, and that does what Python's does.
//! docs/architecture/templates.md lists the replacements. A template has no access to files, to other templates or to
//! the environment.
//!
//! ```
//! use moi_jinja::{Template, context};
//!
//! let template = Template::new("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}")?;
//! let messages = vec![context! { role => "user", content => " hello " }];
//! assert_eq!(template.render(context! { messages }, 10_000)?, "<user>hello");
//!
//! // A template that never ends is an error, whatever it does.
//! let endless = Template::new("{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}")?;
//! assert!(endless.render(context! {}, 10_000).is_err());
//! # Ok::<(), moi_jinja::TemplateError>(())
//! ```

mod adapt;
mod args;
mod chains;
mod constants;
mod cost;
mod filters;
mod functions;
mod json;
mod layout;
mod lists;
mod methods;
mod numbers;
mod objects;
mod operators;
mod printf;
mod python;
mod rewrite;
mod tags;
#[cfg(test)]
mod tests;
mod tests_of_jinja;
mod text_methods;
mod texts;

use std::{fmt, sync::Arc};

use minijinja::{
    AutoEscape, Environment, escape_formatter,
    machinery::{self, CompiledTemplate, TemplateConfig},
    syntax::SyntaxConfig,
    value::ValueKind,
};
pub use minijinja::{Value, context, value::Serde};

use crate::rewrite::{Charged, rewrite};

const NAME: &str = "chat_template";

/// Why a template is not valid, or could not be rendered: one or more lines of bounded length, without control
/// characters.
///
/// # Examples
/// ```
/// use moi_jinja::{Template, TemplateError, context};
///
/// let template = Template::new("{{ raise_exception('a system message is not supported') }}")?;
/// let error: TemplateError = template.render(context! {}, 1_000).unwrap_err();
/// assert!(error.to_string().contains("a system message is not supported"));
/// # Ok::<(), TemplateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError(String);

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TemplateError {}

impl From<minijinja::Error> for TemplateError {
    fn from(error: minijinja::Error) -> Self {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what += &format!(": {cause}");
            source = cause.source();
        }
        Self(moi_files::brief(&what))
    }
}

/// A compiled template.
///
/// # Examples
/// ```
/// use moi_jinja::{Template, context};
///
/// let template = Template::new("Hello {{ name | upper }}!")?;
/// assert_eq!(template.render(context! { name => "world" }, 1_000)?, "Hello WORLD!");
/// assert_eq!(template.source(), "Hello {{ name | upper }}!");
/// // The second argument bounds the steps.
/// let long = Template::new("{% for i in range(1000) %}{{ i }}{% endfor %}")?;
/// assert!(long.render(context! {}, 100).is_err());
/// # Ok::<(), moi_jinja::TemplateError>(())
/// ```
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    /// The source as minijinja reads it.
    adapted: String,
    charged: Charged,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// If the source is not valid Jinja, or uses something that cannot be bounded.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(methods::method);
        functions::add(&mut environment);
        environment.add_filter("string", |value: &Value| texts::text(value).map(Value::from));
        filters::add(&mut environment);
        lists::add(&mut environment);
        numbers::add(&mut environment);
        tests_of_jinja::add(&mut environment);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Undefined | ValueKind::String => escape_formatter(out, state, value),
            _ => Ok(out.write_str(&texts::text(value)?)?),
        });
        // `debug` would print values that hold themselves.
        environment.remove_global("debug");
        operators::add(&mut environment);
        let adapted = adapt::adapted(source)?;
        let compiled = compile(&adapted)?;
        let mut charged = Charged::default();
        for instructions in compiled.blocks.values().chain([&compiled.instructions]) {
            for instruction in (0..).map_while(|at| instructions.get(at)) {
                charged.add(&mut environment, instruction);
            }
        }
        drop(compiled);
        let template = Self { environment, source: source.to_owned(), adapted, charged };
        template.compiled()?;
        Ok(template)
    }

    /// The template's source text.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn compiled(&self) -> Result<CompiledTemplate<'_>, TemplateError> {
        let mut compiled = compile(&self.adapted)?;
        rewrite(&mut compiled.instructions, &self.charged)?;
        compiled.blocks.values_mut().try_for_each(|block| rewrite(block, &self.charged))?;
        Ok(compiled)
    }

    /// Renders the template with these variables. A step costs one unit of `fuel`, and every 64 bytes that it makes
    /// cost one more, so `fuel` bounds time and memory; what a single step reads has a separate bound.
    ///
    /// # Errors
    /// If the template refuses the variables, or does not end within `fuel`.
    pub fn render(&self, variables: Value, fuel: u64) -> Result<String, TemplateError> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let CompiledTemplate { instructions, blocks, initial_auto_escape, .. } = self.compiled()?;
        cost::begin();
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(&environment, &instructions, variables, &blocks, &mut out, initial_auto_escape)?;
        drop(out);
        Ok(text)
    }
}

fn compile(source: &str) -> Result<CompiledTemplate<'_>, TemplateError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    chains::check(source, &syntax)?;
    let config =
        TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    Ok(CompiledTemplate::new(NAME, source, &config)?)
}
