//! In which lines a table that was found differs from the planned one.

use super::DIFF_LINES_MAX;

/// The differing lines, `-` for planned and `+` for found.
pub(super) fn difference(planned: &[impl AsRef<str>], found: &[impl AsRef<str>]) -> Vec<String> {
    let missing = lines(planned).filter(|line| !lines(found).any(|other| other == *line));
    let foreign = lines(found).filter(|line| !lines(planned).any(|other| other == *line));
    let missing = missing.map(|line| format!("-{}", line.trim()));
    let mut diff: Vec<_> = missing
        .chain(foreign.map(|line| format!("+{}", line.trim())))
        .collect();
    if diff.is_empty() {
        diff.push("the same lines in another order or number".to_owned());
    }
    diff.truncate(DIFF_LINES_MAX);
    diff
}

fn lines(table: &[impl AsRef<str>]) -> impl Iterator<Item = &str> {
    table.iter().map(AsRef::as_ref)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_missing_and_foreign_lines() {
        assert_eq!(difference(&["a", "b"], &["b", "c"]), ["-a", "+c"]);
    }

    #[test]
    fn an_order_is_a_difference_too() {
        assert_eq!(
            difference(&["a", "b"], &["b", "a"]),
            ["the same lines in another order or number"]
        );
    }
}
