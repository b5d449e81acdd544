//! Memory that carries bytes, as it is at the moment of a scrape.

use std::fmt;

use tulle_runtime::metrics::{Collect, Descriptor, Scrape, whole};

/// What copies hold now.
#[derive(Debug)]
pub(super) struct Buffers;

impl Collect for Buffers {
    const METRICS: &'static [Descriptor] = &[Descriptor::gauge(
        "tulle_buffer_bytes",
        "Bytes of the buffers that connections hold now; an idle connection holds none",
    )];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        scrape.gauge("tulle_buffer_bytes", whole(tulle_transport::copy::buffer_bytes()))
    }
}
