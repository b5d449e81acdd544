//! Applies and reads tables in process, by messages to nf_tables: no program is needed in the pod or on the node.

mod batch;
mod expression;
mod foreign;
mod listing;
mod translate;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tulle_linux::NetNs;

use super::difference::difference;
use super::plan::Table;
use super::ranges::{self, Range};
use super::{Comparison, Rules};
use crate::error::CaptureError;
use crate::netlink::{Connection, NETLINK_NETFILTER, Refused};
use batch::Transaction;

/// What is being done, for errors.
const STEP: &str = "change the packet rules of the namespace";
/// What is being done, for errors.
const LIST: &str = "list the packet rules of the namespace";
/// Listings kept for comparison; there is one per variant of rules.
const LISTINGS_MAX: usize = 64;

/// Rules through netlink.
#[derive(Debug, Default)]
pub struct Netlink {
    /// How this kernel lists a table: listed once from a scratch namespace.
    listings: Mutex<HashMap<Table, Arc<[String]>>>,
}

impl Netlink {
    /// A backend that has listed nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How this kernel lists the planned table: it is put into a namespace of nobody and listed from there, so that the
    /// comparison is exact and depends on no version's way of listing.
    async fn planned(&self, table: &Table) -> Result<Arc<[String]>, CaptureError> {
        if let Some(listing) = self.listings.lock().get(table) {
            return Ok(Arc::clone(listing));
        }
        let scratch = NetNs::create().map_err(CaptureError::kernel("make a scratch network namespace"))?;
        put(&scratch, table.clone()).await?;
        let listing: Arc<[String]> = list(&scratch, table.name).await?.unwrap_or_default().into();
        let mut listings = self.listings.lock();
        if listings.len() >= LISTINGS_MAX {
            listings.clear();
        }
        listings.insert(table.clone(), Arc::clone(&listing));
        Ok(listing)
    }
}

impl Rules for Netlink {
    fn apply<'a>(&'a self, netns: &'a NetNs, table: &'a Table) -> BoxFuture<'a, Result<(), CaptureError>> {
        put(netns, table.clone()).boxed()
    }

    fn take_over<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'a Table,
    ) -> BoxFuture<'a, Result<(), CaptureError>> {
        let table = table.clone();
        within(netns, move || take_over_here(&table)).boxed()
    }

    fn remove<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
    ) -> BoxFuture<'a, Result<(), CaptureError>> {
        within(netns, move || remove_here(table)).boxed()
    }

    fn counted<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
        chain: &'static str,
    ) -> BoxFuture<'a, Result<u64, CaptureError>> {
        within(netns, move || {
            listing::counted_here(&mut open_here()?, table, chain).map_err(CaptureError::kernel(LIST))
        })
        .boxed()
    }

    fn held<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
        set: &'static str,
        intervals: bool,
    ) -> BoxFuture<'a, Result<Vec<Range>, CaptureError>> {
        within(netns, move || {
            let elements = listing::elements_here(&mut open_here()?, table, set);
            let elements = elements.map_err(CaptureError::kernel(LIST))?;
            Ok(ranges::of_elements(elements, intervals))
        })
        .boxed()
    }

    fn drops_what_is_unknown<'a>(&'a self, netns: &'a NetNs) -> BoxFuture<'a, Result<bool, CaptureError>> {
        within(netns, || {
            foreign::drops_invalid_here(&mut open_here()?).map_err(CaptureError::kernel(LIST))
        })
        .boxed()
    }

    fn compare<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'a Table,
    ) -> BoxFuture<'a, Result<Comparison, CaptureError>> {
        async move {
            let Some(found) = list(netns, table.name).await? else {
                return Ok(Comparison::Missing);
            };
            let planned = self.planned(table).await?;
            if found[..] == planned[..] {
                return Ok(Comparison::Equal);
            }
            Ok(Comparison::Different {
                diff: difference(&planned, &found),
            })
        }
        .boxed()
    }
}

async fn put(netns: &NetNs, table: Table) -> Result<(), CaptureError> {
    within(netns, move || put_here(&table)).await
}

/// A table that replaces none needs no deletion, for which the kernel would wait some 10 ms when the socket is closed.
fn put_here(table: &Table) -> Result<(), CaptureError> {
    let mut connection = open_here()?;
    let present =
        listing::is_present_here(&mut connection, table.name).map_err(CaptureError::kernel(STEP))?;
    if !present {
        let transaction = Transaction::create(table);
        match connection.transact(transaction.messages()) {
            // It was made meanwhile.
            Err(refused) if refused.source.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => return outcome.map_err(|refused| named(&transaction, refused)),
        }
        connection = open_here()?;
    }
    let transaction = Transaction::replace(table);
    connection
        .transact(transaction.messages())
        .map_err(|refused| named(&transaction, refused))
}

/// As [`put_here`], and in the same transaction what another mesh left to capture with goes.
fn take_over_here(table: &Table) -> Result<(), CaptureError> {
    let mut connection = open_here()?;
    let others = foreign::removal_here(&mut connection).map_err(CaptureError::kernel(LIST))?;
    if others.is_empty() {
        return put_here(table);
    }
    tracing::info!(removed = ?others.iter().map(|(name, _)| name).collect::<Vec<_>>(), "another mesh's capture is replaced");
    let transaction = Transaction::replace_with(table, others);
    connection
        .transact(transaction.messages())
        .map_err(|refused| named(&transaction, refused))
}

fn remove_here(table: &str) -> Result<(), CaptureError> {
    let transaction = Transaction::remove(table);
    open_here()?
        .transact(transaction.messages())
        .map_err(|refused| named(&transaction, refused))
}

fn open_here() -> Result<Connection, CaptureError> {
    Connection::open(NETLINK_NETFILTER).map_err(CaptureError::kernel(STEP))
}

fn named(transaction: &Transaction, refused: Refused) -> CaptureError {
    let Refused { message, source } = refused;
    match message {
        Some(message) => CaptureError::RulesRefused(format!("{}: {source}", transaction.name(message))),
        None => CaptureError::Kernel { step: STEP, source },
    }
}

async fn within<T: Send + 'static>(
    netns: &NetNs,
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, CaptureError> {
    netns
        .run_async(work)
        .await
        .map_err(CaptureError::kernel("enter the pod's namespace"))?
}

async fn list(netns: &NetNs, table: &'static str) -> Result<Option<Vec<String>>, CaptureError> {
    let listed = netns.run_async(move || -> io::Result<_> {
        listing::list_here(&mut Connection::open(NETLINK_NETFILTER)?, table)
    });
    listed
        .await
        .and_then(|listed| listed)
        .map_err(CaptureError::kernel(LIST))
}
