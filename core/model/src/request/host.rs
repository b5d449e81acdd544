//! The host a request is for: one, without a user, in lower case.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::name::Str;

/// Longest host with its port.
pub const HOST_BYTES_MAX: usize = 255 + ":65535".len();

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing stands there.
    #[error("the host is empty")]
    Empty,
    /// It is too long.
    #[error("the host has more than {HOST_BYTES_MAX} bytes")]
    TooLong,
    /// It holds a user, or another character that a host has not.
    #[error("the host has a character that no host has")]
    BadByte,
    /// What stands after the colon is no port.
    #[error("the port of the host is no number from 1 to 65535")]
    BadPort,
    /// What stands in brackets is no address.
    #[error("the address in brackets is none of IPv6")]
    BadAddress,
}

/// Reads `host`, `host:port`, `[IPv6]` or `[IPv6]:port`, and writes it in lower case.
///
/// # Errors
/// If it is none of these.
pub fn parse(text: &[u8]) -> Result<Str, HostError> {
    canonical(text).map(Str::from)
}

/// The same without a copy of what is in lower case already.
///
/// # Errors
/// If it is none of these.
pub fn canonical(text: &[u8]) -> Result<Cow<'_, str>, HostError> {
    if text.len() > HOST_BYTES_MAX {
        return Err(HostError::TooLong);
    }
    let text = std::str::from_utf8(text).map_err(|_| HostError::BadByte)?;
    let port = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(HostError::BadAddress)?;
            address.parse::<Ipv6Addr>().map_err(|_| HostError::BadAddress)?;
            if port.is_empty() {
                None
            } else {
                Some(port.strip_prefix(':').ok_or(HostError::BadByte)?)
            }
        }
        None => {
            let (host, port) = text
                .split_once(':')
                .map_or((text, None), |(host, port)| (host, Some(port)));
            name(host)?;
            port
        }
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse().unwrap_or(0_u16);
        if !digits || number == 0 {
            return Err(HostError::BadPort);
        }
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(text.to_ascii_lowercase().into());
    }
    Ok(text.into())
}

/// The host of an authority that was read, without its port and without brackets.
#[must_use]
pub fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// RFC 3986 lets a name have more characters; no name that resolves needs them, and each is a way to be misread.
fn name(host: &str) -> Result<(), HostError> {
    if host.is_empty() {
        return Err(HostError::Empty);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if host.bytes().all(legal) {
        Ok(())
    } else {
        Err(HostError::BadByte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_no_port_and_no_brackets() {
        for (authority, host) in [
            ("web.shop:80", "web.shop"),
            ("web.shop", "web.shop"),
            ("[::1]:80", "::1"),
        ] {
            assert_eq!(without_port(authority), host);
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for (text, expected) in [
            ("Web.Shop", "web.shop"),
            ("web_1.shop:8080", "web_1.shop:8080"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[FD00::1]:80", "[fd00::1]:80"),
            ("[::1]", "[::1]"),
            ("web.", "web."),
        ] {
            assert_eq!(parse(text.as_bytes()).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, expected) in [
            ("", HostError::Empty),
            (":80", HostError::Empty),
            ("user@web", HostError::BadByte),
            ("web,db", HostError::BadByte),
            ("web/x", HostError::BadByte),
            ("web db", HostError::BadByte),
            ("web%2e", HostError::BadByte),
            ("web:", HostError::BadPort),
            ("web:0", HostError::BadPort),
            ("web:+80", HostError::BadPort),
            ("web:65536", HostError::BadPort),
            ("web:80:80", HostError::BadPort),
            ("[::1", HostError::BadAddress),
            ("[10.0.0.1]", HostError::BadAddress),
            ("[::1]80", HostError::BadByte),
            ("[fe80::1%eth0]", HostError::BadAddress),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(expected), "{text}");
        }
        assert_eq!(parse(&[b'a'; 300]), Err(HostError::TooLong));
    }
}
