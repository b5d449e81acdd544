//! The `forwarded` header of a tunnel request: who the client was, and which service it asked for.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Longest header that is read.
const LENGTH_MAX: usize = 512;

/// Longest host name there is.
const HOST_LENGTH_MAX: usize = 253;

/// `for="<client ip:port>"`, and `;host=<service>` when the client addressed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The client, as the sending proxy saw it.
    pub client: SocketAddr,
    /// Fully qualified name of the service that was addressed.
    pub host: Option<String>,
}

/// The header does not name a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("forwarded header is not of the form for=\"<ip:port>\";host=<name>")]
pub struct InvalidForwarded;

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        match &self.host {
            Some(host) if is_host(host) => write!(f, ";host={host}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Forwarded {
    type Err = InvalidForwarded;

    /// Reads one element. Parameters other than `for` and `host` are skipped; a repeated one is refused, since two
    /// readers might believe different values.
    fn from_str(header: &str) -> Result<Self, Self::Err> {
        if header.len() > LENGTH_MAX || header.contains(',') {
            return Err(InvalidForwarded);
        }
        let (mut client, mut host) = (None, None);
        for parameter in header.split(';') {
            let (key, value) = parameter.trim().split_once('=').ok_or(InvalidForwarded)?;
            let value = unquote(value)?;
            if key.eq_ignore_ascii_case("for") {
                let address = value.parse().map_err(|_| InvalidForwarded)?;
                once(&mut client, address)?;
            } else if key.eq_ignore_ascii_case("host") {
                let name = is_host(value).then(|| value.to_owned()).ok_or(InvalidForwarded)?;
                once(&mut host, name)?;
            }
        }
        Ok(Self {
            client: client.ok_or(InvalidForwarded)?,
            host,
        })
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), InvalidForwarded> {
    slot.replace(value).map_or(Ok(()), |_| Err(InvalidForwarded))
}

fn unquote(value: &str) -> Result<&str, InvalidForwarded> {
    match value.strip_prefix('"') {
        Some(rest) => rest
            .strip_suffix('"')
            .filter(|inner| !inner.contains(['"', '\\']))
            .ok_or(InvalidForwarded),
        None => (!value.contains('"')).then_some(value).ok_or(InvalidForwarded),
    }
}

fn is_host(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
    (1..=HOST_LENGTH_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(header: &str, expect: Option<(&str, Option<&str>)>) {
        let expect = expect.map(|(client, host)| Forwarded {
            client: client.parse().unwrap(),
            host: host.map(str::to_owned),
        });
        assert_eq!(header.parse::<Forwarded>().ok(), expect, "{header}");
    }

    #[test]
    fn one_client_and_at_most_one_host_are_taken() {
        check(r#"for="10.0.0.1:80""#, Some(("10.0.0.1:80", None)));
        check(r#"for="[::1]:80";host=a.b"#, Some(("[::1]:80", Some("a.b"))));
        check(
            r#"For=10.0.0.1:80;by=x; Host="a.b""#,
            Some(("10.0.0.1:80", Some("a.b"))),
        );
        check(r#"for="10.0.0.1:80", for="10.0.0.2:80""#, None);
        check(r#"for="10.0.0.1:80";for="10.0.0.2:80""#, None);
        check(r#"for="10.0.0.1:80";host=a;host=b"#, None);
        check(r#"for="10.0.0.1:80"#, None);
        check(r#"for="10.0.0.1""#, None);
        check("host=a", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn text_form_round_trips(ip: std::net::IpAddr, port: u16, host in proptest::option::of("[a-z0-9.-]{1,40}")) {
            let given = Forwarded { client: SocketAddr::new(ip, port), host };
            prop_assert_eq!(given.to_string().parse(), Ok(given));
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = text.parse::<Forwarded>();
        }
    }
}
