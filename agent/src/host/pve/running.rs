//! Which VMs of this host have a process. Pid files tell of new ones, the processes themselves of their ends: a killed `kvm` leaves its pid
//! file behind. One thread, which sleeps while nothing happens.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use inotify::{Inotify, WatchMask};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};
use tokio::sync::{mpsc, oneshot};

use super::{RunState, world::World};
use crate::host::process::{self, Handle};

/// Tokens of the poll below any VMID (those begin at 100).
const FILES: u64 = 0;
const WAKE: u64 = 1;
/// How long to wait for the folder of pid files, which PVE makes when it boots.
const RETRY: u16 = 1000;

/// How long a caller waits for a look at one VM, which takes 0.1 ms.
const LOOK: Duration = Duration::from_secs(5);

/// A process of a VM.
#[derive(Debug)]
struct Guest {
    pid: i32,
    start: u64,
    fd: OwnedFd,
}

/// The watcher.
#[derive(Debug)]
pub(super) struct Running {
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    ask: std_mpsc::Sender<Question>,
}

/// A VM to look at now, and who waits for it.
type Question = (u32, oneshot::Sender<()>);

impl Running {
    /// Reads all pid files and goes on watching. VMIDs of those that began are sent to `began`.
    pub(super) fn start(run: PathBuf, proc: PathBuf, world: Arc<World>, began: mpsc::UnboundedSender<u32>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let stop = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let inotify = Inotify::init()?;
        epoll.add(inotify.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, FILES))?;
        let boot = process::boot_time(&proc).unwrap_or(0);
        let (ask, questions) = std_mpsc::channel();
        let watch = Watch { run, proc, world, began, epoll, guests: HashMap::new(), boot, questions };
        let (stopped, woken) = (stop.clone(), wake.clone());
        thread::Builder::new().name("pve-guests".into()).stack_size(256 << 10).spawn(move || {
            if let Err(error) = watch.run(inotify, &stopped, &woken) {
                tracing::error!(%error, "the processes of VMs are no longer watched");
            }
        })?;
        Ok(Self { wake, stop, ask })
    }

    /// Looks at a VM's pid file and process now. What follows a task must not be told by an event that is still on its way. Errors: no
    /// answer within [`LOOK`]. The kernel may hold up whoever reads about a process that hangs in it.
    pub(super) async fn look(&self, vmid: u32) -> Result<(), tokio::time::error::Elapsed> {
        let (done, looked) = oneshot::channel();
        if self.ask.send((vmid, done)).is_ok() && self.wake.write(1).is_ok() {
            let _ = tokio::time::timeout(LOOK, looked).await?;
        }
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Watch {
    run: PathBuf,
    proc: PathBuf,
    world: Arc<World>,
    began: mpsc::UnboundedSender<u32>,
    epoll: Epoll,
    guests: HashMap<u32, Guest>,
    boot: u64,
    questions: std_mpsc::Receiver<Question>,
}

/// The VMID of a pid file.
fn vmid_of(name: &str) -> Option<u32> {
    name.strip_suffix(".pid")?.parse().ok()
}

/// Whether the arguments are those of this VM's process: `-id <vmid>`.
fn is_guest(arguments: &[String], vmid: u32) -> bool {
    let vmid = vmid.to_string();
    arguments.windows(2).any(|pair| pair[0] == "-id" && pair[1] == vmid)
}

/// The process that a VM's pid file names, if it lives and is this VM's: pid and start in clock ticks.
fn guest(run: &Path, proc: &Path, vmid: u32) -> Option<(i32, u64)> {
    let pid = fs::read_to_string(run.join(format!("{vmid}.pid"))).ok()?.trim().parse().ok()?;
    let stat = process::stat(proc, pid)?;
    (!stat.ended() && is_guest(&process::arguments(proc, pid), vmid)).then_some((pid, stat.start))
}

impl Watch {
    fn run(mut self, mut inotify: Inotify, stop: &AtomicBool, wake: &EventFd) -> io::Result<()> {
        let mut watched = false;
        let mut buffer = vec![0; 4096];
        let mut ready = [EpollEvent::empty(); 64];
        while !stop.load(Ordering::Relaxed) {
            if !watched {
                let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
                watched = inotify.watches().add(&self.run, mask).is_ok();
                // Only now: what appears from here on is told.
                self.read_all();
            }
            let timeout = if watched { EpollTimeout::NONE } else { EpollTimeout::from(RETRY) };
            let count = match self.epoll.wait(&mut ready, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for event in &ready[..count] {
                match event.data() {
                    FILES => watched &= self.files(&mut inotify, &mut buffer),
                    WAKE => {
                        let _ = wake.read();
                        self.answer();
                    }
                    vmid => self.ended(u32::try_from(vmid).unwrap_or(0)),
                }
            }
        }
        Ok(())
    }

    fn read_all(&mut self) {
        let Ok(entries) = fs::read_dir(&self.run) else { return };
        for vmid in entries.flatten().filter_map(|e| vmid_of(e.file_name().to_str()?)) {
            self.check(vmid);
        }
    }

    /// Whether the folder is still there.
    fn files(&mut self, inotify: &mut Inotify, buffer: &mut [u8]) -> bool {
        let mut there = true;
        let mut lost = false;
        let mut vmids = Vec::new();
        for event in inotify.read_events(buffer).into_iter().flatten() {
            there &= !event.mask.contains(inotify::EventMask::IGNORED);
            lost |= event.mask.contains(inotify::EventMask::Q_OVERFLOW);
            vmids.extend(event.name.and_then(|n| vmid_of(n.to_str()?)));
        }
        if lost {
            self.read_all();
        }
        vmids.into_iter().for_each(|vmid| self.check(vmid));
        there
    }

    fn answer(&mut self) {
        while let Ok((vmid, done)) = self.questions.try_recv() {
            // As PVE judges: once the pid file is gone the VM has stopped, even if its process is not quite through yet.
            let over = |g: &Guest| guest(&self.run, &self.proc, vmid) != Some((g.pid, g.start));
            if self.guests.get(&vmid).is_some_and(over) {
                self.ended(vmid);
            } else {
                self.check(vmid);
            }
            let _ = done.send(());
        }
    }

    fn check(&mut self, vmid: u32) {
        let Some((pid, start)) = guest(&self.run, &self.proc, vmid) else { return };
        if self.guests.get(&vmid).is_some_and(|g| (g.pid, g.start) == (pid, start)) {
            return;
        }
        let fd = match Handle::open(&self.proc, pid, start) {
            Ok(Some(handle)) => handle.into_fd(),
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, vmid, pid, "the process of a VM cannot be watched"),
        };
        if let Some(old) = self.guests.remove(&vmid) {
            let _ = self.epoll.delete(old.fd.as_fd());
        }
        if let Err(error) = self.epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, u64::from(vmid))) {
            return tracing::error!(%error, vmid, pid, "the process of a VM cannot be watched");
        }
        self.guests.insert(vmid, Guest { pid, start, fd });
        let since: SystemTime = process::start_time(self.boot, start);
        self.world.set_run(vmid, RunState::Running { pid, since });
        let _ = self.began.send(vmid);
    }

    fn ended(&mut self, vmid: u32) {
        if let Some(guest) = self.guests.remove(&vmid) {
            let _ = self.epoll.delete(guest.fd.as_fd());
            self.world.set_run(vmid, RunState::Stopped);
        }
        // Started again meanwhile.
        self.check(vmid);
    }
}

/// How long a VM that was seen paused is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Asks VMs that began whether they are paused, one after the other; a paused one is asked again until it goes on or ends. Nothing tells of
/// pausing and going on but the VM itself.
pub(super) async fn ask_paused(run: PathBuf, world: Arc<World>, mut began: mpsc::UnboundedReceiver<u32>) {
    let mut paused: Vec<u32> = Vec::new();
    loop {
        let next = if paused.is_empty() {
            began.recv().await.map(|vmid| vec![vmid])
        } else {
            match tokio::time::timeout(ASK_AGAIN, began.recv()).await {
                Ok(next) => next.map(|vmid| vec![vmid]),
                Err(_) => Some(std::mem::take(&mut paused)),
            }
        };
        let Some(vmids) = next else { return };
        for vmid in vmids {
            if ask(&run, &world, vmid).await && !paused.contains(&vmid) {
                paused.push(vmid);
            }
        }
    }
}

/// Asks a VM that runs here and sets its state; whether it is paused.
pub(super) async fn ask(run: &Path, world: &World, vmid: u32) -> bool {
    let Some(RunState::Running { pid, since } | RunState::Paused { pid, since }) = world.running(vmid) else { return false };
    match super::qmp::paused(&run.join(format!("{vmid}.qmp"))).await {
        Ok(paused) => {
            let run = if paused { RunState::Paused { pid, since } } else { RunState::Running { pid, since } };
            world.set_run_if_alive(vmid, pid, run);
            paused
        }
        Err(error) => {
            tracing::debug!(vmid, %error, "QMP");
            false
        }
    }
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
