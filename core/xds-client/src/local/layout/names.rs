//! Names and addresses that the file writes as one text.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tulle_model::gateway::GatewayDestination;
use tulle_model::{NamespacedHostname, NamespacedName, NetworkAddress};

/// A value written as text, so that an error stands at its line.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// `<namespace>/<name>`.
pub(super) struct Name(pub(super) NamespacedName);

/// `<namespace>/<hostname>`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hostname(pub(super) NamespacedHostname);

/// `<network>/<ip>`.
pub(super) struct Vip(pub(super) NetworkAddress);

/// `<network>/<ip>` or `<namespace>/<hostname>`.
pub(super) struct Destination(pub(super) GatewayDestination);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = two_parts(text)?;
        Ok(Self(NamespacedName::new(namespace, name)))
    }
}

impl FromStr for Hostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, hostname) = two_parts(text)?;
        Ok(Self(NamespacedHostname::new(namespace, hostname)))
    }
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text
            .split_once('/')
            .and_then(|(network, ip)| Some((network, ip.parse().ok()?)));
        let (network, ip) = address.ok_or_else(|| format!("`{text}` is not <network>/<ip>"))?;
        Ok(Self(NetworkAddress::new(network, ip)))
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(Vip(address)) = text.parse() {
            return Ok(Self(GatewayDestination::Address(address)));
        }
        text.parse()
            .map(|Hostname(hostname)| Self(GatewayDestination::Hostname(hostname)))
    }
}

fn two_parts(text: &str) -> Result<(&str, &str), String> {
    match text.split_once('/') {
        Some((first, second)) if !first.is_empty() && !second.is_empty() && !second.contains('/') => {
            Ok((first, second))
        }
        _ => Err(format!("`{text}` is not <namespace>/<name>")),
    }
}
