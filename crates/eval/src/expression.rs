//! Arithmetic, exactly.

use std::fmt;

use num_rational::Ratio;
use num_traits::{CheckedAdd, CheckedDiv, CheckedMul, CheckedSub, Zero};

/// Deeper than anybody nests.
const DEPTH: usize = 64;

/// Why a text is no expression with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpressionError {
    /// Not arithmetic.
    Syntax,
    /// Divides by zero.
    DividesByZero,
    /// A number beyond all measure.
    Overflow,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "no arithmetic expression",
            Self::DividesByZero => "divides by zero",
            Self::Overflow => "too large a number",
        })
    }
}

impl std::error::Error for ExpressionError {}

/// The value of an expression of whole numbers, `+ - * / ( )`, and the numbers in it. `×`, `·`, `÷`, `−` and LaTeX's
/// `\times`, `\cdot`, `\div`, `\frac{a}{b}`, `\left`, `\right` are understood.
///
/// # Errors
/// If it is none.
pub fn evaluate(text: &str) -> Result<(Ratio<i128>, Vec<i128>), ExpressionError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, numbers: Vec::new(), depth: 0 };
    let value = parser.sum()?;
    match parser.at == tokens.len() {
        true => Ok((value, parser.numbers)),
        false => Err(ExpressionError::Syntax),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    Number(i128),
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, ExpressionError> {
    let text = plain(text)?;
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\n' | '\t' | '\r' => {}
            '+' | '-' | '*' | '/' | '(' | ')' => tokens.push(Token::Sign(c)),
            '0'..='9' => {
                let mut number = i128::from(c as u32 - u32::from(b'0'));
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                    let larger = number.checked_mul(10).and_then(|n| n.checked_add(digit.into()));
                    number = larger.ok_or(ExpressionError::Overflow)?;
                    chars.next();
                }
                tokens.push(Token::Number(number));
            }
            _ => return Err(ExpressionError::Syntax),
        }
    }
    Ok(tokens)
}

/// LaTeX and typography as plain signs.
fn plain(text: &str) -> Result<String, ExpressionError> {
    let mut text = text.replace(['×', '·', '∗'], "*").replace('÷', "/").replace(['−', '–'], "-");
    for (latex, sign) in [("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\left", ""), ("\\right", "")]
    {
        text = text.replace(latex, sign);
    }
    for fraction in ["\\dfrac", "\\tfrac", "\\frac"] {
        while let Some(at) = text.find(fraction) {
            let rest = &text[at + fraction.len()..];
            let (above, rest) = braced(rest).ok_or(ExpressionError::Syntax)?;
            let (below, rest) = braced(rest).ok_or(ExpressionError::Syntax)?;
            text = format!("{}(({above})/({below})){rest}", &text[..at]);
        }
    }
    Ok(text.replace(['[', '{'], "(").replace([']', '}'], ")"))
}

/// What stands in the braces at the start, and what follows.
pub(crate) fn braced(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('{')?;
    let mut depth = 1;
    for (at, c) in inner.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    numbers: Vec<i128>,
    depth: usize,
}

type Value = Result<Ratio<i128>, ExpressionError>;

impl Parser<'_> {
    fn sign(&mut self, signs: &[char]) -> Option<char> {
        let Some(Token::Sign(sign)) = self.tokens.get(self.at) else { return None };
        signs.contains(sign).then(|| {
            self.at += 1;
            *sign
        })
    }

    fn sum(&mut self) -> Value {
        let mut value = self.product()?;
        while let Some(sign) = self.sign(&['+', '-']) {
            let other = self.product()?;
            let result = if sign == '+' { value.checked_add(&other) } else { value.checked_sub(&other) };
            value = result.ok_or(ExpressionError::Overflow)?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Value {
        let mut value = self.factor()?;
        while let Some(sign) = self.sign(&['*', '/']) {
            let other = self.factor()?;
            let result = match sign {
                '*' => value.checked_mul(&other),
                _ if other.is_zero() => return Err(ExpressionError::DividesByZero),
                _ => value.checked_div(&other),
            };
            value = result.ok_or(ExpressionError::Overflow)?;
        }
        Ok(value)
    }

    fn factor(&mut self) -> Value {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(ExpressionError::Syntax);
        }
        let value = match self.tokens.get(self.at) {
            Some(&Token::Number(number)) => {
                self.at += 1;
                self.numbers.push(number);
                Ok(Ratio::from_integer(number))
            }
            _ => match self.sign(&['(', '-', '+']) {
                Some('(') => {
                    let value = self.sum()?;
                    self.sign(&[')']).map(|_| value).ok_or(ExpressionError::Syntax)
                }
                Some('-') => self.factor().map(|value| -value),
                Some(_) => self.factor(),
                None => Err(ExpressionError::Syntax),
            },
        };
        self.depth -= 1;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Ratio<i128> {
        evaluate(text).unwrap().0
    }

    #[test]
    fn arithmetic_is_exact() {
        assert_eq!(value("1 + 2 * 3"), 7.into());
        assert_eq!(value("(1 + 2) * 3 - 4 / 2"), 7.into());
        // 0.1 + 0.2 of floats is the classic; here thirds.
        assert_eq!(value("1/3 + 1/3 + 1/3"), 1.into());
        assert_eq!(value("8 / (3 - 8 / 3)"), 24.into());
        assert_eq!(value("-(2 - 5) × 4 ÷ 6"), 2.into());
        assert_eq!(value("\\frac{3 + 5}{2} \\times \\left(7 - 1\\right)"), 24.into());
        assert_eq!(value("2 − 3"), (-1).into());
        assert_eq!(evaluate("3 * 10 + 4").unwrap().1, [3, 10, 4]);
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "1 +", "1 2", "(1", "1)", "x + 1", "1.5 + 2", "2 ^ 3", "\\frac{1}", "()", "*3"] {
            assert_eq!(evaluate(text).unwrap_err(), ExpressionError::Syntax, "{text}");
        }
        assert_eq!(evaluate("1 / (2 - 2)").unwrap_err(), ExpressionError::DividesByZero);
        assert_eq!(evaluate(&"9".repeat(50)).unwrap_err(), ExpressionError::Overflow);
        assert_eq!(evaluate(&format!("{0}*{0}", "9".repeat(30))).unwrap_err(), ExpressionError::Overflow);
        assert_eq!(evaluate(&"(".repeat(100_000)).unwrap_err(), ExpressionError::Syntax);
        assert_eq!(evaluate(&"-".repeat(100_000)).unwrap_err(), ExpressionError::Syntax);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9+*/() \\-{}×÷a]{0,40}") {
            let _ = evaluate(&text);
        }
    }
}
