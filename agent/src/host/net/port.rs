//! Puts a port back on its bridge.
//!
//! PVE's build of ifupdown2 leaves guests' ports where they are; Debian's takes them off a bridge that it changes. A guest must not lose its
//! network by that.

use rtnetlink::{
    LinkBridgeVlan, LinkUnspec,
    packet_route::{RouteNetlinkMessage, link::BridgeVlanInfoFlags},
};

use super::{
    KernelLink,
    kernel::{self, blocking, failed, links},
    kernel_socket::Socket,
};
use crate::error::Error;

/// Makes a link a port of this bridge, with the VLANs and the state that `was` tells. Gone meanwhile: a success. Errors: `NetworkFailed`.
pub(super) async fn plug(was: &KernelLink, bridge: &str) -> Result<(), Error> {
    let (was, bridge) = (was.clone(), bridge.to_owned());
    blocking(move || plug_with(&mut kernel::open()?, &was, &bridge)).await
}

/// Turns IPv6 on again on a link that has left a bridge: ifupdown2 turns it off on ports, and a bridge that is removed by netlink leaves it so.
/// Gone meanwhile: a success. Errors: `NetworkFailed`.
pub(super) async fn enable_ipv6(link: &str) -> Result<(), Error> {
    let link = link.to_owned();
    blocking(move || match std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "0") {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(format!("turning IPv6 on on '{link}'"), e)),
        _ => Ok(()),
    })
    .await
}

fn plug_with(socket: &mut Socket, was: &KernelLink, bridge: &str) -> Result<(), Error> {
    let there: Vec<KernelLink> = links(socket)?.into_iter().map(|l| l.link).collect();
    let Some(port) = there.iter().find(|l| l.name == was.name) else { return Ok(()) };
    let what = || format!("plugging '{}' into '{bridge}'", was.name);
    let bridge = there.iter().find(|l| l.name == bridge).ok_or_else(|| failed(what(), "there is no such bridge"))?;
    let mut change = |request| socket.change(request, 0).map_err(|e| failed(what(), e));
    change(RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(port.index).controller(bridge.index).build()))?;
    if bridge.vlan_aware {
        let none = BridgeVlanInfoFlags::empty();
        let all = LinkBridgeVlan::new(port.index).vlan_range_start(1, none).vlan_range_end(4094, none);
        change(RouteNetlinkMessage::DelLink(all.build()))?;
        for range in &was.vlans {
            let mut flags = none;
            flags.set(BridgeVlanInfoFlags::Pvid, range.pvid);
            flags.set(BridgeVlanInfoFlags::Untagged, range.untagged);
            let vlans = LinkBridgeVlan::new(port.index);
            let vlans = match range.first == range.last {
                true => vlans.vlan(range.first, flags),
                false => vlans.vlan_range_start(range.first, flags).vlan_range_end(range.last, flags),
            };
            change(RouteNetlinkMessage::SetLink(vlans.build()))?;
        }
    }
    if was.up {
        change(RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(port.index).up().build()))?;
    }
    Ok(())
}
