//! Tables for people: columns aligned by spaces, nothing drawn, so that they can be cut by other programs too.

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};

/// How a row is shown where colour is.
#[derive(Clone, Copy)]
pub(super) enum Look {
    Plain,
    /// Does not run, is over, is not important.
    Dim,
    /// It will hurt.
    Warn,
    /// Something is wrong.
    Bad,
    /// Something is added.
    Good,
}

impl Look {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Dim => Style::new().dimmed(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
            Self::Good => AnsiColor::Green.on_default(),
        }
    }

    /// A line, coloured where colour is.
    pub(super) fn paint(self, colour: bool, line: &str) -> String {
        let style = self.style();
        if colour { format!("{style}{line}{style:#}") } else { line.to_owned() }
    }
}

/// Rows under a header.
pub(super) struct Rows {
    header: &'static [&'static str],
    rows: Vec<(Look, Vec<String>)>,
}

impl Rows {
    pub(super) fn new(header: &'static [&'static str]) -> Self {
        Self { header, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, look: Look, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        // An empty cell would look like a missing column to whoever splits at spaces; a line break would make two rows of one.
        let cell = |c: String| if c.is_empty() { "-".to_owned() } else { c.replace(['\n', '\r', '\t'], " ") };
        self.rows.push((look, cells.into_iter().map(cell).collect()));
    }

    /// The text, each line ended; where there is no row `empty`, which may be nothing at all.
    pub(super) fn render(self, colour: bool, empty: &str) -> String {
        if self.rows.is_empty() {
            return if empty.is_empty() { String::new() } else { format!("{empty}\n") };
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.header.to_vec());
        let mut looks = Vec::with_capacity(self.rows.len());
        for (look, cells) in self.rows {
            looks.push(look);
            table.add_row(cells);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let styles = std::iter::once(Style::new().bold()).chain(looks.into_iter().map(Look::style));
        let mut text = String::new();
        for (line, style) in table.lines().zip(styles) {
            let line = line.trim_end();
            if colour { text += &format!("{style}{line}{style:#}\n") } else { text += &format!("{line}\n") }
        }
        text
    }
}

/// Bytes with a unit of 1024 and one digit behind the point where that tells something.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut tenths, mut unit) = (u128::from(n) * 10, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    if tenths % 10 == 0 { format!("{} {}", tenths / 10, UNITS[unit]) } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_cells_are_marked() {
        let mut rows = Rows::new(&["NAME", "X"]);
        rows.add(Look::Plain, vec!["a-long-name".into(), String::new()]);
        rows.add(Look::Bad, vec!["b".into(), "two\nlines".into()]);
        assert_eq!(rows.render(false, ""), "NAME         X\na-long-name  -\nb            two lines\n");
    }

    #[test]
    fn colour_wraps_whole_lines_only_where_it_is_wanted() {
        let rows = || {
            let mut rows = Rows::new(&["A"]);
            rows.add(Look::Bad, vec!["x".into()]);
            rows
        };
        assert_eq!(rows().render(true, ""), "\u{1b}[1mA\u{1b}[0m\n\u{1b}[31mx\u{1b}[0m\n");
        assert!(!rows().render(false, "").contains('\u{1b}'));
        assert_eq!(Rows::new(&["A"]).render(true, "no VMs"), "no VMs\n");
    }

    #[test]
    fn sizes_read_well() {
        for (n, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 30, "64 GiB"), ((3 << 40) / 2, "1.5 TiB")]
        {
            assert_eq!(bytes(n), text);
        }
    }
}
