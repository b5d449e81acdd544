//! Figures of a run: for each row and contestant the values of all rounds, printed as median [least..most].

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// Which way a row is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The more the better.
    More,
    /// The less the better.
    Less,
}

/// What is measured, with its unit: `bulk, 1 stream, Gbit/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What, and in which unit.
    pub name: &'static str,
    /// Which way it is better.
    pub better: Better,
}

/// All values of a run.
#[derive(Debug, Default)]
pub struct Table {
    contestants: Vec<String>,
    rows: Vec<(Row, BTreeMap<String, Vec<f64>>)>,
}

impl Table {
    /// A table without values; its columns are in this order, and the first is what others are compared with.
    #[must_use]
    pub fn new(contestants: impl IntoIterator<Item = String>) -> Self {
        Self {
            contestants: contestants.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds one value. Rows are in the order in which they first come.
    pub fn add(&mut self, row: Row, contestant: &str, value: f64) {
        let index = self.rows.iter().position(|(known, _)| known.name == row.name);
        let index = index.unwrap_or_else(|| {
            self.rows.push((row, BTreeMap::new()));
            self.rows.len() - 1
        });
        let values = self.rows[index].1.entry(contestant.to_owned()).or_default();
        values.push(value);
    }

    /// The contestants, in order.
    #[must_use]
    pub fn contestants(&self) -> &[String] {
        &self.contestants
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        self.rows.iter().map(|(row, _)| *row)
    }

    /// The median of a row's values of a contestant.
    #[must_use]
    pub fn median(&self, row: Row, contestant: &str) -> Option<f64> {
        self.spread(row, contestant).map(|spread| spread.median)
    }

    /// A contestant's median as a multiple of the first contestant's.
    #[must_use]
    pub fn ratio(&self, row: Row, contestant: &str) -> Option<f64> {
        let base = self.median(row, self.contestants.first()?)?;
        (base > 0.0).then_some(self.median(row, contestant)? / base)
    }

    fn spread(&self, row: Row, contestant: &str) -> Option<Spread> {
        let (_, values) = self.rows.iter().find(|(known, _)| known.name == row.name)?;
        Spread::of(values.get(contestant)?)
    }

    /// All values, as they were measured.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|(row, values)| {
            let better = match row.better {
                Better::More => "more",
                Better::Less => "less",
            };
            json!({"row": row.name, "better": better, "values": values})
        });
        json!({"contestants": self.contestants, "rows": rows.collect::<Vec<_>>()})
    }
}

/// A table of Markdown: a median and its range, and for all but the first contestant the ratio to the first.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| row | {} |", self.contestants.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.contestants.len()))?;
        for (row, _) in &self.rows {
            write!(f, "| {} |", row.name)?;
            for (index, contestant) in self.contestants.iter().enumerate() {
                match (self.spread(*row, contestant), self.ratio(*row, contestant)) {
                    (Some(spread), Some(ratio)) if index > 0 => write!(f, " {spread} {ratio:.2}× |")?,
                    (Some(spread), _) => write!(f, " {spread} |")?,
                    (None, _) => write!(f, " |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Median, least and most of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, least, most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, least, most] = [self.median, self.least, self.most].map(short);
        write!(f, "{median} [{least}..{most}]")
    }
}

/// Three digits that matter, and no more.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: Row = Row {
        name: "bulk, Gbit/s",
        better: Better::More,
    };

    fn table() -> Table {
        let mut table = Table::new(["theirs".to_owned(), "ours".to_owned()]);
        for value in [4.0, 6.0, 5.0] {
            table.add(BULK, "theirs", value);
            table.add(BULK, "ours", value * 2.0);
        }
        table
    }

    #[test]
    fn the_middle_of_values_counts() {
        assert_eq!(table().median(BULK, "theirs"), Some(5.0));
        assert_eq!(Spread::of(&[1.0, 3.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn others_are_compared_with_the_first() {
        assert_eq!(table().ratio(BULK, "ours"), Some(2.0));
        assert_eq!(table().ratio(BULK, "nobody"), None);
    }

    #[test]
    fn a_table_is_markdown() {
        let expected = "\
| row | theirs | ours |
|---|---|---|
| bulk, Gbit/s | 5.00 [4.00..6.00] | 10.0 [8.00..12.0] 2.00× |
";
        assert_eq!(table().to_string(), expected);
    }

    #[test]
    fn every_value_is_kept() {
        assert_eq!(
            table().to_json()["rows"][0]["values"]["theirs"],
            json!([4.0, 6.0, 5.0])
        );
    }
}
