//! Packet rules: what a pod's namespace must hold ([`plan`]), and putting it there ([`netlink`], [`nft`]).

mod difference;
pub mod host;
pub mod legacy;
pub mod netlink;
pub mod nft;
pub mod plan;
pub mod ranges;
pub mod table;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tulle_linux::NetNs;

use crate::error::CaptureError;
use plan::Table;
use ranges::Range;

/// Puts a table into a namespace and looks at what is there. Every method is one transaction.
pub trait Rules: std::fmt::Debug + Send + Sync {
    /// Replaces our table; packets see the old one or the new one, nothing between.
    fn apply<'a>(&'a self, netns: &'a NetNs, table: &'a Table) -> BoxFuture<'a, Result<(), CaptureError>>;
    /// As [`Self::apply`], and removes in the same transaction what another mesh captures with.
    fn take_over<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'a Table,
    ) -> BoxFuture<'a, Result<(), CaptureError>> {
        self.apply(netns, table)
    }
    /// Removes a table of ours; that there is none is no error.
    fn remove<'a>(&'a self, netns: &'a NetNs, table: &'static str)
    -> BoxFuture<'a, Result<(), CaptureError>>;
    /// How many packets the counters of a chain's rules have counted; 0 if there is no such chain.
    fn counted<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
        chain: &'static str,
    ) -> BoxFuture<'a, Result<u64, CaptureError>> {
        let _ = (netns, table, chain);
        Box::pin(std::future::ready(Ok(0)))
    }
    /// What a set of a table of ours holds; nothing if there is none.
    fn held<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
        set: &'static str,
        intervals: bool,
    ) -> BoxFuture<'a, Result<Vec<Range>, CaptureError>> {
        let _ = (netns, table, set, intervals);
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// Whether rules of others drop packets of connections that conntrack does not know.
    fn drops_what_is_unknown<'a>(&'a self, netns: &'a NetNs) -> BoxFuture<'a, Result<bool, CaptureError>> {
        let _ = netns;
        Box::pin(std::future::ready(Ok(false)))
    }
    /// How our table of this name in the namespace relates to the plan.
    fn compare<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'a Table,
    ) -> BoxFuture<'a, Result<Comparison, CaptureError>>;
}

/// What a look at the kernel's table gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// It is what the plan says.
    Equal,
    /// There is none.
    Missing,
    /// It is another; the lines that differ, `-` for planned and `+` for found.
    Different {
        /// The differing lines, at most [`DIFF_LINES_MAX`].
        diff: Vec<String>,
    },
}

/// Lines of a difference that are kept for the log.
pub const DIFF_LINES_MAX: usize = 20;

/// The ways of putting rules into a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// In process, by messages to the kernel.
    Netlink,
    /// By the program `nft`, which must be installed.
    Nft,
}

impl Backend {
    /// Rules by this backend.
    #[must_use]
    pub fn rules(self) -> Arc<dyn Rules> {
        match self {
            Self::Netlink => Arc::new(netlink::Netlink::new()),
            Self::Nft => Arc::new(nft::Nft::new()),
        }
    }
}
