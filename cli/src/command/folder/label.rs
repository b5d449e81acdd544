//! Changes the waypoint's label in the text of a manifest, so that comments and layout stay.

/// The label that sends traffic through a waypoint.
pub(super) const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// The text with the label set, or without it; `None` where the layout is not one of those that are known. The caller
/// compares what the result says with what it should say.
pub(super) fn set(text: &str, waypoint: Option<&str>) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let metadata = lines.iter().position(|line| key(line) == Some((0, "metadata")))?;
    if !rest(lines[metadata]).is_empty() {
        return edited(&lines, metadata, |line| flow(line, waypoint));
    }
    let end = end(&lines, metadata);
    let child = lines[metadata + 1..end].iter().find_map(|line| key(line))?.0;
    let labels = (metadata + 1..end).find(|at| key(lines[*at]) == Some((child, "labels")));
    let Some(labels) = labels else {
        let pad = " ".repeat(child);
        let new = format!("{pad}labels:\n{pad}  {USE_WAYPOINT}: {}", waypoint?);
        return Some(inserted(&lines, metadata + 1, &new));
    };
    if !rest(lines[labels]).is_empty() {
        return edited(&lines, labels, |line| flow(line, waypoint));
    }
    let last = self::end(&lines, labels);
    let own = (labels + 1..last).find(|at| key(lines[*at]).is_some_and(|(_, name)| name == USE_WAYPOINT));
    match (own, waypoint) {
        (Some(at), Some(waypoint)) => edited(&lines, at, |line| {
            let (before, _) = line.split_once(USE_WAYPOINT)?;
            Some(format!("{before}{USE_WAYPOINT}: {waypoint}"))
        }),
        (Some(at), None) => {
            let others = (labels + 1..last).filter(|other| *other != at && key(lines[*other]).is_some());
            if others.count() == 0 {
                // `labels:` alone would be null.
                let kept = [&lines[..labels], &lines[labels + 1..at], &lines[at + 1..]].concat();
                return Some(kept.join("\n") + "\n");
            }
            Some([&lines[..at], &lines[at + 1..]].concat().join("\n") + "\n")
        }
        (None, Some(waypoint)) => {
            let first = lines[labels + 1..last].iter().find_map(|line| key(line));
            let pad = " ".repeat(first.map_or(child + 2, |(indent, _)| indent));
            Some(inserted(
                &lines,
                labels + 1,
                &format!("{pad}{USE_WAYPOINT}: {waypoint}"),
            ))
        }
        (None, None) => Some(text.to_owned()),
    }
}

/// Indent and name of the key that a line begins with.
fn key(line: &str) -> Option<(usize, &str)> {
    let trimmed = line.trim_start();
    let name = trimmed.split_once(':')?.0;
    let plain = !name.is_empty() && !name.starts_with(['#', '-', '"', '\'', '{', '[']);
    plain.then_some((line.len() - trimmed.len(), name))
}

/// What follows the key of a line, without a comment.
fn rest(line: &str) -> &str {
    let value = line.split_once(':').map_or("", |(_, value)| value).trim();
    if value.starts_with('#') { "" } else { value }
}

/// Where the block of a key ends.
fn end(lines: &[&str], at: usize) -> usize {
    let indent = key(lines[at]).map_or(0, |(indent, _)| indent);
    let out = |line: &str| {
        let trimmed = line.trim_start();
        !trimmed.is_empty() && !trimmed.starts_with('#') && line.len() - trimmed.len() <= indent
    };
    let after = lines[at + 1..].iter().position(|line| out(line));
    after.map_or(lines.len(), |after| at + 1 + after)
}

fn inserted(lines: &[&str], at: usize, new: &str) -> String {
    [&lines[..at], &[new], &lines[at..]].concat().join("\n") + "\n"
}

fn edited(lines: &[&str], at: usize, edit: impl Fn(&str) -> Option<String>) -> Option<String> {
    let new = edit(lines[at])?;
    Some(
        [&lines[..at], &[new.as_str()], &lines[at + 1..]]
            .concat()
            .join("\n")
            + "\n",
    )
}

/// A line with its labels in braces. Only a label that is to come is known how to write.
fn flow(line: &str, waypoint: Option<&str>) -> Option<String> {
    let waypoint = waypoint?;
    if line.contains(USE_WAYPOINT) {
        return None;
    }
    let (before, after) = line.split_once("labels: {")?;
    let comma = if after.trim_start().starts_with('}') {
        ""
    } else {
        ", "
    };
    Some(format!(
        "{before}labels: {{{USE_WAYPOINT}: {waypoint}{comma}{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_layout_stay() {
        let text = "# the shop\nkind: Namespace\nmetadata:\n  name: shop # ours\n  labels:\n    # who\n    team: x\nspec: {}\n";
        let with = set(text, Some("way")).unwrap();
        assert_eq!(
            with,
            "# the shop\nkind: Namespace\nmetadata:\n  name: shop # ours\n  labels:\n    istio.io/use-waypoint: way\n    \
             # who\n    team: x\nspec: {}\n"
        );
        assert_eq!(set(&with, None).unwrap(), text);
        let other = set(&with, Some("other")).unwrap();
        assert_eq!(other, with.replace(": way", ": other"));
    }

    #[test]
    fn labels_come_and_go_with_their_only_one() {
        let text = "kind: Namespace\nmetadata:\n  name: shop\n";
        let with = set(text, Some("way")).unwrap();
        assert_eq!(
            with,
            "kind: Namespace\nmetadata:\n  labels:\n    istio.io/use-waypoint: way\n  name: shop\n"
        );
        assert_eq!(set(&with, None).unwrap(), text);
    }

    #[test]
    fn braces_are_kept_where_one_label_is_added() {
        let text = "kind: Namespace\nmetadata: {name: shop, labels: {team: x}} # ours\n";
        assert_eq!(
            set(text, Some("way")).unwrap(),
            "kind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: way, team: x}} # ours\n"
        );
        assert_eq!(set(text, None), None, "written anew");
    }
}
