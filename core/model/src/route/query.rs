//! The query of a request, read once, for those parameters that some rule asks for.

use std::borrow::Cow;

use ahash::AHashMap;
use smallvec::SmallVec;

/// The parameters that the rules of one router ask for, each with the slot its value is put into.
#[derive(Debug, Default)]
pub(super) struct Interest {
    slots: AHashMap<Box<[u8]>, usize>,
}

impl Interest {
    /// The slot for a parameter.
    pub(super) fn slot(&mut self, name: &str) -> usize {
        let next = self.slots.len();
        *self.slots.entry(name.as_bytes().into()).or_insert(next)
    }

    /// The first value of each parameter that is asked for. One pass, whatever the number of rules.
    pub(super) fn read<'q>(&self, query: Option<&'q str>) -> Parameters<'q> {
        // Only a router that asks for more than eight parameters pays an allocation here.
        let mut values: SmallVec<[Option<&str>; 8]> = SmallVec::from_elem(None, self.slots.len());
        for part in query.unwrap_or_default().split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if let Some(&slot) = self.slots.get(&*decoded(name)) {
                values[slot].get_or_insert(value);
            }
        }
        Parameters { values }
    }
}

/// Values of parameters, as they came.
#[derive(Debug)]
pub(super) struct Parameters<'q> {
    values: SmallVec<[Option<&'q str>; 8]>,
}

impl<'q> Parameters<'q> {
    /// The value in a slot, after percent-decoding.
    pub(super) fn get(&self, slot: usize) -> Option<Cow<'q, [u8]>> {
        self.values[slot].map(decoded)
    }
}

/// The first value of one parameter, after percent-decoding.
#[must_use]
pub fn first<'q>(query: Option<&'q str>, name: &str) -> Option<Cow<'q, [u8]>> {
    let parts = query.unwrap_or_default().split('&');
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .find(|(known, _)| *decoded(known) == *name.as_bytes())
        .map(|(_, value)| decoded(value))
}

/// Text after percent-decoding; an escape that is none stands for itself. Only text with escapes allocates.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| escape(after)).flatten();
        decoded.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(decoded)
}

/// The byte that the two digits after a `%` stand for.
pub(crate) fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(*digits.first()?)? << 4 | digit(*digits.get(1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str], query: &str) -> Vec<Option<String>> {
        let mut interest = Interest::default();
        let slots: Vec<_> = names.iter().map(|name| interest.slot(name)).collect();
        let parameters = interest.read(Some(query));
        let text = |slot| {
            let value = parameters.get(slot)?;
            Some(String::from_utf8_lossy(&value).into_owned())
        };
        slots.into_iter().map(text).collect()
    }

    #[test]
    fn a_repeated_parameter_counts_by_its_first_value() {
        assert_eq!(read(&["a", "b"], "a=1&a=2"), [Some("1".to_owned()), None]);
        assert_eq!(read(&["a"], "x&a&a=2"), [Some(String::new())]);
    }

    #[test]
    fn names_and_values_are_percent_decoded() {
        assert_eq!(read(&["a b"], "a%20b=%41+%zz%4"), [Some("A+%zz%4".to_owned())]);
    }

    #[test]
    fn the_same_name_has_one_slot() {
        assert_eq!(
            read(&["a", "a"], "a=1"),
            [Some("1".to_owned()), Some("1".to_owned())]
        );
    }
}
