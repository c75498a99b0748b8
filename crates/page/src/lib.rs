//! The web pages of moi: the chat page of `moi serve` and the trace page of `moi trace`, which draw runs with the
//! same code. They are written by hand, without a framework or a build step.
//!
//! ```
//! let page = moi_page::trace(r#"{"runs": []}"#);
//! assert!(page.contains(r#"{"runs": []}"#));
//! assert!(moi_page::FILES.iter().any(|file| file.name == "index.html"));
//! ```

/// A file of the chat page.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The file's name; `index.html` is the page itself.
    pub name: &'static str,
    /// The file's content type.
    pub kind: &'static str,
    /// The file's content.
    pub text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

const TRACE_STYLE: &str = include_str!("../files/trace.css");
const TRACE_SCRIPT: &str = include_str!("../files/trace.js");

/// The files of the chat page, which load only each other.
pub const FILES: &[File] = &[
    File { name: "index.html", kind: HTML, text: include_str!("../files/index.html") },
    File { name: "chat.css", kind: STYLE, text: include_str!("../files/chat.css") },
    File { name: "trace.css", kind: STYLE, text: TRACE_STYLE },
    File { name: "app.js", kind: SCRIPT, text: include_str!("../files/app.js") },
    File { name: "answer.js", kind: SCRIPT, text: include_str!("../files/answer.js") },
    File { name: "api.js", kind: SCRIPT, text: include_str!("../files/api.js") },
    File { name: "markdown.js", kind: SCRIPT, text: include_str!("../files/markdown.js") },
    File { name: "settings.js", kind: SCRIPT, text: include_str!("../files/settings.js") },
    File { name: "store.js", kind: SCRIPT, text: include_str!("../files/store.js") },
    File { name: "icon.svg", kind: "image/svg+xml", text: include_str!("../files/icon.svg") },
    File { name: "trace.js", kind: SCRIPT, text: TRACE_SCRIPT },
];

/// The place in [`trace_template`] where the data of a trace is inserted.
pub const PLACE: &str = "/*DATA*/";

/// The trace page without data. The data must be inserted at [`PLACE`], as JSON in which `<` is escaped.
pub fn trace_template() -> String {
    let page = include_str!("../files/trace.html");
    page.replacen("/*STYLE*/", TRACE_STYLE, 1).replacen("/*SCRIPT*/", TRACE_SCRIPT, 1)
}

/// A trace page that shows `runs`, which are JSON as `moi trace` writes it. The page can be opened from a disk,
/// because it has no links and loads no other files.
pub fn trace(runs: &str) -> String {
    // In a script element, `<` could begin a comment or the end tag, so it is escaped.
    trace_template().replacen(PLACE, &runs.replace('<', "\\u003c"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_loads_its_own_files_alone() {
        let bytes: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(bytes + trace_template().len() <= 120 << 10, "{bytes} bytes");
        let names: Vec<&str> = FILES.iter().map(|file| file.name).collect();
        let index = FILES.iter().find(|file| file.name == "index.html").map_or("", |file| file.text);
        for link in index.split(['"', '\'']).filter_map(|part| part.strip_prefix("page/")) {
            assert!(names.contains(&link), "there is no {link}");
        }
        for file in FILES.iter().filter(|file| file.name.ends_with(".js")) {
            for from in file.text.lines().filter_map(|line| line.split(" from \"./").nth(1)) {
                let name = from.split('"').next().unwrap_or_default();
                assert!(names.contains(&name), "{}: there is no {name}", file.name);
            }
            // The scripts must never interpret text as HTML.
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!file.text.contains(word), "{} has {word}", file.name);
            }
        }
        // The page's content security policy forbids inline styles.
        assert!(!index.contains("style=") && !index.contains("<style"));
    }

    #[test]
    fn data_does_not_end_its_element() {
        let page = trace("{\"a\": \"</script><b>\"}");
        assert!(page.contains("\\u003c/script>\\u003cb>") && !page.contains("</script><b>"));
    }
}
