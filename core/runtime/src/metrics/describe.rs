//! What is known of a metric before it has a series: the reference is written from this.

use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

/// Metrics of one subject: a section of the reference.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// What is to be known of all of them, as Markdown; may be empty.
    pub about: &'static str,
}

/// A metric that a process exports.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Its name; a counter's without `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// What its series differ by.
    pub labels: LabelNames,
    /// What it says, in plain words.
    pub help: &'static str,
}

impl Descriptor {
    const fn new(kind: MetricType, name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind,
            labels: LabelNames::NONE,
            help,
        }
    }

    /// A counter; its name is given without `_total`.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(MetricType::Counter, name, help)
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(MetricType::Gauge, name, help)
    }

    /// A histogram.
    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::new(MetricType::Histogram, name, help)
    }

    /// The same with a series for each set of these labels.
    #[must_use]
    pub const fn by<S: LabelSet>(self) -> Self {
        Self {
            labels: S::NAMES,
            ..self
        }
    }

    /// The name as it is exported.
    #[must_use]
    pub fn exported_name(&self) -> String {
        match self.kind {
            MetricType::Counter => format!("{}_total", self.name),
            _ => self.name.to_owned(),
        }
    }

    /// The name without its unit, and the unit that it ends in.
    pub(super) fn stem_and_unit(&self) -> (&'static str, Option<&'static Unit>) {
        let units = [("_seconds", &Unit::Seconds), ("_bytes", &Unit::Bytes)];
        let with_unit = |(ending, unit)| Some((self.name.strip_suffix(ending)?, Some(unit)));
        units.into_iter().find_map(with_unit).unwrap_or((self.name, None))
    }
}

/// A label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it says or which values it has, as Markdown; may be empty.
    pub says: &'static str,
}

impl Label {
    /// A label that says what its name does.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, says: "" }
    }

    /// A label with more to say.
    #[must_use]
    pub const fn says(name: &'static str, says: &'static str) -> Self {
        Self { name, says }
    }

    /// The label of a field, which may be a raw identifier.
    #[must_use]
    pub const fn of_field(field: &'static str, says: &'static str) -> Self {
        let name = match field.as_bytes() {
            [b'r', b'#', ..] => field.split_at(2).1,
            _ => field,
        };
        Self { name, says }
    }
}

/// The labels of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelNames {
    /// What the reference calls them together, if they are too many to stand with each metric; else empty.
    pub of: &'static str,
    /// The labels, in groups as they are put together.
    pub groups: &'static [&'static [Label]],
}

impl LabelNames {
    /// No labels: one series.
    pub const NONE: Self = Self { of: "", groups: &[] };

    /// Each label.
    pub fn iter(&self) -> impl Iterator<Item = Label> {
        self.groups.iter().flat_map(|group| group.iter().copied())
    }
}

/// Labels that are written together, with names that are known before there is a series; see
/// [`label_set!`](crate::label_set).
pub trait LabelSet {
    /// Their names.
    const NAMES: LabelNames;
}

/// A metric, or a family of them.
pub trait Labelled {
    /// What its series differ by.
    const NAMES: LabelNames;
}

impl<N, A> Labelled for Counter<N, A> {
    const NAMES: LabelNames = LabelNames::NONE;
}

impl<N, A> Labelled for Gauge<N, A> {
    const NAMES: LabelNames = LabelNames::NONE;
}

impl Labelled for Histogram {
    const NAMES: LabelNames = LabelNames::NONE;
}

impl<S: LabelSet, M, C> Labelled for Family<S, M, C> {
    const NAMES: LabelNames = S::NAMES;
}

/// Declares a struct whose fields are the labels of a metric. What is encoded and what the reference lists come from
/// the same fields; the doc comment of a field is what the reference says of the label.
///
/// ```
/// use tulle_runtime::metrics::LabelSet;
///
/// tulle_runtime::label_set! {
///     /// Why it was repaired.
///     pub struct OfRepair {
///         /// `rules`, `routes`
///         pub check: &'static str,
///     }
/// }
/// let labels: Vec<_> = OfRepair::NAMES.iter().collect();
/// assert_eq!((labels[0].name, labels[0].says.trim()), ("check", "`rules`, `routes`"));
/// ```
///
/// Labels that are too many to be listed with each metric have a name together: `pub struct DnsLabels of "names" { … }`.
#[macro_export]
macro_rules! label_set {
    ($(#[$attribute:meta])* $vis:vis struct $Set:ident $(of $of:literal)? {
        $($(#[doc = $says:literal])* $field_vis:vis $field:ident: $Value:ty),+ $(,)?
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, ::prometheus_client::encoding::EncodeLabelSet)]
        $vis struct $Set {
            $($(#[doc = $says])* $field_vis $field: $Value,)+
        }

        impl $crate::metrics::LabelSet for $Set {
            const NAMES: $crate::metrics::LabelNames = $crate::metrics::LabelNames {
                of: concat!($($of)?),
                groups: &[&[$($crate::metrics::Label::of_field(stringify!($field), concat!($($says),*))),+]],
            };
        }
    };
}
