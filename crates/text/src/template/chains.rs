//! How long a template's expressions may be: the compiler goes a level deeper for each part of one.

use minijinja::{
    Error, ErrorKind,
    machinery::{Token, tokenize},
    syntax::SyntaxConfig,
};

/// Of names and operators in one expression, and of `elif` in all: an expression and a chain of conditions are compiled
/// a level deeper for each.
const LONGEST_CHAIN: usize = 2000;

/// Refuses a template that the compiler's recursion has no room for.
///
/// # Errors
/// If an expression or a chain of conditions is too long.
pub(super) fn check(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut chain, mut conditions, mut line) = (0, 0, 0);
    let mut begins = false;
    // What cannot be cut into tokens is told of by the compiler.
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        line = span.start_line;
        match token {
            Token::VariableStart | Token::BlockStart => (chain, begins) = (0, true),
            Token::TemplateData(_)
            | Token::Comma
            | Token::Colon
            | Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_) => begins = false,
            token => {
                conditions += usize::from(begins && matches!(token, Token::Ident("elif")));
                chain += 1;
                begins = false;
            }
        }
        if chain.max(conditions) > LONGEST_CHAIN {
            break;
        }
    }
    match chain.max(conditions) > LONGEST_CHAIN {
        false => Ok(()),
        true => {
            let what = format!(
                "line {line}: more than {LONGEST_CHAIN} names and operators in one expression, or `elif`"
            );
            Err(Error::new(ErrorKind::SyntaxError, what))
        }
    }
}
