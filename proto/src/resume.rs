//! Coming back with digests instead of a list of everything held.
//!
//! Names fall into buckets; a client tells one digest of each. The server skips equal buckets and answers a differing one
//! whole, in one response that also lists the bucket among its removals: drop every name of this bucket that is not in
//! this response.
//!
//! There are two layouts, and a server says in its header which it reads; a client that reads none of its words lists
//! versions, and one that lists nothing is told everything.
//!
//! - **Coarse**, word `1`: 512 buckets, 6 bytes each. A bucket that differs looks the same once in 2^48 times.
//! - **Fine**, word `2`: 1,536 buckets, 2 bytes each, and 8 bytes of everything. As many bytes say where a change is
//!   three times as closely: 100 changed names of 10,000 bring 7 % of all instead of 18 %. A bucket that differs looks the
//!   same once in 65,536 times, which would hide a change now and then, so nobody relies on it: where all buckets look the
//!   same and everything does not, everything is told; where some differ, those are told, and the last of these responses
//!   says with `#whole/<16 digits>` what the client must hold then. A client that holds something else comes back at
//!   once, with coarse digests. That happens to 1 of 650 clients that lack 100 buckets. A change stays hidden only if 8
//!   bytes of everything look the same, too: once in 2^64 times.

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256, digest as sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Header by which a server says which digests it understands: a word, or several with commas or in lines of their own. Those
/// who knew one word alone read the first line.
pub const RESUME_HEADER: &str = "tulle-resume";
/// Buckets of the coarse layout.
pub const BUCKETS: u16 = 512;
/// What the name of a bucket begins with.
const BUCKET_PREFIX: &str = "#bucket/";
/// What a digest of everything stands behind.
const WHOLE_PREFIX: &str = "#whole/";
/// Bytes of one digest of the coarse layout as it was told before; what follows the first six is not compared.
const COARSE_BYTES_BEFORE: usize = 8;
/// Bytes of a digest of everything.
const WHOLE_BYTES: usize = 8;

/// How names fall into buckets, and how much is told of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Few buckets with digests that say enough by themselves.
    Coarse,
    /// Many buckets with short digests, and one of everything.
    Fine,
}

/// The bucket of a name in the coarse layout.
#[must_use]
pub fn bucket_of(name: &str) -> u16 {
    Layout::Coarse.bucket_of(name).number
}

/// FNV-1a, then mixed so that names that differ in their last letters spread, too.
fn hash(name: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

impl Layout {
    /// All of them, the best first.
    pub const ALL: [Self; 2] = [Self::Fine, Self::Coarse];

    /// The best of those that a server names in its headers.
    #[must_use]
    pub fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let words = headers.flat_map(|header| header.split(',')).map(str::trim);
        let known = |word: &str| Self::ALL.into_iter().find(|layout| layout.word() == word);
        words.filter_map(known).max()
    }

    /// By which a server names it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Coarse => "1",
            Self::Fine => "2",
        }
    }

    /// Name under which the digests stand among the initial versions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coarse => "#digest/512",
            Self::Fine => "#digest/1536",
        }
    }

    /// Number of buckets.
    #[must_use]
    pub fn buckets(self) -> u16 {
        match self {
            Self::Coarse => BUCKETS,
            Self::Fine => 3 * BUCKETS,
        }
    }

    /// Bytes of one digest.
    fn digest_bytes(self) -> usize {
        match self {
            Self::Coarse => 6,
            Self::Fine => 2,
        }
    }

    /// Whether a digest of everything is told along, and confirmed.
    fn has_whole(self) -> bool {
        self == Self::Fine
    }

    /// The bucket of a name.
    #[must_use]
    pub fn bucket_of(self, name: &str) -> Bucket {
        let number = hash(name) % u64::from(self.buckets());
        Bucket {
            layout: self,
            number: u16::try_from(number).unwrap_or_default(),
        }
    }

    /// Every bucket.
    pub fn all(self) -> impl Iterator<Item = Bucket> {
        (0..self.buckets()).map(move |number| Bucket { layout: self, number })
    }
}

/// The names that fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    layout: Layout,
    number: u16,
}

impl Bucket {
    /// The bucket that a removal means, if it means one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(BUCKET_PREFIX)?;
        let (layout, number) = match rest.split_once('/') {
            None => (Layout::Coarse, rest),
            Some(("1536", number)) => (Layout::Fine, number),
            Some(_) => return None,
        };
        let number = number.parse().ok().filter(|number| *number < layout.buckets())?;
        Some(Self { layout, number })
    }

    /// The layout it is of.
    #[must_use]
    pub fn layout(self) -> Layout {
        self.layout
    }

    /// Its number among those of its layout.
    #[must_use]
    pub fn number(self) -> u16 {
        self.number
    }

    /// Whether a name falls into it.
    #[must_use]
    pub fn holds(self, name: &str) -> bool {
        self.layout.bucket_of(name) == self
    }
}

/// As it stands among removals.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            Layout::Coarse => write!(f, "{BUCKET_PREFIX}{}", self.number),
            Layout::Fine => write!(f, "{BUCKET_PREFIX}{}/{}", self.layout.buckets(), self.number),
        }
    }
}

/// The digest of the names of one bucket with their versions, which must come sorted by name. No names give zero.
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
    number(&sum.as_ref()[..8])
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What somebody tells of what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    layout: Layout,
    /// The first bytes of the digest of each bucket.
    each: Vec<u64>,
    /// Of the digests of all buckets in full, where the layout has one.
    whole: Option<u64>,
}

impl Digests {
    /// Of names with their versions, in any order.
    #[must_use]
    pub fn of<'a>(layout: Layout, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut buckets: Vec<Vec<(&str, &str)>> = vec![Vec::new(); layout.buckets().into()];
        for (name, version) in pairs {
            buckets[usize::from(layout.bucket_of(name).number)].push((name, version));
        }
        let one = |mut pairs: Vec<(&'a str, &'a str)>| {
            pairs.sort_unstable();
            digest(pairs.into_iter())
        };
        Self::from_each(layout, buckets.into_iter().map(one).collect())
    }

    /// From the digest of each bucket.
    #[must_use]
    pub fn by_bucket(layout: Layout, digest: impl Fn(Bucket) -> u64) -> Self {
        Self::from_each(layout, layout.all().map(digest).collect())
    }

    fn from_each(layout: Layout, mut each: Vec<u64>) -> Self {
        let whole = layout.has_whole().then(|| {
            let bytes: Vec<u8> = each.iter().flat_map(|digest| digest.to_be_bytes()).collect();
            number(&sha256(&SHA256, &bytes).as_ref()[..WHOLE_BYTES])
        });
        for digest in &mut each {
            *digest >>= 8 * (8 - layout.digest_bytes());
        }
        Self { layout, each, whole }
    }

    /// As it stands among the initial versions.
    #[must_use]
    pub fn to_text(&self) -> String {
        let skipped = 8 - self.layout.digest_bytes();
        let of = |digest: &u64| digest.to_be_bytes().into_iter().skip(skipped);
        let whole = self.whole.iter().flat_map(|whole| whole.to_be_bytes());
        let bytes: Vec<u8> = self.each.iter().flat_map(of).chain(whole).collect();
        STANDARD.encode(bytes)
    }

    /// What a client tells; `None` if it cannot be read.
    #[must_use]
    pub fn parse(layout: Layout, text: &str) -> Option<Self> {
        let buckets = usize::from(layout.buckets());
        if text.len() > 2 * (COARSE_BYTES_BEFORE * buckets + WHOLE_BYTES) {
            return None;
        }
        let mut bytes = STANDARD.decode(text).ok()?;
        let whole = match layout.has_whole() {
            true => Some(number(&bytes.split_off(bytes.len().checked_sub(WHOLE_BYTES)?))),
            false => None,
        };
        let told = layout.digest_bytes();
        let of_one = match layout {
            Layout::Coarse if bytes.len() == COARSE_BYTES_BEFORE * buckets => COARSE_BYTES_BEFORE,
            Layout::Coarse | Layout::Fine => told,
        };
        let of = |chunk: &[u8]| number(&chunk[..told]);
        (bytes.len() == of_one * buckets).then(|| Self {
            layout,
            each: bytes.chunks_exact(of_one).map(of).collect(),
            whole,
        })
    }

    /// The buckets that differ, or may: all of them where they look the same and everything does not. Both must be of one
    /// layout.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<Bucket> {
        debug_assert_eq!(self.layout, other.layout, "nothing else can be compared");
        let pairs = self.layout.all().zip(self.each.iter().zip(&other.each));
        let differing: BTreeSet<Bucket> = pairs
            .filter(|(_, (one, other))| one != other)
            .map(|(bucket, _)| bucket)
            .collect();
        match differing.is_empty() && self.whole != other.whole {
            true => self.layout.all().collect(),
            false => differing,
        }
    }

    /// The name that stands among removals for everything that a client must hold then; `None` where the digests of
    /// buckets say enough.
    #[must_use]
    pub fn whole_name(&self) -> Option<String> {
        self.whole.map(|whole| format!("{WHOLE_PREFIX}{whole:016x}"))
    }
}

/// Whether a removal says what the client must hold, and is none.
#[must_use]
pub fn is_whole(name: &str) -> bool {
    name.starts_with(WHOLE_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("Kubernetes//Pod/shop/web-{number}"))
            .collect()
    }

    /// All of these at version 1, but for those at which `changed` says something else.
    fn digests(layout: Layout, names: &[String], changed: &[(usize, &'static str)]) -> Digests {
        let version = |at: usize| {
            let changed = changed.iter().find(|(changed, _)| *changed == at);
            changed.map_or("1", |(_, version)| version)
        };
        let pairs = names.iter().enumerate();
        Digests::of(layout, pairs.map(|(at, name)| (name.as_str(), version(at))))
    }

    #[test]
    fn digests_survive_as_text_and_nothing_else_is_read() {
        for (layout, length) in [(Layout::Coarse, 4096), (Layout::Fine, 4108)] {
            let digests = digests(layout, &names(2), &[]);
            let text = digests.to_text();
            assert_eq!(text.len(), length);
            assert_eq!(Digests::parse(layout, &text), Some(digests));
            let longer = "A".repeat(1 << 20);
            for other in ["", "AAAA", &text[4..], &format!("{text}AAAA"), "?", &longer] {
                assert_eq!(Digests::parse(layout, other), None);
            }
        }
    }

    #[test]
    fn coarse_digests_are_read_as_they_were_told_before() {
        let digests = digests(Layout::Coarse, &names(2), &[]);
        let longer = digests
            .each
            .iter()
            .flat_map(|digest| (digest << 16 | 7).to_be_bytes());
        let longer = STANDARD.encode(longer.collect::<Vec<u8>>());
        assert_eq!(Digests::parse(Layout::Coarse, &longer), Some(digests));
    }

    #[test]
    fn only_the_buckets_of_what_differs_differ() {
        let names = names(4000);
        for layout in Layout::ALL {
            let (old, new) = (digests(layout, &names, &[]), digests(layout, &names, &[(7, "2")]));
            assert_eq!(old.differing(&old), BTreeSet::new());
            assert_eq!(old.differing(&new), BTreeSet::from([layout.bucket_of(&names[7])]));
            let empty = Digests::of(layout, std::iter::empty());
            let filled = empty.differing(&old).len();
            assert!(
                filled * 10 > usize::from(layout.buckets()) * 9,
                "names spread over the buckets: {filled}"
            );
        }
    }

    #[test]
    fn what_short_digests_hide_is_seen_in_everything() {
        let names = names(2000);
        let old = digests(Layout::Fine, &names, &[]);
        let hidden = Digests {
            each: old.each.clone(),
            ..digests(Layout::Fine, &names, &[(7, "2")])
        };
        assert_eq!(old.differing(&hidden), Layout::Fine.all().collect());
        assert_ne!(old.whole_name(), hidden.whole_name());
        assert_eq!(digests(Layout::Coarse, &names, &[]).whole_name(), None);
    }

    #[test]
    fn a_fine_bucket_is_part_of_a_coarse_one() {
        for name in names(2000) {
            let (coarse, fine) = (Layout::Coarse.bucket_of(&name), Layout::Fine.bucket_of(&name));
            assert_eq!(coarse.number(), fine.number() % BUCKETS);
            assert!(coarse.holds(&name) && fine.holds(&name));
        }
    }

    #[test]
    fn order_does_not_matter_and_boundaries_do() {
        for layout in Layout::ALL {
            let one = Digests::of(layout, [("a", "1"), ("b", "2")].into_iter());
            assert_eq!(one, Digests::of(layout, [("b", "2"), ("a", "1")].into_iter()));
        }
        assert_ne!(
            digest([("a", "bc")].into_iter()),
            digest([("ab", "c")].into_iter())
        );
    }

    #[test]
    fn a_bucket_has_a_name_that_no_resource_has() {
        for layout in Layout::ALL {
            for bucket in layout.all() {
                assert_eq!(Bucket::named(&bucket.to_string()), Some(bucket));
            }
        }
        for other in [
            "#bucket/512",
            "#bucket/",
            "#bucket/-1",
            "#bucket/512/1",
            "#bucket/1536/1536",
            "#bucket/1536/",
            "shop/web",
            "bucket/1",
        ] {
            assert_eq!(Bucket::named(other), None, "{other}");
        }
    }

    #[test]
    fn the_best_word_of_a_header_counts_and_unknown_ones_do_not() {
        let best = |lines: &[&str]| Layout::best(lines.iter().copied());
        assert_eq!(best(&["1", "2"]), Some(Layout::Fine));
        assert_eq!(best(&["1, 2, 3"]), Some(Layout::Fine));
        assert_eq!(best(&["1"]), Some(Layout::Coarse));
        assert_eq!(best(&["3", ""]), None);
        assert_eq!(best(&[]), None);
    }
}
