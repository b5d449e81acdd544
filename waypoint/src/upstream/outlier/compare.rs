//! Endpoints that stand out among their like: by their rate of success, or by their share of failures.

use tulle_model::policy::traffic;

/// Successes and failures of one endpoint in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Successes.
    pub worked: u32,
    /// Failures.
    pub failed: u32,
}

impl Tally {
    fn total(self) -> u64 {
        u64::from(self.worked) + u64::from(self.failed)
    }

    fn success(self) -> f64 {
        // Counts of one interval are far below what a float holds exactly.
        f64::from(self.worked) / (f64::from(self.worked) + f64::from(self.failed))
    }
}

/// By the rate of success: out is who lies this far below the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRate {
    /// Endpoints with enough requests that are compared at least.
    pub endpoints_min: usize,
    /// Requests of an interval that make an endpoint comparable.
    pub requests_min: u64,
    /// Standard deviations below the mean.
    pub deviations: f64,
}

impl From<&traffic::SuccessRate> for SuccessRate {
    fn from(policy: &traffic::SuccessRate) -> Self {
        Self {
            endpoints_min: policy.endpoints_min.unwrap_or(5) as usize,
            requests_min: u64::from(policy.requests_min.unwrap_or(100)),
            deviations: f64::from(policy.deviations_milli.unwrap_or(1_900)) / 1_000.0,
        }
    }
}

impl SuccessRate {
    /// Who stands out, by index.
    #[must_use]
    pub fn outliers(&self, tallies: &[Tally]) -> Vec<usize> {
        let rates = comparable(tallies, self.requests_min);
        if rates.len() < self.endpoints_min.max(1) {
            return Vec::new();
        }
        let count = u32::try_from(rates.len()).map_or(f64::MAX, f64::from);
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let least = mean - self.deviations * variance.sqrt();
        let outliers = rates.iter().filter(|(_, rate)| *rate < least);
        outliers.map(|(index, _)| *index).collect()
    }
}

/// By the share of failures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailurePercent {
    /// Percent of requests.
    pub percent: u32,
    /// Endpoints with enough requests that are compared at least.
    pub endpoints_min: usize,
    /// Requests of an interval that make an endpoint comparable.
    pub requests_min: u64,
}

impl From<&traffic::FailurePercent> for FailurePercent {
    fn from(policy: &traffic::FailurePercent) -> Self {
        Self {
            percent: policy.percent.unwrap_or(85),
            endpoints_min: policy.endpoints_min.unwrap_or(5) as usize,
            requests_min: u64::from(policy.requests_min.unwrap_or(50)),
        }
    }
}

impl FailurePercent {
    /// Who fails too often, by index.
    #[must_use]
    pub fn outliers(&self, tallies: &[Tally]) -> Vec<usize> {
        let rates = comparable(tallies, self.requests_min);
        if rates.len() < self.endpoints_min.max(1) {
            return Vec::new();
        }
        let fails = |index: usize| {
            let tally = tallies[index];
            u64::from(tally.failed) * 100 >= u64::from(self.percent) * tally.total()
        };
        let indexes = rates.into_iter().map(|(index, _)| index);
        indexes.filter(|index| fails(*index)).collect()
    }
}

/// The rates of success of those with enough requests.
fn comparable(tallies: &[Tally], requests_min: u64) -> Vec<(usize, f64)> {
    let enough = |(_, tally): &(usize, &Tally)| tally.total() >= requests_min.max(1);
    let tallies = tallies.iter().enumerate().filter(enough);
    tallies.map(|(index, tally)| (index, tally.success())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(worked: u32, failed: u32) -> Tally {
        Tally { worked, failed }
    }

    #[test]
    fn an_endpoint_far_below_the_mean_stands_out() {
        let policy = SuccessRate::from(&traffic::SuccessRate::default());
        let mut tallies = vec![tally(99, 1); 9];
        tallies.push(tally(50, 50));
        assert_eq!(policy.outliers(&tallies), [9]);
    }

    #[test]
    fn nobody_stands_out_among_too_few_or_too_quiet_ones() {
        let policy = SuccessRate::from(&traffic::SuccessRate::default());
        assert!(
            policy
                .outliers(&[tally(100, 0), tally(100, 0), tally(0, 100)])
                .is_empty()
        );
        assert!(
            policy
                .outliers(&[tally(9, 0), tally(9, 0), tally(9, 0), tally(9, 0), tally(0, 9)])
                .is_empty()
        );
        assert!(policy.outliers(&[tally(0, 100); 6]).is_empty(), "all alike");
    }

    #[test]
    fn an_endpoint_with_too_large_a_share_of_failures_is_named() {
        let policy = FailurePercent::from(&traffic::FailurePercent::default());
        let tallies = [
            tally(100, 0),
            tally(100, 0),
            tally(16, 84),
            tally(15, 85),
            tally(0, 60),
        ];
        assert_eq!(policy.outliers(&tallies), [3, 4]);
        assert!(policy.outliers(&tallies[1..]).is_empty(), "four are too few");
    }
}
