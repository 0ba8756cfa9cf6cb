//! What the kernel has, read by netlink.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
};

use nix::errno::Errno;
use rtnetlink::{
    LinkUnspec,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
        route::{RouteHeader, RouteMessage},
    },
};

use super::{
    Kernel, KernelLink, KernelRoute, VlanRange,
    kernel_decode::{self as decode, Link},
    kernel_socket::Socket,
};
use crate::error::Error;

/// Why something of the network failed.
pub(super) fn failed(what: impl Display, why: impl Display) -> Error {
    Error::NetworkFailed { message: format!("{what}: {why}") }
}

/// Runs what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.to_string()))?
}

/// A socket to the kernel's network.
pub(super) fn open() -> Result<Socket, Error> {
    Socket::open().map_err(|e| failed("opening a netlink socket", e))
}

/// Links, VLAN tables, addresses and the main routing table, one dump each. Something that comes or goes between two of them may be known to
/// one only: it is left out where its link is not known. Errors: `NetworkFailed`.
pub async fn read() -> Result<Kernel, Error> {
    blocking(|| read_with(&mut open()?)).await
}

fn read_with(socket: &mut Socket) -> Result<Kernel, Error> {
    let links = links(socket)?;
    let mut vlans = vlans(socket)?;
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses = socket.dump(&request, decode::ip_address).map_err(|e| failed("reading the addresses", e))?;
    let mut addresses = decode::addresses(addresses);
    let routes = [routes(socket, AddressFamily::Inet)?, routes(socket, AddressFamily::Inet6)?].concat();

    let names: HashMap<u32, String> = links.iter().map(|l| (l.link.index, l.link.name.clone())).collect();
    let name = |index: u32| names.get(&index).cloned();
    let routes = routes.into_iter().filter_map(|route| {
        let decode::Route { destination, gateway, index, metric, v6 } = route;
        Some(KernelRoute { destination, gateway, link: name(index)?, metric, v6 })
    });
    let routes = routes.collect();
    let mut links: Vec<KernelLink> = links
        .into_iter()
        .map(|Link { link, master, parent }| KernelLink {
            master: master.and_then(name),
            parent: parent.and_then(name),
            vlans: vlans.remove(&link.index).unwrap_or_default(),
            addresses: addresses.remove(&link.index).unwrap_or_default(),
            driver: driver(&link.name),
            ipv6_disabled: ipv6_disabled(&link.name),
            ..link
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Kernel { links, routes })
}

/// The driver of a device; empty for links without one.
fn driver(link: &str) -> String {
    let target = std::fs::read_link(format!("/sys/class/net/{link}/device/driver")).ok();
    target.and_then(|t| Some(t.file_name()?.to_string_lossy().into_owned())).unwrap_or_default()
}

/// Whether IPv6 is off on a link: no netlink message tells. `None`: the kernel has no IPv6, or the link is gone.
fn ipv6_disabled(link: &str) -> Option<bool> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6")).ok()?;
    Some(text.trim() == "1")
}

/// The links alone; masters and parents are indexes.
pub(super) fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let request = RouteNetlinkMessage::GetLink(request);
    socket.dump(&request, |message| decode::link(message).map(Some)).map_err(|e| failed("reading the links", e))
}

fn vlans(socket: &mut Socket) -> Result<BTreeMap<u32, Vec<VlanRange>>, Error> {
    let mut request = LinkMessage::default();
    request.header.interface_family = AddressFamily::Bridge;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]));
    let tables = socket.dump(&RouteNetlinkMessage::GetLink(request), decode::vlans);
    Ok(tables.map_err(|e| failed("reading the bridges' VLANs", e))?.into_iter().collect())
}

fn routes(socket: &mut Socket, family: AddressFamily) -> Result<Vec<decode::Route>, Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let v6 = family == AddressFamily::Inet6;
    match socket.dump(&RouteNetlinkMessage::GetRoute(request), |message| decode::routes(message, v6).map(Some)) {
        Ok(routes) => Ok(routes.concat()),
        // There is no main table before its first route.
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Vec::new()),
        Err(e) => Err(failed("reading the routes", e)),
    }
}

/// Removes a link. Gone already: a success. Errors: `NetworkFailed`, also for a link of hardware.
pub async fn delete_link(name: &str) -> Result<(), Error> {
    let name = name.to_owned();
    blocking(move || delete_with(&mut open()?, &name)).await
}

pub(super) fn delete_with(socket: &mut Socket, name: &str) -> Result<(), Error> {
    match socket.change(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_name(name).build()), 0) {
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(e) => Err(failed(format!("removing the link '{name}'"), e)),
    }
}

#[cfg(test)]
pub(super) mod tests;
