//! Charts of tokens per second by batch, by depth and by device.

use anyhow::Result;
use plotters::{
    coord::{CoordTranslate, Shift},
    prelude::{
        BindKeyPoints, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement,
        RGBColor, Rectangle, SVGBackend, Text, TextStyle, WHITE,
    },
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    row::BenchRow,
    series::{Panel, Scale, Series, panels},
    table::short,
};

/// Width of a chart in pixels, without its legend.
const WIDTH: u32 = 600;
const HEIGHT: u32 = 420;
/// Height of a line of the legend, in pixels.
const LINE: u32 = 20;
/// Units of the horizontal axis per category, and of the whole vertical axis.
const CATEGORY: i32 = 10_000;
const TOP: i32 = 100_000;
/// A chart with at most this many bars prints the number on each bar.
const NUMBERED: usize = 24;
const FONT: &str = "sans-serif";

/// Colours that people with colour blindness can distinguish (those of Okabe and Ito, and lighter ones of them).
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(110, 110, 110),
    RGBColor(140, 86, 75),
    RGBColor(148, 103, 189),
    RGBColor(188, 189, 34),
];

/// A part of the chart, in pixels or in the units of its axes.
type Area<'a, C> = DrawingArea<SVGBackend<'a>, C>;

/// Draws the rows as one SVG, with several charts side by side if several things vary.
///
/// # Errors
/// If the SVG cannot be drawn.
pub(super) fn svg(rows: &[BenchRow]) -> Result<String> {
    let panels = panels(rows);
    let legend = panels.iter().map(|panel| panel.series.len()).max().unwrap_or(0) as u32;
    let size = (WIDTH * panels.len() as u32, HEIGHT + LINE * (legend + 1));
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len()))) {
            draw(panel, &area)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn font(size: i32) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font())
}

/// The height of a value on the vertical axis, in units of the axis.
fn place(scale: &Scale, value: f64) -> i32 {
    (scale.share(value) * f64::from(TOP)).round() as i32
}

fn draw(panel: &Panel, area: &Area<'_, Shift>) -> Result<()> {
    let (picture, legend) = area.split_vertically(HEIGHT);
    let scale = Scale::of(panel);
    let count = panel.categories.len() as i32;
    let middles: Vec<i32> = (0..count).map(middle).collect();
    let ticks: Vec<(i32, String)> =
        scale.ticks().into_iter().map(|tick| (place(&scale, tick), short_tick(tick))).collect();
    let heights: Vec<i32> = ticks.iter().map(|(height, _)| *height).collect();
    let mut chart = ChartBuilder::on(&picture)
        .caption(panel.title, (FONT, 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(
            (0..count * CATEGORY).with_key_points(middles),
            (0..TOP).with_key_points(heights),
        )?;
    let category = |at: &i32| panel.categories.get((*at / CATEGORY) as usize).cloned().unwrap_or_default();
    let value = |at: &i32| {
        let tick = ticks.iter().find(|(height, _)| height == at);
        tick.map(|(_, text)| text.clone()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc(panel.along)
        .y_desc(if scale.is_logarithmic() { "tokens/s, logarithmic" } else { "tokens/s" })
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 16))
        .x_label_formatter(&category)
        .y_label_formatter(&value)
        .draw()?;
    match panel.is_bars {
        true => draw_bars(panel, &scale, chart.plotting_area())?,
        false => draw_lines(panel, &scale, chart.plotting_area())?,
    }
    draw_legend(&panel.series, &legend)
}

fn draw_lines<C: CoordTranslate<From = (i32, i32)>>(
    panel: &Panel,
    scale: &Scale,
    area: &Area<'_, C>,
) -> Result<()> {
    for (index, series) in panel.series.iter().enumerate() {
        let style = colour(index).filled().stroke_width(2);
        let at = |&(category, speed): &(usize, f64)| (middle(category as i32), place(scale, speed));
        let points: Vec<(i32, i32)> = series.points.iter().map(at).collect();
        for &point in &points {
            area.draw(&Circle::new(point, 4, style))?;
        }
        area.draw(&PathElement::new(points, style))?;
    }
    Ok(())
}

fn draw_bars<C: CoordTranslate<From = (i32, i32)>>(
    panel: &Panel,
    scale: &Scale,
    area: &Area<'_, C>,
) -> Result<()> {
    let is_numbered = panel.series.iter().map(|series| series.points.len()).sum::<usize>() <= NUMBERED;
    for (index, series) in panel.series.iter().enumerate() {
        for &(category, speed) in &series.points {
            let (left, right) = bar(category, index, panel.series.len());
            let top = place(scale, speed);
            area.draw(&Rectangle::new([(left, top), (right, 0)], colour(index).filled()))?;
            if is_numbered {
                let style = font(14).pos(Pos::new(HPos::Center, VPos::Bottom));
                area.draw(&Text::new(short(speed), ((left + right) / 2, top), style))?;
            }
        }
    }
    Ok(())
}

/// The middle of a category on the horizontal axis.
fn middle(category: i32) -> i32 {
    category * CATEGORY + CATEGORY / 2
}

/// The left and right edges of a series' bar in a category.
fn bar(category: usize, index: usize, count: usize) -> (i32, i32) {
    let width = CATEGORY * 8 / 10 / count.max(1) as i32;
    let left = category as i32 * CATEGORY + CATEGORY / 10 + index as i32 * width;
    // Leave a gap between the bars of different series.
    (left, left + width * 9 / 10)
}

/// Draws the legend below the chart, where it covers nothing.
fn draw_legend(series: &[Series], area: &Area<'_, Shift>) -> Result<()> {
    const LEFT: i32 = 96;
    for (index, series) in series.iter().enumerate() {
        let top = index as i32 * LINE as i32;
        let square = [(LEFT, top), (LEFT + 12, top + 12)];
        area.draw(&Rectangle::new(square, colour(index).filled()))?;
        area.draw(&Text::new(series.label.as_str(), (LEFT + 20, top), font(15)))?;
    }
    Ok(())
}

/// The shortest text of a round number.
fn short_tick(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e4 => format!("{}k", value / 1e3),
        value => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: &str, batch: usize, tokens_per_second: f64) -> BenchRow {
        let (device, rule) = (device.to_owned(), "moi".to_owned());
        BenchRow { device, rule, decode: 128, batch, tokens_per_second, ..BenchRow::default() }
    }

    #[test]
    fn a_picture_is_drawn_of_whatever_varies() {
        let one = svg(&[row("cpu", 1, 40.0)]).unwrap();
        assert!(one.starts_with("<svg") && one.trim_end().ends_with("</svg>"), "{one}");
        assert!(one.contains("by device") && one.contains("tg128") && !one.contains("by batch"));
        let rows =
            [row("cpu", 1, 40.0), row("cpu", 4, 90.0), row("cuda:0", 1, 300.0), row("cuda:0", 4, 1100.0)];
        let several = svg(&rows).unwrap();
        for part in ["by batch", "by device", "cuda:0", "tokens/s, logarithmic", "sans-serif"] {
            assert!(several.contains(part), "{part}");
        }
        assert!(!several.contains("by depth") && several.contains("width=\"1200\""));
    }

    #[test]
    fn bars_stand_beside_each_other_in_their_category() {
        for count in 1..12 {
            for index in 0..count {
                let (left, right) = bar(1, index, count);
                assert!(left >= CATEGORY && left < right && right <= 2 * CATEGORY);
                assert!(index == 0 || bar(1, index - 1, count).1 < left);
            }
        }
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!(
            [0.0, 0.5, 50.0, 2000.0, 20_000.0, 5e6].map(short_tick),
            ["0", "0.5", "50", "2000", "20k", "5M"]
        );
    }
}
