//! From what is declared, what runs and what is wanted to the steps that bring it about. Pure: the same question has the same answer.

mod fit;

use std::collections::BTreeSet;

use super::{
    declared::Declared,
    definition::{Interface, Kind},
    diff,
    own_file::{OwnFile, in_order, vids_text},
    plan::{Plan, Wish},
    validate::effective_mtu,
    verify::{Gap, Index, Repair, addresses_text, gaps, list, tag_text},
};
use crate::{
    error::Error,
    host::net::{Action, Kernel, Step, VlanTag},
};

/// Where the own file lies, as people know it.
const OWN_PATH: &str = "/etc/network/interfaces.d/pvelet";

/// What happens to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Change,
    Remake,
    Make,
}

/// What brings the wish about.
///
/// - `own`: the text of the own file; `declared`: what all other files declare.
/// - An interface of which only settings differ is changed in place; one that would have to be another thing goes and comes, together with the
///   VLANs of the network that stand on it. First all that goes, from top to bottom; then all that comes, from bottom to top.
/// - What the kernel does not have as the file says is mended too, so the plan is empty only if all is so already.
///
/// Errors: `NetworkChanged` when somebody edited the own file; `NotOurs`; `InterfaceTaken`; `InterfaceNotFound`; `NetworkInUse`; `Invalid` with
/// all of `INVALID_VLAN`, `INVALID_MTU`, `ADDRESS_IN_USE`, `SUBNET_OVERLAP`.
pub fn plan(own: Option<&str>, wish: &Wish, kernel: &Kernel, declared: &Declared) -> Result<Plan, Error> {
    let own_file = OwnFile::parse(own).map_err(|why| Error::NetworkChanged { what: format!("{OWN_PATH}: {why}") })?;
    let (name, new) = match wish {
        Wish::Apply(definition) => (definition.name.as_str(), Some(definition)),
        Wish::Remove(name) => (name.as_str(), None),
    };
    let old = own_file.network(name);
    if let (Some(old), Some(new)) = (old, new)
        && old.tenant != new.tenant
    {
        return Err(Error::NotOurs { what: format!("network '{name}'") });
    }
    let index = Index::new(kernel);
    let before: &[Interface] = old.map_or(&[], |o| &o.interfaces);
    let after: &[Interface] = new.map_or(&[], |n| &n.interfaces);
    let fates = fates(before, after, kernel, &index);
    let gone: Vec<&Interface> = before.iter().filter(|b| !after.iter().any(|a| a.name == b.name)).collect();

    let fit = fit::Fit::new(name, before, after, &own_file, kernel, &index, declared);
    // What is so already needs nobody's leave, whatever came beside it since.
    if let Some(new) = new.filter(|_| old != new || fates.iter().any(|f| *f != Fate::Keep)) {
        fit.check(new, &fates)?;
    }
    let remade = after.iter().zip(&fates).filter(|(_, f)| **f == Fate::Remake).map(|(i, _)| i);
    fit.unused(gone.iter().copied().chain(remade))?;

    let new_text = if old == new { own.map(str::to_owned) } else { own_file.with(name, new).render() };
    Ok(Plan {
        steps: steps(before, after, &gone, &fates, &index),
        old_text: own.map(str::to_owned),
        new_text,
        wanted: after.to_vec(),
        gone: gone.iter().map(|i| i.name.clone()).collect(),
        changes: changes(before, after, &gone, &fates, kernel, &index),
    })
}

/// The change of the own file as a unified diff; empty when its text stays.
pub fn file_diff(plan: &Plan) -> String {
    diff::unified(OWN_PATH, plan.old_text.as_deref(), plan.new_text.as_deref())
}

fn has_ipv6(interface: &Interface) -> bool {
    interface.addresses.iter().any(|a| a.addr().is_ipv6())
}

/// Whether one cannot become the other in place.
fn is_another(old: &Interface, new: &Interface) -> bool {
    match (&old.kind, &new.kind) {
        (Kind::Vlan { .. }, Kind::Vlan { .. }) => old.kind != new.kind,
        (Kind::Bridge { vlan_aware: a, .. }, Kind::Bridge { vlan_aware: b, .. }) => a != b,
        _ => true,
    }
}

/// What happens to each interface that is declared afterwards.
fn fates(before: &[Interface], after: &[Interface], kernel: &Kernel, index: &Index<'_>) -> Vec<Fate> {
    let mut remade: BTreeSet<&str> = BTreeSet::new();
    let mut flapped: BTreeSet<&str> = BTreeSet::new();
    let mut out = vec![Fate::Keep; after.len()];
    let mtu = |name: &str| index.link(name).map(|l| l.mtu);
    for interface in in_order(after) {
        let Some(at) = after.iter().position(|i| i.name == interface.name) else { continue };
        let old = before.iter().find(|b| b.name == interface.name);
        let repair = gaps(interface, index).iter().map(|g| g.repair).max();
        let lost = |names: &[String]| names.iter().any(|n| remade.contains(n.as_str()));
        let fate = match (repair, old, &interface.kind) {
            (Some(Repair::Make), ..) => Fate::Make,
            (Some(Repair::Remake), ..) => Fate::Remake,
            (_, Some(old), _) if is_another(old, interface) => Fate::Remake,
            // The kernel removes a VLAN with its parent. A port it only takes off its bridge, which keeps its guests.
            (_, _, Kind::Vlan { parent, .. }) if lost(std::slice::from_ref(parent)) => Fate::Remake,
            (_, _, Kind::Bridge { ports, .. }) if lost(ports) => Fate::Change,
            (Some(Repair::Change), ..) => Fate::Change,
            // What it stands on gets another MTU with this change.
            (None, _, Kind::Vlan { .. }) if effective_mtu(&interface.name, after, kernel) != mtu(&interface.name) => Fate::Change,
            // It goes down and comes up with its parent, and the kernel drops its IPv6 addresses then.
            (None, _, Kind::Vlan { parent, .. }) if has_ipv6(interface) && flapped.contains(parent.as_str()) => Fate::Change,
            (None, old, _) if old != Some(interface) => Fate::Change,
            (None, ..) => Fate::Keep,
        };
        if fate == Fate::Remake {
            remade.insert(&interface.name);
        }
        // ifupdown2 takes an interface down to turn its IPv6 on or off.
        let below = matches!(&interface.kind, Kind::Vlan { parent, .. } if flapped.contains(parent.as_str()));
        if below || fate == Fate::Change && old.is_some_and(|o| has_ipv6(o) != has_ipv6(interface)) {
            flapped.insert(&interface.name);
        }
        out[at] = fate;
    }
    out
}

fn steps(before: &[Interface], after: &[Interface], gone: &[&Interface], fates: &[Fate], index: &Index<'_>) -> Vec<Step> {
    let fate = |name: &str| after.iter().zip(fates).find(|(i, _)| i.name == name).map(|(_, f)| *f);
    let step = |action, name: &str| Step { action, interface: name.to_owned() };
    let goes = |name: &str| gone.iter().any(|g| g.name == name) || fate(name) == Some(Fate::Remake);
    let mut out: Vec<Step> = in_order(before)
        .iter()
        .rev()
        .filter(|i| goes(&i.name) && index.link(&i.name).is_some())
        .map(|i| step(Action::Down, &i.name))
        .collect();
    for interface in in_order(after) {
        match fate(&interface.name) {
            Some(Fate::Make | Fate::Remake) => out.push(step(Action::Up, &interface.name)),
            Some(Fate::Change) => out.push(step(Action::Change, &interface.name)),
            Some(Fate::Keep) | None => {}
        }
    }
    out
}

/// What changes, one line each; what goes first.
fn changes(
    before: &[Interface],
    after: &[Interface],
    gone: &[&Interface],
    fates: &[Fate],
    kernel: &Kernel,
    index: &Index<'_>,
) -> Vec<String> {
    let mut out: Vec<String> = in_order(before)
        .iter()
        .rev()
        .filter(|i| gone.iter().any(|g| g.name == i.name))
        .map(|i| format!("- {} {}", kind_text(i), i.name))
        .collect();
    for interface in in_order(after) {
        let Some((_, fate)) = after.iter().zip(fates).find(|(i, _)| i.name == interface.name) else { continue };
        match fate {
            Fate::Keep => {}
            Fate::Make => out.push(added(interface, after, kernel)),
            Fate::Change | Fate::Remake => {
                let mut found = gaps(interface, index);
                if let Some(old) = before.iter().find(|b| b.name == interface.name) {
                    let told: BTreeSet<&str> = found.iter().map(|g| g.what).collect();
                    found.extend(differences(old, interface).into_iter().filter(|d| !told.contains(d.what)));
                }
                let mtu = effective_mtu(&interface.name, after, kernel);
                let is = index.link(&interface.name).map(|l| l.mtu);
                if let (Kind::Vlan { .. }, Some(mtu), Some(is)) = (&interface.kind, mtu, is)
                    && mtu != is
                    && !found.iter().any(|g| g.what == "mtu")
                {
                    found.push(Gap::new(Repair::Change, "mtu", is.to_string(), mtu.to_string()));
                }
                let mut what: Vec<String> = found.iter().map(|g| format!("{} {} -> {}", g.what, g.is, g.wanted)).collect();
                if *fate == Fate::Remake {
                    what.push("made anew".into());
                } else if what.is_empty() {
                    what.push("what it stands on changes".into());
                }
                out.push(format!("~ {} {}: {}", kind_text(interface), interface.name, what.join(", ")));
            }
        }
    }
    out
}

fn kind_text(interface: &Interface) -> &'static str {
    match interface.kind {
        Kind::Vlan { .. } => "vlan",
        Kind::Bridge { .. } => "bridge",
    }
}

/// `+ vlan eth1.100 (802.1Q 100 on eth1, mtu 1500)`
fn added(interface: &Interface, after: &[Interface], kernel: &Kernel) -> String {
    let mut what = match &interface.kind {
        Kind::Vlan { parent, id, service } => vec![format!("{} on {parent}", tag_text(VlanTag { id: *id, service: *service }))],
        Kind::Bridge { ports, vlan_aware, vids } => {
            let mut what = vec![format!("ports {}", list(ports.iter()))];
            if *vlan_aware {
                what.push(format!("vids {}", vids_text(vids, " ")));
            }
            what
        }
    };
    if let Some(mtu) = effective_mtu(&interface.name, after, kernel) {
        what.push(format!("mtu {mtu}"));
    }
    if !interface.addresses.is_empty() {
        what.push(format!("addresses {}", addresses_text(&interface.addresses)));
    }
    format!("+ {} {} ({})", kind_text(interface), interface.name, what.join(", "))
}

/// Where two declarations of an interface differ.
fn differences(old: &Interface, new: &Interface) -> Vec<Gap> {
    let mut out = Vec::new();
    let mut add = |what, is: String, wanted: String| {
        if is != wanted {
            out.push(Gap::new(Repair::Change, what, is, wanted));
        }
    };
    match (&old.kind, &new.kind) {
        (Kind::Vlan { parent: a, id: i, service: s }, Kind::Vlan { parent: b, id: j, service: t }) => {
            add("parent", a.clone(), b.clone());
            add("tag", tag_text(VlanTag { id: *i, service: *s }), tag_text(VlanTag { id: *j, service: *t }));
        }
        (Kind::Bridge { ports: a, vlan_aware: x, vids: v }, Kind::Bridge { ports: b, vlan_aware: y, vids: w }) => {
            let on = |yes: &bool| if *yes { "on" } else { "off" }.to_owned();
            add("ports", list(a.iter()), list(b.iter()));
            add("VLAN filter", on(x), on(y));
            if *x && *y {
                add("vids", vids_text(v, " "), vids_text(w, " "));
            }
        }
        _ => add("kind", kind_text(old).into(), kind_text(new).into()),
    }
    let mtu = |i: &Interface| i.mtu.map_or_else(|| "inherited".into(), |m| m.to_string());
    add("mtu", mtu(old), mtu(new));
    add("addresses", addresses_text(&old.addresses), addresses_text(&new.addresses));
    add("comment", format!("'{}'", old.comment), format!("'{}'", new.comment));
    out
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
