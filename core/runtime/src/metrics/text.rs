//! OpenMetrics, or the older Prometheus text format, as the scraper asks.

/// A format a scraper can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text`.
    OpenMetrics,
    /// `text/plain; version=0.0.4`.
    Text,
}

impl Format {
    /// What an `Accept` header asks for; the older text format unless OpenMetrics is named.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let named = accept.is_some_and(|accept| {
            accept.split(',').any(|range| {
                let mut parts = range.split(';').map(str::trim);
                let refused = |part: &str| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f64));
                parts.next() == Some("application/openmetrics-text") && !parts.any(refused)
            })
        });
        if named { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type` of the answer.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Rewrites what the older format names differently: counters carry their suffix in the header lines, kinds it does
/// not know become `untyped` or `gauge`, and units, exemplars and the end mark go.
pub(super) fn from_open_metrics(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = classic(kind);
            if let Some((_, help)) = help.take() {
                push_line(&mut text, &format!("# HELP {name}{suffix} {help}"));
            }
            push_line(&mut text, &format!("# TYPE {name}{suffix} {kind}"));
        } else if !line.starts_with('#') {
            push_line(
                &mut text,
                line.split_once(" # {").map_or(line, |(sample, _)| sample),
            );
        }
    }
    text
}

fn classic(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", kind),
        "info" => ("_info", "gauge"),
        "unknown" => ("", "untyped"),
        _ => ("", kind),
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_only_when_it_is_asked_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
        assert_eq!(Format::negotiate(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(
            Format::negotiate(Some("application/openmetrics-text;q=0, */*")),
            Format::Text
        );
        assert_eq!(Format::negotiate(Some("text/plain")), Format::Text);
        assert_eq!(Format::negotiate(None), Format::Text);
    }

    #[test]
    fn the_older_format_names_counters_with_their_suffix() {
        let open =
            "# HELP a_b Things done.\n# TYPE a_b counter\na_b_total{x=\"y\"} 3 # {id=\"1\"} 1.0\n# EOF\n";
        let text = "# HELP a_b_total Things done.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 3\n";
        assert_eq!(from_open_metrics(open), text);
    }
}
