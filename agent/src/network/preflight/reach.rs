//! What the host is reached by: default route, the agent's listener, corosync.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Check, Rule, Scene, Severity, some};
use crate::network::management::{CorosyncLink, concrete, corosync_links, holders};

pub(super) const MANAGEMENT: Rule = Rule {
    id: "net.management-path",
    severity: Severity::Error,
    why: "a change of what carries the default route, the agent's listener or corosync can cut the host off from everybody who could undo it",
};

pub(super) const COROSYNC: Rule = Rule {
    id: "net.corosync-single-link",
    severity: Severity::Error,
    why: "a node whose only corosync link breaks leaves the cluster; with HA it fences itself",
};

/// Links that the change touches and that carry something nobody may cut.
pub(super) fn cut(scene: &Scene<'_>) -> BTreeMap<String, Vec<String>> {
    let hit = |name: &String| {
        let link = scene.now.link(name).map_or(name, |l| &l.name);
        scene.management.get(link).map(|paths| (link.clone(), paths.clone()))
    };
    scene.touched.iter().filter_map(hit).collect()
}

pub(super) fn management_path(scene: &Scene<'_>) -> Check {
    let say =
        |all: &BTreeMap<String, Vec<String>>| some(&all.iter().map(|(l, what)| format!("{l}: {}", what.join(", "))).collect::<Vec<_>>());
    let cut = cut(scene);
    if !cut.is_empty() {
        return MANAGEMENT.failed(format!("the change touches {}", say(&cut)), "make such a change at the console", cut.into_keys());
    }
    let kernel = scene.facts.kernel;
    let lost: Vec<String> =
        concrete(scene.facts.listeners).into_iter().filter(|ip| holders(kernel, *ip).next().is_none()).map(|ip| ip.to_string()).collect();
    if scene.management.is_empty() {
        return MANAGEMENT.unknown(
            "no link carries a default route, an address of the agent, or corosync",
            "see that `ip route` and `ip address` are complete",
        );
    }
    if !lost.is_empty() {
        let seen = format!("the agent is reached at {}, which no link has; known is {}", lost.join(", "), say(&scene.management));
        return MANAGEMENT.unknown(seen, "reach the agent at an address that one of the host's links has");
    }
    MANAGEMENT.ok(say(&scene.management))
}

/// Where one of corosync's links lies.
struct Ring<'a> {
    link: CorosyncLink,
    /// The links that have its address.
    on: Vec<&'a str>,
    /// The devices at the bottom of those.
    bottom: BTreeSet<&'a str>,
}

fn ring<'a>(scene: &Scene<'a>, link: CorosyncLink, ip: IpAddr) -> Ring<'a> {
    let on: Vec<&str> = holders(scene.facts.kernel, ip).map(|l| l.name.as_str()).collect();
    let below: BTreeSet<&str> = on.iter().flat_map(|name| scene.now.below(name)).collect();
    let bottom = below.iter().copied().filter(|name| scene.now.below(name).len() == 1).collect();
    Ring { link, on, bottom }
}

pub(super) fn corosync(scene: &Scene<'_>) -> Check {
    let Some(file) = &scene.facts.files.corosync else { return COROSYNC.not_applicable("this host is in no cluster") };
    let node = scene.facts.node;
    let links = corosync_links(&file.text, node, scene.facts.kernel);
    let remedy = format!("see the nodelist in {}", file.path.display());
    if links.is_empty() {
        return COROSYNC.unknown(format!("node {node} has no address in {}", file.path.display()), remedy);
    }
    let named: Vec<&str> = links.iter().filter(|l| l.ip().is_none()).map(|l| l.address.as_str()).collect();
    if !named.is_empty() {
        let seen = format!("corosync's links of node {node} are given by name: {}", named.join(", "));
        return COROSYNC.unknown(seen, "write addresses into the nodelist");
    }
    let count = links.len();
    let rings: Vec<Ring<'_>> = links.into_iter().filter_map(|l| l.ip().map(|ip| ring(scene, l, ip))).collect();
    if let Some(nowhere) = rings.iter().find(|r| r.on.is_empty()) {
        return COROSYNC.unknown(format!("no link has {} of {}", nowhere.link.address, nowhere.link.label()), remedy);
    }
    let say = |r: &Ring<'_>| {
        let bottom: Vec<&str> = r.bottom.iter().copied().filter(|b| !r.on.contains(b)).collect();
        let over = if bottom.is_empty() { String::new() } else { format!(" over {}", bottom.join(", ")) };
        format!("link{} {} on {}{over}", r.link.number, r.link.address, r.on.join(", "))
    };
    let seen = some(&rings.iter().map(say).collect::<Vec<_>>());
    let interfaces: BTreeSet<&str> = rings.iter().flat_map(|r| r.on.iter().copied()).collect();
    // Links over one device fall together.
    let together = rings.windows(2).all(|w| w[0].bottom == w[1].bottom);
    if !together {
        return COROSYNC.ok(seen);
    }
    let below: BTreeSet<&str> = interfaces.iter().flat_map(|i| scene.now.below(i)).collect();
    let changed = below.iter().any(|l| scene.touched.contains(*l));
    let shared = interfaces.iter().any(|i| scene.now.link(i).is_some_and(|l| l.kind == "bridge"));
    let what = if count == 1 { "the only link" } else { "all links share their devices" };
    let mut check = COROSYNC.failed(
        format!("{what}: {seen}"),
        "give corosync a second link on another NIC (PVE: Cluster Manager, \"Adding Redundant Links\")",
        interfaces.iter().map(|i| (*i).to_owned()),
    );
    // Without a change at hand it is a weakness, not a danger; the more so on a bridge, which changes are made to.
    check.severity = match (changed, shared) {
        (true, _) => Severity::Error,
        (false, true) => Severity::Warning,
        (false, false) => Severity::Info,
    };
    check
}
