//! Drawing: a plot area with axes, in the units of an SVG's view box.

use std::fmt::Write;

/// Text as it may stand in a document.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Room for labels around a plot.
#[derive(Clone, Copy, Debug)]
pub struct Margins {
    /// For the names of what is drawn.
    pub top: f64,
    /// For the right ends of labels.
    pub right: f64,
    /// For the axis below.
    pub bottom: f64,
    /// For the axis on the left.
    pub left: f64,
}

/// Where most charts are drawn.
pub const MARGINS: Margins = Margins { top: 14.0, right: 16.0, bottom: 44.0, left: 58.0 };
/// The size of most charts.
pub const SIZE: (f64, f64) = (560.0, 320.0);

/// A chart under construction. Data coordinates grow to the right and up.
pub struct Plot {
    size: (f64, f64),
    margins: Margins,
    x: (f64, f64),
    y: (f64, f64),
    body: String,
}

impl Plot {
    /// A plot of the data ranges `x` and `y`, neither of them empty.
    pub fn new(size: (f64, f64), margins: Margins, x: (f64, f64), y: (f64, f64)) -> Plot {
        Plot { size, margins, x, y, body: String::new() }
    }

    /// From data to the view box.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let Margins { top, right, bottom, left } = self.margins;
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (left + across * (self.size.0 - left - right), self.size.1 - bottom - up * (self.size.1 - top - bottom))
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    /// A rectangle between two corners, and what a pointer that rests on it is told.
    pub fn rectangle(&mut self, class: &str, from: (f64, f64), to: (f64, f64), opacity: f64, title: &str) {
        let ((x0, y0), (x1, y1)) = (self.at(from.0, from.1), self.at(to.0, to.1));
        let (x, y, width, height) = (x0.min(x1), y0.min(y1), (x1 - x0).abs(), (y1 - y0).abs());
        let shade = if opacity < 1.0 { format!(" fill-opacity=\"{opacity:.3}\"") } else { String::new() };
        let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(title)) };
        self.add(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"{shade}>{title}</rect>"
        ));
    }

    /// A line through points.
    pub fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let points = self.points(points);
        self.add(format_args!("<polyline class=\"{class}\" points=\"{points}\"/>"));
    }

    /// An area inside points.
    pub fn area(&mut self, class: &str, points: &[(f64, f64)]) {
        let points = self.points(points);
        self.add(format_args!("<polygon class=\"{class}\" points=\"{points}\"/>"));
    }

    fn points(&self, points: &[(f64, f64)]) -> String {
        let at = |&(x, y): &(f64, f64)| {
            let (x, y) = self.at(x, y);
            format!("{x:.1},{y:.1}")
        };
        points.iter().map(at).collect::<Vec<_>>().join(" ")
    }

    /// Text at a place in the view box; `anchor` is start, middle or end.
    pub fn text(&mut self, class: &str, anchor: &str, (x, y): (f64, f64), text: &str) {
        let text = escaped(text);
        self.add(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// The left axis with a grid: labelled values, and what they are.
    pub fn left_axis(&mut self, ticks: &[(f64, String)], name: &str) {
        for (value, label) in ticks {
            self.line("grid", &[(self.x.0, *value), (self.x.1, *value)]);
            let (x, y) = self.at(self.x.0, *value);
            self.text("tick", "end", (x - 7.0, y + 4.0), label);
        }
        self.left_name(name);
    }

    /// Labels on the left without a grid, for rows.
    pub fn left_labels(&mut self, labels: &[(f64, String)], name: &str) {
        for (value, label) in labels {
            let (x, y) = self.at(self.x.0, *value);
            self.text("tick", "end", (x - 7.0, y + 4.0), label);
        }
        self.left_name(name);
    }

    fn left_name(&mut self, name: &str) {
        let (x, y) = (13.0, (self.margins.top + self.size.1 - self.margins.bottom) / 2.0);
        let name = escaped(name);
        self.add(format_args!(
            "<text class=\"name\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{name}</text>"
        ));
    }

    /// A square of a class and what it stands for, at a place in the view box.
    pub fn legend(&mut self, class: &str, (x, y): (f64, f64), name: &str) {
        self.text("name", "start", (x + 17.0, y + 10.0), name);
        self.add(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"11\" height=\"11\" rx=\"2\"/>"
        ));
    }

    /// Adds what was drawn in another plot of the same size.
    pub fn absorb(&mut self, other: Plot) {
        self.body += &other.body;
    }

    /// The axis below.
    pub fn bottom_axis(&mut self, ticks: &[(f64, String)], name: &str) {
        self.line("axis", &[(self.x.0, self.y.0), (self.x.1, self.y.0)]);
        for (value, label) in ticks {
            let (x, y) = self.at(*value, self.y.0);
            self.add(format_args!("<path class=\"axis\" d=\"M{x:.1} {y:.1}v4\"/>"));
            self.text("tick", "middle", (x, y + 18.0), label);
        }
        let x = (self.margins.left + self.size.0 - self.margins.right) / 2.0;
        self.text("name", "middle", (x, self.size.1 - 8.0), name);
    }

    /// The drawing, and what it is for those who cannot see it.
    pub fn render(self, label: &str) -> String {
        let (width, height) = self.size;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            escaped(label),
            self.body
        )
    }
}

/// About `count` round numbers that cover a range from inside.
pub fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if rough <= 0.0 || !rough.is_finite() {
        return Vec::new();
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= rough * 0.999).unwrap_or(power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A number without needless digits.
pub fn plain(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" || text.is_empty() { "0".into() } else { text.replace('-', "\u{2212}") }
}

/// The same in per cent.
pub fn plain_percent(share: f64) -> String {
    format!("{} %", plain((100.0 * share * 1e4).round() / 1e4))
}

/// Ticks with their labels.
pub fn labelled(values: Vec<f64>, label: impl Fn(f64) -> String) -> Vec<(f64, String)> {
    values.into_iter().map(|value| (value, label(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks((-13.0, 0.0), 4), [-10.0, -5.0, 0.0]);
        assert_eq!(ticks((1.0, 1.0), 4), Vec::<f64>::new());
        assert_eq!((plain(0.6000000000000001), plain(-5.0), plain(0.0)), ("0.6".into(), "−5".into(), "0".into()));
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped("a<b>&\"c\u{7}"), "a&lt;b&gt;&amp;&quot;c\u{fffd}");
    }
}
