//! Draws runs as charts.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Run, Runs};

const BLUE: RGBColor = RGBColor(37, 99, 195);
const ORANGE: RGBColor = RGBColor(214, 106, 18);
const SIZE: (u32, u32) = (960, 240);

/// Draws entropy and gate over the steps, one chart per run.
pub(crate) fn svg(runs: &Runs) -> Result<String> {
    let mut text = String::new();
    let rows = runs.runs.len().max(1);
    {
        let root = SVGBackend::with_string(&mut text, (SIZE.0, SIZE.1 * rows as u32)).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(|error| anyhow!("{error}")).and_then(|()| {
            root.split_evenly((rows, 1)).iter().zip(&runs.runs).try_for_each(|(area, run)| chart(area, run))
        });
        drawn.and_then(|()| root.present().map_err(|error| anyhow!("{error}")))?;
    }
    Ok(text)
}

fn chart<D: DrawingBackend>(area: &DrawingArea<D, plotters::coord::Shift>, run: &Run) -> Result<()>
where
    D::ErrorType: 'static,
{
    let wrong = |error| anyhow!("the chart cannot be drawn: {error}");
    let most = run.steps.iter().map(|step| step.entropy.max(step.gate)).fold(0.05f32, f32::max);
    let mut chart = ChartBuilder::on(area)
        .caption(&run.spec, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d(0..run.steps.len().max(1), 0f32..most)
        .map_err(wrong)?;
    chart.configure_mesh().disable_x_mesh().x_desc("step").draw().map_err(wrong)?;
    let points = |of: fn(&super::RunStep) -> f32| run.steps.iter().map(of).enumerate().collect::<Vec<_>>();
    chart
        .draw_series(AreaSeries::new(points(|step| step.entropy), 0.0, BLUE.mix(0.15)).border_style(BLUE))
        .map_err(wrong)?
        .label("entropy")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    chart
        .draw_series(LineSeries::new(points(|step| step.gate), ORANGE))
        .map_err(wrong)?
        .label("gate")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], ORANGE));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(wrong)?;
    Ok(())
}
