//! Where keys may be fetched from.

use std::net::IpAddr;

use tulle_model::Str;

/// An address that keys are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Whether it is spoken to with TLS. Without, it must be a service of the mesh.
    pub is_https: bool,
    /// Host, in lower case, without brackets.
    pub host: Str,
    /// Port.
    pub port: u16,
    /// Path, with its query.
    pub path: Str,
}

/// Why keys are not fetched from an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// It is no address of HTTP.
    #[error("`{0}` is no http or https address")]
    NotHttp(String),
    /// It has a user name.
    #[error("an address of keys must not name a user")]
    UserInfo,
    /// Only services of the mesh may be spoken to without TLS.
    #[error("`{0}` is no service of the mesh, so keys are fetched from it with https only")]
    NotHttps(Str),
    /// The address is one that nobody may be sent to.
    #[error("{0} is a loopback, link-local, metadata or unspecified address")]
    Forbidden(IpAddr),
}

impl Target {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, BadTarget> {
        let shown = || BadTarget::NotHttp(text.chars().filter(|c| !c.is_control()).take(256).collect());
        let uri: http::Uri = text.parse().map_err(|_| shown())?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(shown()),
        };
        let authority = uri.authority().ok_or_else(shown)?;
        if authority.as_str().contains('@') {
            return Err(BadTarget::UserInfo);
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() {
            return Err(shown());
        }
        Ok(Self {
            is_https,
            host: host.into(),
            port: authority.port_u16().unwrap_or(if is_https { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).into(),
        })
    }

    /// As a Host header says it.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.to_string(),
        };
        match (self.is_https, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Judges the address that is about to be dialled outside of the mesh. A name may lead anywhere, so this is asked
    /// for the address itself.
    pub fn judge(&self, address: IpAddr) -> Result<(), BadTarget> {
        if !self.is_https {
            return Err(BadTarget::NotHttps(self.host.clone()));
        }
        if is_forbidden(address) {
            return Err(BadTarget::Forbidden(address));
        }
        Ok(())
    }
}

/// Addresses that nobody outside of the mesh is reached by, and those that clouds hand out secrets at.
#[must_use]
pub fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_multicast()
                || address.octets()[0] == 0
                // Alibaba's metadata service stands outside of the link-local block.
                || address.octets() == [100, 100, 100, 200]
        }
        IpAddr::V6(address) => {
            let metadata = std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address == metadata
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_their_parts() {
        let target = Target::parse("https://Keys.example.com/a?b=c").unwrap();
        let expect = Target {
            is_https: true,
            host: "keys.example.com".into(),
            port: 443,
            path: "/a?b=c".into(),
        };
        assert_eq!(target, expect);
        assert_eq!(Target::parse("http://keys.shop:8080").unwrap().port, 8080);
        assert_eq!(&*Target::parse("https://[fd00::1]/").unwrap().host, "fd00::1");
        for text in [
            "file:///etc/passwd",
            "keys",
            "https://",
            "https://u:p@x/",
            "ftp://x/",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_is_sent_to_loopback_link_local_or_metadata_addresses() {
        let target = Target::parse("https://keys.example.com").unwrap();
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "fd00:ec2::254",
            "100.100.100.200",
            "224.0.0.1",
        ] {
            assert!(target.judge(address.parse().unwrap()).is_err(), "{address}");
        }
        assert_eq!(target.judge("192.0.2.1".parse().unwrap()), Ok(()));
    }

    #[test]
    fn outside_of_the_mesh_there_is_no_clear_text() {
        let target = Target::parse("http://keys.example.com").unwrap();
        assert!(matches!(
            target.judge("192.0.2.1".parse().unwrap()),
            Err(BadTarget::NotHttps(_))
        ));
    }
}
