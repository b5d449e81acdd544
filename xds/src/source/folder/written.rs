//! How objects were written, until that is on record.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// A text. Those of one file stand in one piece: each for itself would lie between objects that stay, and leave a hole
/// there when it is dropped.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Written {
    all: Arc<String>,
    begins: u32,
    ends: u32,
}

impl Written {
    fn part(all: &Arc<String>, begins: usize, ends: usize) -> Self {
        let counted = |at: usize| u32::try_from(at).expect("files and objects are far shorter");
        Self {
            all: Arc::clone(all),
            begins: counted(begins),
            ends: counted(ends),
        }
    }

    /// Bytes that it keeps in memory.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.all.len()
    }
}

impl From<String> for Written {
    fn from(text: String) -> Self {
        let ends = text.len();
        Self::part(&Arc::new(text), 0, ends)
    }
}

impl Serialize for Written {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl Deref for Written {
    type Target = str;

    fn deref(&self) -> &str {
        &self.all[self.begins as usize..self.ends as usize]
    }
}

impl PartialEq for Written {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

/// Puts texts into one piece.
pub(crate) fn join<'a>(texts: impl Iterator<Item = &'a mut Written>) {
    let texts: Vec<&mut Written> = texts.collect();
    let all = Arc::new(texts.iter().map(|text| &***text).collect::<String>());
    let mut begins = 0;
    for text in texts {
        let ends = begins + text.len();
        *text = Written::part(&all, begins, ends);
        begins = ends;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_texts_are_what_they_were_and_one_piece() {
        let mut texts = ["{\"ä\":1}", "", "{}"].map(|text| Written::from(text.to_owned()));
        let before = texts.clone();
        join(texts.iter_mut());
        assert_eq!(texts, before);
        assert!(texts.iter().all(|text| Arc::ptr_eq(&text.all, &texts[0].all)));
        assert_eq!(&**texts[0].all, "{\"ä\":1}{}");
    }
}
