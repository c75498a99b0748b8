//! A template's text, where the engine has something otherwise than Jinja.

/// Tags that the engine does not have, or has otherwise than Jinja. `{% generation %}` marks what a trainer learns from: it
/// renders to its content, so it becomes an `if`. The line end behind `{% raw %}` stays in Jinja, so there are two of
/// them, of which the engine takes one away.
pub(super) fn adapted(source: &str) -> String {
    let name =
        |tag: &str| tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+').to_owned();
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_raw = false;
    while let Some(start) = rest.find("{%") {
        // What a comment says is no tag.
        if let Some(comment) = rest[..start].find("{#").filter(|_| !is_raw) {
            let end = rest[comment..].find("#}").map_or(rest.len(), |len| comment + len + 2);
            out += &rest[..end];
            rest = &rest[end..];
            continue;
        }
        let Some(len) = rest[start + 2..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start..start + 2 + len]);
        out += before;
        rest = &rest[start + tag.len()..];
        match name(tag).as_str() {
            "endraw" => {
                is_raw = false;
                out += tag;
            }
            // It is text, and what seems to end it may not.
            _ if is_raw => {
                out += "{%";
                rest = &source[source.len() - rest.len() - tag.len() + 2..];
            }
            "raw" => {
                is_raw = true;
                let behind = &rest[2..];
                let lines = ["\n", "\r\n"].into_iter().find(|line| behind.starts_with(line));
                out += tag;
                if let Some(line) = lines.filter(|_| !tag.ends_with('-')) {
                    out += "%}";
                    out += line;
                    rest = behind;
                }
            }
            "generation" => out += &tag.replacen("generation", "if true", 1),
            "endgeneration" => out += &tag.replacen("endgeneration", "endif", 1),
            _ => out += tag,
        }
    }
    out + rest
}
