//! Plain text tables: columns aligned, numbers to the right, a blank line between tables.

use std::fmt::Write;

/// Rows of text under a heading.
#[derive(Clone, Debug, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
    chart: Vec<bool>,
}

impl Table {
    /// A table with these column names. A name that begins with `>` makes a column of numbers, which are set to the right; one that begins
    /// with `|` is of charts made of characters, which only text shows.
    pub fn new(columns: &[&str]) -> Table {
        Table {
            heading: columns.iter().map(|name| name.strip_prefix(['>', '|']).unwrap_or(name).to_owned()).collect(),
            rows: Vec::new(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            chart: columns.iter().map(|name| name.starts_with('|')).collect(),
        }
    }

    /// Adds a row; missing cells are blank.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) -> &mut Table {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if some column has a name.
    pub fn has_heading(&self) -> bool {
        self.heading.iter().any(|name| !name.is_empty())
    }

    /// The names of the columns, and whether each holds numbers; those of charts, and those without a single entry, are left out.
    pub fn columns(&self) -> Vec<(&str, bool)> {
        self.used()
            .filter(|&column| !self.chart[column])
            .map(|column| (self.heading[column].as_str(), self.right[column]))
            .collect()
    }

    /// The cells of a row, likewise.
    pub fn cells(&self, row: usize) -> Vec<(&str, bool)> {
        let cell = |column: usize| self.rows[row].get(column).map_or("", String::as_str);
        self.used().filter(|&column| !self.chart[column]).map(|column| (cell(column), self.right[column])).collect()
    }

    fn used(&self) -> impl Iterator<Item = usize> {
        let is_used = |row: &Vec<String>, column: usize| row.get(column).is_some_and(|cell| !cell.is_empty());
        (0..self.heading.len()).filter(move |&column| self.rows.iter().any(|row| is_used(row, column)))
    }

    /// The text, one line per row; a column without a single entry is left out.
    pub fn render(&self) -> String {
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let used: Vec<usize> = self.used().collect();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| cell(row, column).chars().count());
            cells.chain([self.heading[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = used.iter().map(|&column| width(column)).collect();

        let mut text = String::new();
        let mut line = |cells: &dyn Fn(usize) -> String| {
            let mut line = String::new();
            for (&column, &width) in used.iter().zip(&widths) {
                let cell = cells(column);
                let gap = if line.is_empty() { "" } else { "  " };
                let _ = if self.right[column] {
                    write!(line, "{gap}{cell:>width$}")
                } else {
                    write!(line, "{gap}{cell:<width$}")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        if self.has_heading() {
            line(&|column| self.heading[column].clone());
            let rules = widths.clone();
            line(&|column| "─".repeat(rules[used.iter().position(|&u| u == column).unwrap_or(0)]));
        }
        for row in &self.rows {
            line(&|column| cell(row, column));
        }
        text
    }
}

/// A bar of at most `width` characters for a share of `full`, in eighths of a character.
pub fn bar(value: f64, full: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = if full > 0.0 { (value / full).clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * (width * 8) as f64).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// How counts are spread: eighths of the largest, neighbours together in at most `width` columns, blank where there is nothing.
pub fn profile(counts: &[u64], width: usize) -> String {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = counts.len().clamp(1, width);
    let mut sums = vec![0_u64; columns];
    for (place, &n) in counts.iter().enumerate() {
        sums[place * columns / counts.len()] += n;
    }
    let most = sums.iter().max().copied().unwrap_or(0).max(1);
    sums.iter().map(|&n| EIGHTHS[(n * 8).div_ceil(most) as usize]).collect()
}

/// A number to `digits` significant digits, without an exponent where that is readable.
pub fn number(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    let exponent = value.abs().log10().floor() as i32;
    if (-4..7).contains(&exponent) {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.*e}", digits - 1)
    }
}

/// A largest difference, `equal` where there is none.
pub fn difference(value: f64) -> String {
    if value == 0.0 { "equal".into() } else { format!("{value:.1e}") }
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A count with its thousands set apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in a unit that leaves few digits.
pub fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_empty_ones_are_left_out() {
        let mut table = Table::new(&["name", ">value", "note"]);
        table.row(["loss", "-0.5"]).row(["µ", "12.25"]);
        assert_eq!(table.render(), "name  value\n────  ─────\nloss   -0.5\nµ     12.25\n");
    }

    #[test]
    fn only_the_first_character_of_a_name_says_what_a_column_is() {
        let mut table = Table::new(&[">|a - b|", "|"]);
        table.row(["2", "▁"]);
        assert_eq!(table.render(), "|a - b|\n───────  ─\n      2  ▁\n");
    }

    #[test]
    fn numbers_keep_their_significant_digits() {
        assert_eq!(number(0.0, 4), "0");
        assert_eq!(number(-0.048821877, 4), "-0.04882");
        assert_eq!(number(1234.5678, 4), "1235");
        assert_eq!(number(1.5e-9, 3), "1.50e-9");
        assert_eq!(number(f64::NAN, 3), "NaN");
        assert_eq!(count(1_048_576), "1,048,576");
        assert_eq!(percent(0.0886), "8.86 %");
    }

    #[test]
    fn a_bar_is_full_at_its_full_value_and_empty_at_zero() {
        assert_eq!(bar(2.0, 2.0, 4), "████");
        assert_eq!(bar(1.0, 2.0, 3), "█▌");
        assert_eq!(bar(0.0, 2.0, 4), "");
        assert_eq!(bar(1.0, 0.0, 4), "");
    }
}
