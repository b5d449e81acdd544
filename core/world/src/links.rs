//! Interfaces, addresses and routes of one network namespace, through netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tulle_linux::NetNs;

/// A netlink conversation with one namespace.
#[derive(Debug)]
pub(crate) struct Links {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        // The socket keeps the namespace alive for as long as its driver runs.
        self.connection.abort();
    }
}

type Outcome<T> = Result<T, rtnetlink::Error>;

impl Links {
    /// Opens a netlink socket inside of the namespace.
    pub(crate) async fn open(namespace: &NetNs) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = namespace
            .run_async(move || {
                let _inside = runtime.enter();
                rtnetlink::new_connection()
            })
            .await??;
        #[allow(
            clippy::disallowed_methods,
            reason = "ends with this value, see Drop; there is no scope to join"
        )]
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// The index of an interface.
    pub(crate) async fn index(&self, name: &str) -> Outcome<u32> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await? {
            Some(link) => Ok(link.header.index),
            None => Err(rtnetlink::Error::RequestFailed),
        }
    }

    /// Sets an interface up.
    pub(crate) async fn up(&self, name: &str) -> Outcome<()> {
        let index = self.index(name).await?;
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
    }

    /// Sets an interface down.
    pub(crate) async fn down(&self, name: &str) -> Outcome<()> {
        let index = self.index(name).await?;
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).down().build())
            .execute()
            .await
    }

    /// Adds a bridge.
    pub(crate) async fn add_bridge(&self, name: &str) -> Outcome<()> {
        self.handle
            .link()
            .add(LinkBridge::new(name).build())
            .execute()
            .await
    }

    /// Makes an interface a port of a bridge.
    pub(crate) async fn join_bridge(&self, port: &str, bridge: &str) -> Outcome<()> {
        let bridge = self.index(bridge).await?;
        let port = self.index(port).await?;
        let change = LinkUnspec::new_with_index(port).controller(bridge).build();
        self.handle.link().set(change).execute().await
    }

    /// Adds a pair of interfaces and moves the far one into another namespace under a name of its own.
    pub(crate) async fn add_pair(&self, near: &str, far: &str, there: &NetNs) -> Outcome<()> {
        // A name that the near namespace may have already is only taken once the interface has moved.
        let moving = format!("{near}-p");
        self.handle
            .link()
            .add(LinkVeth::new(near, &moving).build())
            .execute()
            .await?;
        let index = self.index(&moving).await?;
        let change = LinkUnspec::new_with_index(index)
            .name(far.to_owned())
            .setns_by_fd(there.fd().as_raw_fd())
            .build();
        self.handle.link().set(change).execute().await
    }

    /// Removes an interface, and with it its peer.
    pub(crate) async fn remove(&self, name: &str) -> Outcome<()> {
        let index = self.index(name).await?;
        self.handle.link().del(index).execute().await
    }

    /// Gives an interface an address, which can be used at once: without the flag, one of IPv6 is tentative until a work
    /// queue of the kernel has looked at it, also where nobody looks for duplicates.
    pub(crate) async fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Outcome<()> {
        let index = self.index(name).await?;
        let mut request = self.handle.address().add(index, address, prefix);
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await
    }

    /// Routes a prefix to an interface, through a gateway if one is given.
    pub(crate) async fn add_route(
        &self,
        name: &str,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Outcome<()> {
        let message = self.route(name, destination, prefix, gateway).await?;
        self.handle.route().add(message).execute().await
    }

    /// Takes back what [`Self::add_route`] did.
    pub(crate) async fn remove_route(
        &self,
        name: &str,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Outcome<()> {
        let message = self.route(name, destination, prefix, gateway).await?;
        self.handle.route().del(message).execute().await
    }

    async fn route(
        &self,
        name: &str,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Outcome<RouteMessage> {
        let index = self.index(name).await?;
        Ok(match (destination, gateway) {
            (IpAddr::V4(destination), gateway) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(destination, prefix)
                    .output_interface(index);
                match gateway {
                    Some(IpAddr::V4(gateway)) => route.gateway(gateway).onlink().build(),
                    _ => route.scope(RouteScope::Link).build(),
                }
            }
            (IpAddr::V6(destination), gateway) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(destination, prefix)
                    .output_interface(index);
                match gateway {
                    Some(IpAddr::V6(gateway)) => route.gateway(gateway).onlink().build(),
                    _ => route.build(),
                }
            }
        })
    }
}
