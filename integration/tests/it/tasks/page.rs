//! A page's code blocks as steps: manifests to save, commands to run, and what they print.
//!
//! A `yaml` block whose first line is `# <name>.yaml` is a file. In a `console` block, `$ ` begins a command and `> `
//! continues it; the lines after it are what it prints: `…` stands for any text, alone on a line for any lines, and `~40` for
//! a number that is about 40. Any other block is `text`.

use std::path::Path;

/// How far a number may be from one with `~`.
const ABOUT: f64 = 20.0;

/// A page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

/// One thing that a reader does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Saves a file.
    File { name: String, text: String },
    /// Runs a command.
    Command {
        line: String,
        /// Line of the page.
        number: usize,
        expected: Vec<String>,
    },
}

/// Reads every page of a folder, in the order of their names.
pub(crate) fn read(folder: &Path) -> Vec<Page> {
    let mut pages: Vec<Page> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let steps = steps(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            Page { name, steps }
        })
        .collect();
    pages.sort_by(|a, b| a.name.cmp(&b.name));
    pages
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|(_, line)| *line != "```").collect();
        match kind {
            "yaml" => steps.push(
                file(&block).ok_or_else(|| format!("line {number}: a manifest without `# name.yaml`"))?,
            ),
            "console" => commands(&block, &mut steps)?,
            "text" => {}
            other => return Err(format!("line {number}: a block of {other:?} would not be run")),
        }
    }
    Ok(steps)
}

fn file(block: &[(usize, &str)]) -> Option<Step> {
    let name = block.first()?.1.strip_prefix("# ")?;
    let text = block.iter().map(|(_, line)| format!("{line}\n")).collect();
    name.ends_with(".yaml").then(|| Step::File {
        name: name.to_owned(),
        text,
    })
}

fn commands(block: &[(usize, &str)], steps: &mut Vec<Step>) -> Result<(), String> {
    let begun = steps.len();
    for (number, line) in block {
        let last = steps[begun..].last_mut();
        match (line.strip_prefix("$ "), line.strip_prefix("> "), last) {
            (Some(command), _, _) => steps.push(Step::Command {
                line: command.to_owned(),
                number: number + 1,
                expected: Vec::new(),
            }),
            (None, Some(more), Some(Step::Command { line, expected, .. })) if expected.is_empty() => {
                line.push('\n');
                line.push_str(more);
            }
            (None, _, Some(Step::Command { expected, .. })) => expected.push((*line).to_owned()),
            _ => return Err(format!("line {}: output without a command", number + 1)),
        }
    }
    Ok(())
}

/// Whether what was printed is what was expected.
pub(crate) fn fits(expected: &[String], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any == "…" => {
            (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]))
        }
        Some((first, rest)) => printed
            .split_first()
            .is_some_and(|(line, others)| line_fits(first, line) && fits(rest, others)),
    }
}

fn line_fits(expected: &str, printed: &str) -> bool {
    if expected.contains('~') {
        let (expected, printed) = (expected.split_whitespace(), printed.split_whitespace());
        return expected.clone().count() == printed.clone().count()
            && expected
                .zip(printed)
                .all(|(expected, printed)| word_fits(expected, printed));
    }
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let found = if last && rest.ends_with(part) {
            Some(rest.len() - part.len())
        } else {
            rest.find(part)
        };
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

fn word_fits(expected: &str, printed: &str) -> bool {
    match expected.strip_prefix('~').map(str::parse::<f64>) {
        Some(Ok(about)) => printed
            .parse::<f64>()
            .is_ok_and(|number| (number - about).abs() <= ABOUT),
        _ => expected == printed || expected == "…",
    }
}

#[test]
fn blocks_become_steps() {
    let text =
        "# Page\n\n```yaml\n# a.yaml\nkind: A\n```\n\n```console\n$ one \\\n> more\nfirst\n$ two\n```\n";
    let command = |line: &str, number, expected: &[&str]| Step::Command {
        line: line.to_owned(),
        number,
        expected: expected.iter().map(|&line| line.to_owned()).collect(),
    };
    assert_eq!(
        steps(text).unwrap(),
        [
            Step::File {
                name: "a.yaml".to_owned(),
                text: "# a.yaml\nkind: A\n".to_owned()
            },
            command("one \\\nmore", 9, &["first"]),
            command("two", 12, &[]),
        ]
    );
    assert!(steps("```bash\nrm\n```\n").is_err(), "nothing passes unseen");
}

#[test]
fn what_is_printed_fits_up_to_what_may_differ() {
    let check = |expected: &[&str], printed: &[&str]| {
        let expected: Vec<_> = expected.iter().map(|&line| line.to_owned()).collect();
        fits(&expected, printed)
    };
    assert!(check(
        &["HTTP/1.1 200 OK", "…", "done"],
        &["HTTP/1.1 200 OK", "a", "b", "done"]
    ));
    assert!(!check(&["HTTP/1.1 200 OK"], &["HTTP/1.1 200 OK", "a"]));
    assert!(check(&["at … of …"], &["at 3 of 4"]) && !check(&["at … of 4"], &["at 3 of 5"]));
    assert!(check(&["~90 v1", "~10 v2"], &["    93 v1", "     7 v2"]));
    assert!(!check(&["~90 v1"], &["50 v1"]));
}
