//! What is declared, against itself and against what runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Facts, Rule, Scene, Severity, declared, some, words};
use crate::{
    host::net::{KernelLink, OWN_FILE},
    network::{declared::Stanza, own_file::OwnFile, stack::guest_of},
};

pub(super) const IFUPDOWN2: Rule = Rule {
    id: "net.ifupdown2",
    severity: Severity::Error,
    why: "the agent brings interfaces up and down with ifupdown2; the older ifupdown knows neither VLAN-aware bridges nor changes in place",
};

pub(super) const SOURCE_LINE: Rule = Rule {
    id: "net.source-line",
    severity: Severity::Error,
    why: "without it ifupdown2 does not read the agent's own file: what it declares would not come up, and be gone after a reboot",
};

pub(super) const OWN: Rule = Rule {
    id: "net.own-file",
    severity: Severity::Error,
    why: "the agent rewrites its own file as a whole; what somebody wrote into it by hand would be lost",
};

pub(super) const SYNTAX: Rule =
    Rule { id: "net.syntax", severity: Severity::Warning, why: "ifupdown2 skips what it cannot read, or reads it otherwise than it looks" };

pub(super) const DUPLICATES: Rule = Rule {
    id: "net.duplicate-stanza",
    severity: Severity::Warning,
    why: "ifupdown2 merges the stanzas of one name: addresses and ports of all of them count, and taking one away does not take the interface away",
};

pub(super) const STALE: Rule = Rule {
    id: "net.stale-stanza",
    severity: Severity::Warning,
    why: "the next `ifreload -a` or boot tries to bring it up: it fails (a NIC that was renamed), or something comes back that was thought gone",
};

pub(super) const UNDECLARED: Rule = Rule {
    id: "net.undeclared-link",
    severity: Severity::Warning,
    why: "an interface that nothing declares is gone after the next boot, with all that stands on it",
};

/// The stanzas of all files, the agent's own included.
pub(in crate::network) fn stanzas(facts: &Facts<'_>) -> Vec<Stanza> {
    let mut all = facts.declared.stanzas.clone();
    if let Some(own) = facts.files.own.as_ref().filter(|own| !all.iter().any(|s| s.file == own.path)) {
        all.extend(declared::parse(std::slice::from_ref(own)).stanzas);
    }
    all
}

pub(super) fn ifupdown2(scene: &Scene<'_>) -> Check {
    match scene.facts.files.ifupdown2 {
        Some(true) => IFUPDOWN2.ok("ifupdown2 is installed"),
        Some(false) => IFUPDOWN2.failed("there is no ifreload, so ifupdown2 is not installed", "`apt install ifupdown2`", []),
        None => IFUPDOWN2.unknown("whether ifupdown2 is installed was not told", "`dpkg -s ifupdown2`"),
    }
}

pub(super) fn source_line(scene: &Scene<'_>) -> Check {
    let Some(live) = scene.facts.files.declared.first() else {
        return SOURCE_LINE.failed(
            "there is no /etc/network/interfaces",
            "write one, with the line `source /etc/network/interfaces.d/*`",
            [],
        );
    };
    let live = live.path.display();
    if scene.facts.files.own_is_sourced {
        SOURCE_LINE.ok(format!("{live} takes interfaces.d/{OWN_FILE} in"))
    } else {
        SOURCE_LINE.failed(
            format!("no `source` line of {live} takes interfaces.d/{OWN_FILE} in"),
            format!("`echo 'source /etc/network/interfaces.d/*' >> {live}`"),
            [],
        )
    }
}

pub(super) fn own_file(scene: &Scene<'_>) -> Check {
    let Some(own) = &scene.facts.files.own else { return OWN.ok("there is none yet") };
    match OwnFile::parse(Some(&own.text)) {
        Ok(file) => OWN.ok(format!("{} declares {} networks", own.path.display(), file.networks.len())),
        Err(why) => OWN.failed(
            format!("{}: {why}", own.path.display()),
            format!(
                "move what was written by hand to another file below interfaces.d/ and take it out here, or remove {} and apply its networks again",
                own.path.display()
            ),
            [],
        ),
    }
}

pub(super) fn syntax(scene: &Scene<'_>) -> Check {
    match scene.facts.declared.problems.as_slice() {
        [] => SYNTAX.ok(format!("{} stanzas in {} files", scene.stanzas.len(), scene.facts.files.declared.len())),
        problems => SYNTAX.failed(some(problems), "correct these lines; `ifquery -a` tells what ifupdown2 reads", []),
    }
}

fn is_own(scene: &Scene<'_>, stanza: &Stanza) -> bool {
    scene.facts.files.own.as_ref().is_some_and(|own| own.path == stanza.file)
}

pub(super) fn duplicates(scene: &Scene<'_>) -> Check {
    let mut files: BTreeMap<&str, BTreeMap<_, Vec<&Stanza>>> = BTreeMap::new();
    for stanza in scene.stanzas.iter().filter(|s| s.name != "lo") {
        files.entry(&stanza.name).or_default().entry(&stanza.file).or_default().push(stanza);
    }
    let mut severity = Severity::Info;
    let (mut bad, mut names) = (Vec::new(), Vec::new());
    for (name, files) in files {
        // The same line twice: a file that is taken in twice.
        let twice = files.values().any(|all| all.iter().map(|s| s.line).collect::<BTreeSet<_>>().len() < all.len());
        if files.len() < 2 && !twice {
            continue;
        }
        // PVE's SDN adds options to bridges of others in its own file.
        let sdn = !twice && files.keys().any(|f| f.ends_with("interfaces.d/sdn"));
        let own = files.values().flatten().any(|s| is_own(scene, s));
        let how = match (own, sdn) {
            (true, _) => Severity::Error,
            (false, true) => Severity::Info,
            (false, false) => Severity::Warning,
        };
        severity = severity.max(how);
        let places: Vec<String> = files.values().flatten().map(|s| format!("{}:{}", s.file.display(), s.line)).collect();
        bad.push(format!("{name} in {}", places.join(" and ")));
        names.push(name.to_owned());
    }
    if bad.is_empty() {
        return DUPLICATES.ok("each interface is declared in one file");
    }
    Check { severity, ..DUPLICATES.failed(some(&bad), "keep one of them, and take each file in once", names) }
}

/// Links that a stanza names beside its own: ports, members, parents, peers.
fn mentioned(stanza: &Stanza) -> impl Iterator<Item = &str> {
    const OPTIONS: [&str; 6] = ["bridge-ports", "bond-slaves", "slaves", "vlan-raw-device", "veth-peer-name", "ovs-ports"];
    // After these come patterns.
    let named = |word: &&str| !matches!(*word, "regex" | "glob");
    OPTIONS.into_iter().flat_map(move |option| words(stanza, option).take_while(named)).filter(|w| !matches!(*w, "none" | "all"))
}

pub(super) fn stale(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for stanza in scene.stanzas.iter().filter(|s| s.auto && s.name != "lo") {
        count += 1;
        let place = format!("{}:{}", stanza.file.display(), stanza.line);
        if scene.now.link(&stanza.name).is_none() {
            if names.insert(stanza.name.clone()) {
                bad.push(format!("{} ({place}) does not exist", stanza.name));
            }
            // What it stands on may be missing because it never came up.
            continue;
        }
        for port in mentioned(stanza).filter(|p| scene.now.link(p).is_none()) {
            if names.insert(port.to_owned()) {
                bad.push(format!("{port}, which {} ({place}) stands on, does not exist", stanza.name));
            }
        }
    }
    if bad.is_empty() {
        return STALE.ok(format!("{count} declared interfaces exist"));
    }
    STALE.failed(some(&bad), "correct the name, bring it up with `ifup <name>`, or remove its stanza", names)
}

/// Bridges and VLANs that PVE makes for guests without declaring them: `fwbr100i0`, and for a tag on a bridge that is not VLAN-aware
/// `vmbr0v7` with the VLAN that is its port.
fn made_by_pve(scene: &Scene<'_>, link: &KernelLink) -> bool {
    let of_tag = |name: &str| {
        let parts =
            name.rsplit_once('v').filter(|(bridge, tag)| !tag.is_empty() && tag.bytes().all(|c| c.is_ascii_digit()) && !bridge.is_empty());
        parts.is_some_and(|(bridge, _)| scene.now.link(bridge).is_some_and(|l| l.kind == "bridge"))
    };
    link.name.starts_with("fwbr") || of_tag(&link.name) || link.master.as_deref().is_some_and(of_tag)
}

pub(super) fn undeclared(scene: &Scene<'_>) -> Check {
    let declared: BTreeSet<&str> = scene.stanzas.iter().flat_map(|s| std::iter::once(s.name.as_str()).chain(mentioned(s))).collect();
    let known = |link: &KernelLink| {
        declared.contains(link.name.as_str()) || link.altnames.iter().any(|a| declared.contains(a.as_str())) || made_by_pve(scene, link)
    };
    let kinds = ["vlan", "bridge", "bond"];
    let found: Vec<&KernelLink> = scene.now.links().filter(|l| kinds.contains(&l.kind.as_str()) && !known(l)).collect();
    if found.is_empty() {
        return UNDECLARED.ok("each VLAN, bridge and bond is declared");
    }
    // Docker's and libvirt's bridges are nobody's mistake; what guests or wires hang on is.
    let matters =
        |l: &&KernelLink| l.kind != "bridge" || scene.now.ports(&l.name).iter().any(|p| guest_of(&p.name).is_some() || p.kind == "ether");
    let severity = if found.iter().any(matters) { Severity::Warning } else { Severity::Info };
    let seen: Vec<String> = found.iter().map(|l| format!("{} {}", l.kind, l.name)).collect();
    let check =
        UNDECLARED.failed(some(&seen), "declare it, or remove it with `ip link delete <name>`", found.iter().map(|l| l.name.clone()));
    Check { severity, ..check }
}
