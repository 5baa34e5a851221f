//! Small plots as SVG: bars, and lines over time.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const COLORS: [&str; 6] = ["#3b6ea5", "#c8553d", "#588157", "#8e6c8a", "#d4a017", "#4a4e69"];

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A figure as people read it.
fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.3}"),
    }
}

/// One horizontal bar for each value.
pub fn bars(title: &str, unit: &str, values: &[(String, f64)]) -> String {
    const ROW: f64 = 22.0;
    const LABEL: f64 = 230.0;
    const FIGURE: f64 = 110.0;
    let most = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = 34.0 + ROW * values.len() as f64;
    let mut svg = start(title, &format!("{title}, {unit}"), height);
    for (row, (label, value)) in values.iter().enumerate() {
        let y = 30.0 + ROW * row as f64;
        let length = (WIDTH - LABEL - FIGURE) * value / most;
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x='{}' y='{}' text-anchor='end'>{}</text><rect x='{LABEL}' y='{y}' width='{length:.1}' height='16' \
             fill='{}'/><text x='{:.1}' y='{}'>{}</text>",
            LABEL - 8.0,
            y + 12.5,
            escaped(label),
            COLORS[0],
            LABEL + length + 6.0,
            y + 12.5,
            number(*value)
        );
    }
    svg + "</svg>\n"
}

/// A line for each series, a value a second.
pub fn lines(title: &str, unit: &str, series: &[(String, Vec<f64>)]) -> String {
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 70.0;
    let most = series.iter().flat_map(|(_, values)| values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let longest = series.iter().map(|(_, values)| values.len()).max().unwrap_or(0).max(2);
    let height = HEIGHT + 40.0 + 18.0 * series.len() as f64;
    let mut svg = start(title, &format!("{title}, {unit}, by second"), height);
    let x = |index: usize| LEFT + (WIDTH - LEFT - 10.0) * index as f64 / (longest - 1) as f64;
    let y = |value: f64| 30.0 + HEIGHT * (1.0 - value / most);
    for share in [0.0, 0.5, 1.0] {
        let at = y(most * share);
        let _ = write!(
            svg,
            "<line x1='{LEFT}' x2='{WIDTH}' y1='{at:.1}' y2='{at:.1}' stroke='#ddd'/><text x='{}' y='{:.1}' \
             text-anchor='end'>{}</text>",
            LEFT - 6.0,
            at + 4.0,
            number(most * share)
        );
    }
    for (row, (label, values)) in series.iter().enumerate() {
        let points: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(index, value)| format!("{:.1},{:.1}", x(index), y(*value)))
            .collect();
        let color = COLORS[row % COLORS.len()];
        let legend = HEIGHT + 52.0 + 18.0 * row as f64;
        let _ = write!(
            svg,
            "<polyline points='{}' fill='none' stroke='{color}' stroke-width='2'/><rect x='{LEFT}' y='{}' width='12' \
             height='12' fill='{color}'/><text x='{}' y='{legend}'>{}</text>",
            points.join(" "),
            legend - 10.0,
            LEFT + 18.0,
            escaped(label)
        );
    }
    svg + "</svg>\n"
}

fn start(title: &str, heading: &str, height: f64) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' \
         font-family='sans-serif' font-size='12' role='img' aria-label='{0}'><text x='0' y='16' font-weight='bold'>{1}</text>",
        escaped(title),
        escaped(heading)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_have_every_label_and_the_longest_bar_is_the_largest_value() {
        let svg = bars("rates", "1/s", &[("a<b".into(), 50.0), ("c".into(), 100.0)]);
        assert!(
            svg.contains("a&lt;b") && svg.contains("width='190.0'") && svg.contains("width='380.0'"),
            "{svg}"
        );
        let svg = lines("load", "1/s", &[("one".into(), vec![1.0, 2.0]), ("two".into(), vec![])]);
        assert!(
            svg.contains(">one<") && svg.contains(">two<") && svg.matches("polyline").count() == 2,
            "{svg}"
        );
        // Nothing to show is no reason to fail.
        assert!(lines("none", "", &[]).ends_with("</svg>\n") && bars("none", "", &[]).ends_with("</svg>\n"));
    }
}
