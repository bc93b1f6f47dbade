//! Tables for people: rows of cells with a meaning (good, bad), laid out without borders so that `awk` can read them too.

use comfy_table::{Attribute, Color, ContentArrangement};

/// What a cell says about its subject; shown as a color where there are colors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

impl Cell {
    pub fn good(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Good }
    }

    pub fn warn(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Warn }
    }

    pub fn bad(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Bad }
    }

    pub fn dim(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Dim }
    }

    /// As a part of a line, where there is no table.
    pub(super) fn inline(&self, color: bool) -> String {
        let code = match (color, self.tone) {
            (false, _) | (_, Tone::Plain) => return self.text.clone(),
            (true, Tone::Good) => 32,
            (true, Tone::Warn) => 33,
            (true, Tone::Bad) => 31,
            (true, Tone::Dim) => 2,
        };
        format!("\u{1b}[{code}m{}\u{1b}[0m", self.text)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// Columns whose title begins with `+` are shown in the wide format only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    titles: Vec<&'static str>,
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.titles.len(), "a row must have a cell for each title");
        self.rows.push(cells);
    }

    /// `width` is the terminal's: longer rows are wrapped inside their cells. Without it nothing is wrapped.
    pub fn render(&self, wide: bool, color: bool, width: Option<u16>) -> String {
        let shown = |index: &usize| wide || !self.titles[*index].starts_with('+');
        let shown: Vec<usize> = (0..self.titles.len()).filter(shown).collect();
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        match width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        table.set_header(shown.iter().map(|i| title(self.titles[*i], color)).collect::<Vec<_>>());
        for row in &self.rows {
            table.add_row(
                shown.iter().map(|i| row.get(*i).map(|c| cell(c, color)).unwrap_or_else(empty)).collect::<Vec<_>>(),
            );
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `None` where nobody knows: a terminal that nobody looks at may say 0.
pub fn terminal_width() -> Option<u16> {
    known(comfy_table::Table::new().width())
}

fn known(width: Option<u16>) -> Option<u16> {
    width.filter(|width| *width > 0)
}

fn title(text: &str, color: bool) -> comfy_table::Cell {
    let cell = comfy_table::Cell::new(text.trim_start_matches('+'));
    if color { cell.add_attribute(Attribute::Bold) } else { cell }
}

fn cell(cell: &Cell, color: bool) -> comfy_table::Cell {
    let shown = comfy_table::Cell::new(if cell.text.is_empty() { "-" } else { &cell.text });
    match (color, cell.tone) {
        (false, _) | (_, Tone::Plain) => shown,
        (true, Tone::Good) => shown.fg(Color::Green),
        (true, Tone::Warn) => shown.fg(Color::Yellow),
        (true, Tone::Bad) => shown.fg(Color::Red),
        (true, Tone::Dim) => shown.add_attribute(Attribute::Dim),
    }
}

fn empty() -> comfy_table::Cell {
    comfy_table::Cell::new("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(&["NAME", "STATE", "+ADDRESS"]);
        table.row(vec!["reviews".into(), Cell::good("ready"), "10.0.0.1".into()]);
        table.row(vec!["web".into(), Cell::bad("down"), "".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        assert_eq!(example().render(false, false, None), "NAME     STATE\nreviews  ready\nweb      down\n");
    }

    #[test]
    fn wide_shows_all_columns_and_a_dash_for_nothing() {
        let text = example().render(true, false, None);
        assert_eq!(text.lines().nth(2), Some("web      down   -"));
    }

    #[test]
    fn a_terminal_without_columns_says_nothing_of_its_width() {
        assert_eq!((known(Some(0)), known(Some(80)), known(None)), (None, Some(80), None));
    }

    #[test]
    fn parts_of_a_line_have_color_where_it_is_wanted() {
        assert_eq!(Cell::bad("503").inline(false), "503");
        assert_eq!(Cell::bad("503").inline(true), "\u{1b}[31m503\u{1b}[0m");
        assert_eq!(Cell::from("web").inline(true), "web");
    }

    #[test]
    fn color_is_only_where_it_is_wanted() {
        assert!(!example().render(false, false, None).contains('\u{1b}'));
        assert!(example().render(false, true, None).contains('\u{1b}'));
    }
}
