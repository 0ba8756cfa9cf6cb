//! What agents do when they carry an operation out.

use super::*;

impl Model {
    pub(super) fn carry_out(&mut self, node: &str, request: Request) -> Knowledge {
        match request {
            Request::Clone(_) => {
                self.made += 1;
                let vm = VmView {
                    vmid: 100 + self.made,
                    uuid: format!("uuid-{}", self.made),
                    node: node.to_owned(),
                    ..testing::vm(RunState::Stopped)
                };
                let (vmid, uuid) = (vm.vmid, vm.uuid.clone());
                self.vms.push(vm);
                return Knowledge::Ended(Ending::Succeeded { vmid, uuid });
            }
            Request::Delete(_) => {
                let lost = |id: &&&str| self.vms.iter().any(|vm| vm.node == node && vm.disks.iter().any(|d| d.volume_id == ***id));
                if self.vms.iter().any(|vm| vm.node != node) {
                    return failed("VM_ON_OTHER_HOST", false);
                }
                let lost: Vec<String> = KEPT.iter().filter(lost).map(|id| format!("the VM is deleted with {id}")).collect();
                self.violations.extend(lost);
                self.vms.clear();
            }
            Request::Start(_) => self.vms.iter_mut().for_each(|vm| vm.state = RunState::Running),
            Request::Shutdown(_) => self.vms.iter_mut().for_each(|vm| vm.state = RunState::Stopped),
            Request::CreateVolume(r) => {
                if !self.sees(node, &r.id) {
                    self.ever.insert(r.id.clone());
                    self.volumes.push((r.id, (r.storage == "local").then(|| node.to_owned())));
                }
            }
            Request::AttachVolume(r) => return self.attach(node, &r.volume.unwrap().id),
            Request::DetachVolume(r) => {
                let id = r.volume.unwrap().id;
                if !self.sees(node, &id) {
                    return failed("VOLUME_NOT_FOUND", false);
                }
                self.vms.iter_mut().filter(|vm| vm.node == node).for_each(|vm| vm.disks.retain(|d| d.volume_id != id));
            }
            Request::GrowVolume(r) => {
                let id = r.volume.unwrap().id;
                let of_volume = self.vms.iter_mut().flat_map(|vm| &mut vm.disks).filter(|d| d.volume_id == id);
                of_volume.for_each(|d| d.size_bytes = r.size_bytes);
            }
            Request::Configure(_) | Request::SetVolumeLimits(_) => {}
            Request::DeleteVolume(r) => {
                let id = r.volume.unwrap().id;
                if KEPT.contains(&id.as_str()) {
                    self.violations.push(format!("{id} is deleted"));
                }
                if self.sees(node, &id) && self.vms.iter().any(|vm| vm.node == node && vm.disks.iter().any(|d| d.volume_id == id)) {
                    return failed("VOLUME_IN_USE", false);
                }
                self.volumes.retain(|(v, on)| *v != id || on.as_ref().is_some_and(|on| on != node));
            }
        }
        Knowledge::Ended(Ending::Succeeded { vmid: 0, uuid: String::new() })
    }

    fn attach(&mut self, node: &str, id: &str) -> Knowledge {
        if !self.sees(node, id) {
            return failed("VOLUME_NOT_FOUND", false);
        }
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.node == node) else { return failed("VM_ON_OTHER_HOST", false) };
        vm.disks.retain(|d| !(d.volume_id == id && d.is_aside()));
        if !vm.disks.iter().any(|d| d.volume_id == id) {
            let slot = format!("scsi{}", vm.disks.len() + 1);
            vm.disks.push(DiskView { slot, volume_id: id.to_owned(), size_bytes: 1 << 30, ..DiskView::default() });
        }
        Knowledge::Ended(Ending::Succeeded { vmid: vm.vmid, uuid: vm.uuid.clone() })
    }
}
