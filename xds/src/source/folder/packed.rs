//! The text of a file as it is kept: compressed, as it is read again only where something is recorded or compared.

/// The quickest level that is not a compromise; manifests shrink to a tenth.
const LEVEL: i32 = 1;

/// A text. Two are equal if and only if their texts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed(Box<[u8]>);

impl Packed {
    /// Of this text.
    pub(crate) fn of(text: &str) -> Self {
        let packed = zstd::bulk::compress(text.as_bytes(), LEVEL);
        Self(packed.expect("compressing into memory does not fail").into())
    }

    /// The text.
    pub(crate) fn text(&self) -> String {
        let text = zstd::stream::decode_all(&*self.0);
        let text = text.expect("it was compressed in this process");
        String::from_utf8(text).expect("it was a text")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_comes_back_as_it_was(text in any::<String>()) {
            prop_assert_eq!(Packed::of(&text), Packed::of(&text));
            prop_assert_eq!(Packed::of(&text).text(), text);
        }
    }

    #[test]
    fn manifests_shrink() {
        let text = "kind: Pod\nmetadata: {name: web, namespace: shop}\n".repeat(1000);
        assert!(Packed::of(&text).0.len() * 10 < text.len());
    }
}
