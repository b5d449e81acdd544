//! Logs: text or JSON lines to standard error, through a bounded queue that never slows who writes.
//!
//! A full queue drops lines and counts them ([`lines_dropped`]); warnings and errors have some room of their own.

pub mod export;
mod queue;

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use queue::{Line, Queue};
pub use queue::{QUEUE_LINES_MAX, QUEUE_RESERVE_LINES_MAX, lines_dropped};

/// The target of access lines: one per connection, on its end.
pub const ACCESS: &str = "access";

/// What is logged when nothing else is asked for.
pub const DEFAULT_FILTER: &str = "info";

/// How long the end of a process waits for its last lines.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format),
        }
    }
}

/// Why logging cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither text nor JSON.
    #[error("must be text or json")]
    Format,
    /// The filter is no list of `target=level`.
    #[error("not a log filter (such as info or warn,access=info): {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logging was set up before in this process.
    #[error("logging was set up before in this process")]
    Twice,
    /// The thread that writes lines cannot be started.
    #[error("cannot start the log writer: {0}")]
    Writer(#[from] std::io::Error),
    /// The subscriber is gone.
    #[error("logging was shut down")]
    Gone,
}

/// Controls the logs of the process. Clones share it; the last one dropped waits a moment for queued lines.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    initial: Arc<str>,
    flush: Arc<Flush>,
}

/// Writes out what is queued when dropped.
struct Flush(Arc<Queue>);

impl Drop for Flush {
    fn drop(&mut self) {
        self.0.flush(FLUSH_WAIT_MAX);
    }
}

/// Sets up the logs of the process: everything that passes `filter`, in `format`, to standard error.
///
/// # Errors
/// A bad filter, or logging that is set up already.
pub fn init(format: LogFormat, filter: &str) -> Result<LogHandle, TelemetryError> {
    let ansi = format == LogFormat::Text && std::io::stderr().is_terminal();
    let (subscriber, handle) = logger(format, ansi, filter, std::io::stderr())?;
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(handle)
}

/// As [`init`], to a sink of one's own and not yet in force: for tests of what is written.
///
/// # Errors
/// A bad filter.
#[cfg(any(test, feature = "testing"))]
pub fn to_sink(
    format: LogFormat,
    filter: &str,
    sink: impl std::io::Write + Send + 'static,
) -> Result<(tracing::Dispatch, LogHandle), TelemetryError> {
    // While there is one subscriber only, a place that logs and is first reached on a thread without any counts as
    // switched off for all threads; tests run beside each other. So two more stay, which nobody uses.
    static OTHERS: std::sync::OnceLock<[tracing::Dispatch; 2]> = std::sync::OnceLock::new();
    OTHERS.get_or_init(|| [(); 2].map(|()| tracing::Dispatch::new(tracing_subscriber::registry())));
    let (subscriber, handle) = logger(format, false, filter, sink)?;
    Ok((tracing::Dispatch::new(subscriber), handle))
}

fn logger(
    format: LogFormat,
    ansi: bool,
    filter: &str,
    sink: impl std::io::Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync + 'static, LogHandle), TelemetryError> {
    let (filter_layer, reload) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let queue = Queue::start(sink)?;
    let lines = lines_layer(format, ansi, Lines(Arc::clone(&queue)));
    let subscriber = tracing_subscriber::registry().with(filter_layer).with(lines);
    let handle = LogHandle {
        filter: reload,
        initial: filter.into(),
        flush: Arc::new(Flush(queue)),
    };
    Ok((subscriber, handle))
}

fn lines_layer<S>(format: LogFormat, ansi: bool, lines: Lines) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(lines)
        .with_ansi(ansi);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

impl LogHandle {
    /// Replaces the filter.
    ///
    /// # Errors
    /// A bad filter; the old one then stays.
    pub fn set_level(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = EnvFilter::try_new(filter)?;
        self.filter.reload(filter).map_err(|_| TelemetryError::Gone)
    }

    /// Goes back to the filter of the start.
    ///
    /// # Errors
    /// When logging was shut down.
    pub fn reset_level(&self) -> Result<(), TelemetryError> {
        self.set_level(&self.initial)
    }

    /// The filter in force.
    #[must_use]
    pub fn level(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Queues an access line that is formatted already, unless the filter keeps access lines out. As with any line, a
    /// full queue drops and counts it.
    pub fn access(&self, mut line: String) {
        if tracing::enabled!(target: ACCESS, tracing::Level::INFO) {
            line.push('\n');
            self.flush.0.push(line.into_bytes(), false);
        }
    }

    /// Waits until every queued line was written, for at most a second.
    pub fn flush(&self) {
        self.flush.0.flush(FLUSH_WAIT_MAX);
    }
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle")
            .field("level", &self.level())
            .finish_non_exhaustive()
    }
}

/// Hands each formatted line to the queue.
struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line::new(&self.0, false)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        Line::new(&self.0, *meta.level() <= tracing::Level::WARN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named_text_and_json() {
        assert_eq!("JSON".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert_eq!("plain".parse::<LogFormat>().unwrap(), LogFormat::Text);
        assert!("xml".parse::<LogFormat>().is_err());
    }

    // The only test that sets the process's logging up: it can be done once.
    #[test]
    fn the_level_is_changed_and_reset_while_running() {
        let handle = init(LogFormat::Json, "warn").unwrap();
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set_level("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(handle.set_level("a=b=c").is_err());
        assert_eq!(handle.level(), "debug");
        handle.reset_level().unwrap();
        assert_eq!(handle.level(), "warn");
        assert!(matches!(
            init(LogFormat::Text, "info"),
            Err(TelemetryError::Twice)
        ));
    }
}
