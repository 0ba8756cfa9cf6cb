//! A port on a VLAN-aware bridge for probes, plugged in as a guest's NIC is.

use std::{fs, io};

use nix::{errno::Errno, net::if_::if_nametoindex};
use rtnetlink::{
    LinkBridgeVlan, LinkUnspec, LinkVeth,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{BridgeVlanInfoFlags, InfoData, InfoVeth, LinkMessage},
    },
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    KernelLink,
    kernel::{self, blocking, delete_with, failed, links},
    kernel_socket::Socket,
};
use crate::error::Error;

/// What the names begin with: `pvprobe<n>` is where sockets are opened, `pvprobe<n>p` the bridge's port.
const PREFIX: &str = "pvprobe";

/// Adds a port that is in this VLAN alone, untagged, and returns the name of the end to open sockets on. Whoever calls it removes it with
/// [`remove`]; nothing is left after an error, nor where nobody waits for the answer any more. Errors: `InterfaceNotFound` for the bridge,
/// `NetworkFailed`.
pub async fn add(bridge: &str, vlan: u16) -> Result<String, Error> {
    let bridge = bridge.to_owned();
    let (answer, added) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let added = kernel::open().and_then(|mut socket| add_with(&mut socket, &bridge, vlan));
        if let Err(Ok(unwanted)) = answer.send(added) {
            _ = kernel::open().and_then(|mut socket| delete_with(&mut socket, &unwanted));
        }
    });
    added.await.map_err(|e| Error::Internal(e.to_string()))?
}

/// Removes a port that [`add`] made. Gone already: a success. Errors: `NetworkFailed`.
pub async fn remove(name: &str) -> Result<(), Error> {
    kernel::delete_link(name).await
}

/// Removes the ports of an agent that is dead. Errors: `NetworkFailed`.
pub async fn sweep() -> Result<(), Error> {
    blocking(|| {
        let mut socket = kernel::open()?;
        for left in links(&mut socket)?.iter().filter(|l| l.link.kind == "veth" && is_ours(&l.link.name)) {
            delete_with(&mut socket, &left.link.name)?;
        }
        Ok(())
    })
    .await
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).map(|n| n.strip_suffix('p').unwrap_or(n)).is_some_and(|n| n.parse::<u32>().is_ok())
}

fn add_with(socket: &mut Socket, bridge: &str, vlan: u16) -> Result<String, Error> {
    let links: Vec<KernelLink> = links(socket)?.into_iter().map(|l| l.link).collect();
    let link = find(&links, bridge).ok_or_else(|| Error::InterfaceNotFound { interface: bridge.to_owned() })?;
    if !link.vlan_aware {
        return Err(failed(format!("adding a port for probes to '{bridge}'"), "it is no VLAN-aware bridge"));
    }
    add_to(socket, link, vlan, &links)
}

fn find<'a>(links: &'a [KernelLink], name: &str) -> Option<&'a KernelLink> {
    links.iter().find(|l| l.name == name || l.altnames.iter().any(|a| a == name))
}

fn add_to(socket: &mut Socket, bridge: &KernelLink, vlan: u16, links: &[KernelLink]) -> Result<String, Error> {
    for n in 0..10_000_u32 {
        let (name, port) = (format!("{PREFIX}{n}"), format!("{PREFIX}{n}p"));
        if find(links, &name).or(find(links, &port)).is_some() {
            continue;
        }
        match socket.change(RouteNetlinkMessage::NewLink(pair(&name, &port, bridge.mtu)), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => {}
            // Another probe was quicker.
            Err(Errno::EEXIST) => continue,
            Err(e) => return Err(failed(format!("adding '{name}'"), e)),
        }
        return match plug_in(socket, &name, &port, bridge.index, vlan) {
            Ok(()) => Ok(name),
            Err(why) => {
                // What went wrong first is what is told; a port that stays is removed by the next sweep.
                _ = delete_with(socket, &name);
                Err(failed(format!("plugging '{port}' into '{}'", bridge.name), why))
            }
        };
    }
    Err(failed("adding a port for probes", "no name is free"))
}

/// Both ends with the bridge's MTU, so that the bridge does not take over theirs, and with addresses: udev would change those that the kernel
/// chose, and a bridge takes the lowest of its ports' for its own.
fn pair(name: &str, port: &str, mtu: u32) -> LinkMessage {
    let peer = LinkUnspec::new_with_name(port).mtu(mtu).address(high_address()).build();
    LinkVeth::new(name, port).mtu(mtu).address(high_address()).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()
}

/// A random address among the highest there are for one's own use.
fn high_address() -> Vec<u8> {
    [&[0xfe, 0xff], &Uuid::new_v4().as_bytes()[..4]].concat()
}

fn plug_in(socket: &mut Socket, name: &str, port: &str, bridge: u32, vlan: u16) -> io::Result<()> {
    // Before they are up: no address, no router solicitation, nothing but probes.
    for end in [name, port] {
        disable_ipv6(end)?;
    }
    let index = if_nametoindex(port)?;
    socket.change(RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(index).controller(bridge).build()), 0)?;
    // What the bridge puts its ports into by default, VLAN 1 or another one.
    let all =
        LinkBridgeVlan::new(index).vlan_range_start(1, BridgeVlanInfoFlags::empty()).vlan_range_end(4094, BridgeVlanInfoFlags::empty());
    socket.change(RouteNetlinkMessage::DelLink(all.build()), 0)?;
    let one = LinkBridgeVlan::new(index).vlan(vlan, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged);
    socket.change(RouteNetlinkMessage::SetLink(one.build()), 0)?;
    for end in [name, port] {
        socket.change(RouteNetlinkMessage::NewLink(LinkUnspec::new_with_name(end).up().build()), 0)?;
    }
    Ok(())
}

fn disable_ipv6(link: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1") {
        // A kernel without IPv6, or an MTU that is too small for it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rtnetlink::LinkBridge;

    use super::{super::kernel::tests::in_namespace, *};

    fn names() -> Vec<String> {
        links(&mut kernel::open().unwrap()).unwrap().into_iter().map(|l| l.link.name).filter(|n| n != "lo").collect()
    }

    fn make(message: LinkMessage) {
        kernel::open().unwrap().change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).unwrap();
    }

    #[test]
    fn only_a_vlan_aware_bridge_gets_a_port() {
        in_namespace(async || {
            make(LinkBridge::new("vmbr0").build());
            assert_eq!(add("vmbr1", 5).await, Err(Error::InterfaceNotFound { interface: "vmbr1".into() }));
            let Err(Error::NetworkFailed { message }) = add("vmbr0", 5).await else { panic!("a port of a bridge without VLANs") };
            assert!(message.contains("'vmbr0'"), "{message}");
            assert_eq!(names(), ["vmbr0"]);
        });
    }

    #[test]
    fn nothing_is_left_of_a_port_that_cannot_be_plugged_in() {
        in_namespace(async || {
            make(LinkBridge::new("vmbr0").build());
            let mut socket = kernel::open().unwrap();
            let all: Vec<KernelLink> = links(&mut socket).unwrap().into_iter().map(|l| l.link).collect();
            let error = add_to(&mut socket, find(&all, "vmbr0").unwrap(), 4095, &all).unwrap_err();
            assert!(error.to_string().starts_with("plugging 'pvprobe0p' into 'vmbr0': "), "{error}");
            assert_eq!(names(), ["vmbr0"]);
        });
    }

    #[test]
    fn a_sweep_removes_probe_ports_and_nothing_else() {
        in_namespace(async || {
            make(LinkVeth::new("pvprobe0", "pvprobe0p").build());
            make(LinkVeth::new("pvprobe12", "moved").build());
            make(LinkVeth::new("pvprobex", "veth100i0").build());
            make(LinkBridge::new("pvprobe3").build());
            sweep().await.unwrap();
            sweep().await.unwrap();
            let mut left = names();
            left.sort();
            assert_eq!(left, ["pvprobe3", "pvprobex", "veth100i0"]);
        });
    }

    #[test]
    fn both_ends_have_the_mtu_and_a_high_address() {
        in_namespace(async || {
            make(pair("pvprobe0", "pvprobe0p", 8996));
            for link in kernel::read().await.unwrap().links.iter().filter(|l| l.name != "lo") {
                assert_eq!((link.mtu, &link.mac[..6]), (8996, "fe:ff:"), "{}", link.name);
            }
            remove("pvprobe0").await.unwrap();
            remove("pvprobe0").await.unwrap();
            assert!(names().is_empty());
        });
    }
}
