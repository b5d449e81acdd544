//! Header fields that end here: those of the hop, and those that only the mesh may set.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONNECTION, TE};
use http::{HeaderMap, HeaderName};
use tulle_model::request::reserved::{HOP_BY_HOP, is_forwarding, is_own};

/// The list of addresses that a request has passed.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The elements of a field whose values are lists.
fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
}

/// Whether a field that is a list names something.
pub(super) fn names(headers: &HeaderMap, field: HeaderName, what: &str) -> bool {
    elements(headers, field).any(|element| element.eq_ignore_ascii_case(what.as_bytes()))
}

/// Whether `te` names trailers.
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    names(headers, TE, "trailers")
}

/// Removes what ends at this hop, and what `connection` names.
pub fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = elements(headers, CONNECTION)
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            // These say where a message goes and ends; a client cannot have them taken out from under that.
            .filter(|name| !matches!(name.as_str(), "host" | "content-length"))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

/// Removes what does not go on from a client.
pub(super) fn strip(headers: &mut HeaderMap, gateway: bool) {
    strip_hop(headers);
    headers.remove(http::header::HOST);
    headers.remove(http::header::EXPECT);
    let foreign = |name: &&HeaderName| is_own(name.as_str()) || (!gateway && is_forwarding(name.as_str()));
    let foreign: Vec<HeaderName> = headers.keys().filter(foreign).cloned().collect();
    for name in foreign {
        headers.remove(name);
    }
}

/// The client that a gateway says it speaks for: the last address of the list, which the gateway itself wrote. Some write
/// the port, too.
#[must_use]
pub fn remote_ip(headers: &HeaderMap) -> Option<IpAddr> {
    let last = elements(headers, FORWARDED_FOR).last()?;
    let last = std::str::from_utf8(last).ok()?;
    let alone = last.parse::<IpAddr>();
    let address = alone.or_else(|_| last.parse().map(|with_port: SocketAddr| with_port.ip()));
    Some(address.ok()?.to_canonical())
}
