//! Clients that come back after a part of a table has changed: one that tells digests of what it holds, and one that
//! tells versions, as Istio's does.

use std::time::Duration;

use tulle_proto::ADDRESS_TYPE;

use super::back::Returning;
use super::fleet::Fleet;
use super::plane::{CHANGING, Plane, node};
use crate::ads::{Stream, Table, Taking, first};

/// What a return takes of what a whole table takes, in the same encoding.
#[derive(Debug)]
pub(super) struct Resync {
    /// Percent of the bytes as they travel, both ways, TLS included.
    pub by_digests: f64,
    /// Percent of the bytes of responses.
    pub by_versions: f64,
}

/// Changes every changing pod once while both clients are away. The fleet tells when everything is served.
pub(super) async fn measure(plane: &Plane, fleet: &Fleet) -> Resync {
    let returning = Returning::start(plane).await;
    let (mut table, full) = versions(plane, Table::default(), plane.size.addresses()).await;
    returning.part();
    let second = Duration::from_secs(1);
    assert_eq!(fleet.changes(plane, CHANGING, second).await.missed, 0);
    let digests = returning.rejoin().await;
    let changed;
    (table, changed) = versions(plane, table, CHANGING).await;
    assert_eq!(table.held.len(), plane.size.addresses());
    Resync {
        by_digests: 100.0 * digests as f64 / returning.full as f64,
        by_versions: 100.0 * changed as f64 / full as f64,
    }
}

/// Comes back with a table and reads until so many resources were told; gives the bytes of the responses.
async fn versions(plane: &Plane, mut table: Table, awaited: usize) -> (Table, u64) {
    let mut request = first(&node(2), ADDRESS_TYPE);
    request.initial_resource_versions.clone_from(&table.held);
    let config = plane.config_of(&node(2));
    let mut stream = Stream::open_as(&config, &request, Taking::Raw).await.unwrap();
    let mut told = 0;
    while told < awaited {
        let raw = stream.next(usize::MAX).await.unwrap();
        stream.accept(raw.head()).await.unwrap();
        let response = raw.decode();
        told += response.resources.len();
        table.take(&response);
    }
    (table, stream.bytes())
}
