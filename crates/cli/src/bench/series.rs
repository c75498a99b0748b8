//! Sorts rows into the charts, lines and bars to draw.

use super::{row::BenchRow, table::short_name};

/// One chart.
#[derive(Debug, PartialEq)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// The quantity on the horizontal axis.
    pub(super) along: &'static str,
    /// The categories from left to right.
    pub(super) categories: Vec<String>,
    pub(super) series: Vec<Series>,
    pub(super) is_bars: bool,
}

/// One line, or all bars of one colour.
#[derive(Debug, PartialEq)]
pub(super) struct Series {
    pub(super) label: String,
    /// The index of the category, and tokens per second.
    pub(super) points: Vec<(usize, f64)>,
}

/// The quantity that a chart shows on its horizontal axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Along {
    Batch,
    Depth,
    Device,
}

/// Makes charts by batch and by depth if these vary, and by device if that varies or nothing does.
pub(super) fn panels(rows: &[BenchRow]) -> Vec<Panel> {
    let mut panels: Vec<Panel> =
        [Along::Batch, Along::Depth].into_iter().filter_map(|along| lines(rows, along)).collect();
    if panels.is_empty() || rows.iter().any(|row| row.device != rows[0].device) {
        panels.push(bars(rows));
    }
    panels
}

/// A chart with one line per series of at least two points.
fn lines(rows: &[BenchRow], along: Along) -> Option<Panel> {
    let of = |row: &BenchRow| if along == Along::Batch { row.batch } else { row.depth };
    let mut values: Vec<usize> = rows.iter().map(of).collect();
    values.sort_unstable();
    values.dedup();
    let places = rows.iter().map(|row| values.iter().position(|value| *value == of(row)).unwrap_or(0));
    let mut groups = grouped(rows.iter().zip(places), along);
    groups.retain(|(_, points)| points.len() > 1);
    if groups.is_empty() {
        return None;
    }
    let (title, name) = match along {
        Along::Batch => ("Tokens per second by batch", "sequences side by side"),
        _ => ("Tokens per second by depth", "positions in the cache before"),
    };
    let categories = values.iter().map(usize::to_string).collect();
    Some(Panel { title, along: name, categories, series: labelled(groups), is_bars: false })
}

/// A bar chart of the rows with the smallest batch and depth.
fn bars(rows: &[BenchRow]) -> Panel {
    let depth = rows.iter().map(|row| row.depth).min().unwrap_or(0);
    let batch = rows.iter().map(|row| row.batch).min().unwrap_or(0);
    let rows: Vec<&BenchRow> = rows.iter().filter(|row| row.depth == depth && row.batch == batch).collect();
    let mut devices: Vec<String> = Vec::new();
    for row in &rows {
        if !devices.contains(&row.device) {
            devices.push(row.device.clone());
        }
    }
    let places = rows.iter().map(|row| devices.iter().position(|name| *name == row.device).unwrap_or(0));
    let groups = grouped(rows.iter().copied().zip(places), Along::Device);
    Panel {
        title: "Tokens per second by device",
        along: "device",
        series: labelled(groups),
        categories: devices,
        is_bars: true,
    }
}

/// The fields that distinguish a series, and its points.
type Group = (Vec<String>, Vec<(usize, f64)>);

/// Groups rows into series. The rows of one series differ only in the quantity on the horizontal axis.
fn grouped<'a>(rows: impl Iterator<Item = (&'a BenchRow, usize)>, along: Along) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (row, place) in rows {
        let (parts, point) = (parts(row, along), (place, row.tokens_per_second));
        match groups.iter_mut().find(|(known, _)| *known == parts) {
            Some((_, points)) => points.push(point),
            None => groups.push((parts, vec![point])),
        }
    }
    for (_, points) in &mut groups {
        points.sort_by_key(|(place, _)| *place);
    }
    groups
}

/// The fields of a row except the quantity on the horizontal axis; those that are always shown come first.
fn parts(row: &BenchRow, along: Along) -> Vec<String> {
    let threads = row.threads.map(|threads| format!("threads {threads}")).unwrap_or_default();
    let all = [
        (None, row.lengths()),
        (Some(Along::Depth), format!("@ d{}", row.depth)),
        (Some(Along::Batch), format!("b{}", row.batch)),
        (None, row.rule.clone()),
        (None, short_name(&row.model)),
        (Some(Along::Device), row.device.clone()),
        (None, row.weights()),
        (None, threads),
    ];
    all.into_iter().filter(|(of, _)| *of != Some(along)).map(|(_, part)| part).collect()
}

/// Labels each series with the fields that not all series have in common.
fn labelled(groups: Vec<Group>) -> Vec<Series> {
    let first = groups.first().map(|(parts, _)| parts.clone()).unwrap_or_default();
    let varies: Vec<bool> =
        (0..first.len()).map(|i| i == 0 || groups.iter().any(|(parts, _)| parts[i] != first[i])).collect();
    let series = |(parts, points): Group| {
        let is_said = |part: &str| !part.is_empty() && part != "-";
        let named = parts.into_iter().zip(&varies).filter(|(part, varies)| **varies && is_said(part));
        Series { label: named.map(|(part, _)| part).collect::<Vec<_>>().join(" "), points }
    };
    groups.into_iter().map(series).collect()
}

/// The vertical axis: linear from 0, or logarithmic if the values differ much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    pub(super) fn of(panel: &Panel) -> Self {
        /// The ratio of the largest to the smallest value above which the axis is logarithmic.
        const VISIBLE: f64 = 20.0;
        let values = panel.series.iter().flat_map(|series| series.points.iter().map(|&(_, value)| value));
        let values: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        if most == 0.0 {
            Self { low: 0.0, high: 1.0 }
        } else if most / least > VISIBLE {
            Self { low: 10f64.powf(least.log10().floor()), high: most * 1.5 }
        } else {
            Self { low: 0.0, high: most * 1.15 }
        }
    }

    pub(super) fn is_logarithmic(&self) -> bool {
        self.low > 0.0
    }

    /// The relative height of a value, 0 to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        let Self { low, high } = *self;
        let share = match self.is_logarithmic() {
            true => (value / low).ln() / (high / low).ln(),
            false => value / high,
        };
        // NaN and infinity are drawn at the bottom.
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Round values to label on the axis, in ascending order.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let Self { low, high } = *self;
        if self.is_logarithmic() {
            let decades = (low.log10().round() as i32)..=(high.log10().floor() as i32);
            let marks: &[f64] = if decades.clone().count() > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let ticks = decades.flat_map(|decade| marks.iter().map(move |mark| mark * 10f64.powi(decade)));
            return ticks.filter(|&tick| tick <= high).collect();
        }
        let rough = high / 6.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].into_iter().map(|mark| mark * decade).find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * decade);
        // Multiples of the step, because repeated addition drifts from round numbers.
        (0..=(high / step) as usize).map(|count| rounded(count as f64 * step, decade)).collect()
    }
}

/// Rounds to a tenth of a power of ten, because products of decimal fractions are not exact.
fn rounded(value: f64, decade: f64) -> f64 {
    match decade < 1.0 {
        true => (value / decade).round() / (1.0 / decade).round(),
        false => value.round(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: &str, rule: &str, decode: usize, batch: usize, depth: usize, speed: f64) -> BenchRow {
        let (device, rule, tokens_per_second) = (device.to_owned(), rule.to_owned(), speed);
        let prompt = if decode == 0 { 512 } else { 0 };
        BenchRow { device, rule, prompt, decode, batch, depth, tokens_per_second, ..BenchRow::default() }
    }

    fn labels(panel: &Panel) -> Vec<&str> {
        panel.series.iter().map(|series| series.label.as_str()).collect()
    }

    #[test]
    fn what_varies_becomes_a_picture() {
        let one = panels(&[row("cpu", "moi", 128, 1, 0, 40.0)]);
        assert_eq!((one.len(), labels(&one[0]), one[0].is_bars), (1, vec!["tg128"], true));
        let rows = [
            row("cpu", "token", 128, 4, 0, 90.0),
            row("cpu", "token", 128, 1, 0, 40.0),
            row("cpu", "moi", 128, 1, 0, 30.0),
            row("cpu", "moi", 128, 4, 0, 80.0),
            row("cpu", "-", 0, 1, 0, 300.0),
        ];
        let panels = panels(&rows);
        let by_batch = &panels[0];
        assert_eq!(panels.len(), 1);
        assert_eq!(by_batch.categories, ["1", "4"]);
        // The prompt was measured with one batch size only, so it has no line.
        assert_eq!(labels(by_batch), ["tg128 token", "tg128 moi"]);
        assert_eq!(by_batch.series[0].points, [(0, 40.0), (1, 90.0)]);
    }

    #[test]
    fn devices_are_compared_where_the_rest_is_smallest() {
        let rows = [
            row("cpu", "moi", 128, 1, 0, 40.0),
            row("cpu", "moi", 128, 1, 512, 30.0),
            row("cuda:0", "moi", 128, 1, 0, 400.0),
            row("cuda:0", "moi", 128, 1, 512, 300.0),
        ];
        let panels = panels(&rows);
        assert_eq!(panels.iter().map(|panel| panel.is_bars).collect::<Vec<_>>(), [false, true]);
        assert_eq!(panels[0].categories, ["0", "512"]);
        assert_eq!(labels(&panels[0]), ["tg128 cpu", "tg128 cuda:0"]);
        assert_eq!(panels[1].categories, ["cpu", "cuda:0"]);
        assert_eq!(panels[1].series[0].points, [(0, 40.0), (1, 400.0)]);
        assert!(!Scale::of(&panels[1]).is_logarithmic());
    }

    #[test]
    fn scales_have_round_ticks() {
        let linear = Scale { low: 0.0, high: 46.0 };
        assert_eq!(linear.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(Scale { low: 0.0, high: 0.9 }.ticks(), [0.0, 0.2, 0.4, 0.6, 0.8]);
        let logarithmic = Scale { low: 10.0, high: 600.0 };
        assert_eq!(logarithmic.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!((logarithmic.share(10.0), logarithmic.share(600.0)), (0.0, 1.0));
        assert_eq!((linear.share(23.0), linear.share(f64::NAN), linear.share(99.0)), (0.5, 0.0, 1.0));
    }
}
