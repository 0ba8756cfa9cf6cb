//! Memory: what is left, what was promised, who was killed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    source::{Look, check},
    words::{Worst, age, bytes, moment, percent, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::{
        machine::{self, Machine},
        pve::{Inventory, Pve, RunState, VmRecord, config_file::properties},
    },
};

const MEMORY: Check = check("host.memory", "When memory runs out, the kernel kills the largest process, which is a VM.");

/// What must be available of the memory that is not set aside, percent.
const LOW: f64 = 5.0;
const OUT: f64 = 2.0;
/// How long a kill is told.
const KILLED: Duration = Duration::from_secs(3600);
/// PVE's default.
const VM_MIB: u64 = 512;

/// Counters of an earlier look, and what was seen by them.
#[derive(Debug, Default)]
struct Kills {
    last: Option<machine::Memory>,
    seen: Option<(SystemTime, &'static str)>,
}

impl Kills {
    /// Compares the counters. Kills by a control group's own limit are that group's business: pods that reach theirs are killed every day.
    fn note(&mut self, memory: &machine::Memory, now: SystemTime) {
        if let Some(last) = self.last.replace(memory.clone()) {
            let grew = |old: Option<u64>, new: Option<u64>| old.zip(new).is_some_and(|(old, new)| new > old);
            if grew(last.vms_killed, memory.vms_killed) {
                self.seen = Some((now, "the kernel killed a VM for the lack of memory"));
            } else if memory.killed > last.killed && last.limits_hit.is_some() && last.limits_hit == memory.limits_hit {
                self.seen = Some((now, "the kernel killed a process for the lack of memory of the whole host"));
            }
        }
        self.seen = self.seen.take().filter(|(at, _)| age(*at, now) < KILLED);
    }
}

pub(super) fn source(pace: Pace, pve: &Arc<dyn Pve>, machine: &Arc<dyn Machine>) -> Arc<dyn Source> {
    let (pve, machine, kills) = (Arc::clone(pve), Arc::clone(machine), Arc::new(Mutex::new(Kills::default())));
    let look = move || {
        let (pve, machine, kills) = (Arc::clone(&pve), Arc::clone(&machine), Arc::clone(&kills));
        async move {
            let (memory, now) = (machine.memory().await, SystemTime::now());
            let seen = {
                let mut kills = kills.lock().unwrap_or_else(PoisonError::into_inner);
                if let Ok(memory) = &memory {
                    kills.note(memory, now);
                }
                kills.seen
            };
            vec![decide(&memory, promised(&pve.inventory()), seen)]
        }
    };
    Look::new("memory", &[MEMORY], pace, look).done()
}

/// What the running VMs of this node may claim: what was given to them, or what a balloon leaves them at least. How many, and bytes.
fn promised(inventory: &Inventory) -> (usize, u64) {
    let here = inventory.vms.values().filter(|vm| vm.node == inventory.node);
    let running = here.filter(|vm| matches!(vm.run, RunState::Running { .. } | RunState::Paused { .. }));
    running.fold((0, 0), |(count, sum), vm| (count + 1, sum + claim(vm)))
}

fn claim(vm: &VmRecord) -> u64 {
    let mib = |text: &str| text.trim().parse::<u64>().ok();
    // `2048`, or `current=2048`.
    let memory = vm.config.get("memory").and_then(|value| {
        let (lead, more) = properties(value);
        lead.and_then(mib).or_else(|| more.get("current").copied().and_then(mib))
    });
    let memory = memory.unwrap_or(VM_MIB);
    // 0 switches the balloon off.
    let least = vm.config.get("balloon").and_then(mib).filter(|b| *b > 0).unwrap_or(memory);
    memory.min(least).saturating_mul(1 << 20)
}

fn decide(memory: &Result<machine::Memory, Error>, (vms, promised): (usize, u64), killed: Option<(SystemTime, &'static str)>) -> Finding {
    let id = MEMORY.id;
    let memory = match memory {
        Ok(memory) => memory,
        Err(error) => return unknown(id, error),
    };
    let mut worst = Worst::new();
    // ZFS gives its cache back, which the kernel does not count as available. Huge pages are set aside for VMs: they are in use by intent.
    let available = memory.available.saturating_add(memory.arc.saturating_sub(memory.arc_min));
    let usable = memory.total.saturating_sub(memory.huge);
    let left = percent(available, usable);
    if left < LOW && usable > 0 {
        let swap = if memory.swap_total == 0 { "no swap".to_owned() } else { format!("{} of swap", bytes(memory.swap_total)) };
        let state = if left < OUT { State::Failed } else { State::Degraded };
        worst.add(state, "memory", format!("{left:.0} % of {} available, {swap}", bytes(usable)));
    }
    if let Some((at, what)) = killed {
        worst.add(State::Degraded, "memory", format!("{what} (seen at {})", moment(at)));
    }
    // What KSM shares is needed once.
    let needed = promised.saturating_sub(memory.shared).saturating_add(memory.arc_min);
    if needed > memory.total {
        let of = format!("{vms} running VMs may claim {}", bytes(promised));
        let arc = if memory.arc_min > 0 { format!(", ZFS keeps {}", bytes(memory.arc_min)) } else { String::new() };
        let ksm = if memory.shared > 0 { format!(", KSM saves {} GiB", memory.shared >> 30) } else { String::new() };
        worst.add(State::Degraded, "memory", format!("{of}{arc}{ksm}, the host has {}", bytes(memory.total)));
    }
    let remedy = "move VMs away, give them less memory or a balloon (`balloon:` below `memory:`), or limit ZFS's cache (zfs_arc_max)";
    worst.finding(id, || format!("enough of {} is available; {vms} running VMs may claim {}", bytes(memory.total), bytes(promised)), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, host::machine::Memory, host::pve::config_file::ConfigFile};

    const GIB: u64 = 1 << 30;

    fn memory() -> Memory {
        Memory { total: 64 * GIB, available: 32 * GIB, limits_hit: Some(0), vms_killed: Some(0), ..Memory::default() }
    }

    #[test]
    fn what_is_left_and_what_is_promised_are_weighed() {
        let table = [
            ("plenty", memory(), 20 * GIB, State::Ok),
            ("little left", Memory { available: 3 * GIB, ..memory() }, 0, State::Degraded),
            ("nothing left", Memory { available: GIB, ..memory() }, 0, State::Failed),
            ("ZFS's cache holds it", Memory { available: GIB, arc: 30 * GIB, arc_min: 2 * GIB, ..memory() }, 20 * GIB, State::Ok),
            ("huge pages hold it", Memory { available: 3 * GIB, huge: 56 * GIB, ..memory() }, 56 * GIB, State::Ok),
            ("all promised", memory(), 64 * GIB, State::Ok),
            ("more promised than there is", memory(), 65 * GIB, State::Degraded),
            ("KSM makes up for it", Memory { shared: 20 * GIB, ..memory() }, 80 * GIB, State::Ok),
            ("no VM", Memory { swap_total: 8 * GIB, ..memory() }, 0, State::Ok),
        ];
        for (name, memory, promised, expected) in table {
            let found = decide(&Ok(memory), (3, promised), None);
            assert_eq!(found.state, expected, "{name}: {found:?}");
        }
        let denied = Error::Look { trouble: Trouble::Denied, message: "no".into() };
        assert_eq!(decide(&Err(denied), (0, 0), None).state, State::Unknown);
    }

    #[test]
    fn kills_are_told_for_an_hour_and_those_of_pods_are_not() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |s| start + Duration::from_secs(s);
        let look = |killed, limits, vms| Memory { killed, limits_hit: Some(limits), vms_killed: Some(vms), ..memory() };
        let mut kills = Kills::default();
        // What happened before the agent began is not known to be new.
        kills.note(&look(5, 1, 1), at(0));
        assert_eq!(kills.seen, None);
        // A pod at its limit.
        kills.note(&look(6, 2, 1), at(10));
        assert_eq!(kills.seen, None);
        kills.note(&look(7, 2, 1), at(20));
        assert!(kills.seen.is_some_and(|(_, what)| what.contains("a process")));
        kills.note(&look(8, 2, 2), at(30));
        assert!(kills.seen.is_some_and(|(_, what)| what.contains("a VM")));
        assert_eq!(decide(&Ok(memory()), (0, 0), kills.seen).state, State::Degraded);
        kills.note(&look(8, 2, 2), at(3700));
        assert_eq!(kills.seen, None);
        // A kernel that tells of no groups: whose the killed one was is not known.
        let old = |killed| Memory { killed, limits_hit: None, vms_killed: None, ..memory() };
        kills.note(&old(8), at(3710));
        kills.note(&old(9), at(3720));
        assert_eq!(kills.seen, None);
    }

    #[test]
    fn a_vm_claims_what_its_balloon_leaves_it_at_least() {
        let table = [
            ("", 512),
            ("memory: 2048\n", 2048),
            ("memory: current=4096\n", 4096),
            ("memory: 4096\nballoon: 1024\n", 1024),
            ("memory: 4096\nballoon: 0\n", 4096),
            ("memory: x\n", 512),
        ];
        for (text, mib) in table {
            let vm = VmRecord {
                vmid: 100,
                node: "a".into(),
                version: 1,
                config: ConfigFile::parse(text),
                run: RunState::Stopped,
                ha: None,
                replicated: false,
                pool: None,
            };
            assert_eq!(claim(&vm), mib << 20, "{text}");
        }
    }
}
