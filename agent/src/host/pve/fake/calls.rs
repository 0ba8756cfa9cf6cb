//! The trait, as the fake answers it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{broadcast, mpsc};

use super::{FakePve, Fault, Freeze, World, job::Job};
use crate::{
    error::Error,
    host::{
        pve::{
            AllocateCall, Change, CloneCall, ClusterLock, ConfigCall, DestroyCall, Inventory, MoveCall, PowerCall, ProcessRef, Pve,
            RunState, StorageInfo, TaskState, TaskUpdate, Upid, VmRecord, VolumeDetail, VolumeInfo,
        },
        storage::StorageConfig,
    },
};

impl FakePve {
    /// Counts a call, and never returns when the fake is to stop answering before it.
    async fn enter(&self) {
        let stop = self.quietly(|w| {
            match &mut w.freeze {
                Some(Freeze::Before(0)) => w.frozen = true,
                Some(Freeze::Before(n) | Freeze::After(n)) if *n > 0 => *n -= 1,
                _ => {}
            }
            w.frozen
        });
        if stop {
            std::future::pending::<()>().await;
        }
    }

    /// Never returns when the fake is to stop answering after the call.
    async fn leave(&self) {
        let stop = self.quietly(|w| {
            if w.freeze == Some(Freeze::After(0)) {
                w.frozen = true;
            }
            w.frozen
        });
        if stop {
            std::future::pending::<()>().await;
        }
    }

    /// A call that changes something.
    async fn act<T>(&self, call: &'static str, act: impl FnOnce(&mut World) -> Result<T, Error>) -> Result<T, Error> {
        self.enter().await;
        let fault = self.quietly(|w| w.take_fault(|f| matches!(f, Fault::Panic { call: c } if *c == call)));
        assert!(fault.is_none(), "a fault of the agent, as ordered");
        let result = self.change(|w| {
            if w.down {
                return Err(Error::PveDown { detail: "connection refused".to_owned() });
            }
            if !w.quorate {
                return Err(Error::NoQuorum { node: w.node.clone() });
            }
            match w.take_fault(|f| matches!(f, Fault::AnswerLost { call: c, .. } if *c == call)) {
                Some(Fault::AnswerLost { done: false, .. }) => Err(Error::PveAnswerLost { detail: "connection closed".to_owned() }),
                Some(_) => act(w).and(Err(Error::PveAnswerLost { detail: "connection closed".to_owned() })),
                None => act(w),
            }
        });
        self.leave().await;
        result
    }

    /// Lets a task go on for as long as somebody wants to see it end.
    fn drive(&self, upid: &Upid) {
        let (fake, text) = (self.clone(), upid.text.clone());
        tokio::spawn(async move {
            loop {
                tokio::task::yield_now().await;
                let moved = fake.moved.notified();
                let (ended, moving) = {
                    let mut world = fake.lock();
                    let Some(index) = world.tasks.iter().position(|t| t.upid.text == text) else { return };
                    let moving = !world.frozen && world.changed(|w| w.step(index));
                    (world.tasks[index].end.is_some(), moving)
                };
                if moving {
                    fake.change(|_| ());
                }
                if ended {
                    return;
                }
                if !moving {
                    moved.await;
                }
            }
        });
    }
}

fn gone(vmid: u32) -> Error {
    Error::VmNotFound { what: vmid.to_string() }
}

impl World {
    fn write_config(&mut self, vmid: u32, call: &ConfigCall) -> Result<(), Error> {
        if self.lock_times_out(&format!("VM {vmid}")) {
            return Err(Error::LockTimeout { what: format!("VM {vmid}") });
        }
        let record = self.record(vmid).ok_or_else(|| gone(vmid))?;
        if call.digest.as_ref().is_some_and(|d| *d != record.config.digest) {
            return Err(Error::ConfigChanged { vmid });
        }
        if let Some(lock) = record.config.lock().filter(|_| !call.skip_lock) {
            return Err(Error::VmLocked { vmid, lock: lock.to_owned() });
        }
        self.counter += 1;
        let version = self.counter;
        let vm = self.vms.get_mut(&vmid).ok_or_else(|| gone(vmid))?;
        vm.version = version;
        for (key, value) in &call.set {
            match key.as_str() {
                "description" => value.clone_into(&mut vm.description),
                "sshkeys" => {
                    let encoded = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string();
                    vm.keys.insert(key.clone(), encoded);
                }
                // PVE chooses a MAC address where none is given.
                key if key.starts_with("net") && !value.split(',').next().unwrap_or_default().contains('=') => {
                    let (model, rest) = value.split_once(',').unwrap_or((value, ""));
                    vm.keys.insert(key.to_owned(), format!("{model}=BC:24:11:EE:{:02X}:{:02X},{rest}", version >> 8 & 255, version & 255));
                }
                _ => drop(vm.keys.insert(key.clone(), value.clone())),
            }
        }
        for key in &call.delete {
            if key == "description" {
                vm.description.clear();
            }
            vm.keys.remove(key);
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Pve for FakePve {
    fn inventory(&self) -> Arc<Inventory> {
        self.lock().inventory()
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn refresh(&self) -> Result<Arc<Inventory>, Error> {
        Ok(self.inventory())
    }

    async fn read_vm(&self, vmid: u32) -> Result<Option<Arc<VmRecord>>, Error> {
        self.enter().await;
        let mut world = self.lock();
        if world.take_fault(|f| *f == Fault::Hung).is_some() {
            return Err(Error::PveFsHung { detail: "it restarts".to_owned() });
        }
        Ok(world.record(vmid))
    }

    async fn storages(&self) -> Result<Vec<StorageInfo>, Error> {
        self.enter().await;
        let world = self.lock();
        if world.down {
            return Err(Error::PveDown { detail: "connection refused".to_owned() });
        }
        Ok(world.storages.values().map(|s| s.info.clone()).collect())
    }

    async fn volumes(&self, storage: &str, vmid: u32) -> Result<Vec<VolumeInfo>, Error> {
        self.enter().await;
        let world = self.lock();
        if world.down {
            return Err(Error::PveDown { detail: "connection refused".to_owned() });
        }
        let found =
            world.storages.get(storage).ok_or_else(|| Error::StorageNotFound { storage: storage.to_owned(), node: world.node.clone() })?;
        if !found.info.active {
            return Err(Error::StorageOffline { storage: storage.to_owned(), detail: "not mounted".to_owned() });
        }
        Ok(found.volumes.values().filter(|v| v.vmid == vmid).cloned().collect())
    }

    async fn storage_config(&self, storage: &str) -> Result<StorageConfig, Error> {
        self.enter().await;
        let world = self.lock();
        let found =
            world.storages.get(storage).ok_or_else(|| Error::StorageNotFound { storage: storage.to_owned(), node: world.node.clone() })?;
        Ok(StorageConfig { id: storage.to_owned(), kind: found.info.kind.clone(), shared: found.info.shared, options: BTreeMap::new() })
    }

    async fn volume(&self, volid: &str) -> Result<Option<VolumeDetail>, Error> {
        self.enter().await;
        let world = self.lock();
        let found = world.storages.values().find_map(|s| s.volumes.get(volid));
        Ok(found.map(|v| VolumeDetail { path: format!("/fake/{volid}"), size: v.size, used: v.used, format: v.format.clone() }))
    }

    async fn allocate_volume(&self, call: &AllocateCall) -> Result<String, Error> {
        self.act("allocate_volume", |w| {
            let volid = format!("{}:{}/{}", call.storage, call.vmid, call.name);
            w.log.push(format!("allocate {volid}"));
            w.put(&call.storage, &volid, call.vmid, call.bytes, None);
            Ok(volid)
        })
        .await
    }

    async fn move_disk(&self, vmid: u32, call: &MoveCall) -> Result<Upid, Error> {
        self.act("move_disk", |w| {
            w.log.push(format!("move {vmid} {} {}", call.slot, call.storage));
            Ok(w.start("qmmove", &vmid.to_string(), Job::Config))
        })
        .await
    }

    async fn lock_cluster(&self, _: &str, _: Duration) -> Result<ClusterLock, Error> {
        self.act("lock_cluster", |_| Ok(())).await.map(|()| ClusterLock::none())
    }

    async fn clone_vm(&self, call: &CloneCall) -> Result<Upid, Error> {
        let upid = self
            .act("clone_vm", |w| {
                let (from, to) = (call.template, call.vmid);
                if w.vms.contains_key(&to) || w.containers.contains_key(&to) {
                    return Err(Error::VmidInUse { vmid: to, node: None });
                }
                if !w.vms.contains_key(&from) {
                    return Err(Error::TemplateNotFound { what: format!("VMID {from}"), node: w.node.clone() });
                }
                w.log.push(format!("clone {from} {to}"));
                let node = w.node.clone();
                let keys: BTreeMap<String, String> = [("lock".to_owned(), "clone".to_owned())].into();
                w.insert_vm(to, &node, keys, " qmclone temporary file".to_owned());
                Ok(w.start("qmclone", &from.to_string(), Job::Clone(call.clone())))
            })
            .await?;
        Ok(upid)
    }

    async fn set_config(&self, vmid: u32, call: &ConfigCall) -> Result<Upid, Error> {
        self.act("set_config", |w| {
            w.write_config(vmid, call)?;
            w.log.push(format!("config {vmid}"));
            Ok(w.start("qmconfig", &vmid.to_string(), Job::Config))
        })
        .await
    }

    async fn set_config_now(&self, vmid: u32, call: &ConfigCall) -> Result<(), Error> {
        self.act("set_config_now", |w| {
            w.write_config(vmid, call)?;
            w.log.push(format!("config {vmid}"));
            Ok(())
        })
        .await
    }

    async fn resize_disk(&self, vmid: u32, slot: &str, bytes: u64, digest: Option<&str>) -> Result<Upid, Error> {
        self.act("resize_disk", |w| {
            let record = w.record(vmid).ok_or_else(|| gone(vmid))?;
            if digest.is_some_and(|d| d != record.config.digest) {
                return Err(Error::ConfigChanged { vmid });
            }
            w.log.push(format!("resize {vmid} {slot}"));
            Ok(w.start("resize", &vmid.to_string(), Job::Resize { vmid, slot: slot.to_owned(), bytes }))
        })
        .await
    }

    async fn power(&self, vmid: u32, call: &PowerCall) -> Result<Upid, Error> {
        self.act("power", |w| {
            let ha = w.vms.get(&vmid).ok_or_else(|| gone(vmid))?.ha.is_some();
            let (kind, word) = match call {
                PowerCall::Start if ha => ("hastart", "start"),
                PowerCall::Start => ("qmstart", "start"),
                PowerCall::Reset => ("qmreset", "reset"),
                PowerCall::Stop | PowerCall::Shutdown { .. } if ha => ("hastop", "stop"),
                PowerCall::Stop => ("qmstop", "stop"),
                PowerCall::Shutdown { .. } => ("qmshutdown", "shutdown"),
            };
            w.log.push(format!("{word} {vmid}"));
            Ok(w.start(kind, &vmid.to_string(), Job::Power { vmid, call: call.clone() }))
        })
        .await
    }

    async fn destroy_vm(&self, vmid: u32, call: &DestroyCall) -> Result<Upid, Error> {
        self.act("destroy_vm", |w| {
            let vm = w.vms.get(&vmid).ok_or_else(|| gone(vmid))?;
            if vm.ha.is_some() && !call.purge {
                return Err(Error::VmHaManaged { vmid });
            }
            w.log.push(format!("destroy {vmid}"));
            Ok(w.start("qmdestroy", &vmid.to_string(), Job::Destroy { vmid, call: call.clone() }))
        })
        .await
    }

    async fn free_volume(&self, volid: &str) -> Result<Option<Upid>, Error> {
        self.act("free_volume", |w| {
            w.log.push(format!("free {volid}"));
            Ok(Some(w.start("imgdel", volid.split(':').next().unwrap_or_default(), Job::Free { volid: volid.to_owned() })))
        })
        .await
    }

    async fn stop_task(&self, upid: &Upid) -> Result<(), Error> {
        self.act("stop_task", |w| {
            w.log.push(format!("stop task {}", upid.kind));
            if let Some(index) = w.tasks.iter().position(|t| t.upid == *upid) {
                w.terminate(index);
            }
            Ok(())
        })
        .await
    }

    async fn task(&self, upid: &Upid) -> Result<TaskState, Error> {
        self.enter().await;
        let world = self.lock();
        Ok(match world.tasks.iter().find(|t| t.upid == *upid) {
            None => TaskState::Unknown,
            Some(task) => task.end.clone().map_or(TaskState::Running, TaskState::Ended),
        })
    }

    fn follow_task(&self, upid: &Upid) -> mpsc::Receiver<TaskUpdate> {
        self.drive(upid);
        let (send, receive) = mpsc::channel(16);
        let (fake, upid) = (self.clone(), upid.clone());
        tokio::spawn(async move {
            fake.enter().await;
            let mut told = 0;
            loop {
                let moved = fake.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                let (lines, end) = {
                    let world = fake.lock();
                    let Some(task) = world.tasks.iter().find(|t| t.upid == upid) else { return };
                    if world.frozen { (Vec::new(), None) } else { (task.lines[told..].to_vec(), task.end.clone()) }
                };
                told += lines.len();
                for line in lines {
                    if line.starts_with("transferred ")
                        && send.send(TaskUpdate::Progress { percent: 50, done: 1 << 29, total: 1 << 30 }).await.is_err()
                    {
                        return;
                    }
                    if send.send(TaskUpdate::Line(line)).await.is_err() {
                        return;
                    }
                }
                if let Some(end) = end {
                    let _ = send.send(TaskUpdate::End(end)).await;
                    return;
                }
                moved.await;
            }
        });
        receive
    }

    async fn find_tasks(&self, kind: &str, id: &str, since: u64) -> Result<Vec<Upid>, Error> {
        self.enter().await;
        let world = self.lock();
        let wanted = |u: &&Upid| u.kind == kind && (id.is_empty() || u.id == id) && u.starttime >= since;
        Ok(world.tasks.iter().map(|t| &t.upid).filter(wanted).cloned().collect())
    }

    async fn orphans(&self, vmid: u32) -> Result<Vec<ProcessRef>, Error> {
        self.enter().await;
        Ok(self.lock().orphans.iter().filter(|(id, _)| *id == vmid).map(|(_, p)| p.clone()).collect())
    }

    async fn end_process(&self, process: &ProcessRef, _grace: Duration) -> Result<(), Error> {
        self.enter().await;
        self.change(|w| {
            w.log.push(format!("end {}", process.command));
            w.orphans.retain(|(_, p)| p != process);
        });
        Ok(())
    }
}

impl FakePve {
    /// PVE's HA manager does what was asked of it, on this node or another.
    pub fn ha_acts(&self, vmid: u32, node: &str, running: bool) {
        self.edit(vmid, |vm| {
            node.clone_into(&mut vm.node);
            vm.run = if running { RunState::Running { pid: 4242, since: std::time::SystemTime::now() } } else { RunState::Stopped };
        });
    }
}
