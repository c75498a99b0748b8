//! A template's text, where the engine has something otherwise than Jinja.

/// Tags that the engine does not have, or has otherwise than Jinja. `{% generation %}` marks what a trainer learns from: it
/// renders to its content, so it becomes an `if`. The line end behind `{% raw %}` stays in Jinja, so there are two of
/// them, of which the engine takes one away.
pub(super) fn adapted(source: &str) -> String {
    let is_mark = |c: char| c.is_whitespace() || c == '-' || c == '+';
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
        let inside = &rest[start + 2..];
        let Some((tag, behind)) = inside.split_once("%}") else { break };
        out += &rest[..start + 2];
        let name = tag.trim_matches(is_mark);
        if is_raw && name != "endraw" {
            // It is text, and what seems to end it may not.
            rest = inside;
            continue;
        }
        is_raw = name == "raw";
        match name {
            "generation" => out += &tag.replacen(name, "if true", 1),
            "endgeneration" => out += &tag.replacen(name, "endif", 1),
            _ => out += tag,
        }
        out += "%}";
        if is_raw && !tag.ends_with('-') {
            let line = ["\n", "\r\n"].into_iter().find(|line| behind.starts_with(line));
            out += line.unwrap_or_default();
        }
        rest = behind;
    }
    out + rest
}
