//! The little of SVG 1.1 that a plot needs, and its looks in light and dark.

use std::fmt::{Display, Write as _};

/// Colors of both themes. Viewers without media queries show the light one, on its own background.
const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#5b6673;font-size:12px}\
.card{fill:#ffffff}\
.title{font-size:20px;font-weight:600;fill:#18202a}\
.sub{font-size:13px}\
.panel{font-size:13px;font-weight:600;fill:#2c3743}\
.value{font-size:12.5px;font-weight:600;fill:#1d4ed8}\
.value,.epochname,.bad{paint-order:stroke;stroke:#ffffff;stroke-width:4px;stroke-linejoin:round}\
.bad{fill:#b91c1c;font-weight:600}\
.grid{stroke:#e6eaee;stroke-width:1;fill:none}\
.axis{stroke:#aab4be;stroke-width:1;fill:none}\
.epoch{stroke:#c3ccd5;stroke-width:1;stroke-dasharray:2 4;fill:none}\
.raw{fill:#3b82f6;fill-opacity:.24;stroke:#3b82f6;stroke-opacity:.35;stroke-width:.6}\
.rawline{fill:none;stroke:#3b82f6;stroke-opacity:.45;stroke-width:1}\
.loss{fill:none;stroke:#1d4ed8;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}\
.dot{fill:#1d4ed8;stroke:#ffffff;stroke-width:2}\
.test{fill:none;stroke:#c2410c;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}\
.testdot{fill:#c2410c;stroke:#ffffff;stroke-width:1}\
.rate{fill:none;stroke:#b45309;stroke-width:1.8;stroke-linejoin:round}\
.speed{fill:none;stroke:#047857;stroke-width:1.8;stroke-linejoin:round}\
.compute{fill:#6d5bd0}.send{fill:#e0952f}.wait{fill:#c2ccd6}\
@media (prefers-color-scheme:dark){\
text{fill:#9aa7b4}.card{fill:#11161d}.title{fill:#eef2f6}.panel{fill:#d3dbe3}.value{fill:#93c5fd}.bad{fill:#fca5a5}\
.value,.epochname,.bad{stroke:#11161d}\
.grid{stroke:#232b35}.axis{stroke:#4a5663}.epoch{stroke:#364250}\
.raw{fill:#60a5fa;fill-opacity:.22;stroke:#60a5fa;stroke-opacity:.35}.rawline{stroke:#60a5fa;stroke-opacity:.4}\
.loss{stroke:#7db4ff}.dot{fill:#7db4ff;stroke:#11161d}.test{stroke:#fb923c}.testdot{fill:#fb923c;stroke:#11161d}.rate{stroke:#fbbf24}.speed{stroke:#34d399}\
.compute{fill:#8b7cf0}.send{fill:#f0ad4e}.wait{fill:#465260}}";

/// Text anchors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under construction.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// An empty drawing of `width` by `height` pixels, described by `title` to whoever cannot see it.
    pub(super) fn new(width: f64, height: f64, title: &str, description: &str) -> Self {
        let mut svg = Self { text: String::new() };
        svg.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-labelledby=\"t d\">\n<title id=\"t\">{}</title>\n\
             <desc id=\"d\">{}</desc>\n<style>{STYLE}</style>\n\
             <rect class=\"card\" width=\"{width}\" height=\"{height}\" rx=\"10\"/>\n",
            escaped(title),
            escaped(description)
        ));
        svg
    }

    /// Text whose baseline begins, is centered or ends at (x, y).
    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.put(format_args!(
            "<text{class} x=\"{}\" y=\"{}\"{anchor}>{}</text>\n",
            short(x),
            short(y),
            escaped(text)
        ));
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let (x, y) = (short(from.0), short(from.1));
        self.put(format_args!("<path class=\"{class}\" d=\"M{x} {y}L{} {}\"/>\n", short(to.0), short(to.1)));
    }

    /// A line through `points`, with gaps nowhere.
    pub(super) fn polyline(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let path = path(points);
        if !path.is_empty() {
            self.put(format_args!("<path class=\"{class}\" d=\"{path}\"/>\n"));
        }
    }

    /// The area between two lines.
    pub(super) fn area(&mut self, class: &str, upper: &[(f64, f64)], lower: &[(f64, f64)]) {
        let path = path(upper.iter().chain(lower.iter().rev()).copied());
        if !path.is_empty() {
            self.put(format_args!("<path class=\"{class}\" d=\"{path}Z\"/>\n"));
        }
    }

    /// A dot.
    pub(super) fn dot(&mut self, class: &str, x: f64, y: f64, radius: f64) {
        self.put(format_args!(
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{radius}\"/>\n",
            short(x),
            short(y)
        ));
    }

    /// A small rectangle, for a legend.
    pub(super) fn swatch(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{height}\" rx=\"2\"/>\n",
            short(x),
            short(y)
        ));
    }

    /// The finished drawing.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(arguments);
    }
}

fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.into_iter().enumerate() {
        let _ = write!(path, "{}{} {}", if index == 0 { 'M' } else { 'L' }, short(x), short(y));
    }
    path
}

/// A coordinate to a tenth of a pixel.
fn short(value: f64) -> impl Display {
    let rounded = (value * 10.0).round() / 10.0;
    if rounded == 0.0 { 0.0 } else { rounded }
}

/// Text with XML's special characters replaced, and what XML forbids left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escaped("a<b>&\"c\"\u{0}\n"), "a&lt;b&gt;&amp;&quot;c&quot;");
        let mut svg = Svg::new(10.0, 10.0, "</title><script>", "d");
        svg.text("", 1.0, 2.0, Anchor::End, "<x>");
        let text = svg.finish();
        assert!(!text.contains("<script>") && !text.contains("<x>"), "{text}");
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(path([(1.0, 2.26), (-0.01, 1.0 / 3.0)]), "M1 2.3L0 0.3");
        assert_eq!(path([]), "");
    }
}
