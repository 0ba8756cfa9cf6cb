//! The one thread that reads below `/etc/pve`. The cluster file system may hang in any call; then this thread hangs, nothing else does, and
//! everybody who asks is told at once.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use inotify::{Inotify, WatchMask};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::sync::oneshot;

use super::{
    config_file::ConfigFile,
    files::{self, Version},
    world::{Extras, World},
};
use crate::error::Error;

/// How often the counters are looked at: other nodes' changes come in silently. With the reading itself a change is told within 250 ms.
const TICK: Duration = Duration::from_millis(200);
/// A single call that takes longer than this means that the file system hangs. Reading takes 0.2 ms.
const HUNG: Duration = Duration::from_millis(1500);
/// How often it is looked whether the thread hangs.
const LOOK: Duration = Duration::from_secs(1);
/// `.members` is read each so many ticks: no counter tells that quorum was lost.
const MEMBERS_EVERY: u8 = 5;
/// How long a caller waits for a reading. A first reading of 1,000 configs takes 0.2 s.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a config that `.vmlist` names and that is not there is looked for again.
const MISSING_TRIES: u8 = 10;
/// What one call reads: all of nearly every file. pmxcfs makes `.vmlist` and its like anew for whoever reads them from their beginning, so
/// what is read in pieces may not fit together.
const ONE_READ: usize = 128 << 10;
/// How often a file that does not parse is read: somebody else's reading may have changed it in the middle of ours.
const PARSE_TRIES: u8 = 3;

enum Request {
    /// Read what changed, and this VM's config in any case.
    Refresh(Option<u32>, oneshot::Sender<Result<(), String>>),
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Reader {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    world: Arc<World>,
}

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    stop: AtomicBool,
    began: Instant,
    /// Milliseconds after `began` at which the call that is under way began, plus one; 0 while there is none.
    busy: AtomicU64,
}

impl Shared {
    fn busy_for(&self) -> Option<Duration> {
        let since = self.busy.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.began.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl Reader {
    /// Starts the thread. Must be called on a runtime.
    pub(super) fn start(etc_pve: PathBuf, node: String, world: Arc<World>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { wake, stop: AtomicBool::new(false), began: Instant::now(), busy: AtomicU64::new(0) });
        let (requests, queue) = mpsc::channel();
        let folder = etc_pve.join("nodes").join(&node).join("qemu-server");
        let files = Files {
            etc_pve,
            folder,
            node,
            world: world.clone(),
            shared: shared.clone(),
            buffer: vec![0; ONE_READ],
            length: 0,
            last: Version::default(),
            clustered: false,
            ticks: 0,
            missing: 0,
            extras: Extras::default(),
            pools: Vec::new(),
        };
        // It reads and parses small files.
        thread::Builder::new().name("pve-files".into()).stack_size(256 << 10).spawn(move || files.run(&queue))?;
        tokio::spawn(monitor(shared.clone(), world.clone()));
        Ok(Self { requests, shared, world })
    }

    /// Reads what changed, and the config of `vmid` in any case. Errors: `PveFsHung`.
    pub(super) async fn refresh(&self, vmid: Option<u32>) -> Result<(), Error> {
        let hung = |detail: String| Error::PveFsHung { detail };
        // Whoever asks while it hangs must not wait in vain. A mere failure (not mounted) is tried again.
        if self.shared.busy_for().is_some_and(|busy| busy > HUNG) {
            return Err(hung(self.world.hung().unwrap_or_else(|| "it hangs".into())));
        }
        let (reply, answer) = oneshot::channel();
        let stopped = || Error::Internal("the reader of /etc/pve has ended".into());
        self.requests.send(Request::Refresh(vmid, reply)).map_err(|_| stopped())?;
        self.shared.wake.write(1).map_err(|e| Error::Internal(e.to_string()))?;
        match tokio::time::timeout(DEADLINE, answer).await {
            Err(_) => Err(hung(format!("no answer within {} s", DEADLINE.as_secs()))),
            Ok(Err(_)) => Err(stopped()),
            Ok(Ok(done)) => done.map_err(hung),
        }
    }

    /// Ends the thread, if it can end: one that hangs in the kernel ends with the process.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells when the thread hangs. It tells itself when it goes on.
async fn monitor(shared: Arc<Shared>, world: Arc<World>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        if let Some(busy) = shared.busy_for().filter(|b| *b > HUNG) {
            world.set_hung(Some(format!("a read has been hanging for {} s", busy.as_secs())));
        }
    }
}

struct Files {
    etc_pve: PathBuf,
    /// This node's configs: local changes are told by inotify.
    folder: PathBuf,
    node: String,
    world: Arc<World>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were read.
    length: usize,
    last: Version,
    clustered: bool,
    /// Ticks since `.members` was read.
    ticks: u8,
    /// How often in a row a config could not be found.
    missing: u8,
    extras: Extras,
    pools: Vec<String>,
}

impl Files {
    fn run(mut self, queue: &mpsc::Receiver<Request>) {
        let mut inotify = Inotify::init().inspect_err(|error| tracing::error!(%error, "local changes are seen only every 200 ms")).ok();
        let mut watched = false;
        let mut events = vec![0; 4096];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let mut replies = Vec::new();
            let mut wanted = BTreeSet::new();
            while let Ok(Request::Refresh(vmid, reply)) = queue.try_recv() {
                wanted.extend(vmid);
                replies.push(reply);
            }
            if !watched && let Some(inotify) = &inotify {
                watched = self.watch(inotify);
            }
            let outcome = self.scan(&wanted, !replies.is_empty());
            self.shared.busy.store(0, Ordering::Relaxed);
            self.world.set_hung(outcome.as_ref().err().cloned());
            for reply in replies {
                let _ = reply.send(outcome.clone());
            }
            if let Some(gone) = self.wait(inotify.as_mut(), &mut events) {
                watched &= !gone;
            }
        }
    }

    /// Waits for a tick, a local change, or a request. Tells whether the watched folder is gone (unmounted).
    fn wait(&self, inotify: Option<&mut Inotify>, events: &mut [u8]) -> Option<bool> {
        let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
        let until = Instant::now() + TICK;
        let Some(inotify) = inotify else {
            let _ = poll(&mut [PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)], timeout);
            let _ = self.shared.wake.read();
            return None;
        };
        let mut left = timeout;
        loop {
            let wake = PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN);
            let changes = PollFd::new(inotify.as_fd(), PollFlags::POLLIN);
            let mut fds = [wake, changes];
            let _ = poll(&mut fds, left);
            let _ = self.shared.wake.read();
            let changed = fds[1].any().unwrap_or(false);
            let requested = fds[0].any().unwrap_or(false);
            if !changed {
                return Some(false);
            }
            let (mut relevant, mut gone) = (requested, false);
            for event in inotify.read_events(events).into_iter().flatten() {
                gone |= event.mask.intersects(inotify::EventMask::IGNORED | inotify::EventMask::UNMOUNT);
                // PVE writes `<vmid>.conf.tmp.<pid>` and renames it.
                relevant |= event.name.and_then(|n| n.to_str()).is_none_or(|n| n.ends_with(".conf"));
            }
            if relevant || gone {
                return Some(gone);
            }
            left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        }
    }

    fn watch(&self, inotify: &Inotify) -> bool {
        self.touch();
        let mask = WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::CLOSE_WRITE | WatchMask::DELETE | WatchMask::ONLYDIR;
        inotify.watches().add(&self.folder, mask).is_ok()
    }

    /// A call into the file system begins.
    fn touch(&self) {
        let now = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.shared.busy.store(now + 1, Ordering::Relaxed);
    }

    /// Reads a file into the buffer; `false` when there is none.
    fn read(&mut self, path: &Path) -> Result<bool, String> {
        self.touch();
        self.length = 0;
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(failed)?,
        };
        loop {
            if self.length == self.buffer.len() {
                self.buffer.resize(self.length + ONE_READ, 0);
            }
            self.length += file.read(&mut self.buffer[self.length..]).map_err(failed)?;
            // A short read is the end: no need to ask for it, five times a second.
            if self.length < self.buffer.len() {
                return Ok(true);
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Reads and parses a file that is always there while the file system is up.
    fn must<T>(&mut self, name: &str, parse: fn(&[u8]) -> Option<T>) -> Result<T, String> {
        let path = self.etc_pve.join(name);
        for _ in 0..PARSE_TRIES {
            if !self.read(&path)? {
                return Err(format!("{} is not there: is it mounted?", path.display()));
            }
            if let Some(parsed) = parse(self.bytes()) {
                return Ok(parsed);
            }
        }
        Err(format!("{} is not understood", path.display()))
    }

    /// The text of a file; empty when there is none.
    fn text(&mut self, name: &str) -> Result<String, String> {
        let path = self.etc_pve.join(name);
        Ok(if self.read(&path)? { String::from_utf8_lossy(self.bytes()).into_owned() } else { String::new() })
    }

    /// Follows all changes since the last time. `wanted`: VMs that are read in any case. `fresh`: somebody waits for it.
    fn scan(&mut self, wanted: &BTreeSet<u32>, fresh: bool) -> Result<(), String> {
        let version: Version = self.must(".version", files::version)?;
        let restarted = version.starttime != self.last.starttime;
        let mut list_anew = restarted || version.vmlist != self.last.vmlist || self.missing > 0 || !wanted.is_empty();
        self.ticks = self.ticks.saturating_add(1);
        let due = self.clustered && self.ticks >= MEMBERS_EVERY;
        if restarted || fresh || due || version.clinfo != self.last.clinfo {
            list_anew |= self.members()?;
        }
        self.extras(&version, restarted)?;
        // From here on the counters count as seen, but for the list's, which is that of the list itself.
        self.last = Version { vmlist: self.last.vmlist, starttime: self.last.starttime, ..version };
        if list_anew {
            self.list(wanted, restarted)?;
            self.last.starttime = version.starttime;
        }
        Ok(())
    }

    /// Whether quorum came back.
    fn members(&mut self) -> Result<bool, String> {
        self.ticks = 0;
        let members = self.must(".members", files::members)?;
        self.clustered = members.cluster.is_some() || {
            self.touch();
            self.etc_pve.join("corosync.conf").exists()
        };
        let before = self.world.inventory().quorate;
        self.world.set_members(&members, self.clustered);
        Ok(!before && self.world.inventory().quorate)
    }

    fn extras(&mut self, version: &Version, restarted: bool) -> Result<(), String> {
        let last = self.last;
        let mut changed = false;
        if restarted || version.users != last.users {
            let (pools, pool_of) = files::pools(&self.text("user.cfg")?);
            (self.pools, self.extras.pool_of, changed) = (pools, pool_of, true);
        }
        if restarted || version.ha_resources != last.ha_resources {
            (self.extras.ha, changed) = (files::ha_resources(&self.text("ha/resources.cfg")?), true);
        }
        if restarted || version.replication != last.replication {
            (self.extras.replicated, changed) = (files::replicated(&self.text("replication.cfg")?).into_iter().collect(), true);
        }
        if restarted || version.ha_status != last.ha_status {
            let status = self.text("ha/manager_status")?;
            self.world.set_maintenance(files::in_maintenance(status.as_bytes(), &self.node));
        }
        if changed {
            self.world.set_extras(self.extras.clone(), self.pools.clone());
        }
        Ok(())
    }

    fn list(&mut self, wanted: &BTreeSet<u32>, all: bool) -> Result<(), String> {
        let mut list = self.must(".vmlist", files::vmlist)?;
        if self.world.misses(&list) {
            // A VM that moves may be on neither node for a moment: look again before anybody is told that it is gone.
            list = self.must(".vmlist", files::vmlist)?;
            // Whether its absence proves anything is a question of quorum now, not a second ago.
            self.members()?;
        }
        let mut outdated = self.world.outdated(&list, all);
        let more = wanted.iter().filter(|id| !outdated.iter().any(|(o, _)| o == *id)).collect::<Vec<_>>();
        outdated.extend(more.into_iter().filter_map(|id| Some((*id, list.ids.get(id).filter(|e| e.kind == "qemu")?.clone()))));
        let mut configs = Vec::with_capacity(outdated.len());
        let mut missing = false;
        for (vmid, entry) in outdated {
            let path = self.etc_pve.join(format!("nodes/{}/qemu-server/{vmid}.conf", entry.node));
            if self.read(&path)? {
                let config = ConfigFile::parse(&String::from_utf8_lossy(self.bytes()));
                configs.push((vmid, entry, config));
            } else {
                // Moved or removed since the list was read; the next list says where it is.
                missing = true;
            }
        }
        self.missing = if missing && self.missing < MISSING_TRIES { self.missing + 1 } else { 0 };
        self.last.vmlist = list.version;
        self.world.set_vms(&list, configs);
        Ok(())
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
