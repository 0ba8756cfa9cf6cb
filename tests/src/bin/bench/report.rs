//! Rows of the report.

use std::{fs, path::Path, time::Duration};

use serde::Serialize;

/// One measured value with its goal.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<f64>,
    ok: bool,
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a value that should be at most `goal`.
    pub(crate) fn at_most(&mut self, name: &str, value: f64, unit: &'static str, goal: f64) {
        self.rows.push(Row { name: name.into(), value, unit, goal: Some(goal), ok: value <= goal });
    }

    /// Adds a value that is told for comparison.
    pub(crate) fn tell(&mut self, name: &str, value: f64, unit: &'static str) {
        self.rows.push(Row { name: name.into(), value, unit, goal: None, ok: true });
    }

    /// Tells that a part could not be measured.
    pub(crate) fn failed(&mut self, part: &str) {
        self.rows.push(Row { name: format!("{part}: FAILED"), value: 0.0, unit: "", goal: None, ok: false });
    }

    /// Prints the table and writes `target/bench.json`.
    pub(crate) fn finish(&self) {
        println!("{:<72} {:>10} {:<6} {:>8}", "benchmark", "value", "unit", "goal");
        for row in &self.rows {
            let goal = row.goal.map(|g| format!("<= {g}")).unwrap_or_default();
            println!("{:<72} {:>10.3} {:<6} {:>8}  {}", row.name, row.value, row.unit, goal, if row.ok { "" } else { "MISSED" });
        }
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        fs::write(target.join("bench.json"), serde_json::to_vec_pretty(&self.rows).unwrap()).unwrap();
        let missed = self.rows.iter().filter(|r| !r.ok).count();
        println!("bench: {} values, {missed} beyond their goal", self.rows.len());
    }
}

/// A duration in milliseconds.
pub(crate) fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// The value below which a share of all values lies.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index of a short list")]
    let index = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
    values[index]
}
