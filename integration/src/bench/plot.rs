//! A table as bars: how many times the first contestant's figure each other one has.

use std::fmt::Write as _;

use super::table::{Better, Table};

const WIDTH: f64 = 900.0;
const LABELS: f64 = 330.0;
const BAR: f64 = 14.0;
const GAP: f64 = 10.0;
const COLOURS: [&str; 6] = ["#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#718096"];

/// An SVG of the ratios, one group of bars for each row. Longer bars are cut at four times, with their figure beside.
#[must_use]
pub(super) fn svg(table: &Table) -> String {
    const RATIO_MAX: f64 = 4.0;
    let scale = (WIDTH - LABELS - 60.0) / RATIO_MAX;
    let others = table.contestants().get(1..).unwrap_or_default();
    let mut body = String::new();
    let mut y = 30.0;
    for (index, contestant) in others.iter().enumerate() {
        let x = 10.0 + 150.0 * index as f64;
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            body,
            "<rect x='{x}' y='8' width='10' height='10' fill='{colour}'/><text x='{}' y='17'>{}</text>\n",
            x + 14.0,
            escape(contestant)
        );
    }
    for row in table.rows() {
        let better = match row.better {
            Better::More => "more is better",
            Better::Less => "less is better",
        };
        let _ = write!(
            body,
            "<text x='10' y='{}'>{} ({better})</text>\n",
            y + BAR - 3.0,
            escape(row.name)
        );
        for (index, contestant) in others.iter().enumerate() {
            let Some(ratio) = table.ratio(row, contestant) else {
                continue;
            };
            let width = ratio.min(RATIO_MAX) * scale;
            let colour = COLOURS[index % COLOURS.len()];
            let _ = write!(
                body,
                "<rect x='{LABELS}' y='{y}' width='{width:.1}' height='{BAR}' fill='{colour}'/>\
                 <text x='{:.1}' y='{:.1}'>{ratio:.2}×</text>\n",
                LABELS + width + 4.0,
                y + BAR - 3.0
            );
            y += BAR + 1.0;
        }
        y += GAP;
    }
    let one = LABELS + scale;
    let first = table.contestants().first().map_or("", String::as_str);
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{:.0}' font-family='sans-serif' font-size='11'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}\
         <line x1='{one:.1}' y1='26' x2='{one:.1}' y2='{y:.0}' stroke='black' stroke-dasharray='3'/>\n\
         <text x='{:.1}' y='{:.0}'>1 × {}</text>\n</svg>\n",
        y + 24.0,
        one + 3.0,
        y + 12.0,
        escape(first)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::table::Row;
    use super::*;

    #[test]
    fn each_ratio_is_a_bar_and_the_first_contestant_is_the_measure() {
        let row = Row {
            name: "a < b",
            better: Better::Less,
        };
        let mut table = Table::new(["first".to_owned(), "second".to_owned(), "third".to_owned()]);
        for (contestant, value) in [("first", 2.0), ("second", 1.0), ("third", 20.0)] {
            table.add(row, contestant, value);
        }
        let drawn = svg(&table);
        for part in ["a &lt; b (less is better)", "0.50×", "10.00×", "1 × first"] {
            assert!(drawn.contains(part), "{part}\n{drawn}");
        }
        assert_eq!(drawn.matches("<rect x='330'").count(), 2);
    }
}
