//! Following PVE's tasks: by their logs and their processes, never by a status that the daemon has cached.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use inotify::{Inotify, WatchMask, Watches};
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_blocking,
};

use super::{TaskEnd, TaskState, TaskUpdate, Upid, task_log::TaskLog};
use crate::host::process::{self, Handle};

/// The folders of logs, named by the last digit of the start time.
const FOLDERS: &[u8; 16] = b"0123456789ABCDEF";
/// How much of a finished log is read: its end line, and the warnings and cause shortly before.
const TAIL: u64 = 256 << 10;
/// How much of a log is read at once.
const CHUNK: u64 = 256 << 10;
/// How often a worker is looked at that the kernel grants no handle on.
const LOOK: Duration = Duration::from_secs(1);
/// Updates that a follower may be behind.
const BEHIND: usize = 256;

/// PVE's tasks on this node.
#[derive(Debug)]
pub(super) struct Tasks {
    log: PathBuf,
    proc: PathBuf,
    node: String,
    watch: Option<Arc<Watch>>,
}

/// One inotify instance for all followers: the kernel grants only 128 per user.
#[derive(Debug)]
struct Watch {
    watches: Mutex<Watches>,
    followers: Mutex<HashMap<String, Vec<Arc<Notify>>>>,
}

impl Watch {
    fn start(log: &Path) -> io::Result<(Arc<Self>, Inotify)> {
        let inotify = Inotify::init()?;
        let mut watches = inotify.watches();
        // New folders, of which a follower may be waiting for one.
        watches.add(log, WatchMask::CREATE | WatchMask::ONLYDIR)?;
        Ok((Arc::new(Self { watches: Mutex::new(watches), followers: Mutex::default() }), inotify))
    }

    async fn run(self: Arc<Self>, inotify: Inotify) -> io::Result<()> {
        let mut fd = process::async_fd(inotify)?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let mut ready = fd.readable_mut().await?;
            let Ok(read) = ready.try_io(|fd| fd.get_mut().read_events(&mut buffer)) else { continue };
            for event in read? {
                match event.name.and_then(|n| n.to_str()) {
                    Some(name) if name.starts_with("UPID:") => self.wake(Some(name)),
                    // A new folder, or events were lost.
                    _ => self.wake(None),
                }
            }
        }
    }

    fn wake(&self, name: Option<&str>) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = match name {
            Some(name) => followers.get(name).into_iter().flatten().collect::<Vec<_>>(),
            None => followers.values().flatten().collect(),
        };
        woken.into_iter().for_each(|n| n.notify_one());
    }

    /// Wakes `notify` for each change of the log. The folders are few and watched for good.
    fn add(&self, folder: &Path) -> io::Result<()> {
        let mask = WatchMask::CREATE | WatchMask::MODIFY | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).add(folder, mask).map(|_| ())
    }

    fn register(&self, name: &str) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().push(notify.clone());
        notify
    }

    fn forget(&self, name: &str, notify: &Arc<Notify>) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = followers.get_mut(name) {
            list.retain(|n| !Arc::ptr_eq(n, notify));
            if list.is_empty() {
                followers.remove(name);
            }
        }
    }
}

/// Where a task's log lies; `None` for a UPID whose start time is empty.
fn log_path(log: &Path, upid: &Upid) -> Option<PathBuf> {
    let digit = char::from_digit(u32::try_from(upid.starttime % 16).ok()?, 16)?.to_ascii_uppercase();
    Some(log.join(digit.to_string()).join(&upid.text))
}

/// Reads what lies behind `offset`, at most so many bytes; `None` when there is no file.
fn read_from(path: &Path, offset: u64, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The process of a task.
enum Worker {
    /// There is none any more.
    Gone,
    /// Its end is told.
    Watched(Handle),
    /// It lives, and the kernel grants no handle on it: that it cannot be watched does not mean that it has ended.
    Unwatched,
}

impl Worker {
    fn find(proc: &Path, upid: &Upid) -> Self {
        match Handle::open(proc, upid.pid, upid.pstart) {
            Ok(Some(handle)) => Self::Watched(handle),
            Ok(None) => Self::Gone,
            Err(error) => Self::unwatched(proc, upid, &error),
        }
    }

    fn unwatched(proc: &Path, upid: &Upid, error: &io::Error) -> Self {
        tracing::error!(%error, %upid, "the worker cannot be watched; it is looked at every second");
        if process::lives(proc, upid.pid, upid.pstart) { Self::Unwatched } else { Self::Gone }
    }

    /// Returns when there may be news of it; never when it is gone.
    async fn looked_at(&mut self, proc: &Path, upid: &Upid) {
        *self = match self {
            Self::Gone => std::future::pending().await,
            Self::Watched(handle) => match handle.ended().await {
                Ok(()) => Self::Gone,
                Err(error) => Self::unwatched(proc, upid, &error),
            },
            Self::Unwatched => {
                tokio::time::sleep(LOOK).await;
                if process::lives(proc, upid.pid, upid.pstart) { Self::Unwatched } else { Self::Gone }
            }
        };
    }
}

impl Tasks {
    /// Tasks of `node` with their logs below `log`. Must be called on a runtime.
    pub(super) fn start(log: PathBuf, proc: PathBuf, node: String) -> Self {
        let watch = match Watch::start(&log) {
            Ok((watch, inotify)) => {
                let runner = watch.clone();
                tokio::spawn(async move {
                    if let Err(error) = runner.clone().run(inotify).await {
                        tracing::error!(%error, "task logs are no longer watched; the ends of tasks are seen by their processes alone");
                    }
                    runner.wake(None);
                });
                Some(watch)
            }
            Err(error) => {
                tracing::error!(%error, path = %log.display(), "task logs cannot be watched; the ends of tasks are seen by their processes alone");
                None
            }
        };
        Self { log, proc, node, watch }
    }

    /// How a task stands now.
    pub(super) async fn state(&self, upid: &Upid) -> TaskState {
        if upid.node != self.node {
            return TaskState::Unknown;
        }
        let (Some(path), proc, upid) = (log_path(&self.log, upid), self.proc.clone(), upid.clone()) else { return TaskState::Unknown };
        spawn_blocking(move || {
            // The process first: if it is gone before the log is read, the log is complete.
            let lives = process::lives(&proc, upid.pid, upid.pstart);
            let start = fs::metadata(&path).map_or(0, |m| m.len().saturating_sub(TAIL));
            // More than the tail: it may grow meanwhile.
            match read_from(&path, start, 2 * TAIL) {
                Ok(Some(bytes)) => {
                    let mut log = TaskLog::default();
                    log.feed(&bytes);
                    log.end(!lives).map_or(TaskState::Running, TaskState::Ended)
                }
                _ if lives => TaskState::Running,
                Ok(None) => TaskState::Unknown,
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "task log");
                    TaskState::Unknown
                }
            }
        })
        .await
        .unwrap_or(TaskState::Unknown)
    }

    /// Follows a task to its end.
    pub(super) fn follow(self: &Arc<Self>, upid: &Upid) -> mpsc::Receiver<TaskUpdate> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let (tasks, upid) = (self.clone(), upid.clone());
        tokio::spawn(async move {
            let Some(path) = log_path(&tasks.log, &upid).filter(|_| upid.node == tasks.node) else {
                // Another node's task: its log is there, and so is its process.
                let _ = sender.send(TaskUpdate::End(TaskEnd::NoEndLine)).await;
                return;
            };
            let notify = tasks.watch.as_ref().map(|w| w.register(&upid.text));
            let end = tasks.run(&upid, &path, notify.as_deref(), &sender).await;
            if let (Some(watch), Some(notify)) = (&tasks.watch, &notify) {
                watch.forget(&upid.text, notify);
            }
            if let Some(end) = end {
                let _ = sender.send(TaskUpdate::End(end)).await;
            }
        });
        receiver
    }

    /// The end; `None` when nobody wants to know it any more.
    async fn run(&self, upid: &Upid, path: &Path, notify: Option<&Notify>, sender: &mpsc::Sender<TaskUpdate>) -> Option<TaskEnd> {
        let mut worker = Worker::find(&self.proc, upid);
        let (mut log, mut offset, mut watched) = (TaskLog::default(), 0, false);
        loop {
            if !watched && let (Some(watch), Some(folder)) = (&self.watch, path.parent()) {
                watched = watch.add(folder).is_ok();
            }
            let file = path.to_owned();
            let appended = spawn_blocking(move || read_from(&file, offset, CHUNK)).await.ok()?;
            let appended = appended.inspect_err(|error| tracing::error!(%error, %upid, "task log")).ok().flatten().unwrap_or_default();
            offset += appended.len() as u64;
            for update in log.feed(&appended) {
                match update {
                    // Who lags does not need every percent, and must not hold up the end.
                    TaskUpdate::Progress { .. } => drop(sender.try_send(update)),
                    update => sender.send(update).await.ok()?,
                }
            }
            if appended.len() as u64 == CHUNK {
                continue;
            }
            if let Some(end) = log.end(matches!(worker, Worker::Gone)) {
                return Some(end);
            }
            let changed = async {
                match notify {
                    Some(notify) => notify.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = worker.looked_at(&self.proc, upid) => {}
                () = sender.closed() => return None,
            }
        }
    }

    /// Tasks with this type and id that were started at or after `since`, oldest first.
    pub(super) async fn find(&self, kind: &str, id: &str, since: u64) -> Vec<Upid> {
        let (log, node, kind, id) = (self.log.clone(), self.node.clone(), kind.to_owned(), id.to_owned());
        let found = spawn_blocking(move || {
            let wanted = |u: &Upid| u.node == node && u.kind == kind && (id.is_empty() || u.id == id) && u.starttime >= since;
            listed(&log)
                .into_iter()
                .filter_map(|t| Upid::parse(&t))
                .filter(wanted)
                .map(|u| (u.starttime, u.pstart, u))
                .collect::<BTreeSet<_>>()
        });
        found.await.unwrap_or_default().into_iter().map(|(.., upid)| upid).collect()
    }
}

/// All UPIDs that are known: those of `active` and `index`, and the logs themselves, since a daemon killed at the wrong moment has made the
/// log and not yet the entry.
fn listed(log: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["active", "index", "index.1"] {
        let text = fs::read(log.join(name)).unwrap_or_default();
        found.extend(String::from_utf8_lossy(&text).lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned));
    }
    for folder in FOLDERS {
        let Ok(entries) = fs::read_dir(log.join(char::from(*folder).to_string())) else { continue };
        found.extend(entries.flatten().filter_map(|e| e.file_name().into_string().ok()));
    }
    found
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
