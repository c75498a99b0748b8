//! Limits the length of a template's expressions, because minijinja's compiler recurses one level deeper for each
//! part.

use minijinja::{
    Error, ErrorKind,
    machinery::{Token, tokenize},
    syntax::SyntaxConfig,
};

/// Most names and operators in one expression, and most `elif` in the template: the compiler recurses one level
/// deeper for each of them.
const MAX_CHAIN: usize = 2000;

/// Refuses a template for which the compiler's recursion could overflow the stack.
///
/// # Errors
/// If an expression or a chain of conditions is too long.
pub(crate) fn check(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut chain, mut conditions, mut line) = (0, 0, 0);
    let mut begins = false;
    // Errors of the tokeniser are reported by the compiler.
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
        if chain.max(conditions) > MAX_CHAIN {
            break;
        }
    }
    match chain.max(conditions) > MAX_CHAIN {
        false => Ok(()),
        true => {
            let what = format!(
                "line {line}: more than {MAX_CHAIN} names and operators in one expression, or `elif`"
            );
            Err(Error::new(ErrorKind::SyntaxError, what))
        }
    }
}
