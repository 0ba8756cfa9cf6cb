//! The manager's thread.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Wanted, parse, resources::Resource};
use crate::{cluster::Store, guest, layout::NodeLayout};

const RESOURCES: &str = "ha/resources.cfg";
const STATUS: &str = "ha/manager_status";
const COMMANDS: &str = "ha/crm_commands";
/// How often it looks whether a guest has ended by itself; only where there is something under HA.
const LOOK: Duration = Duration::from_millis(500);

/// How requests are carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mode {
    /// Requests stay queued, as on a cluster without a running HA manager.
    pub hold: bool,
    /// Milliseconds from a request to its being carried out.
    pub delay_ms: u64,
    /// The node to which a VM is moved before it is started; none: where it is.
    pub move_to: Option<String>,
}

impl Default for Mode {
    fn default() -> Self {
        Self { hold: false, delay_ms: 200, move_to: None }
    }
}

/// The HA manager of a cluster.
pub struct Manager {
    store: Arc<Store>,
    dir: PathBuf,
    mode: Mutex<Mode>,
}

impl Manager {
    /// The manager of the cluster in `dir`. It does nothing before [`Manager::run`].
    pub fn new(store: Arc<Store>, dir: PathBuf) -> Self {
        Self { store, dir, mode: Mutex::default() }
    }

    /// How requests are carried out at present.
    pub fn mode(&self) -> Mode {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes how requests are carried out.
    pub fn set_mode(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// Works until the process ends.
    pub fn run(&self) {
        let mut due: BTreeMap<u32, (Wanted, Instant)> = BTreeMap::new();
        let mut seen = 0;
        loop {
            let mode = self.mode();
            if !mode.hold {
                self.take_commands();
            }
            let resources = self.resources();
            due.retain(|vmid, (wanted, _)| resources.iter().any(|r| r.vmid == *vmid && r.wanted() == *wanted));
            for resource in &resources {
                self.look_at(resource, &mode, &mut due);
            }
            self.write_status(&resources);
            let next = due.values().map(|(_, at)| at.saturating_duration_since(Instant::now())).min();
            let idle = if resources.is_empty() { Duration::from_secs(60) } else { LOOK };
            seen = self.store.wait_changed(seen, next.unwrap_or(idle).min(idle).max(Duration::from_millis(1)));
        }
    }

    fn resources(&self) -> Vec<Resource> {
        let text = self.store.read_path(RESOURCES).unwrap_or_default();
        parse(&String::from_utf8_lossy(&text))
    }

    /// A stop is queued as a command (`stop vm:<vmid> <seconds>`); from then on the VM is to be stopped.
    fn take_commands(&self) {
        let queued = self.store.read_path(COMMANDS).unwrap_or_default();
        if queued.is_empty() {
            return;
        }
        let queued = String::from_utf8_lossy(&queued).into_owned();
        let stopped = |line: &str| line.strip_prefix("stop vm:")?.split(' ').next()?.parse::<u32>().ok();
        let vmids: Vec<u32> = queued.lines().filter_map(stopped).collect();
        let mut resources = self.resources();
        for resource in resources.iter_mut().filter(|resource| vmids.contains(&resource.vmid)) {
            resource.properties.retain(|(key, _)| key != "state");
            resource.properties.push(("state".into(), "stopped".into()));
        }
        let written = self.store.replace(RESOURCES, super::format(&resources).as_bytes()).and_then(|_| self.store.replace(COMMANDS, b""));
        if let Err(error) = written {
            tracing::warn!(%error, "HA commands cannot be taken");
        }
    }

    fn layout(&self, node: &str) -> NodeLayout {
        NodeLayout::new(&self.dir, node)
    }

    fn look_at(&self, resource: &Resource, mode: &Mode, due: &mut BTreeMap<u32, (Wanted, Instant)>) {
        let (vmid, wanted) = (resource.vmid, resource.wanted());
        let Some(node) = self.store.vm_node(vmid) else { return };
        let running = guest::running(&self.layout(&node), vmid).is_some();
        let settled = match wanted {
            Wanted::Started => running,
            Wanted::Stopped => !running,
            Wanted::Ignored => true,
        };
        if settled || mode.hold {
            due.remove(&vmid);
            return;
        }
        let (_, at) = *due.entry(vmid).or_insert_with(|| (wanted, Instant::now() + Duration::from_millis(mode.delay_ms)));
        if Instant::now() < at {
            return;
        }
        due.remove(&vmid);
        if let Err(error) = self.carry_out(vmid, &node, wanted, mode) {
            tracing::warn!(vmid, %error, "HA request failed");
        }
    }

    fn carry_out(&self, vmid: u32, node: &str, wanted: Wanted, mode: &Mode) -> io::Result<()> {
        let target = mode.move_to.as_deref().filter(|target| *target != node && wanted == Wanted::Started);
        if let Some(target) = target {
            self.store.rename_path(&config_path(node, vmid), &config_path(target, vmid))?;
        }
        let layout = self.layout(target.unwrap_or(node));
        let file = OpenOptions::new().create(true).append(true).open(layout.vm_lock(vmid))?;
        let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if wanted == Wanted::Stopped {
            return guest::quit(&layout, vmid);
        }
        let text = self.store.read_path(&config_path(layout.node(), vmid))?;
        guest::spawn(&layout, vmid, &guest::Options::of_config(&String::from_utf8_lossy(&text))).map(drop)
    }

    /// Moves a VM to another node as after the end of its own: the guest dies, the config moves, the guest starts there if it ran or is under HA.
    ///
    /// # Errors
    /// When there is no such VM, or it cannot be started there.
    pub fn fail_over(&self, vmid: u32, target: &str) -> io::Result<()> {
        let node = self.store.vm_node(vmid).ok_or_else(|| io::Error::other(format!("there is no VM {vmid}")))?;
        let old = self.layout(&node);
        let ran = guest::running(&old, vmid).is_some();
        guest::kill(&old, vmid)?;
        for file in [guest::pid_file(&old, vmid), guest::qmp_socket(&old, vmid), guest::agent_socket(&old, vmid)] {
            let _ = std::fs::remove_file(file);
        }
        self.store.rename_path(&config_path(&node, vmid), &config_path(target, vmid))?;
        let managed = self.resources().iter().any(|resource| resource.vmid == vmid && resource.wanted() == Wanted::Started);
        if ran || managed {
            let text = self.store.read_path(&config_path(target, vmid))?;
            guest::spawn(&self.layout(target), vmid, &guest::Options::of_config(&String::from_utf8_lossy(&text)))?;
        }
        Ok(())
    }

    fn write_status(&self, resources: &[Resource]) {
        if resources.is_empty() {
            return;
        }
        let node_status: BTreeMap<String, &str> = self.store.with_nodes(|nodes| {
            nodes.iter().map(|node| (node.name.clone(), if node.up && node.quorate { "online" } else { "unknown" })).collect()
        });
        let services: BTreeMap<String, serde_json::Value> = resources
            .iter()
            .filter_map(|resource| {
                let node = self.store.vm_node(resource.vmid)?;
                let running = guest::running(&self.layout(&node), resource.vmid).is_some();
                let state = match (resource.wanted(), running) {
                    (Wanted::Started, _) => "started",
                    (Wanted::Stopped, true) => "request_stop",
                    (Wanted::Stopped, false) => "stopped",
                    (Wanted::Ignored, _) => "ignored",
                };
                Some((format!("vm:{}", resource.vmid), json!({"node": node, "state": state, "running": u8::from(running)})))
            })
            .collect();
        let master = node_status.keys().next().cloned().unwrap_or_default();
        let text = json!({"master_node": master, "node_status": node_status, "service_status": services}).to_string();
        // Only what is new is written: each write counts.
        if self.store.read_path(STATUS).is_ok_and(|old| old.as_slice() == text.as_bytes()) {
            return;
        }
        if let Err(error) = self.store.replace(STATUS, text.as_bytes()) {
            tracing::warn!(%error, "the HA status cannot be written");
        }
    }
}

/// Where a VM's config lies in the store.
pub(crate) fn config_path(node: &str, vmid: u32) -> String {
    format!("nodes/{node}/qemu-server/{vmid}.conf")
}
