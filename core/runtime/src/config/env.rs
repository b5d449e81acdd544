//! The environment behind one method, so that tests pass a map.

use std::collections::BTreeMap;

/// Where configuration variables come from.
pub trait Env {
    /// The variable as it is set, which may be to nothing.
    fn raw(&self, name: &str) -> Option<String>;

    /// Every variable whose name begins with `prefix` and that is not empty, by its whole name.
    fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String>;

    /// The variable's value; `None` when it is absent or empty.
    fn var(&self, name: &str) -> Option<String> {
        self.raw(name).filter(|value| !value.is_empty())
    }
}

/// The environment of this process. What is no UTF-8 counts as absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

#[allow(
    clippy::disallowed_methods,
    reason = "this is the one door to the environment that the lint asks for"
)]
impl Env for ProcessEnv {
    fn raw(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let pairs = std::env::vars_os();
        let texts =
            pairs.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        texts
            .filter(|(name, value)| begins(name, prefix, value))
            .collect()
    }
}

fn begins(name: &str, prefix: &str, value: &str) -> bool {
    name.starts_with(prefix) && !value.is_empty()
}

/// An environment given as a map.
#[derive(Debug, Clone, Default)]
pub struct MapEnv(BTreeMap<String, String>);

impl MapEnv {
    /// Adds or replaces a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl Env for MapEnv {
    fn raw(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let named = self.0.iter().filter(|(name, value)| begins(name, prefix, value));
        named.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for MapEnv {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for MapEnv {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_listed_by_prefix() {
        let env = MapEnv::from([("HEADER_A", "1"), ("HEADER_B", ""), ("HEADE", "2"), ("PATH", "/")]);
        let found = env.with_prefix("HEADER_");
        assert_eq!(found, BTreeMap::from([("HEADER_A".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn a_variable_set_to_nothing_is_absent_but_not_unset() {
        let env = MapEnv::from([("EMPTY", "")]);
        assert_eq!(env.var("EMPTY"), None);
        assert_eq!(env.raw("EMPTY").as_deref(), Some(""));
        assert_eq!(env.raw("UNSET"), None);
    }

    #[test]
    fn the_environment_of_the_process_is_listed_as_it_is_read() {
        let found = ProcessEnv.with_prefix("CARGO_PKG_");
        let name = found.get("CARGO_PKG_NAME");
        assert_eq!(name, ProcessEnv.var("CARGO_PKG_NAME").as_ref());
        assert!(name.is_some(), "cargo sets it for tests");
    }
}
