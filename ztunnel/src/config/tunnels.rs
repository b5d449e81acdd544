//! Tunnels to peers: how many, and how much each may hold.

use std::time::Duration;

use serde::Serialize;
use tulle_runtime::config::Collector;
use tulle_transport::hbone::{Framing, Settings};

use super::show::{as_duration, as_text};

/// Bounds of the tunnel pool.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Streams per connection.
    pub streams_max: usize,
    /// Unused connections are closed after this.
    #[serde(serialize_with = "as_duration")]
    pub unused_release: Duration,
    /// Connections per key.
    pub connections_per_key: usize,
}

/// HTTP/2 settings, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// Flow control of one stream.
    pub stream_window: u32,
    /// Flow control of a connection.
    pub connection_window: u32,
    /// Largest frame.
    pub frame: u32,
    /// Who makes the frames.
    #[serde(serialize_with = "as_text")]
    pub framing: Framing,
}

pub(super) fn read_pool(read: &mut Collector<'_>, worker_threads: usize) -> Pool {
    /// More connections per key bring nothing on the machines measured.
    const CONNECTIONS_PER_KEY_MAX: usize = 8;
    Pool {
        streams_max: read.value("POOL_MAX_STREAMS_PER_CONNECTION", 100, parse_positive),
        unused_release: read.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(5 * 60)),
        connections_per_key: read.value(
            "TULLE_POOL_CONNECTIONS_PER_KEY",
            worker_threads.min(CONNECTIONS_PER_KEY_MAX),
            parse_positive,
        ),
    }
}

fn parse_positive(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or("must be a number above 0")
}

pub(super) fn read_http2(read: &mut Collector<'_>) -> Http2 {
    const MIB: u64 = 1 << 20;
    // RFC 9113: windows reach 2^31 - 1, frames 2^24 - 1 bytes and no less than 2^14.
    let mut size = |name: &str, default: u64, range: std::ops::RangeInclusive<u64>| {
        let parse = |text: &str| match tulle_runtime::config::parse_size(text) {
            Ok(size) if range.contains(&size) => Ok(size),
            Ok(_) => Err(format!(
                "must lie between {} and {} bytes",
                range.start(),
                range.end()
            )),
            Err(error) => Err(error.to_string()),
        };
        let size = read.value(name, default, parse);
        u32::try_from(size).expect("the range lies within 32 bits")
    };
    const WINDOW_MAX: u64 = (1 << 31) - 1;
    Http2 {
        stream_window: size("HTTP2_STREAM_WINDOW_SIZE", 4 * MIB, 65_535..=WINDOW_MAX),
        connection_window: size("HTTP2_CONNECTION_WINDOW_SIZE", 16 * MIB, 65_535..=WINDOW_MAX),
        frame: size("HTTP2_FRAME_SIZE", MIB, 16_384..=(1 << 24) - 1),
        framing: read.value("TULLE_HBONE", Settings::client().framing, |text| {
            Framing::from_name(text).ok_or("must be records, own or h2")
        }),
    }
}
