//! The route and the rule that bring replies of transparent connections back to the proxy: table 100, per family.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tulle_linux::NetNs;
use tulle_runtime::tasks;

use crate::error::CaptureError;
use crate::rules::plan::{MARK_MASK, TRANSPARENT_MARK};

/// The routing table of replies on transparent connections.
pub const ROUTE_TABLE: u32 = 100;
/// Preference of the rule that leads there: just before the main table.
pub const RULE_PREFERENCE: u32 = 32764;
/// The loopback interface is the first one of every namespace.
const LOOPBACK_INDEX: u32 = 1;

const ESRCH: i32 = 3;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

/// An address family that gets a route and a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The families a namespace routes.
#[must_use]
pub fn families(ipv6: bool) -> &'static [Family] {
    if ipv6 {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    }
}

/// Adds route and rule; that they exist is no error.
///
/// # Errors
/// What the kernel answers.
pub async fn install(netns: &NetNs, ipv6: bool) -> Result<(), CaptureError> {
    let routes = Routes::open(netns).await?;
    for family in families(ipv6) {
        let added = routes.0.route().add(route(*family)).replace().execute().await;
        settled(added, &[EEXIST]).map_err(CaptureError::kernel("add the route of table 100"))?;
        if !routes.has_rule(*family).await? {
            let added = routes.add_rule(*family).await;
            settled(added, &[EEXIST]).map_err(CaptureError::kernel("add the routing rule of table 100"))?;
        }
    }
    Ok(())
}

/// Removes route and rule of every family; that they are gone is no error. The kernel keeps rules for IPv6 where that was
/// switched off after they were added.
///
/// # Errors
/// What the kernel answers.
pub async fn remove(netns: &NetNs) -> Result<(), CaptureError> {
    let routes = Routes::open(netns).await?;
    for family in families(true) {
        for rule in routes.rules(*family).await? {
            let deleted = routes.0.rule().del(rule).execute().await;
            settled(deleted, &[ESRCH, ENOENT])
                .map_err(CaptureError::kernel("delete the routing rule of table 100"))?;
        }
        let deleted = routes.0.route().del(route(*family)).execute().await;
        settled(deleted, &[ESRCH, ENOENT, EOPNOTSUPP, EAFNOSUPPORT])
            .map_err(CaptureError::kernel("delete the route of table 100"))?;
    }
    Ok(())
}

/// Whether route and rule of every family are there.
///
/// # Errors
/// What the kernel answers.
pub async fn present(netns: &NetNs, ipv6: bool) -> Result<bool, CaptureError> {
    let routes = Routes::open(netns).await?;
    for family in families(ipv6) {
        if !routes.has_rule(*family).await? || !routes.has_route(*family).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A routing socket in a namespace. It is closed as soon as this is dropped: a socket keeps its namespace alive.
struct Routes(Handle);

impl Routes {
    async fn open(netns: &NetNs) -> Result<Self, CaptureError> {
        let runtime = tokio::runtime::Handle::current();
        let opened = netns.run_async(move || {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) =
            opened
                .await
                .and_then(|opened| opened)
                .map_err(CaptureError::kernel(
                    "open a routing socket in the pod's namespace",
                ))?;
        tasks::spawn("routing-socket", connection);
        Ok(Self(handle))
    }

    async fn add_rule(&self, family: Family) -> Result<(), rtnetlink::Error> {
        let mut rule = self
            .0
            .rule()
            .add()
            .fw_mark(TRANSPARENT_MARK)
            .priority(RULE_PREFERENCE)
            .table_id(ROUTE_TABLE)
            .action(RuleAction::ToTable);
        rule.message_mut()
            .attributes
            .push(RuleAttribute::FwMask(MARK_MASK));
        match family {
            Family::V4 => rule.v4().execute().await,
            Family::V6 => rule.v6().execute().await,
        }
    }

    /// Our rules of a family; none where the kernel does not know it at all.
    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, CaptureError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let rules = self.0.rule().get(version).execute();
        let ours = rules.try_filter(|rule| std::future::ready(is_ours(rule)));
        match ours.try_collect().await {
            Err(error) => settled(Err(error), &[EOPNOTSUPP, EAFNOSUPPORT])
                .map(|()| Vec::new())
                .map_err(CaptureError::kernel("list routing rules")),
            Ok(rules) => Ok(rules),
        }
    }

    async fn has_rule(&self, family: Family) -> Result<bool, CaptureError> {
        Ok(!self.rules(family).await?.is_empty())
    }

    async fn has_route(&self, family: Family) -> Result<bool, CaptureError> {
        // With a destination the kernel would look one route up; we want the list.
        let every = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes = self.0.route().get(every).execute().boxed();
        let mut found = false;
        while let Some(route) = routes.next().await {
            found |= is_default_to_loopback(&route.map_err(|error| listing("list routes", error))?);
        }
        Ok(found)
    }
}

fn route(family: Family) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .protocol(RouteProtocol::Boot)
            .table_id(ROUTE_TABLE)
            .output_interface(LOOPBACK_INDEX)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .kind(RouteType::Local)
            .protocol(RouteProtocol::Boot)
            .table_id(ROUTE_TABLE)
            .output_interface(LOOPBACK_INDEX)
            .build(),
    }
}

fn is_ours(rule: &RuleMessage) -> bool {
    let has = |wanted: RuleAttribute| rule.attributes.contains(&wanted);
    let table = has(RuleAttribute::Table(ROUTE_TABLE)) || u32::from(rule.header.table) == ROUTE_TABLE;
    table
        && has(RuleAttribute::Priority(RULE_PREFERENCE))
        && has(RuleAttribute::FwMark(TRANSPARENT_MARK))
        && has(RuleAttribute::FwMask(MARK_MASK))
}

fn is_default_to_loopback(route: &RouteMessage) -> bool {
    let has = |wanted: RouteAttribute| route.attributes.contains(&wanted);
    let table = has(RouteAttribute::Table(ROUTE_TABLE)) || u32::from(route.header.table) == ROUTE_TABLE;
    table
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && has(RouteAttribute::Oif(LOOPBACK_INDEX))
}

/// What the kernel says counts as done when it is one of `tolerated`.
fn settled(outcome: Result<(), rtnetlink::Error>, tolerated: &[i32]) -> io::Result<()> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(message)) if tolerated.contains(&-message.raw_code()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) => Err(message.to_io()),
        Err(error) => Err(io::Error::other(error.to_string())),
        Ok(()) => Ok(()),
    }
}

fn listing(step: &'static str, error: rtnetlink::Error) -> CaptureError {
    let source = settled(Err(error), &[])
        .err()
        .unwrap_or_else(|| io::Error::other("no answer"));
    CaptureError::Kernel { step, source }
}
