//! Exact arithmetic with expressions.

use std::fmt;

use num_rational::Ratio;
use num_traits::{CheckedAdd, CheckedDiv, CheckedMul, CheckedSub, One, Zero};

use crate::latex::{BINOMIAL, MIXED, ROOT, plain};

/// Deepest nesting of an expression.
const DEPTH: usize = 64;
/// Larger numerators and denominators are refused; the limit leaves room below the end of `i128` for the operations
/// on them.
const LIMIT: u128 = 10u128.pow(36);
/// Most decimal places that are read; further places are dropped.
const MAX_PLACES: usize = 30;
const MAX_EXPONENT: i128 = 512;
const MAX_ROOT: i128 = 64;
const MAX_FACTORIAL: i128 = 33;
const MAX_BINOMIAL: i128 = 200;

/// Why a text is no expression with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpressionError {
    /// The text is not arithmetic.
    Syntax,
    /// The expression divides by zero.
    DividesByZero,
    /// A number is too large.
    Overflow,
    /// A root is not rational.
    Irrational,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "no arithmetic expression",
            Self::DividesByZero => "divides by zero",
            Self::Overflow => "too large a number",
            Self::Irrational => "no fraction",
        })
    }
}

impl std::error::Error for ExpressionError {}

/// The value of an expression of integers and `+ - * / ( )`, and the numbers in it. `×`, `·`, `÷`, `−` and LaTeX's
/// `\times`, `\cdot`, `\div`, `\frac{a}{b}`, `\left`, `\right` are understood.
///
/// # Errors
/// If the text is no such expression.
pub fn evaluate(text: &str) -> Result<(Ratio<i128>, Vec<i128>), ExpressionError> {
    let tokens = tokens(text, false)?;
    let mut parser = Parser { tokens: &tokens, at: 0, numbers: Vec::new(), depth: 0 };
    let value = parser.whole()?;
    Ok((value, parser.numbers))
}

/// The value of an expression as answers write it: in addition to [`evaluate`]'s syntax, decimals, `1e3`, mixed
/// numbers, powers, roots, factorials, binomial coefficients, absolute values and ratios such as `3:4`.
pub(crate) fn value(text: &str) -> Result<Ratio<i128>, ExpressionError> {
    let tokens = tokens(text, true)?;
    Parser { tokens: &tokens, at: 0, numbers: Vec::new(), depth: 0 }.whole()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    Number(Ratio<i128>),
    Sign(char),
}

fn tokens(text: &str, extended: bool) -> Result<Vec<Token>, ExpressionError> {
    let text: Vec<char> = plain(text, extended)?.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        match c {
            ' ' | '\n' | '\t' | '\r' => at += 1,
            '+' | '-' | '*' | '/' | '(' | ')' => {
                tokens.push(Token::Sign(c));
                at += 1;
            }
            '^' | '!' | '|' | MIXED | ROOT | BINOMIAL if extended => {
                tokens.push(Token::Sign(c));
                at += 1;
            }
            ':' if extended => {
                tokens.push(Token::Sign('/'));
                at += 1;
            }
            _ if c.is_ascii_digit() || (extended && c == '.') => {
                let (number, end) = literal(&text, at, extended)?;
                tokens.push(Token::Number(number));
                at = end;
            }
            _ => return Err(ExpressionError::Syntax),
        }
    }
    Ok(tokens)
}

/// Parses the number at `start`; returns it and the position of its end.
fn literal(text: &[char], start: usize, extended: bool) -> Result<(Ratio<i128>, usize), ExpressionError> {
    let count_digits = |from: usize| text[from..].iter().take_while(|c| c.is_ascii_digit()).count();
    let mut at = start + count_digits(start);
    let mut digits: String = text[start..at].iter().collect();
    let mut exponent: i32 = 0;
    if extended && text.get(at) == Some(&'.') {
        let places = count_digits(at + 1);
        let read = places.min(MAX_PLACES);
        digits.extend(&text[at + 1..at + 1 + read]);
        exponent = -(read as i32);
        at += 1 + places;
    }
    if digits.is_empty() {
        return Err(ExpressionError::Syntax);
    }
    if extended && matches!(text.get(at), Some('e' | 'E')) {
        let sign = text.get(at + 1).copied();
        let from = at + 1 + usize::from(matches!(sign, Some('+' | '-')));
        let end = from + count_digits(from);
        let written: String = text[from..end].iter().collect();
        if written.is_empty() {
            return Err(ExpressionError::Syntax);
        }
        // An exponent of three digits or more is out of range.
        let power: i32 = written.parse::<u8>().map_err(|_| ExpressionError::Overflow)?.into();
        exponent += if sign == Some('-') { -power } else { power };
        at = end;
    }
    let number: i128 = digits.parse().map_err(|_| ExpressionError::Overflow)?;
    let scale = 10i128.checked_pow(exponent.unsigned_abs()).ok_or(ExpressionError::Overflow)?;
    let (number, scale) = (Ratio::from_integer(number), Ratio::from_integer(scale));
    let scaled = if exponent < 0 { number.checked_div(&scale) } else { number.checked_mul(&scale) };
    Ok((limited(scaled)?, at))
}

type Value = Result<Ratio<i128>, ExpressionError>;

/// A result that further operations cannot overflow unnoticed.
fn limited(value: Option<Ratio<i128>>) -> Value {
    let fits =
        |value: &Ratio<i128>| value.numer().unsigned_abs() <= LIMIT && value.denom().unsigned_abs() <= LIMIT;
    value.filter(fits).ok_or(ExpressionError::Overflow)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    numbers: Vec<i128>,
    depth: usize,
}

impl Parser<'_> {
    /// Parses all tokens as one expression.
    fn whole(&mut self) -> Value {
        let value = self.sum()?;
        match self.at == self.tokens.len() {
            true => Ok(value),
            false => Err(ExpressionError::Syntax),
        }
    }

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
            value = limited(if sign == '+' { value.checked_add(&other) } else { value.checked_sub(&other) })?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Value {
        let mut value = self.factor()?;
        loop {
            // `2\sqrt{9}` is a product without an operator.
            let sign = match self.tokens.get(self.at) {
                Some(&Token::Sign(ROOT)) => '*',
                _ => match self.sign(&['*', '/']) {
                    Some(sign) => sign,
                    None => return Ok(value),
                },
            };
            let other = self.factor()?;
            value = limited(match sign {
                '*' => value.checked_mul(&other),
                _ if other.is_zero() => return Err(ExpressionError::DividesByZero),
                _ => value.checked_div(&other),
            })?;
        }
    }

    fn factor(&mut self) -> Value {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(ExpressionError::Syntax);
        }
        let value = match self.sign(&['-', '+']) {
            Some('-') => self.factor().map(|value| -value),
            Some(_) => self.factor(),
            None => self.power(),
        };
        self.depth -= 1;
        value
    }

    fn power(&mut self) -> Value {
        let mut base = self.atom()?;
        while self.sign(&['!']).is_some() {
            base = factorial(base)?;
        }
        match self.sign(&['^']) {
            Some(_) => raise(base, self.factor()?),
            None => Ok(base),
        }
    }

    fn atom(&mut self) -> Value {
        if let Some(&Token::Number(number)) = self.tokens.get(self.at) {
            self.at += 1;
            self.numbers.push(number.to_integer());
            return match self.sign(&[MIXED]) {
                Some(_) => limited(number.checked_add(&self.group()?)),
                None => Ok(number),
            };
        }
        match self.sign(&[ROOT, BINOMIAL, '|']) {
            Some(ROOT) => {
                let degree = self.group()?;
                let radicand = self.group()?;
                match degree.is_integer() {
                    true => root(radicand, degree.to_integer()),
                    false => Err(ExpressionError::Syntax),
                }
            }
            Some(BINOMIAL) => {
                let above = self.group()?;
                let below = self.group()?;
                binomial(above, below)
            }
            Some(_) => {
                let value = self.sum()?;
                self.sign(&['|']).ok_or(ExpressionError::Syntax)?;
                Ok(if value < Ratio::zero() { -value } else { value })
            }
            None => self.group(),
        }
    }

    fn group(&mut self) -> Value {
        self.sign(&['(']).ok_or(ExpressionError::Syntax)?;
        let value = self.sum()?;
        self.sign(&[')']).ok_or(ExpressionError::Syntax)?;
        Ok(value)
    }
}

fn raise(base: Ratio<i128>, exponent: Ratio<i128>) -> Value {
    let mut base = root(base, *exponent.denom())?;
    let times = *exponent.numer();
    if times.abs() > MAX_EXPONENT {
        return Err(ExpressionError::Overflow);
    }
    if times < 0 {
        if base.is_zero() {
            return Err(ExpressionError::DividesByZero);
        }
        base = base.recip();
    }
    let mut value: Ratio<i128> = Ratio::one();
    for _ in 0..times.abs() {
        value = limited(value.checked_mul(&base))?;
    }
    Ok(value)
}

fn root(of: Ratio<i128>, degree: i128) -> Value {
    if !(1..=MAX_ROOT).contains(&degree) {
        return Err(ExpressionError::Overflow);
    }
    let is_negative = of < Ratio::zero();
    if is_negative && degree % 2 == 0 {
        return Err(ExpressionError::Irrational);
    }
    let whole = |of: &i128| exact_root(of.unsigned_abs(), degree as u32).ok_or(ExpressionError::Irrational);
    let value = Ratio::new(whole(of.numer())? as i128, whole(of.denom())? as i128);
    Ok(if is_negative { -value } else { value })
}

/// The integer whose power is exactly this number.
fn exact_root(of: u128, degree: u32) -> Option<u128> {
    // The power of `low` is at most `of`, and that of `high` is greater.
    let (mut low, mut high) = (0u128, of + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match middle.checked_pow(degree) {
            Some(power) if power <= of => low = middle,
            _ => high = middle,
        }
    }
    (low.checked_pow(degree) == Some(of)).then_some(low)
}

fn factorial(of: Ratio<i128>) -> Value {
    if !of.is_integer() || !(0..=MAX_FACTORIAL).contains(&of.to_integer()) {
        return Err(ExpressionError::Overflow);
    }
    let mut value: Ratio<i128> = Ratio::one();
    for factor in 2..=of.to_integer() {
        value = limited(value.checked_mul(&Ratio::from_integer(factor)))?;
    }
    Ok(value)
}

fn binomial(above: Ratio<i128>, below: Ratio<i128>) -> Value {
    let (n, k) = (above.to_integer(), below.to_integer());
    if !above.is_integer() || !below.is_integer() || k < 0 || n < k || n > MAX_BINOMIAL {
        return Err(ExpressionError::Overflow);
    }
    let k = k.min(n - k);
    let mut value: Ratio<i128> = Ratio::one();
    for step in 1..=k {
        value = limited(value.checked_mul(&Ratio::new(n - k + step, step)))?;
    }
    Ok(value)
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
        // Floats would not give exactly 1 for sums of this kind.
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

    #[test]
    fn answers_may_have_more_than_countdown() {
        for (text, expected) in [
            ("1.5 + .5", (2, 1)),
            ("1.2 \\times 10^{3}", (1200, 1)),
            ("1e-3", (1, 1000)),
            ("-2^2", (-4, 1)),
            ("2^{-1}", (1, 2)),
            ("2^3^2", (512, 1)),
            ("8^{2/3}", (4, 1)),
            ("2\\sqrt{16}", (8, 1)),
            ("\\sqrt{\\frac{9}{4}}", (3, 2)),
            ("\\sqrt[3]{-27}", (-3, 1)),
            ("-1\\frac{1}{2}", (-3, 2)),
            ("{1 \\over 2}", (1, 2)),
            ("5!", (120, 1)),
            ("|2 - 5|", (3, 1)),
            ("\\binom{10}{3}", (120, 1)),
            ("3:4", (3, 4)),
        ] {
            assert_eq!(super::value(text), Ok(Ratio::new(expected.0, expected.1)), "{text}");
        }
        for (text, expected) in [
            ("\\sqrt{3}", ExpressionError::Irrational),
            ("(-4)^{1/2}", ExpressionError::Irrational),
            ("0^{-1}", ExpressionError::DividesByZero),
            ("1e999999999", ExpressionError::Overflow),
            ("10^{10^{10}}", ExpressionError::Overflow),
            ("99!", ExpressionError::Overflow),
            ("2^(1/1000)", ExpressionError::Overflow),
            ("1 2", ExpressionError::Syntax),
            (".", ExpressionError::Syntax),
            ("1e", ExpressionError::Syntax),
            ("5x", ExpressionError::Syntax),
        ] {
            assert_eq!(super::value(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9+*/() \\-{}×÷a]{0,40}", more in "[0-9.e+*/^!|(){}\\[\\]:√ -]{0,40}") {
            let _ = evaluate(&text);
            let _ = super::value(&more);
        }
    }
}
