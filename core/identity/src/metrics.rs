//! What the certificate store reports about itself.

/// Metrics of a [`SecretManager`](crate::SecretManager). The default reports to nobody.
#[derive(Debug, Clone, Default)]
pub struct Metrics {}

impl Metrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(_registry: &tulle_runtime::metrics::Registry) -> Self {
        Self::default()
    }
}
