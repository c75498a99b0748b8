//! The regular expressions of a `tokenizer.json`: what they match at least, and what it takes to compile them.

/// Bytes of a pattern that an automaton is made of, more or less: the library writes what is counted (`\w{200}`) out.
pub(crate) fn weight(pattern: &str) -> usize {
    let counts = pattern.match_indices('{').filter_map(|(at, _)| {
        // `\x{1234}` is a character, and `\p{L}` a class.
        let named = pattern[..at].ends_with(['x', 'u', 'U', 'p', 'P']) && pattern[..at - 1].ends_with('\\');
        let inside = pattern[at + 1..].split_once('}').filter(|_| !named)?.0;
        let numbers: Vec<&str> =
            inside.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
        let is_count = !numbers.is_empty() && numbers.iter().all(|n| n.bytes().all(|b| b.is_ascii_digit()));
        // What is no number that can be read is a large one.
        is_count.then(|| numbers.iter().map(|n| n.parse().unwrap_or(usize::MAX)).max().unwrap_or(0))
    });
    counts.fold(pattern.len(), |weight, count: usize| weight.saturating_mul(count.max(1)))
}

/// Whether it is matched by going back, as what looks around is: then a character can take as many steps as the
/// library allows.
pub(crate) fn goes_back(pattern: &str) -> bool {
    regex_syntax::parse(pattern).is_err()
}

/// Bytes that a pattern matches at least; none if that cannot be said.
pub(crate) fn shortest_match(pattern: &str) -> usize {
    let parsed = regex_syntax::parse(&without_looks(pattern)).ok();
    parsed.and_then(|parsed| parsed.properties().minimum_len()).unwrap_or(0)
}

/// The pattern without what looks ahead and behind, which matches nothing by itself.
fn without_looks(pattern: &str) -> String {
    const LOOKS: [&str; 4] = ["(?=", "(?!", "(?<=", "(?<!"];
    let mut out = String::with_capacity(pattern.len());
    // Open parentheses of the look that is left out, and whether a class is open.
    let (mut open, mut is_class) = (0usize, false);
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        if open == 0 && !is_class && LOOKS.iter().any(|look| rest.starts_with(look)) {
            open = 1;
        } else {
            if open == 0 {
                out += &rest[..len];
            }
            match c {
                '[' => is_class = true,
                ']' => is_class = false,
                '(' if open > 0 && !is_class => open += 1,
                ')' if open > 0 && !is_class => open -= 1,
                _ => {}
            }
        }
        rest = &rest[len..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_weighs_as_often() {
        assert_eq!((weight("abc"), weight("a{3}"), weight("a{2,}b{,4}"), weight("a{2,5}")), (3, 12, 80, 30));
        assert_eq!((weight(r"\p{L}"), weight(r"\x{1234}"), weight("{a}"), weight("{")), (5, 8, 3, 1));
        assert_eq!(weight("(a{99999999999999999999}){9}"), usize::MAX);
    }

    #[test]
    fn what_looks_around_matches_nothing_by_itself() {
        let of = |pattern| (shortest_match(pattern), goes_back(pattern));
        assert_eq!(
            (of("ab+"), of(r"\s+(?!\S)"), of(r"(?<=\d)xy(?=(\d))")),
            ((2, false), (1, true), (2, true))
        );
        assert_eq!(
            (of("(?=a)"), of(r"[(?=a)]b"), of(r"\(?=a"), of("(?<!\n)^")),
            ((0, true), (2, false), (2, false), (0, true))
        );
        assert_eq!((of(r"(a)\1"), of("(")), ((0, true), (0, true)));
    }
}
