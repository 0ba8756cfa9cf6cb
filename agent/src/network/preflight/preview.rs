//! The kernel as it will be after a change, as far as the checks look at it.

use std::borrow::Cow;

use crate::{
    host::net::{Kernel, KernelLink, VlanTag},
    network::{
        definition::{Interface, Kind},
        plan::Plan,
        stack::is_guest_port,
    },
};

/// `kernel` with the links of the change made, changed and gone.
pub(super) fn after<'a>(kernel: &'a Kernel, plan: Option<&Plan>) -> Cow<'a, Kernel> {
    let Some(plan) = plan.filter(|p| !p.is_empty()) else { return Cow::Borrowed(kernel) };
    let mut kernel = kernel.clone();
    kernel.links.retain(|l| !plan.gone.contains(&l.name));
    for link in &mut kernel.links {
        link.master = link.master.take().filter(|m| !plan.gone.contains(m));
    }
    for interface in &plan.wanted {
        place(&mut kernel, interface);
    }
    // One may stand on another, in any order: so often, and every height is reached.
    for _ in 0..plan.wanted.len() {
        let mut changed = false;
        for interface in &plan.wanted {
            changed |= settle(&mut kernel, interface);
        }
        if !changed {
            break;
        }
    }
    Cow::Owned(kernel)
}

fn position(kernel: &Kernel, name: &str) -> Option<usize> {
    kernel.links.iter().position(|l| l.name == name)
}

fn place(kernel: &mut Kernel, interface: &Interface) {
    let at = position(kernel, &interface.name).unwrap_or_else(|| {
        kernel.links.push(KernelLink { name: interface.name.clone(), ..KernelLink::default() });
        kernel.links.len() - 1
    });
    let link = &mut kernel.links[at];
    link.up = true;
    link.addresses.clone_from(&interface.addresses);
    match &interface.kind {
        Kind::Vlan { parent, id, service } => {
            "vlan".clone_into(&mut link.kind);
            link.parent = Some(parent.clone());
            link.vlan = Some(VlanTag { id: *id, service: *service });
            link.vlan_aware = false;
        }
        Kind::Bridge { vlan_aware, .. } => {
            "bridge".clone_into(&mut link.kind);
            (link.parent, link.vlan) = (None, None);
            link.vlan_aware = *vlan_aware;
        }
    }
}

/// Gives a link what it has from those it stands on; whether that changed it.
fn settle(kernel: &mut Kernel, interface: &Interface) -> bool {
    let mtu_of = |kernel: &Kernel, name: &str| position(kernel, name).map(|i| kernel.links[i].mtu).filter(|mtu| *mtu > 0);
    let (mtu, carrier) = match &interface.kind {
        Kind::Vlan { parent, .. } => (mtu_of(kernel, parent), position(kernel, parent).is_some_and(|i| kernel.links[i].carrier)),
        Kind::Bridge { ports, .. } => {
            for link in &mut kernel.links {
                if ports.contains(&link.name) {
                    link.master = Some(interface.name.clone());
                } else if link.master.as_ref() == Some(&interface.name) && !is_guest_port(&link.name) {
                    link.master = None;
                }
            }
            let lowest = ports.iter().filter_map(|p| mtu_of(kernel, p)).min();
            (lowest, ports.iter().any(|p| position(kernel, p).is_some_and(|i| kernel.links[i].carrier)))
        }
    };
    let Some(at) = position(kernel, &interface.name) else { return false };
    let link = &mut kernel.links[at];
    let mtu = interface.mtu.or(mtu).unwrap_or(if link.mtu == 0 { 1500 } else { link.mtu });
    let changed = (link.mtu, link.carrier) != (mtu, carrier);
    (link.mtu, link.carrier) = (mtu, carrier);
    changed
}
