//! The growth as a picture: one panel for each value, hosts to the right by powers of ten.

use std::fmt::Write;

use super::Outcome;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 210.0;
/// Around the lines, for the texts: left and right, above and below.
const MARGIN: (f64, f64) = (52.0, 44.0);

struct Panel {
    title: &'static str,
    unit: &'static str,
    value: fn(&Outcome) -> f64,
    goal: Option<f64>,
}

/// The picture of these outcomes, in the order of their hosts.
pub(super) fn draw(all: &[Outcome]) -> String {
    let panels = [
        Panel { title: "Cold start to all machines made and running", unit: "s", value: |o| o.made, goal: None },
        Panel { title: "Controller, resident", unit: "MiB", value: |o| o.resident, goal: Some(150.0) },
        Panel { title: "Controller at rest, share of a core", unit: "%", value: |o| o.rest, goal: Some(2.0) },
        Panel { title: "VM stopped by hand to running again, p99", unit: "ms", value: |o| o.repair.1, goal: Some(1000.0) },
    ];
    let (width, height) = (WIDTH * 2.0, HEIGHT * 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (n, panel) in panels.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "four panels")]
        let (x, y) = ((n % 2) as f64 * WIDTH, (n / 2) as f64 * HEIGHT);
        let _ = write!(svg, "<g transform=\"translate({x} {y})\">\n{}</g>\n", panel.draw(all));
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, all: &[Outcome]) -> String {
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let points: Vec<(f64, f64)> = all.iter().map(|o| (o.hosts as f64, (self.value)(o))).collect();
        let top = points.iter().map(|p| p.1).chain(self.goal).fold(0.0, f64::max) * 1.15;
        let top = if top > 0.0 { top } else { 1.0 };
        let ends = |f: fn(f64, f64) -> f64, from: f64| points.iter().map(|p| p.0.log10()).fold(from, f);
        let (left, right) = (ends(f64::min, f64::INFINITY), ends(f64::max, f64::NEG_INFINITY));
        let span = if right > left { right - left } else { 1.0 };
        let x = |hosts: f64| MARGIN.0 + (hosts.log10() - left) / span * (WIDTH - MARGIN.0 * 2.0);
        let y = |value: f64| HEIGHT - MARGIN.1 - value / top * (HEIGHT - MARGIN.1 * 2.0);
        let (base, edge) = (y(0.0), WIDTH - MARGIN.0);
        let mut svg = format!(
            "<text x=\"{}\" y=\"22\" font-size=\"13\" font-weight=\"bold\">{} ({})</text>\n\
             <path d=\"M{} {} V{base} H{edge}\" fill=\"none\" stroke=\"#555\"/>\n",
            MARGIN.0 - 30.0,
            self.title,
            self.unit,
            MARGIN.0,
            y(top),
        );
        if let Some(goal) = self.goal {
            let at = y(goal);
            let _ = write!(
                svg,
                "<path d=\"M{} {at} H{edge}\" stroke=\"#c33\" stroke-dasharray=\"5 4\"/>\n\
                 <text x=\"{edge}\" y=\"{}\" fill=\"#c33\" text-anchor=\"end\">goal {goal}</text>\n",
                MARGIN.0,
                at - 4.0,
            );
        }
        let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>", line.join(" "));
        for (hosts, value) in &points {
            let (at, over) = (x(*hosts), y(*value));
            let digits = if *value < 10.0 { 2 } else { 0 };
            let _ = write!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{over:.1}\" r=\"3\" fill=\"#06c\"/>\n\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.digits$}</text>\n\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{hosts}</text>\n",
                over - 7.0,
                base + 15.0,
            );
        }
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">hosts</text>", WIDTH / 2.0, base + 30.0);
        svg
    }
}
