//! Coming back with a digest instead of a list of everything held.
//!
//! Names fall into 512 buckets; a client tells one digest per bucket. The server skips equal buckets and answers a
//! differing one whole, in one response that also lists `#bucket/<n>` among its removals: drop every name of this
//! bucket that is not in this response.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Header by which a server says that it understands digests.
pub const RESUME_HEADER: &str = "tulle-resume";
/// Its value.
pub const RESUME_VERSION: &str = "1";
/// Buckets.
pub const BUCKETS: u16 = 512;
/// Name under which the digests stand among the initial versions.
pub const DIGEST_NAME: &str = "#digest/512";
/// What the name of a bucket begins with.
const BUCKET_PREFIX: &str = "#bucket/";
/// Bytes of one digest: a bucket that differs looks the same once in 2^48 times.
const DIGEST_BYTES: usize = 6;
/// Bytes of one digest as it was told before; what follows the first six is not compared.
const DIGEST_BYTES_BEFORE: usize = 8;

/// A digest per bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests(Vec<u64>);

/// The bucket of a name: FNV-1a, then mixed so that names that differ in their last letters spread, too.
#[must_use]
pub fn bucket_of(name: &str) -> u16 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    u16::try_from(hash % u64::from(BUCKETS)).unwrap_or_default()
}

/// The digest of names with their versions, which must come sorted by name. No names give zero.
#[must_use]
pub fn digest<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let (mut context, mut any) = (Context::new(&SHA256), false);
    for (name, version) in pairs {
        any = true;
        for text in [name, version] {
            context.update(text.as_bytes());
            context.update(&[0]);
        }
    }
    if !any {
        return 0;
    }
    let sum = context.finish();
    number(&sum.as_ref()[..DIGEST_BYTES])
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Digests {
    /// Of names with their versions, in any order.
    #[must_use]
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut buckets: Vec<Vec<(&str, &str)>> = vec![Vec::new(); BUCKETS.into()];
        for (name, version) in pairs {
            buckets[usize::from(bucket_of(name))].push((name, version));
        }
        let one = |mut pairs: Vec<(&'a str, &'a str)>| {
            pairs.sort_unstable();
            digest(pairs.into_iter())
        };
        Self(buckets.into_iter().map(one).collect())
    }

    /// From the digest of each bucket.
    #[must_use]
    pub fn by_bucket(digest: impl Fn(u16) -> u64) -> Self {
        Self((0..BUCKETS).map(digest).collect())
    }

    /// As it stands among the initial versions.
    #[must_use]
    pub fn to_text(&self) -> String {
        let of = |digest: &u64| digest.to_be_bytes().into_iter().skip(8 - DIGEST_BYTES);
        let bytes: Vec<u8> = self.0.iter().flat_map(of).collect();
        STANDARD.encode(bytes)
    }

    /// What a client tells; `None` if it cannot be read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let buckets = usize::from(BUCKETS);
        if text.len() > 2 * DIGEST_BYTES_BEFORE * buckets {
            return None;
        }
        let bytes = STANDARD.decode(text).ok()?;
        let of = |chunk: &[u8]| number(&chunk[..DIGEST_BYTES]);
        let of_one = [DIGEST_BYTES, DIGEST_BYTES_BEFORE]
            .into_iter()
            .find(|of_one| bytes.len() == of_one * buckets)?;
        Some(Self(bytes.chunks_exact(of_one).map(of).collect()))
    }

    /// The buckets that differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<u16> {
        let pairs = (0..BUCKETS).zip(self.0.iter().zip(&other.0));
        pairs
            .filter(|(_, (one, other))| one != other)
            .map(|(bucket, _)| bucket)
            .collect()
    }
}

/// The name that stands for a whole bucket among removals.
#[must_use]
pub fn bucket_name(bucket: u16) -> String {
    format!("{BUCKET_PREFIX}{bucket}")
}

/// The bucket that a removal means, if it means one.
#[must_use]
pub fn bucket_named(name: &str) -> Option<u16> {
    let bucket = name.strip_prefix(BUCKET_PREFIX)?.parse().ok()?;
    (bucket < BUCKETS).then_some(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_as_text_and_nothing_else_is_read() {
        let digests = Digests::of([("a", "1"), ("b", "2")].into_iter());
        let text = digests.to_text();
        assert_eq!(text.len(), 4096);
        assert_eq!(Digests::parse(&text).as_ref(), Some(&digests));
        let longer = digests
            .0
            .iter()
            .flat_map(|digest| (digest << 16 | 7).to_be_bytes());
        let longer = STANDARD.encode(longer.collect::<Vec<u8>>());
        assert_eq!(Digests::parse(&longer), Some(digests), "as it was told before");
        for other in ["", "AAAA", &text[4..], &format!("{text}AAAA"), "?"] {
            assert_eq!(Digests::parse(other), None);
        }
    }

    #[test]
    fn only_the_buckets_of_what_differs_differ() {
        let names: Vec<String> = (0..2000)
            .map(|n| format!("Kubernetes//Pod/shop/web-{n}"))
            .collect();
        let pairs = |version: &'static str| {
            let names = names.iter().enumerate();
            names.map(move |(at, name)| (name.as_str(), if at == 7 { version } else { "1" }))
        };
        let (old, new) = (Digests::of(pairs("1")), Digests::of(pairs("2")));
        assert_eq!(old.differing(&old), BTreeSet::new());
        assert_eq!(old.differing(&new), BTreeSet::from([bucket_of(&names[7])]));
        let empty = Digests::of(std::iter::empty());
        assert!(empty.differing(&old).len() > 400, "names spread over the buckets");
    }

    #[test]
    fn order_does_not_matter_and_boundaries_do() {
        let one = Digests::of([("a", "1"), ("b", "2")].into_iter());
        assert_eq!(one, Digests::of([("b", "2"), ("a", "1")].into_iter()));
        assert_ne!(
            digest([("a", "bc")].into_iter()),
            digest([("ab", "c")].into_iter())
        );
    }

    #[test]
    fn a_bucket_has_a_name_that_no_resource_has() {
        assert_eq!(bucket_named(&bucket_name(511)), Some(511));
        for other in ["#bucket/512", "#bucket/", "#bucket/-1", "shop/web", "bucket/1"] {
            assert_eq!(bucket_named(other), None);
        }
    }
}
