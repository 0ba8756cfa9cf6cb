//! Which agents have told of VMs that carry a machine's mark. It only says whom to ask: what they have told is looked at there.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::view::{VmView, machine_uid};

/// The marks, by the machine that they name and by the VM's name.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_uid: HashMap<String, Vec<Arc<str>>>,
    by_name: HashMap<String, Vec<Arc<str>>>,
}

impl Marks {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's agent tells of a VM.
    pub(super) fn add(&self, host: &Arc<str>, vm: &VmView) {
        let Some(uid) = machine_uid(vm) else { return };
        let mut state = self.state();
        // Once for each VM, so that taking one away leaves the others.
        note(&mut state.by_uid, uid, host);
        note(&mut state.by_name, &vm.name, host);
    }

    /// It tells of it no more, or of another in its place.
    pub(super) fn remove(&self, host: &str, vm: &VmView) {
        let Some(uid) = machine_uid(vm) else { return };
        let mut state = self.state();
        take_out(&mut state.by_uid, uid, host);
        take_out(&mut state.by_name, &vm.name, host);
    }

    /// Hosts whose agents tell of VMs with this machine's mark.
    pub(super) fn of_machine(&self, uid: &str) -> BTreeSet<Arc<str>> {
        self.state().by_uid.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Hosts whose agents tell of marked VMs of this name.
    pub(super) fn of_name(&self, name: &str) -> BTreeSet<Arc<str>> {
        self.state().by_name.get(name).into_iter().flatten().cloned().collect()
    }
}

fn note(marks: &mut HashMap<String, Vec<Arc<str>>>, key: &str, host: &Arc<str>) {
    match marks.get_mut(key) {
        Some(hosts) => hosts.push(Arc::clone(host)),
        // Most are one host's, and there are ten thousand of them.
        None => drop(marks.insert(key.to_owned(), vec![Arc::clone(host)])),
    }
}

fn take_out(marks: &mut HashMap<String, Vec<Arc<str>>>, key: &str, host: &str) {
    let Some(hosts) = marks.get_mut(key) else { return };
    if let Some(at) = hosts.iter().position(|h| **h == *host) {
        hosts.swap_remove(at);
    }
    if hosts.is_empty() {
        marks.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::{RunState, testing};

    #[test]
    fn each_host_is_told_once_for_as_long_as_it_has_one_of_the_vms() {
        let marks = Marks::default();
        let (one, two): (Arc<str>, Arc<str>) = ("pve1".into(), "pve2".into());
        let vm = testing::vm(RunState::Stopped);
        let other = VmView { vmid: 102, name: "copy".into(), ..vm.clone() };
        let hosts = |of: BTreeSet<Arc<str>>| of.iter().map(ToString::to_string).collect::<Vec<_>>();
        marks.add(&one, &vm);
        marks.add(&one, &other);
        marks.add(&two, &vm);
        assert_eq!(hosts(marks.of_machine(testing::UID)), ["pve1", "pve2"]);
        marks.remove("pve1", &vm);
        assert_eq!(hosts(marks.of_machine(testing::UID)), ["pve1", "pve2"]);
        assert_eq!(hosts(marks.of_name("web-1")), ["pve2"]);
        assert_eq!(hosts(marks.of_name("copy")), ["pve1"]);
        marks.remove("pve1", &other);
        marks.remove("pve2", &vm);
        assert!(marks.of_machine(testing::UID).is_empty() && marks.of_name("web-1").is_empty());
    }

    #[test]
    fn what_carries_no_mark_is_nobodys() {
        let marks = Marks::default();
        let vm = VmView { owner: None, ..testing::vm(RunState::Stopped) };
        marks.add(&"pve1".into(), &vm);
        assert!(marks.of_name("web-1").is_empty() && marks.of_machine("").is_empty());
    }
}
