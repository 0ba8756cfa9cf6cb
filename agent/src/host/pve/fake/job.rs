//! What the fake's tasks do, stage by stage.

use std::{collections::BTreeMap, time::SystemTime};

use uuid::Uuid;

use super::{Fault, Task, World};
use crate::host::pve::{CloneCall, DestroyCall, PowerCall, ProcessRef, RunState, TaskEnd, Upid};

#[derive(Debug, Clone)]
pub(super) enum Job {
    Clone(CloneCall),
    Config,
    Resize { vmid: u32, slot: String, bytes: u64 },
    Power { vmid: u32, call: PowerCall },
    Destroy { vmid: u32, call: DestroyCall },
    Free { volid: String },
}

/// A stage either goes on, or ends the task.
type Stage = Result<Option<TaskEnd>, String>;

fn file_lock(what: &str) -> String {
    match what.strip_prefix("VM ") {
        Some(vmid) => format!("can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout"),
        None => format!("can't lock file '/var/lock/pve-manager/pve-storage-{what}' - got timeout"),
    }
}

impl World {
    pub(super) fn start(&mut self, kind: &str, id: &str, job: Job) -> Upid {
        self.counter += 1;
        let text = format!("UPID:{}:{:08X}:{:08X}:{:08X}:{kind}:{id}:root@pam:", self.node, self.counter, self.counter, self.now);
        // Never `None`: the text was just made in this form.
        let upid = Upid::parse(&text).unwrap_or_else(|| unreachable!("a UPID of the fake reads back"));
        self.tasks.push(Task { upid: upid.clone(), lines: Vec::new(), end: None, stage: 0, job });
        upid
    }

    pub(super) fn step_any(&mut self) -> bool {
        (0..self.tasks.len()).any(|index| self.step(index))
    }

    /// One stage of a task. `false`: it stands still or has ended.
    pub(super) fn step(&mut self, index: usize) -> bool {
        let Some(task) = self.tasks.get(index).filter(|t| t.end.is_none()) else { return false };
        let (kind, stage, job) = (task.upid.kind.clone(), task.stage, task.job.clone());
        if self.held.contains(kind.as_str()) {
            return false;
        }
        if self.take_fault(|f| matches!(f, Fault::Killed { kind: k, stage: s } if *k == kind && *s == stage)).is_some() {
            self.kill(index);
            return true;
        }
        if stage == 0
            && let Some(Fault::TaskEnd { end, effect, .. }) = self.take_fault(|f| matches!(f, Fault::TaskEnd { kind: k, .. } if *k == kind))
        {
            if effect {
                for stage in 0..10 {
                    if !matches!(self.stage(index, &job, stage), Ok(None)) {
                        break;
                    }
                }
            } else if let Job::Clone(call) = &job {
                self.remove(call.vmid, true);
            }
            self.tasks[index].end = Some(end);
            return true;
        }
        self.tasks[index].stage += 1;
        match self.stage(index, &job, stage) {
            Ok(None) => {}
            Ok(Some(end)) => self.tasks[index].end = Some(end),
            Err(message) => {
                if let Job::Clone(call) = &job {
                    self.remove(call.vmid, true);
                }
                self.tasks[index].end = Some(TaskEnd::Error(message));
            }
        }
        true
    }

    /// SIGKILL: the worker is gone, what it had made stays, and a copy runs on.
    pub(super) fn kill(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index).filter(|t| t.end.is_none()) else { return };
        task.end = Some(TaskEnd::NoEndLine);
        if let Job::Clone(call) = &task.job
            && call.full
            && task.stage >= 2
        {
            let vmid = call.vmid;
            self.counter += 1;
            let pid = i32::try_from(self.counter).unwrap_or(i32::MAX);
            self.orphans.push((vmid, ProcessRef { pid, start: self.counter, command: format!("qemu-img convert vm-{vmid}-disk-0.qcow2") }));
        }
    }

    /// SIGTERM: PVE undoes a clone itself.
    pub(super) fn terminate(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index).filter(|t| t.end.is_none()) else { return };
        let job = task.job.clone();
        task.end = Some(TaskEnd::Error("clone failed: copy failed: command 'qemu-img convert' failed: interrupted by signal".to_owned()));
        if let Job::Clone(call) = job {
            self.remove(call.vmid, true);
        }
    }

    fn say(&mut self, index: usize, line: impl Into<String>) {
        self.tasks[index].lines.push(line.into());
    }

    fn stage(&mut self, index: usize, job: &Job, stage: u32) -> Stage {
        match job {
            Job::Clone(call) => self.clone_stage(index, call, stage),
            Job::Config => Ok(Some(TaskEnd::Ok)),
            Job::Resize { vmid, slot, bytes } => self.resize(*vmid, slot, *bytes),
            Job::Power { vmid, call } => self.power_stage(*vmid, call),
            Job::Destroy { vmid, call } => self.destroy_stage(index, *vmid, call),
            Job::Free { volid } => {
                let storage = volid.split(':').next().unwrap_or_default();
                if self.lock_times_out(storage) {
                    return Err(file_lock(storage));
                }
                if self.free(volid) { Ok(Some(TaskEnd::Ok)) } else { Err(format!("volume '{volid}' does not exist")) }
            }
        }
    }

    fn clone_stage(&mut self, index: usize, call: &CloneCall, stage: u32) -> Stage {
        let (from, to) = (call.template, call.vmid);
        let template = self.vms.get(&from).cloned().ok_or("the template is gone")?;
        let disks = |keys: &BTreeMap<String, String>| {
            keys.iter().filter(|(_, v)| v.contains(&format!("-{from}-"))).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
        };
        let new_disk = |value: &str| {
            let (volume, rest) = value.split_once(',').unwrap_or((value, ""));
            let (storage, path) = volume.split_once(':').unwrap_or(("local", volume));
            let file =
                volume.rsplit('/').next().unwrap_or_default().replace("base-", "vm-").replace(&format!("-{from}-"), &format!("-{to}-"));
            let storage = call.storage.clone().unwrap_or_else(|| storage.to_owned());
            let linked = !call.full && path.contains("base-");
            let volid = if linked { format!("{storage}:{path}/{to}/{file}") } else { format!("{storage}:{to}/{file}") };
            (storage, volid, rest.to_owned(), linked.then(|| path.to_owned()))
        };
        match stage {
            0 => {
                self.say(index, format!("creating a clone of VM {from} with ID {to}"));
                Ok(None)
            }
            1 => {
                for (slot, value) in disks(&template.keys) {
                    let (storage, volid, _, parent) = new_disk(&value);
                    if self.lock_times_out(&storage) {
                        self.say(index, "trying to acquire lock...");
                        return Err(format!("clone failed: {}", file_lock(&storage)));
                    }
                    let word = if parent.is_some() { "linked" } else { "full" };
                    self.say(index, format!("create {word} clone of drive {slot} ({value})"));
                    self.put(&storage, &volid, to, 1 << 30, parent);
                    self.say(index, format!("allocated target volume '{volid}'"));
                }
                Ok(None)
            }
            2 if call.full => {
                self.say(index, "transferred 512.0 MiB of 1.0 GiB (50.00%)");
                let full = self.storages.values().any(|s| s.info.available == 1 && call.storage.as_deref() == Some(s.info.id.as_str()));
                if full {
                    self.say(index, "qemu-img: error while writing at byte 54525952: No space left on device");
                    return Err("clone failed: copy failed: command 'qemu-img convert' failed: exit code 1".to_owned());
                }
                Ok(None)
            }
            2 => Ok(None),
            _ => {
                let mut keys = template.keys.clone();
                for (slot, value) in disks(&template.keys) {
                    let (_, volid, rest, _) = new_disk(&value);
                    keys.insert(slot, format!("{volid},{rest}"));
                }
                keys.remove("template");
                keys.insert("smbios1".to_owned(), format!("uuid={}", Uuid::new_v4()));
                keys.insert("name".to_owned(), call.name.clone());
                self.counter += 1;
                let mac = format!("BC:24:11:{:02X}:{:02X}:{:02X}", self.counter >> 16 & 255, self.counter >> 8 & 255, self.counter & 255);
                keys.insert("net0".to_owned(), format!("virtio={mac},bridge=vmbr0"));
                let node = self.node.clone();
                self.insert_vm(to, &node, keys, call.description.clone());
                if let Some(vm) = self.vms.get_mut(&to) {
                    vm.pool = call.pool.clone();
                }
                Ok(Some(TaskEnd::Ok))
            }
        }
    }

    fn resize(&mut self, vmid: u32, slot: &str, bytes: u64) -> Stage {
        if self.lock_times_out(&format!("VM {vmid}")) {
            return Err(file_lock(&format!("VM {vmid}")));
        }
        self.counter += 1;
        let version = self.counter;
        let vm =
            self.vms.get_mut(&vmid).ok_or_else(|| format!("Configuration file 'nodes/pve1/qemu-server/{vmid}.conf' does not exist"))?;
        let value = vm.keys.get_mut(slot).ok_or_else(|| format!("disk '{slot}' does not exist"))?;
        let volume = value.split(',').next().unwrap_or_default().to_owned();
        *value = format!("{volume},size={}M", bytes >> 20);
        vm.version = version;
        Ok(Some(TaskEnd::Ok))
    }

    fn power_stage(&mut self, vmid: u32, call: &PowerCall) -> Stage {
        if self.lock_times_out(&format!("VM {vmid}")) {
            return Err(file_lock(&format!("VM {vmid}")));
        }
        self.counter += 1;
        let pid = i32::try_from(self.counter).unwrap_or(i32::MAX);
        let vm =
            self.vms.get_mut(&vmid).ok_or_else(|| format!("Configuration file 'nodes/pve1/qemu-server/{vmid}.conf' does not exist"))?;
        if vm.ha.is_some() {
            return Ok(Some(TaskEnd::Ok));
        }
        if let Some(lock) = vm.keys.get("lock").filter(|l| *l != "suspended" && *call == PowerCall::Start) {
            return Err(format!("VM is locked ({lock})"));
        }
        match call {
            PowerCall::Start if vm.run != RunState::Stopped => return Err(format!("VM {vmid} already running")),
            PowerCall::Start => {
                vm.keys.remove("lock");
                vm.run = RunState::Running { pid, since: SystemTime::now() };
            }
            PowerCall::Shutdown { force: false, .. } if vm.keys.contains_key("deaf") => {
                return Err("VM quit/powerdown failed - got timeout".to_owned());
            }
            PowerCall::Stop | PowerCall::Shutdown { .. } => vm.run = RunState::Stopped,
            PowerCall::Reset => {}
        }
        Ok(Some(TaskEnd::Ok))
    }

    fn destroy_stage(&mut self, index: usize, vmid: u32, call: &DestroyCall) -> Stage {
        if self.lock_times_out(&format!("VM {vmid}")) {
            return Err(file_lock(&format!("VM {vmid}")));
        }
        let vm = self
            .vms
            .get(&vmid)
            .cloned()
            .ok_or_else(|| format!("Configuration file 'nodes/pve1/qemu-server/{vmid}.conf' does not exist"))?;
        if let Some(lock) = vm.keys.get("lock").filter(|l| !call.skip_lock && *l != "suspended") {
            return Err(format!("VM is locked ({lock})"));
        }
        if vm.keys.get("protection").is_some_and(|p| p == "1") {
            return Err(format!("can't remove VM {vmid} - protection mode enabled"));
        }
        if vm.run != RunState::Stopped {
            return Err(format!("VM {vmid} is running - destroy failed"));
        }
        let mut kept = Vec::new();
        let own = format!("-{vmid}-");
        for volume in vm.keys.values().map(|v| v.split(',').next().unwrap_or_default()).filter(|v| v.contains(':') && v.contains(&own)) {
            let storage = volume.split(':').next().unwrap_or_default().to_owned();
            let why = if self.lock_times_out(&storage) {
                file_lock(&storage)
            } else if self.storages.get(&storage).is_some_and(|s| !s.info.active) {
                format!("unable to activate storage '{storage}' - directory is expected to be a mount point but is not mounted")
            } else {
                continue;
            };
            kept.push(volume.to_owned());
            self.say(index, format!("WARN: Could not remove disk '{volume}', check manually: {why}"));
        }
        if call.unreferenced_disks
            && let Some(id) = self.storages.values().find(|s| s.info.enabled && !s.info.active).map(|s| s.info.id.clone())
        {
            return Err(format!("unable to activate storage '{id}' - directory is expected to be a mount point but is not mounted"));
        }
        let saved: Vec<_> = self.storages.iter().flat_map(|(id, s)| s.volumes.values().map(|v| (id.clone(), v.clone()))).collect();
        self.remove(vmid, call.unreferenced_disks);
        for (id, volume) in saved.into_iter().filter(|(_, v)| kept.contains(&v.volid)) {
            self.put(&id, &volume.volid.clone(), volume.vmid, volume.size, volume.parent);
        }
        if kept.is_empty() { Ok(Some(TaskEnd::Ok)) } else { Ok(Some(TaskEnd::Warnings(self.tasks[index].lines.clone()))) }
    }
}
