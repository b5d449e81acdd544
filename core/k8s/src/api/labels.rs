//! Labels and annotations: a short sorted list, which objects that carry the same ones can share.

use std::collections::BTreeMap;
use std::iter::Map;
use std::slice;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use tulle_model::Str;

/// Labels or annotations. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Option<Arc<[(Str, Str)]>>);

/// Labels with their values, by name.
pub type Iter<'a> = Map<slice::Iter<'a, (Str, Str)>, fn(&'a (Str, Str)) -> (&'a Str, &'a Str)>;

fn pair((name, value): &(Str, Str)) -> (&Str, &Str) {
    (name, value)
}

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Str> {
        let all = self.all();
        let at = all.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        all.get(at).map(|(_, value)| value)
    }

    /// Whether there is a label of this name.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Every label with its value, by name.
    pub fn iter(&self) -> Iter<'_> {
        self.all().iter().map(pair)
    }

    /// Whether there is no label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// These labels, and of others those whose names are not among these.
    #[must_use]
    pub fn over(&self, others: &Self) -> Self {
        match (self.is_empty(), others.is_empty()) {
            (_, true) => self.clone(),
            (true, _) => others.clone(),
            _ => {
                let all = others.iter().chain(self.iter());
                all.map(|(name, value)| (name.clone(), value.clone())).collect()
            }
        }
    }

    fn all(&self) -> &[(Str, Str)] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl From<BTreeMap<Str, Str>> for Labels {
    fn from(labels: BTreeMap<Str, Str>) -> Self {
        Self((!labels.is_empty()).then(|| labels.into_iter().collect()))
    }
}

impl FromIterator<(Str, Str)> for Labels {
    /// Of labels with the same name the last one counts.
    fn from_iter<I: IntoIterator<Item = (Str, Str)>>(labels: I) -> Self {
        labels.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a Str, &'a Str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn labels_are_found_by_name_whatever_their_order() {
        let found = labels(&[("b", "2"), ("a", "1"), ("c", "3")]);
        assert_eq!(found.get("a").map(AsRef::as_ref), Some("1"));
        assert_eq!(found.get("b").map(AsRef::as_ref), Some("2"));
        assert_eq!(found.get("d"), None);
        assert!(found.contains_key("c") && !found.is_empty());
        assert_eq!(found, labels(&[("c", "3"), ("b", "2"), ("a", "1")]));
        assert!(labels(&[]).is_empty());
        assert_eq!(labels(&[]), Labels::default());
    }

    #[test]
    fn own_labels_go_before_others() {
        let (own, others) = (labels(&[("a", "1")]), labels(&[("a", "2"), ("b", "3")]));
        assert_eq!(own.over(&others), labels(&[("a", "1"), ("b", "3")]));
        assert_eq!(own.over(&Labels::default()), own);
        assert_eq!(Labels::default().over(&others), others);
    }
}
