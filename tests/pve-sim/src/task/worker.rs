//! The worker's side of a task: a process of its own.

use std::{
    cell::Cell,
    fs::{File, OpenOptions},
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{Upid, job, log, spawn::Orders};
use crate::{api::Failure, faults::TaskEffect, layout::NodeLayout};

/// How often an interrupted worker looks for copies to end.
const COPY_LOOK: Duration = Duration::from_millis(10);

/// A worker process on its task.
pub struct Worker {
    /// The node it works for.
    pub layout: NodeLayout,
    /// Its task.
    pub upid: Upid,
    /// Lock time-outs are multiplied by this.
    pub lock_factor: f64,
    log: File,
    warnings: Cell<u32>,
    interrupted: Arc<AtomicBool>,
    effect: Option<TaskEffect>,
    hit: Cell<bool>,
}

impl Worker {
    /// Writes a line to the task's log.
    pub fn log(&self, line: &str) {
        let line = format!("{line}\n");
        // Perl writes a text whose characters all fit into a byte as such bytes, and any other as UTF-8.
        let bytes: Option<Vec<u8>> = line.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        // A log that cannot be written is no reason to stop half-way.
        let _ = (&self.log).write_all(&bytes.unwrap_or_else(|| line.into_bytes()));
    }

    /// Writes a warning: a task with warnings ends in `TASK WARNINGS: n`.
    pub fn warn(&self, text: &str) {
        self.warnings.set(self.warnings.get() + 1);
        self.log(&format!("WARN: {text}"));
    }

    /// Whether SIGTERM or SIGINT came.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The error that a signal raises between two steps.
    ///
    /// # Errors
    /// When SIGTERM or SIGINT came.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_interrupted() { Err(Failure::die("received interrupt")) } else { Ok(()) }
    }

    /// Called by a job when its first side effect is there: the place where a task fault strikes.
    pub fn begun(&self) {
        if self.hit.replace(true) {
            return;
        }
        match self.effect {
            Some(TaskEffect::Killed) => {
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
            Some(TaskEffect::Terminated) => {
                let _ = kill(Pid::this(), Signal::SIGTERM);
                let deadline = Instant::now() + Duration::from_secs(5);
                while !self.is_interrupted() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            _ => {}
        }
    }

    fn run(&self, orders: &Orders) -> Result<(), Failure> {
        match &self.effect {
            Some(TaskEffect::Error(text)) => return Err(Failure::die(text.clone())),
            Some(TaskEffect::Delayed(milliseconds)) => {
                let deadline = Instant::now() + Duration::from_millis(*milliseconds);
                while Instant::now() < deadline {
                    self.check()?;
                    thread::sleep(Duration::from_millis(5));
                }
            }
            _ => {}
        }
        let Some(work) = job::work(&orders.job.action) else {
            return Err(Failure::die(format!("unknown job '{}'", orders.job.action)));
        };
        let result = work(self, &orders.job.args);
        self.begun();
        result
    }

    fn end(&self, result: Result<(), Failure>) -> ExitCode {
        let warnings = match self.effect {
            Some(TaskEffect::Warnings(n)) => n,
            _ => self.warnings.get(),
        };
        match result {
            Ok(()) if self.effect == Some(TaskEffect::NoEndLine) => {}
            Ok(()) if warnings > 0 => self.log(&format!("TASK WARNINGS: {warnings}")),
            Ok(()) => self.log("TASK OK"),
            Err(error) => {
                self.log(&format!("TASK ERROR: {}", error.in_task()));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

/// What `main` calls first: does the work of a task when this process was started for one, and tells the exit code; none otherwise.
pub fn enter() -> Option<ExitCode> {
    let mut args = std::env::args();
    let title = args.next().unwrap_or_default();
    if title.starts_with("task UPID:") {
        return Some(work(&title).unwrap_or(ExitCode::FAILURE));
    }
    if args.next().as_deref() != Some("task") {
        return None;
    }
    let error = become_worker().err();
    tracing::error!(?error, "the worker cannot start");
    Some(ExitCode::FAILURE)
}

fn become_worker() -> io::Result<std::convert::Infallible> {
    setsid()?;
    let mut upid = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows the line must stay in the pipe for the program that is executed next.
    while nix::unistd::read(io::stdin(), &mut byte)? == 1 && byte[0] != b'\n' {
        upid.push(byte[0]);
    }
    let title = format!("task {}", String::from_utf8_lossy(&upid));
    Err(Command::new(std::env::current_exe()?).arg0(title).exec())
}

fn work(title: &str) -> io::Result<ExitCode> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let orders: Orders = serde_json::from_str(&line)?;
    if !title.ends_with(&orders.upid.to_string()) {
        return Err(io::Error::other("orders for another task"));
    }
    let layout = NodeLayout::new(&orders.cluster_dir, &orders.node);
    let log = OpenOptions::new().append(true).create(true).open(log::path(&layout, &orders.upid))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(Arc::clone(&interrupted));
    let worker = Worker {
        layout,
        upid: orders.upid.clone(),
        lock_factor: orders.lock_factor,
        log,
        warnings: Cell::new(0),
        interrupted,
        effect: orders.effect.clone(),
        hit: Cell::new(false),
    };
    let result = worker.run(&orders);
    Ok(worker.end(result))
}

/// Notes SIGTERM and SIGINT. Handlers, unlike a blocked mask, are not passed on to the programs that a worker starts.
fn watch_signals(interrupted: Arc<AtomicBool>) {
    let (ready, wait) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
            let _ = ready.send(());
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            interrupted.store(true, Ordering::Relaxed);
            // A copy may be about to start: from now on none goes on.
            loop {
                end_copies();
                thread::sleep(COPY_LOOK);
            }
        });
    });
    let _ = wait.recv();
}

/// Ends the copies that this worker has started, as PVE does when a signal interrupts it.
fn end_copies() {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<i32> = children.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    for pid in pids {
        if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "qemu-img") {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
