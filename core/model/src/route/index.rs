//! Finds the matches whose path may fit, without looking at the others: a hash map for exact paths, a trie of segments
//! for prefixes, and a tree of sets for regular expressions.
//!
//! Matches are numbered in the order of precedence, and every list here is in that order: a smaller number wins.

use ahash::AHashMap;
use regex::RegexSet;

use super::pattern::Pattern;

/// Numbers of matches, ascending.
pub(super) type Numbers = Vec<u32>;

/// Children of one node in the tree of patterns.
const FAN_OUT: usize = 8;
/// Most patterns that one set holds. Larger ones no longer fit the matcher's cache of states.
const SET_MAX: usize = 512;

/// Prefixes, segment by segment.
#[derive(Debug)]
pub(super) struct Prefixes {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: AHashMap<Box<str>, usize>,
    /// The nearest node above with matches.
    above: Option<usize>,
    /// Length of the prefix in bytes.
    length: usize,
    matches: Numbers,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl Prefixes {
    /// Adds a match of a prefix that does not end with `/`; the empty one is every path.
    pub(super) fn add(&mut self, prefix: &str, number: u32) {
        let (mut at, mut length) = (0, 0);
        for segment in segments(prefix) {
            length += 1 + segment.len();
            at = match self.nodes[at].children.get(segment) {
                Some(&child) => child,
                None => self.grow(at, segment, length),
            };
        }
        self.nodes[at].matches.push(number);
    }

    fn grow(&mut self, at: usize, segment: &str, length: usize) -> usize {
        let child = self.nodes.len();
        self.nodes.push(Node {
            length,
            ..Node::default()
        });
        self.nodes[at].children.insert(segment.into(), child);
        child
    }

    /// Links each node to the next shorter prefix that has matches. A child comes after its parent.
    pub(super) fn link(&mut self) {
        for at in 0..self.nodes.len() {
            let above = if self.nodes[at].matches.is_empty() {
                self.nodes[at].above
            } else {
                Some(at)
            };
            let children: Vec<_> = self.nodes[at].children.values().copied().collect();
            for child in children {
                self.nodes[child].above = above;
            }
        }
    }

    /// The matches of every prefix of the path, the longest first, each with its length.
    pub(super) fn of<'a>(&'a self, path: &str) -> impl Iterator<Item = (usize, &'a Numbers)> {
        let mut at = 0;
        for segment in segments(path) {
            match self.nodes[at].children.get(segment) {
                Some(&child) => at = child,
                None => break,
            }
        }
        std::iter::successors(Some(at), |&at| self.nodes[at].above)
            .map(|at| (self.nodes[at].length, &self.nodes[at].matches))
    }
}

/// What stands after each `/`. A path that does not begin with one (`*`) has none.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let mut segments = path.split('/');
    let rooted = segments.next() == Some("") && !path.is_empty();
    segments.take(if rooted { usize::MAX } else { 0 })
}

/// Regular expressions, as a tree whose inner nodes tell whether anything below them matches.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    roots: Vec<Tree>,
}

#[derive(Debug)]
enum Tree {
    Leaf {
        pattern: Pattern,
        matches: Numbers,
    },
    Branch {
        /// `None`: not known without asking the children.
        any: Option<RegexSet>,
        first: u32,
        children: Vec<Self>,
    },
}

impl Patterns {
    /// Builds the tree of patterns, each with its matches.
    pub(super) fn build(mut patterns: Vec<(Pattern, Numbers)>) -> Self {
        patterns.sort_by_key(|(_, matches)| matches.first().copied());
        let mut below = FAN_OUT;
        let mut level: Vec<Tree> = patterns
            .into_iter()
            .map(|(pattern, matches)| Tree::Leaf { pattern, matches })
            .collect();
        while level.len() > FAN_OUT && below <= SET_MAX {
            level = grouped(level);
            below *= FAN_OUT;
        }
        Self { roots: level }
    }

    /// Gives the lists of the patterns that match, while a list can still hold a number below what `visit` answers.
    pub(super) fn visit(&self, path: &str, best: u32, visit: &mut impl FnMut(&Numbers) -> u32) {
        let mut best = best;
        for root in &self.roots {
            best = root.visit(path, best, visit);
        }
    }
}

fn grouped(level: Vec<Tree>) -> Vec<Tree> {
    let mut groups = Vec::with_capacity(level.len().div_ceil(FAN_OUT));
    let mut level = level.into_iter().peekable();
    while level.peek().is_some() {
        let children: Vec<Tree> = level.by_ref().take(FAN_OUT).collect();
        let mut patterns = Vec::new();
        children.iter().for_each(|child| child.patterns(&mut patterns));
        groups.push(Tree::Branch {
            any: Pattern::set(patterns.into_iter()),
            first: children.iter().map(Tree::first).min().unwrap_or(u32::MAX),
            children,
        });
    }
    groups
}

impl Tree {
    fn first(&self) -> u32 {
        match self {
            Self::Leaf { matches, .. } => matches.first().copied().unwrap_or(u32::MAX),
            Self::Branch { first, .. } => *first,
        }
    }

    fn patterns<'a>(&'a self, into: &mut Vec<&'a Pattern>) {
        match self {
            Self::Leaf { pattern, .. } => into.push(pattern),
            Self::Branch { children, .. } => children.iter().for_each(|child| child.patterns(into)),
        }
    }

    fn visit(&self, path: &str, best: u32, visit: &mut impl FnMut(&Numbers) -> u32) -> u32 {
        if self.first() >= best {
            return best;
        }
        match self {
            Self::Leaf { pattern, matches } if pattern.matches(path) => best.min(visit(matches)),
            Self::Branch { any, children, .. } if any.as_ref().is_none_or(|any| any.is_match(path)) => {
                children
                    .iter()
                    .fold(best, |best, child| child.visit(path, best, visit))
            }
            _ => best,
        }
    }
}
