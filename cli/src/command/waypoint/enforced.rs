//! Who enforces what before and after, for people and for programs.

use tulle_xds::analyze::enforced::{About, By, Shift, State};

use crate::output::{Form, table};

/// Says who enforces what. `schema` is what the JSON is called by.
pub(super) fn print(form: Form, schema: &str, shifts: &[Shift]) -> anyhow::Result<()> {
    if form == Form::Json {
        return crate::output::print(Form::Json, schema, shifts, || table(&[]));
    }
    lines(shifts).iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn lines(shifts: &[Shift]) -> Vec<String> {
    if !shifts.iter().any(Shift::is_change) {
        return vec!["  nothing goes another way, and everything is enforced by whom it was".to_owned()];
    }
    let mut rows = table(&["OBJECT", "WHAT", "BEFORE", "AFTER"]);
    for shift in shifts {
        let what = match (&shift.of, shift.about) {
            (_, About::Traffic) => "traffic to it".to_owned(),
            (_, About::DirectCallers) => "callers past the waypoint".to_owned(),
            (Some(of), About::Policy) => format!("policy on {of}"),
            (Some(of), About::Route) => format!("route of {of}"),
            (None, About::Policy) => "policy".to_owned(),
            (None, About::Route) => "route".to_owned(),
        };
        let (before, after) = (word(shift, &shift.before), word(shift, &shift.after));
        rows.add_row([&*shift.object, &*what, before, after]);
    }
    let mut lines: Vec<String> = rows.lines().collect();
    for shift in shifts {
        if let Some(after) = shift.after.as_ref().filter(|after| !after.is_as_written) {
            lines.push(format!("  {}: {}", shift.object, after.says));
        }
    }
    lines.dedup();
    lines
}

fn word(shift: &Shift, state: &Option<State>) -> &'static str {
    match (shift.about, state.as_ref().map(|state| state.by)) {
        (About::Traffic, Some(By::Nobody)) => "direct",
        (About::DirectCallers, None) => "let in",
        (About::DirectCallers, Some(_)) => "refused",
        (_, None) => "-",
        (_, Some(by)) => by.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(by: By, is_as_written: bool) -> Option<State> {
        Some(State {
            by,
            is_as_written,
            says: "why".to_owned(),
        })
    }

    fn shift(object: &str, about: About, before: Option<State>, after: Option<State>) -> Shift {
        Shift {
            object: object.to_owned(),
            about,
            of: None,
            before,
            after,
        }
    }

    #[test]
    fn each_object_has_a_line_and_each_problem_a_reason() {
        let shifts = [
            shift(
                "Service shop/web",
                About::Traffic,
                state(By::Nobody, true),
                state(By::Waypoint, true),
            ),
            shift(
                "Pod shop/web-1",
                About::DirectCallers,
                None,
                state(By::NodeProxy, true),
            ),
            shift(
                "AuthorizationPolicy shop/l7",
                About::Policy,
                state(By::NodeProxy, false),
                state(By::NodeProxy, false),
            ),
        ];
        let lines = lines(&shifts);
        let words: Vec<Vec<&str>> = lines
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert!(words[1].ends_with(&["direct", "waypoint"]), "{lines:?}");
        assert!(words[2].ends_with(&["let", "in", "refused"]), "{lines:?}");
        assert!(words[3].ends_with(&["node", "proxy"]), "{lines:?}");
        assert_eq!(lines[4], "  AuthorizationPolicy shop/l7: why");
    }

    #[test]
    fn a_change_that_changes_nothing_says_so() {
        let same = state(By::NodeProxy, false);
        let shifts = [shift(
            "AuthorizationPolicy shop/l7",
            About::Policy,
            same.clone(),
            same,
        )];
        assert_eq!(lines(&shifts).len(), 1);
    }
}
