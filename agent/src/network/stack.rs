//! Which link stands on which.

use std::collections::{BTreeSet, HashMap};

use crate::host::net::{Kernel, KernelLink};

/// The links of a kernel, indexed by what they stand on.
#[derive(Debug)]
pub(super) struct Stack<'a> {
    kernel: &'a Kernel,
    by_name: HashMap<&'a str, &'a KernelLink>,
    ports: HashMap<&'a str, Vec<&'a KernelLink>>,
    children: HashMap<&'a str, Vec<&'a KernelLink>>,
}

impl<'a> Stack<'a> {
    /// Indexes the links.
    pub(super) fn new(kernel: &'a Kernel) -> Self {
        let mut stack = Self { kernel, by_name: HashMap::new(), ports: HashMap::new(), children: HashMap::new() };
        for link in &kernel.links {
            stack.by_name.insert(&link.name, link);
            if let Some(master) = &link.master {
                stack.ports.entry(master).or_default().push(link);
            }
            if let Some(parent) = &link.parent {
                stack.children.entry(parent).or_default().push(link);
            }
        }
        stack
    }

    /// All links.
    pub(super) fn links(&self) -> impl Iterator<Item = &'a KernelLink> + use<'a> {
        self.kernel.links.iter()
    }

    /// The link of this name or altname.
    pub(super) fn link(&self, name: &str) -> Option<&'a KernelLink> {
        self.by_name.get(name).copied().or_else(|| self.kernel.link(name))
    }

    /// The ports of a bridge, or the members of a bond.
    pub(super) fn ports(&self, master: &str) -> &[&'a KernelLink] {
        self.ports.get(master).map_or(&[], Vec::as_slice)
    }

    /// The VLANs on a link.
    pub(super) fn children(&self, parent: &str) -> &[&'a KernelLink] {
        self.children.get(parent).map_or(&[], Vec::as_slice)
    }

    /// A link and everything it stands on: ports (but those of guests), members, parents, and what those stand on.
    pub(super) fn below(&self, name: &str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut next: Vec<&KernelLink> = self.link(name).into_iter().collect();
        while let Some(link) = next.pop() {
            if found.insert(link.name.as_str()) {
                next.extend(link.parent.as_deref().and_then(|p| self.link(p)));
                next.extend(self.ports(&link.name).iter().filter(|p| !is_guest_port(&p.name)));
            }
        }
        found
    }

    /// What stands on a link, without itself: its bridge or bond, its VLANs, and what stands on those.
    pub(super) fn above(&self, name: &str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut next: Vec<&KernelLink> = self.link(name).into_iter().collect();
        while let Some(link) = next.pop() {
            let masters = link.master.as_deref().and_then(|m| self.link(m)).into_iter();
            for on in masters.chain(self.children(&link.name).iter().copied()) {
                if found.insert(on.name.as_str()) {
                    next.push(on);
                }
            }
        }
        found
    }

    /// How many tags a frame of this link carries, and the untagged link below them. Bridges do not add tags.
    pub(super) fn tags(&self, link: &'a KernelLink) -> (u32, &'a KernelLink) {
        let (mut count, mut at) = (0, link);
        // A kernel allows eight; the bound is there for tables that no kernel made.
        while at.vlan.is_some() && count < 16 {
            let Some(parent) = at.parent.as_deref().and_then(|p| self.link(p)) else { break };
            (count, at) = (count + 1, parent);
        }
        (count, at)
    }
}

/// Whether a link is PVE's way into a guest.
pub(super) fn is_guest_port(name: &str) -> bool {
    ["tap", "veth", "fwpr", "fwln"].iter().any(|p| name.starts_with(p))
}

/// The guest whose port this is: `tap100i0`, `veth100i0`, `fwpr100p0`, `fwln100i0`.
pub(super) fn guest_of(port: &str) -> Option<u32> {
    let rest = ["tap", "veth", "fwpr", "fwln"].iter().find_map(|p| port.strip_prefix(p))?;
    let (vmid, index) = rest.split_once(['i', 'p'])?;
    index.parse::<u32>().ok()?;
    vmid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::preflight::fixtures::*;

    #[test]
    fn a_bridge_stands_on_its_ports_and_what_those_stand_on() {
        let kernel = host();
        let stack = Stack::new(&kernel);
        assert_eq!(stack.below("vmbr0").into_iter().collect::<Vec<_>>(), ["bond0", "eno1", "eno2", "vmbr0"]);
        assert_eq!(stack.below("vmbr70").into_iter().collect::<Vec<_>>(), ["bond0", "bond0.70", "eno1", "eno2", "vmbr70"]);
        assert_eq!(stack.above("eno1").into_iter().collect::<Vec<_>>(), ["bond0", "bond0.70", "vmbr0", "vmbr70"]);
        assert!(stack.below("nothing").is_empty());
    }

    #[test]
    fn circles_end() {
        let mut kernel = Kernel { links: vec![link("a", "vlan"), link("b", "vlan")], routes: vec![] };
        kernel.links[0].parent = Some("b".into());
        kernel.links[1].parent = Some("a".into());
        kernel.links[0].vlan = tag(1);
        kernel.links[1].vlan = tag(2);
        let stack = Stack::new(&kernel);
        assert_eq!(stack.below("a").len(), 2);
        assert_eq!(stack.above("a").len(), 2);
        assert_eq!(stack.tags(&kernel.links[0]).0, 16);
    }

    #[test]
    fn guests_are_told_by_the_names_of_their_ports() {
        for (name, vmid) in [("tap100i0", Some(100)), ("veth101i2", Some(101)), ("fwpr102p0", Some(102)), ("fwln103i1", Some(103))] {
            assert!(is_guest_port(name));
            assert_eq!(guest_of(name), vmid, "{name}");
        }
        for name in ["tap0", "veth1a2b3c", "tapXi0", "tap1i", "eno1"] {
            assert_eq!(guest_of(name), None, "{name}");
        }
        assert!(is_guest_port("tap0") && !is_guest_port("eno1"));
    }
}
