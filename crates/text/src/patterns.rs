//! Measures the regular expressions of a `tokenizer.json`: the shortest match, and the cost of compiling and
//! matching.

use fancy_regex::Expr;

/// Bytes of a pattern with its counted repetitions (`\w{200}`) written out, as the library does before it makes an
/// automaton of the pattern.
pub(crate) fn weight(pattern: &str) -> usize {
    // For each open group: the bytes of the whole group, and those of its last part, which a count would repeat.
    let mut groups = vec![(0usize, 0usize)];
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let len = part(c, rest);
        let (all, last) = groups.last().copied().unwrap_or_default();
        let (group, len) = match (c, count(rest)) {
            ('{', Some((len, times))) => {
                let more = last.saturating_mul(times.saturating_sub(1));
                ((all.saturating_add(more), last.saturating_add(more)), len)
            }
            _ => ((all.saturating_add(len), len), len),
        };
        match c {
            '(' => groups.push((1, 0)),
            ')' if groups.len() > 1 => {
                groups.pop();
                // The closed group is the last part of the group around it.
                let inside = all.saturating_add(1);
                if let Some(outer) = groups.last_mut() {
                    *outer = (outer.0.saturating_add(inside), inside);
                }
            }
            _ => *groups.last_mut().unwrap_or(&mut (0, 0)) = group,
        }
        rest = &rest[len..];
    }
    groups.into_iter().fold(0, |weight, (all, _)| weight.saturating_add(all))
}

/// Bytes of the first part of `rest`: an escape, a character class, or a single character.
fn part(c: char, rest: &str) -> usize {
    match c {
        '\\' => escape(rest),
        '[' => class(rest),
        _ => c.len_utf8(),
    }
}

/// Bytes of an escaped character or class: `\n`, `\p{L}`, `\x{1234}`.
fn escape(rest: &str) -> usize {
    let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
    let is_named = rest[1..].starts_with(['x', 'u', 'U', 'p', 'P']) && rest[len..].starts_with('{');
    match rest[len..].find('}').filter(|_| is_named) {
        Some(end) => len + end + 1,
        None => len,
    }
}

/// Bytes of a character class, with the classes nested in it.
fn class(rest: &str) -> usize {
    let (mut open, mut at) = (0usize, 0);
    while let Some(c) = rest[at..].chars().next() {
        let escaped = if c == '\\' { escape(&rest[at..]) } else { c.len_utf8() };
        at += escaped;
        match c {
            '[' => open += 1,
            ']' => open -= 1,
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    at
}

/// Bytes of a count, `{2}` or `{1,3}`, and the larger of its numbers.
fn count(rest: &str) -> Option<(usize, usize)> {
    let (inside, _) = rest.strip_prefix('{')?.split_once('}')?;
    let numbers: Vec<&str> = inside.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
    let are_digits = numbers.iter().all(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    // A number that does not parse overflows, so it counts as the largest.
    let times = numbers.iter().map(|number| number.parse().unwrap_or(usize::MAX)).max();
    times.filter(|_| are_digits).map(|times| (inside.len() + 2, times))
}

/// Steps that a pattern with look-around or back-references may take at one character, where an unbounded repetition
/// counts as [`ENDLESS`] repetitions. Zero for any other pattern, because such a pattern is matched in one pass.
///
/// An alternative that has look-around, or anything else that no automaton has, is matched by backtracking, each one
/// separately: what follows a repetition is tried after every number of repetitions.
pub(crate) fn steps(pattern: &str) -> usize {
    // A pattern that cannot be parsed is refused by the library.
    let Ok(tree) = Expr::parse_tree(pattern) else { return 0 };
    let mut whole = &tree.expr;
    while let Expr::Group(child) = whole {
        whole = child;
    }
    match whole {
        Expr::Alt(parts) => parts
            .iter()
            .filter(|part| goes_back(part))
            .fold(0, |all, part| all.saturating_add(tried(part).steps)),
        whole if goes_back(whole) => tried(whole).steps,
        _ => 0,
    }
}

/// The number of repetitions assumed for an unbounded repetition.
const ENDLESS: usize = 1024;

fn goes_back(part: &Expr) -> bool {
    match part {
        Expr::Concat(parts) | Expr::Alt(parts) => parts.iter().any(goes_back),
        Expr::Group(child) | Expr::Repeat { child, .. } => goes_back(child),
        Expr::Empty
        | Expr::Any { .. }
        | Expr::Assertion(_)
        | Expr::Literal { .. }
        | Expr::Delegate { .. } => false,
        Expr::LookAround(..)
        | Expr::Backref(_)
        | Expr::AtomicGroup(_)
        | Expr::KeepOut
        | Expr::ContinueFromPreviousMatchEnd
        | Expr::BackrefExistsCondition(_)
        | Expr::Conditional { .. } => true,
    }
}

/// The cost of matching a part in all possible ways.
#[derive(Clone, Copy)]
struct Tried {
    /// The number of ways in which the part can match, each of which is followed by an attempt to match the rest.
    ways: usize,
    steps: usize,
}

impl Tried {
    fn then(self, next: Self) -> Self {
        let steps = self.steps.saturating_add(self.ways.saturating_mul(next.steps));
        Self { ways: self.ways.saturating_mul(next.ways), steps }
    }

    fn or(self, other: Self) -> Self {
        Self { ways: self.ways.saturating_add(other.ways), steps: self.steps.saturating_add(other.steps) }
    }

    /// The cost of a repetition from `lo` to `hi` times.
    fn repeated(self, lo: usize, hi: usize) -> Self {
        let hi = if hi == usize::MAX { ENDLESS.max(lo) } else { hi };
        // The attempts over all repetitions: if a part matches in one way only, there are as many as repetitions.
        let power = self.ways.saturating_pow(u32::try_from(hi).unwrap_or(u32::MAX));
        let turns = if self.ways > 1 { power } else { hi };
        let ends = hi.saturating_sub(lo).saturating_add(1);
        Self { ways: power.saturating_mul(ends), steps: turns.saturating_mul(self.steps) }
    }
}

/// Whether a repeated literal and the literal behind it begin with different characters, so that the repetition can
/// end at one place only.
fn is_told_from(part: &Expr, next: &Expr) -> bool {
    let Expr::Repeat { child, .. } = part else { return false };
    let (Expr::Literal { val: one, casei: false }, Expr::Literal { val: other, casei: false }) =
        (&**child, next)
    else {
        return false;
    };
    one.chars().next() != other.chars().next()
}

fn tried(part: &Expr) -> Tried {
    let one = Tried { ways: 1, steps: 1 };
    let none = Tried { ways: 0, steps: 0 };
    match part {
        Expr::Concat(parts) => {
            let followed = parts.iter().zip(parts.iter().skip(1).map(Some).chain([None]));
            let each = followed.map(|(part, next)| match next {
                // The repetition ends where the next literal begins, so there is one way.
                Some(next) if is_told_from(part, next) => Tried { ways: 1, ..tried(part) },
                _ => tried(part),
            });
            each.fold(Tried { ways: 1, steps: 0 }, Tried::then)
        }
        Expr::Alt(parts) => parts.iter().map(tried).fold(none, Tried::or),
        Expr::Group(child) => tried(child),
        // The part is matched once and never backtracked into.
        Expr::LookAround(child, _) | Expr::AtomicGroup(child) => Tried { ways: 1, ..tried(child) },
        Expr::Repeat { child, lo, hi, .. } => tried(child).repeated(*lo, *hi),
        // A back-reference can be as long as the group that it repeats.
        Expr::Backref(_) => Tried { ways: 1, steps: ENDLESS },
        Expr::Conditional { condition, true_branch, false_branch } => {
            [condition, true_branch, false_branch].into_iter().map(|part| tried(part)).fold(none, Tried::or)
        }
        _ => one,
    }
}

/// The least bytes that a pattern matches; 0 if unknown.
pub(crate) fn shortest_match(pattern: &str) -> usize {
    let parsed = regex_syntax::parse(&without_looks(pattern)).ok();
    parsed.and_then(|parsed| parsed.properties().minimum_len()).unwrap_or(0)
}

/// The pattern without its look-aheads and look-behinds, which match no text themselves.
fn without_looks(pattern: &str) -> String {
    const LOOKS: [&str; 4] = ["(?=", "(?!", "(?<=", "(?<!"];
    let mut out = String::with_capacity(pattern.len());
    // The number of open parentheses inside the look-around that is being left out.
    let mut open = 0usize;
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let len = part(c, rest);
        match c {
            '(' if open > 0 || LOOKS.iter().any(|look| rest.starts_with(look)) => open += 1,
            ')' if open > 0 => open -= 1,
            _ if open == 0 => out += &rest[..len],
            _ => {}
        }
        rest = &rest[len..];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_looked_through(text in r"([\[\](){}?=<!:,19ap^]|\\|\\[xpu]\{|\(\?[=!]|\(\?<[=!]|\PC){0,40}") {
            let braces = text.matches('{').count() + text.matches('}').count();
            // Counts are left out, and everything else counts at least once.
            let least = text.chars().filter(|c| !"{}19, ".contains(*c)).count();
            prop_assert!(weight(&text) >= least || braces > 0, "{}", weight(&text));
            prop_assert!(without_looks(&text).len() <= text.len());
            steps(&text);
            shortest_match(&text);
        }
    }

    #[test]
    fn what_is_counted_weighs_as_often() {
        assert_eq!((weight("abc"), weight("a{3}"), weight("a{2,}b{,4}"), weight("a{2,5}")), (3, 3, 6, 5));
        assert_eq!((weight(r"\p{L}"), weight(r"\x{1234}{2}"), weight("{a}"), weight("{")), (5, 16, 3, 1));
        assert_eq!(
            (weight("[a{9}]{2}"), weight(r"[\]{9}a]"), weight("[^[a]b{9}]c"), weight("[a")),
            (12, 8, 11, 2)
        );
        assert_eq!(
            (weight("(ab){3}"), weight("((a{2}){3}b){4}|c"), weight(")(a"), weight("a{9")),
            (12, 62, 3, 3)
        );
        assert_eq!(weight("(a{99999999999999999999}){9}"), usize::MAX);
        // Llama 3's pattern weighs little more than its length.
        let llama = crate::cuts::LLAMA3;
        assert_eq!(weight(llama), llama.len() - "{1,3}".len() + 2 * r"\p{N}".len());
    }

    #[test]
    fn what_goes_back_is_tried_in_many_ways() {
        use crate::cuts::{GPT4O, LLAMA3};
        // Only the repetition before a look-around counts, however many alternatives without look-around there are.
        assert_eq!(
            (steps(r"\s+(?!\S)"), steps(LLAMA3), steps(GPT4O), steps(r"\s+|a*b*")),
            (2048, 2048, 2048, 0)
        );
        assert_eq!(
            (steps(r"(a*b*|\s+(?!\S))"), steps("a{9}(?=b)"), steps("a?b{2,5}(?!c)|(?<=c)d")),
            (2048, 10, 21)
        );
        // tiktoken's pattern of GPT-4 has possessive repetitions, so nothing is backtracked into.
        let gpt4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
        assert_eq!(steps(gpt4), 8 * 1024 + 6);
        // Line ends of either kind, as in Laguna's pattern.
        assert_eq!(steps(r"(?:\r?\n)+(?!\r?\n)"), 2 * 1024 + 1024 * 2);
        // Digits that are cut at thousands.
        assert_eq!((steps(r"(?=(\d{3})+(?!\d))"), steps(r"\d{1,3}(?=(?:\d{3})*$)")), (4096, 3 + 3 * 4097));
        // The cost doubles with each repetition or character.
        assert!(steps("a*b*(?!c)") > 1 << 20 && steps(r"(.*)\1") > 1 << 20);
        assert!(steps("(?:.(?=.)|.(?=.)){17}") > 1 << 17 && steps("(?:a+)+(?!b)") == usize::MAX);
    }

    #[test]
    fn what_looks_around_matches_nothing_by_itself() {
        let of = |pattern| (shortest_match(pattern), steps(pattern) > 0);
        assert_eq!(
            (of("ab+"), of(r"\s+(?!\S)"), of(r"(?<=\d)xy(?=(\d))")),
            ((2, false), (1, true), (2, true))
        );
        assert_eq!(
            (of("(?=a)"), of(r"[(?=a)]b"), of(r"\(?=a"), of("(?<!\n)^")),
            ((0, true), (2, false), (2, false), (0, true))
        );
        assert_eq!((of(r"(a)\1"), of("(")), ((0, true), (0, false)));
    }
}
