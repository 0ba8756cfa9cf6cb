//! On which host a new machine goes. Pure: the same candidates give the same answer.

use std::{cmp::Reverse, collections::BTreeMap, ops::Add, sync::Arc};

use crate::{
    kind::{MachineSpec, Quantity, SourceSpec},
    reconcile::{HostView, Link, VmView},
};

/// What a VM takes when neither the manifest nor a known template says: PVE's own defaults.
const DEFAULT_MEMORY_MIB: u64 = 512;
const DEFAULT_CORES: u64 = 1;
/// Hosts that are named with why they do not fit.
const TOLD: usize = 10;

/// A host with what is free on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The host.
    pub host: Arc<HostView>,
    /// Memory of VMs that run there or are placed there, in MiB.
    pub used_memory_mib: u64,
    /// Cores of the same.
    pub used_cores: u64,
    /// The template that the machine would be cloned from, where this host has one.
    pub template: Option<Size>,
}

/// What a VM takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Cores in all.
    pub cores: u64,
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { memory_mib: self.memory_mib.saturating_add(other.memory_mib), cores: self.cores.saturating_add(other.cores) }
    }
}

impl Size {
    /// Of an existing VM.
    pub fn of(vm: &VmView) -> Self {
        Self { memory_mib: vm.memory_mib, cores: u64::from(vm.cores.max(1)) * u64::from(vm.sockets.max(1)) }
    }

    /// Of a wanted one; what the spec leaves out is the template's.
    pub fn wanted(spec: &MachineSpec, template: Option<Self>) -> Self {
        Wish::of(spec).size(template)
    }
}

/// What a spec says of a VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wish {
    memory: Option<Quantity>,
    cores: Option<u32>,
    sockets: Option<u32>,
}

impl Wish {
    /// What this spec says.
    pub fn of(spec: &MachineSpec) -> Self {
        Self { memory: spec.memory, cores: spec.cores, sockets: spec.sockets }
    }

    /// The VM's size; what is left out is the template's.
    pub fn size(self, template: Option<Size>) -> Size {
        let template = template.unwrap_or(Size { memory_mib: DEFAULT_MEMORY_MIB, cores: DEFAULT_CORES });
        let cores = match (self.cores, self.sockets) {
            (None, None) => template.cores,
            (cores, sockets) => u64::from(cores.unwrap_or(1)) * u64::from(sockets.unwrap_or(1)),
        };
        Size { memory_mib: self.memory.map_or(template.memory_mib, |m| m.mib()), cores }
    }
}

/// Whether a VM is the template that a source means.
pub fn is_source(source: &SourceSpec, vm: &VmView) -> bool {
    vm.template
        && match (source.template, &source.tags) {
            (Some(vmid), _) => vm.vmid == vmid,
            (None, Some(tags)) => tags.iter().all(|t| vm.tags.contains(t)),
            (None, None) => false,
        }
}

/// Chooses a host: of those that fit, one that did not just fail (`avoid`), with the most free memory, then by name.
///
/// # Errors
/// Why each host does not fit, as one text for people.
pub fn place<'a>(spec: &MachineSpec, candidates: &'a [Candidate], avoid: Option<&str>) -> Result<&'a HostView, String> {
    let mut refusals: BTreeMap<&str, String> = BTreeMap::new();
    let mut best: Option<(_, &Candidate)> = None;
    for candidate in candidates {
        let name = candidate.host.name.as_str();
        match free_memory_after(spec, candidate) {
            Ok(free) => {
                let rank = (Some(name) != avoid, free, Reverse(name));
                if best.as_ref().is_none_or(|(r, _)| rank > *r) {
                    best = Some((rank, candidate));
                }
            }
            Err(why) => {
                refusals.insert(name, why);
            }
        }
    }
    match best {
        Some((_, candidate)) => Ok(&candidate.host),
        None if refusals.is_empty() => Err("there is no PveHost; add one".to_owned()),
        None => Err(told(&refusals)),
    }
}

/// Why no host fits. That of a thousand hosts each has its reason helps nobody.
fn told(refusals: &BTreeMap<&str, String>) -> String {
    let mut texts: Vec<String> = refusals.iter().take(TOLD).map(|(name, why)| format!("{name}: {why}")).collect();
    if refusals.len() > TOLD {
        texts.push(format!("and {} hosts more", refusals.len() - TOLD));
    }
    texts.join("; ")
}

/// The host that the manifest names, if it can be used at all. Capacity and cordon are the author's business there.
pub fn named<'a>(name: &str, spec: &MachineSpec, candidates: &'a [Candidate]) -> Result<&'a HostView, String> {
    let Some(candidate) = candidates.iter().find(|c| c.host.name == name) else {
        return Err(format!("spec.host = {name}: there is no such PveHost; add it, or leave spec.host out to have one chosen"));
    };
    match candidate.host.obstacle().or_else(|| candidate.host.out_of_service()) {
        Some((_, why)) => Err(why),
        None => candidate.host.lacks(spec).map_or(Ok(&candidate.host), Err),
    }
}

/// Free memory in MiB once the machine is there, or why it cannot be there.
fn free_memory_after(spec: &MachineSpec, candidate: &Candidate) -> Result<u64, String> {
    let host = &candidate.host;
    if let Some((label, value)) = spec.host_selector.iter().find(|(label, value)| host.labels.get(*label) != Some(*value)) {
        return Err(format!("has no label {label}={value}"));
    }
    if host.cordon {
        return Err("cordoned".to_owned());
    }
    if let Some((reason, _)) = host.obstacle().or_else(|| host.out_of_service()) {
        return Err(reason.to_owned());
    }
    if let Some(why) = host.lacks(spec) {
        return Err(why);
    }
    let (Link::Up, Some(facts)) = (&host.link, &host.facts) else { return Err("AgentUnreachable".to_owned()) };
    let Some(template) = candidate.template else { return Err("has no such template".to_owned()) };
    let size = Size::wanted(spec, Some(template));
    let total = (facts.memory_bytes >> 20).saturating_sub(host.reserved_memory.mib());
    let free = total.saturating_sub(candidate.used_memory_mib);
    if free < size.memory_mib {
        return Err(format!("{free} MiB of memory free, {} needed", size.memory_mib));
    }
    let cores = u64::from(facts.threads) * u64::from(host.cpu_overcommit);
    let free_cores = cores.saturating_sub(candidate.used_cores);
    if free_cores < size.cores {
        return Err(format!("{free_cores} cores free, {} needed", size.cores));
    }
    Ok(free - size.memory_mib)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::reconcile::{Facts, testing};

    fn candidate(name: &str, memory_gib: u64) -> Candidate {
        let mut host = testing::host(name);
        host.facts = Some(Facts { memory_bytes: memory_gib << 30, threads: 4, manage: true, quorate: true, ..Facts::default() });
        Candidate { host: Arc::new(host), used_memory_mib: 0, used_cores: 0, template: Some(Size { memory_mib: 1024, cores: 1 }) }
    }

    fn spec(edit: impl FnOnce(&mut MachineSpec)) -> MachineSpec {
        let mut spec = testing::machine("web-1").spec;
        edit(&mut spec);
        spec
    }

    type Edit = fn(&mut Candidate);

    fn host(candidate: &mut Candidate) -> &mut HostView {
        Arc::make_mut(&mut candidate.host)
    }

    #[test]
    fn the_host_with_the_most_free_memory_wins_and_names_break_ties() {
        let plain = spec(|_| {});
        assert_eq!(place(&plain, &[candidate("a", 8), candidate("b", 16)], None).unwrap().name, "b");
        assert_eq!(place(&plain, &[candidate("b", 8), candidate("a", 8)], None).unwrap().name, "a");
        let mut busy = candidate("b", 16);
        busy.used_memory_mib = 12 << 10;
        assert_eq!(place(&plain, &[candidate("a", 8), busy], None).unwrap().name, "a");
    }

    #[test]
    fn a_host_that_just_failed_is_the_last_choice_but_still_one() {
        let plain = spec(|_| {});
        assert_eq!(place(&plain, &[candidate("a", 8), candidate("b", 16)], Some("b")).unwrap().name, "a");
        assert_eq!(place(&plain, &[candidate("b", 16)], Some("b")).unwrap().name, "b");
    }

    #[test]
    fn a_host_that_does_not_fit_is_named_with_its_reason() {
        let rows: &[(&str, Edit)] = &[
            ("cordoned", |c| host(c).cordon = true),
            ("HostInMaintenance", |c| host(c).maintenance = true),
            ("HostShuttingDown", |c| host(c).facts.as_mut().unwrap().shutting_down = true),
            ("ObserveOnly", |c| host(c).facts.as_mut().unwrap().manage = false),
            ("NoQuorum", |c| host(c).facts.as_mut().unwrap().quorate = false),
            ("AgentUnreachable", |c| host(c).link = Link::Connecting),
            ("has no such template", |c| c.template = None),
            ("1024 MiB of memory free, 2048 needed", |c| c.used_memory_mib = 7 << 10),
            ("0 MiB of memory free", |c| host(c).reserved_memory = Quantity(64 << 30)),
            ("1 cores free, 2 needed", |c| c.used_cores = 15),
        ];
        let wanted = spec(|s| {
            s.memory = Some(Quantity(2 << 30));
            s.cores = Some(2);
        });
        for (want, edit) in rows {
            let mut c = candidate("pve1", 8);
            edit(&mut c);
            let told = place(&wanted, &[c], None).unwrap_err();
            assert!(told.starts_with("pve1: ") && told.contains(want), "{want}: {told}");
        }
    }

    #[test]
    fn of_many_hosts_that_do_not_fit_some_are_named() {
        let hosts: Vec<Candidate> = (0..30).map(|n| Candidate { template: None, ..candidate(&format!("pve{n:02}"), 8) }).collect();
        let told = place(&spec(|_| {}), &hosts, None).unwrap_err();
        assert!(told.starts_with("pve00: has no such template; pve01: ") && told.ends_with("; and 20 hosts more"), "{told}");
    }

    #[test]
    fn labels_must_match_all() {
        let wanted = spec(|s| s.host_selector = [("zone".to_owned(), "a".to_owned())].into());
        let mut in_zone = candidate("pve2", 4);
        host(&mut in_zone).labels.insert("zone".into(), "a".into());
        assert_eq!(place(&wanted, &[candidate("pve1", 64), in_zone], None).unwrap().name, "pve2");
    }

    #[test]
    fn no_host_at_all_is_told() {
        assert!(place(&spec(|_| {}), &[], None).unwrap_err().contains("no PveHost"));
    }

    #[test]
    fn a_named_host_needs_no_room_but_must_be_usable() {
        let mut full = candidate("pve1", 8);
        full.used_memory_mib = 1 << 20;
        host(&mut full).cordon = true;
        assert_eq!(named("pve1", &spec(|_| {}), std::slice::from_ref(&full)).unwrap().name, "pve1");
        host(&mut full).maintenance = true;
        assert!(named("pve1", &spec(|_| {}), &[full]).unwrap_err().contains("maintenance"));
        assert!(named("pve9", &spec(|_| {}), &[]).unwrap_err().contains("no such PveHost"));
    }
}
