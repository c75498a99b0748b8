//! Draws rates and their intervals as a chart.

use std::fmt::Write;

use crate::{Summary, report::escaped};

const WIDTH: f64 = 840.0;
const ROW: f64 = 30.0;
const RIGHT: f64 = 60.0;
const BELOW: f64 = 26.0;

/// An SVG chart with a dot for each rule's rate, and a line for its interval.
pub(crate) fn svg(summary: &Summary) -> String {
    let longest = summary.rules.iter().map(|rule| rule.rule.chars().count()).max().unwrap_or(0);
    let left = 20.0 + 8.0 * longest as f64;
    let height = ROW * summary.rules.len() as f64;
    // The axis ends at the next tenth above all intervals.
    let most = summary.rules.iter().map(|rule| rule.interval.high).fold(0.0, f64::max);
    let end = ((most * 10.0).ceil() / 10.0).clamp(0.1, 1.0);
    let x = |rate: f64| left + rate / end * (WIDTH - left - RIGHT);
    let mut text = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"accuracy by rule\">",
        height + BELOW
    );
    // Writing to a string cannot fail.
    for tick in 0..=5 {
        let rate = end * f64::from(tick) / 5.0;
        let at = x(rate);
        let _ =
            write!(text, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{height:.1}\"/>");
        let _ = write!(
            text,
            "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}%</text>",
            height + 17.0,
            100.0 * rate
        );
    }
    for (at, rule) in summary.rules.iter().enumerate() {
        let y = ROW * (at as f64 + 0.5);
        let (low, high, dot) = (x(rule.interval.low), x(rule.interval.high), x(rule.accuracy));
        let _ = write!(text, "<text x=\"4\" y=\"{:.1}\">{}</text>", y + 4.5, escaped(&rule.rule));
        let _ = write!(
            text,
            "<line class=\"mark\" stroke-width=\"2\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
        let _ = write!(text, "<circle class=\"mark\" cx=\"{dot:.1}\" cy=\"{y:.1}\" r=\"5\"/>");
        let _ = write!(
            text,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{:.1}%</text>",
            high + 8.0,
            y + 4.0,
            100.0 * rule.accuracy
        );
    }
    text + "</svg>"
}
