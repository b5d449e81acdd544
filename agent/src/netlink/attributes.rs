//! Netlink attributes: written by nesting values, read as kinds and payloads.

const HEADER_BYTES: usize = 4;
/// Bits of an attribute's kind that are flags.
const FLAGS: u16 = 0xc000;
/// Flag of an attribute that holds attributes.
pub(crate) const NESTED: u16 = 0x8000;

/// Attributes being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute.
    pub(crate) fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(HEADER_BYTES + payload.len()).expect("our attributes are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute that is a number, in the byte order of the network.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that is text, with the zero that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds attributes.
    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Adds what was written elsewhere.
    pub(crate) fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// What was written.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes of a body, flags taken off their kinds. Ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !FLAGS;
        let payload = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, payload)| payload)
}

/// A number in the machine's byte order.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_come_back() {
        let written = Attributes::new()
            .bytes(1, &[9])
            .nested(2, &Attributes::new().number(3, 7));
        assert_eq!(written.as_bytes().len(), 8 + 12);
        let inner = [8, 0, 3, 0, 0, 0, 0, 7];
        let found: Vec<_> = attributes(written.as_bytes()).collect();
        assert_eq!(found, [(1, &[9][..]), (2, &inner[..])]);
        assert_eq!(attribute(&inner, 3), Some(&[0, 0, 0, 7][..]));
    }

    #[test]
    fn text_ends_with_a_zero() {
        let written = Attributes::new().text(1, "tulle");
        assert_eq!(attribute(written.as_bytes(), 1), Some(&b"tulle\0"[..]));
    }

    #[test]
    fn cut_or_lying_lengths_end_the_reading() {
        let written = Attributes::new().bytes(1, &[1, 2, 3, 4]);
        assert_eq!(attributes(&written.as_bytes()[..6]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
    }
}
