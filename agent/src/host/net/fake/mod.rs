//! A host's network in memory: it runs the stanzas of the agent's own file on a model of the kernel, and fails where a test wants it.
//!
//! A [`FakeHost`] is the host with its disk; a [`FakeNetwork`] is what one process sees of it. A process can be killed at any call: from then
//! on its calls never return, what it held is free, and the steps it had begun go on without it, as those of a unit of systemd do.

mod model;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedMutexGuard, oneshot},
    time::Instant,
};

use self::model::Model;
use super::{Boot, Files, Kernel, KernelLink, Network, NetworkLock, ProbePort, Probed, Step, TextFile, failed};
use crate::{error::Error, host::clock};

/// What a test does at a call.
pub enum Fault {
    /// The call fails, and does nothing.
    Fail,
    /// The process is killed before the call does anything.
    KillBefore,
    /// The process is killed after the call did what it does.
    KillAfter,
    /// Something else happens first, such as somebody's edit.
    Do(Box<dyn FnOnce(&FakeHost) + Send>),
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fail => "Fail",
            Self::KillBefore => "KillBefore",
            Self::KillAfter => "KillAfter",
            Self::Do(_) => "Do",
        })
    }
}

/// A host. Cheap to clone: all clones are the same host.
#[derive(Debug, Clone)]
pub struct FakeHost {
    model: Arc<Mutex<Model>>,
    lock: Arc<Mutex<Arc<tokio::sync::Mutex<()>>>>,
    clock: Arc<Mutex<Clock>>,
}

/// Time since boot. It goes on from one process to the next, though each may have a runtime with a clock of its own.
#[derive(Debug)]
struct Clock {
    origin: Instant,
    base: Duration,
    seen: Duration,
}

impl Clock {
    fn now(&mut self) -> Duration {
        self.seen = self.seen.max(self.base + self.origin.elapsed());
        self.seen
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A host with a management NIC `eth0` (192.0.2.10/24, gateway 192.0.2.1), and `eth1` and `eth2` that nobody uses, of MTU 9000.
    pub fn new() -> Self {
        let base = clock::since_boot();
        let clock = Clock { origin: Instant::now(), base, seen: base };
        Self { model: Arc::new(Mutex::new(Model::new())), lock: Arc::default(), clock: Arc::new(Mutex::new(clock)) }
    }

    /// Another host that is as this one is.
    pub fn copy(&self) -> Self {
        let other = Self::new();
        *other.model() = self.model().clone();
        other
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process on it. What former ones held is free.
    pub fn process(&self) -> Arc<FakeNetwork> {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        (clock.base, clock.origin) = (clock.seen, Instant::now());
        drop(clock);
        self.beside()
    }

    /// A process beside those that live.
    pub fn beside(&self) -> Arc<FakeNetwork> {
        Arc::new(FakeNetwork {
            host: self.clone(),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            calls: Mutex::default(),
            faults: Mutex::default(),
        })
    }

    /// What runs.
    pub fn kernel(&self) -> Kernel {
        self.model().kernel.clone()
    }

    /// Changes what runs, as somebody by hand, or a guest that is started.
    pub fn change_kernel(&self, change: impl FnOnce(&mut Kernel)) {
        change(&mut self.model().kernel);
    }

    /// Puts a link beside the others, as a guest's port is.
    pub fn add_port(&self, name: &str, master: &str) {
        self.change_kernel(|kernel| {
            let index = kernel.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
            let (name, master) = (name.to_owned(), Some(master.to_owned()));
            let (kind, up, carrier, mtu) = ("tun".to_owned(), true, true, 1500);
            kernel.links.push(KernelLink { name, index, kind, master, up, carrier, mtu, ..KernelLink::default() });
        });
    }

    /// The agent's own file.
    pub fn own_file(&self) -> Option<String> {
        self.model().own.clone()
    }

    /// Edits it, as somebody by hand.
    pub fn edit_own_file(&self, text: Option<&str>) {
        self.model().own = text.map(str::to_owned);
    }

    /// Stages a change, as PVE's web interface does.
    pub fn stage(&self, text: Option<&str>) {
        self.model().staged = text.map(str::to_owned);
    }

    /// The checkpoint as JSON.
    pub fn checkpoint(&self) -> Option<serde_json::Value> {
        self.model().checkpoint.as_ref().and_then(|bytes| serde_json::from_slice(bytes).ok())
    }

    /// Replaces the checkpoint.
    pub fn set_checkpoint(&self, bytes: Option<&[u8]>) {
        self.model().checkpoint = bytes.map(<[u8]>::to_vec);
    }

    /// What was kept for people, by name.
    pub fn kept(&self) -> BTreeMap<String, Vec<u8>> {
        self.model().kept.clone()
    }

    /// Whether the timer runs.
    pub fn armed(&self) -> bool {
        self.model().armed
    }

    /// Whether a file is left beside the own one.
    pub fn old_file_is_left(&self) -> bool {
        self.model().old_own.is_some()
    }

    /// ifupdown2 is another one from now on.
    pub fn upgrade_ifupdown2(&self) {
        self.model().check_mark += 1;
    }

    /// Whether ifupdown2 hangs at this interface.
    pub fn hang(&self, interface: &str, hangs: bool) {
        let mut model = self.model();
        if hangs {
            model.hangs.insert(interface.to_owned())
        } else {
            model.hangs.remove(interface)
        };
    }

    /// Whether ifupdown2 fails at this interface.
    pub fn fail(&self, interface: &str, fails: bool) {
        let mut model = self.model();
        if fails {
            model.fails.insert(interface.to_owned())
        } else {
            model.fails.remove(interface)
        };
    }

    /// Netlink does not remove this link.
    pub fn stick(&self, interface: &str, sticks: bool) {
        let mut model = self.model();
        if sticks {
            model.sticky.insert(interface.to_owned())
        } else {
            model.sticky.remove(interface)
        };
    }

    /// Whether ifupdown2 takes guests' ports off a bridge that it changes, as Debian's does and PVE's does not.
    pub fn lose_guests(&self, loses: bool) {
        self.model().loses_guests = loses;
    }

    /// Who answers, by the link behind which it is.
    pub fn set_answering(&self, answering: &[(&str, IpAddr)]) {
        self.model().answering = answering.iter().map(|(link, address)| ((*link).to_owned(), *address)).collect();
    }

    /// Whether the disk is full.
    pub fn fill_disk(&self, full: bool) {
        self.model().disk_full = full;
    }

    /// The steps that a killed process left behind do one more step.
    pub fn unit_goes_on(&self) {
        let _ = self.model().step();
    }

    /// The power is cut, and the host boots, up to the point before its network comes up.
    pub fn reboot(&self) {
        self.model().reboot();
    }

    /// `networking.service` brings up what is declared.
    pub fn networking(&self) {
        self.model().networking();
    }

    /// Lets time go by.
    pub fn time_goes_by(&self, time: Duration) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.base += time;
        clock.now();
    }

    /// Time since boot, and which boot.
    pub fn boot(&self) -> Boot {
        let time = self.clock.lock().unwrap_or_else(PoisonError::into_inner).now();
        Boot { id: format!("boot-{}", self.model().boot), time }
    }
}

/// The network as one process sees it.
#[derive(Debug)]
pub struct FakeNetwork {
    host: FakeHost,
    dead: AtomicBool,
    died: Notify,
    calls: Mutex<Vec<&'static str>>,
    faults: Mutex<VecDeque<(String, usize, Fault)>>,
}

impl FakeNetwork {
    /// The host it runs on.
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// Has something happen at the n-th call (from 1, counted from now) of this name; with an empty name, at the n-th call of any.
    pub fn at(&self, call: &str, nth: usize, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push_back((call.to_owned(), nth, fault));
    }

    /// The names of the calls so far.
    pub fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Returns when it was killed.
    pub async fn killed(&self) {
        let died = self.died.notified();
        if !self.is_dead() {
            died.await;
        }
    }

    /// What happens at this call.
    fn fault(&self, call: &'static str) -> Option<Fault> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, nth, _) in faults.iter_mut().filter(|(name, ..)| name.is_empty() || name == call) {
            let _ = name;
            *nth = nth.saturating_sub(1);
        }
        let at = faults.iter().position(|(name, nth, _)| *nth == 0 && (name.is_empty() || name == call))?;
        faults.remove(at).map(|(_, _, fault)| fault)
    }

    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_waiters();
    }

    /// Does a call, unless something else is to happen. A dead process does nothing any more.
    async fn call<T>(&self, name: &'static str, work: impl FnOnce(&mut Model) -> Result<T, Error>) -> Result<T, Error> {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        // What a dead process left running goes on beside the others.
        if !["run_steps", "step", "stop_steps"].contains(&name) {
            let _ = self.host.model().step();
        }
        let mut dies = false;
        match self.fault(name) {
            Some(Fault::Fail) => return Err(failed(format!("{name} fails, as the test wants it"))),
            Some(Fault::KillBefore) => {
                self.die();
                std::future::pending::<()>().await;
            }
            Some(Fault::Do(action)) => action(&self.host),
            Some(Fault::KillAfter) => dies = true,
            None => {}
        }
        let result = work(&mut self.host.model());
        if dies {
            self.die();
            std::future::pending::<()>().await;
        }
        result
    }
}

fn full(model: &Model) -> Result<(), Error> {
    if model.disk_full { Err(failed("no space left on device")) } else { Ok(()) }
}

#[tonic::async_trait]
impl Network for FakeNetwork {
    async fn kernel(&self) -> Result<Kernel, Error> {
        self.call("kernel", |m| Ok(m.kernel.clone())).await
    }

    async fn offloads(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        self.call("offloads", |_| Ok(BTreeMap::new())).await
    }

    async fn files(&self) -> Result<Files, Error> {
        self.call("files", |m| {
            let file = |path: &str, text: &str| TextFile { path: path.into(), text: text.to_owned(), modified: None };
            Ok(Files {
                declared: vec![file("/etc/network/interfaces", &m.interfaces)],
                own: m.own.as_deref().map(|text| file("/etc/network/interfaces.d/pvelet", text)),
                own_is_sourced: true,
                ifupdown2: Some(true),
                staged: m.staged.as_deref().map(|text| file("/etc/network/interfaces.new", text)),
                sdn_known: true,
                ..Files::default()
            })
        })
        .await
    }

    async fn lock(&self, patience: Duration) -> Result<NetworkLock, Error> {
        self.call("lock", |_| Ok(())).await?;
        let lock = Arc::clone(&self.host.lock.lock().unwrap_or_else(PoisonError::into_inner));
        let held: OwnedMutexGuard<()> = tokio::time::timeout(patience, lock.lock_owned())
            .await
            .map_err(|_| Error::LockTimeout { what: "the agent's network changes".to_owned() })?;
        Ok(NetworkLock::new(held))
    }

    async fn check_text(&self, text: &str) -> Result<(), Error> {
        let text = text.to_owned();
        self.call("check_text", move |_| crate::network::own_file::OwnFile::parse(Some(&text)).map(drop).map_err(failed)).await
    }

    async fn check_text_aside(&self, text: &str) -> Option<Result<(), Error>> {
        let text = text.to_owned();
        let parsed = move |_: &mut Model| crate::network::own_file::OwnFile::parse(Some(&text)).map(drop).map_err(failed);
        Some(self.call("check_text_aside", parsed).await)
    }

    fn check_mark(&self) -> u64 {
        self.host.model().check_mark
    }

    async fn own_file(&self) -> Result<Option<String>, Error> {
        self.call("own_file", |m| Ok(m.own.clone())).await
    }

    async fn write_own_file(&self, text: Option<&str>) -> Result<(), Error> {
        let text = text.map(str::to_owned);
        self.call("write_own_file", move |m| {
            let kept = text.is_some() && m.old_own == text;
            if text.is_some() && !kept {
                full(m)?;
            }
            let replaced = std::mem::replace(&mut m.own, text);
            m.old_own = if kept { None } else { replaced };
            Ok(())
        })
        .await
    }

    async fn forget_old_file(&self) -> Result<(), Error> {
        self.call("forget_old_file", |m| {
            m.old_own = None;
            Ok(())
        })
        .await
    }

    async fn run_steps(&self, steps: &[Step], file: Option<&str>, patience: Duration) -> Result<String, Error> {
        let unit: Vec<_> = steps.iter().map(|s| (s.clone(), file.map(str::to_owned))).collect();
        self.call("run_steps", move |m| {
            m.unit = unit;
            Ok(())
        })
        .await?;
        let mut complaints = Vec::new();
        loop {
            // Each step is a moment at which the process may be killed.
            let hangs = self.call("step", |m| Ok(m.unit.first().is_some_and(|(s, _)| m.hangs.contains(&s.interface)))).await?;
            if hangs {
                tokio::time::sleep(patience).await;
                self.host.model().unit.clear();
                complaints.push(format!("it did not end within {} s", patience.as_secs()));
            }
            let mut model = self.host.model();
            if model.unit.is_empty() {
                break;
            }
            complaints.extend(model.step().err());
        }
        if complaints.is_empty() { Ok(String::new()) } else { Err(failed(complaints.join("; "))) }
    }

    async fn stop_steps(&self) -> Result<(), Error> {
        self.call("stop_steps", |m| {
            m.unit.clear();
            Ok(())
        })
        .await
    }

    async fn compare(&self, _: &[String], when: oneshot::Receiver<()>) -> Result<Vec<String>, Error> {
        when.await.map_err(|_| failed("it is not wanted any more"))?;
        self.call("compare", |_| Ok(Vec::new())).await
    }

    async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call("delete_link", move |m| {
            if m.sticky.contains(&name) {
                return Err(failed(format!("{name}: device or resource busy")));
            }
            // As ifupdown2 left them when they became ports.
            for port in m.kernel.links.iter_mut().filter(|l| l.master.as_ref() == Some(&name) && l.ipv6_disabled.is_some()) {
                port.ipv6_disabled = Some(true);
            }
            m.delete(&name);
            Ok(())
        })
        .await
    }

    async fn enable_ipv6(&self, link: &str) -> Result<(), Error> {
        let link = link.to_owned();
        self.call("enable_ipv6", move |m| {
            m.kernel.links.iter_mut().filter(|l| l.name == link).for_each(|l| l.ipv6_disabled = Some(false));
            Ok(())
        })
        .await
    }

    async fn plug(&self, was: &KernelLink, bridge: &str) -> Result<(), Error> {
        let (was, bridge) = (was.clone(), bridge.to_owned());
        self.call("plug", move |m| {
            for link in m.kernel.links.iter_mut().filter(|l| l.name == was.name) {
                (link.master, link.up) = (Some(bridge.clone()), was.up);
                link.vlans.clone_from(&was.vlans);
            }
            Ok(())
        })
        .await
    }

    async fn arm(&self) -> Result<(), Error> {
        self.call("arm", |m| {
            m.armed = true;
            Ok(())
        })
        .await
    }

    async fn disarm(&self) -> Result<(), Error> {
        self.call("disarm", |m| {
            m.armed = false;
            Ok(())
        })
        .await
    }

    async fn read_checkpoint(&self) -> Result<Option<Vec<u8>>, Error> {
        self.call("read_checkpoint", |m| Ok(m.checkpoint.clone())).await
    }

    async fn write_checkpoint(&self, bytes: &[u8]) -> Result<(), Error> {
        let bytes = bytes.to_vec();
        self.call("write_checkpoint", move |m| {
            // The first one of a change makes the room for those that follow.
            let room = m.checkpoint.as_ref().map_or(0, |c| c.len() + 8192);
            if bytes.len() > room {
                full(m)?;
            }
            m.checkpoint = Some(bytes);
            Ok(())
        })
        .await
    }

    async fn remove_checkpoint(&self) -> Result<(), Error> {
        self.call("remove_checkpoint", |m| {
            m.checkpoint = None;
            Ok(())
        })
        .await
    }

    async fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (name, bytes) = (name.to_owned(), bytes.to_vec());
        self.call("keep", move |m| {
            full(m)?;
            m.kept.insert(name, bytes);
            Ok(())
        })
        .await
    }

    fn boot(&self) -> Result<Boot, Error> {
        Ok(self.host.boot())
    }

    async fn who_has(&self, port: &ProbePort, addresses: &[IpAddr], _: Duration) -> Result<BTreeMap<IpAddr, String>, Error> {
        let (link, addresses) = (port.link.clone(), addresses.to_vec());
        self.call("who_has", move |m| {
            let there = |a: &IpAddr| m.answering.iter().any(|(l, address)| *l == link && address == a);
            // Frames of a port go to its bridge.
            let heard = m.kernel.link(&link).is_some_and(|l| l.up && l.master.is_none());
            Ok(addresses.iter().filter(|a| heard && there(a)).map(|a| (*a, "02:00:00:00:01:01".to_owned())).collect())
        })
        .await
    }

    async fn probe_answer(&self, _: &ProbePort, _: &str, time: Duration) -> Result<u32, Error> {
        self.call("probe_answer", |_| Ok(())).await?;
        tokio::time::sleep(time).await;
        Ok(0)
    }

    async fn probe_send(&self, _: &ProbePort, _: &str, _: &[u32], timeout: Duration) -> Result<Probed, Error> {
        self.call("probe_send", |_| Ok(())).await?;
        tokio::time::sleep(timeout).await;
        Ok(Probed::default())
    }
}
