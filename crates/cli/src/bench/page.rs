//! Renders rows as one HTML page that opens from a local disk.

use anyhow::Result;

use super::row::BenchRow;

const TEMPLATE: &str = include_str!("page.html");

/// The placeholder for the rows, which are JSON with escaped `<`.
const PLACE: &str = "/*ROWS*/";

/// The page, without links and without loading anything.
///
/// # Errors
/// If a number cannot be written as JSON, such as NaN.
pub(super) fn page(rows: &[BenchRow]) -> Result<String> {
    // In a script element, `<` could end the element or begin a comment.
    let rows = serde_json::to_string(rows)?.replace('<', "\\u003c");
    Ok(TEMPLATE.replacen(PLACE, &rows, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_reads_no_text_as_markup() {
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
        // The page contains one address, the namespace of SVG elements.
        let page = TEMPLATE.replace("http://www.w3.org/2000/svg", "");
        for word in [
            "http:",
            "https:",
            "src=",
            "href=",
            "@import",
            "url(",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!page.contains(word), "the page has {word}");
        }
    }

    #[test]
    fn rows_do_not_end_their_element() {
        let row = BenchRow { model: "</script><b>".to_owned(), ..BenchRow::default() };
        let page = page(&[row]).unwrap();
        assert!(page.contains("\"model\":\"\\u003c/script>\\u003cb>\""));
        assert!(!page.contains("</script><b>") && !page.contains(PLACE));
    }
}
