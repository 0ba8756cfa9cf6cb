#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests of processes start some")]

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;

const PROC: &str = "/proc";
const LIMIT: Duration = Duration::from_secs(20);

struct Worker {
    child: Child,
    upid: Upid,
    file: File,
}

/// A task whose worker is a `cat` that waits for its input to be closed.
fn worker(log: &Path) -> Worker {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let start = process::stat(Path::new(PROC), pid).unwrap().start;
    let upid = Upid::parse(&format!("UPID:pve1:{pid:08X}:{start:08X}:6B03F864:qmclone:9010:root@pam:")).unwrap();
    let path = log_path(log, &upid).unwrap();
    assert!(path.starts_with(log.join("4")));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    Worker { child, upid, file: File::create(path).unwrap() }
}

impl Worker {
    fn print(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tasks(log: &Path) -> Arc<Tasks> {
    Arc::new(Tasks::start(log.to_owned(), PROC.into(), "pve1".into()))
}

async fn next(receiver: &mut mpsc::Receiver<TaskUpdate>) -> Option<TaskUpdate> {
    tokio::time::timeout(LIMIT, receiver.recv()).await.unwrap()
}

#[tokio::test]
async fn lines_progress_and_end_are_told_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let mut worker = worker(dir.path());
    let mut updates = tasks.follow(&worker.upid);
    worker.print("creating a clone\n");
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::Line("creating a clone".into())));
    assert_eq!(tasks.state(&worker.upid).await, TaskState::Running);
    worker.print("transferred 1.0 MiB of 2.0 MiB (50.00%)\n");
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::Progress { percent: 50, done: 1 << 20, total: 2 << 20 }));
    worker.print("TASK OK\n");
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::End(TaskEnd::Ok)));
    assert_eq!(next(&mut updates).await, None, "closed after the end");
    assert_eq!(tasks.state(&worker.upid).await, TaskState::Ended(TaskEnd::Ok));
}

#[tokio::test]
async fn a_killed_worker_ends_without_an_end_line() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let mut worker = worker(dir.path());
    let mut updates = tasks.follow(&worker.upid);
    worker.print("half\n");
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::Line("half".into())));
    worker.child.kill().unwrap();
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::End(TaskEnd::NoEndLine)));
    assert_eq!(tasks.state(&worker.upid).await, TaskState::Ended(TaskEnd::NoEndLine));
}

#[tokio::test]
async fn a_task_that_ended_before_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let mut worker = worker(dir.path());
    worker.print("TASK ERROR: VM is locked (backup)");
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    let mut updates = tasks.follow(&worker.upid);
    assert_eq!(next(&mut updates).await, Some(TaskUpdate::End(TaskEnd::Error("VM is locked (backup)".into()))));
}

#[tokio::test]
async fn a_pid_used_again_is_not_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let worker = worker(dir.path());
    let text = worker.upid.text.replacen(&format!("{:08X}", worker.upid.pstart), "00000001", 1);
    let older = Upid::parse(&text).unwrap();
    fs::write(log_path(dir.path(), &older).unwrap(), "half\n").unwrap();
    assert_eq!(tasks.state(&older).await, TaskState::Ended(TaskEnd::NoEndLine));
}

#[tokio::test]
async fn a_task_that_is_not_known_or_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let upid = |node: &str| Upid::parse(&format!("UPID:{node}:00000001:00000001:00000001:qmclone:1:root@pam:")).unwrap();
    assert_eq!(tasks.state(&upid("pve1")).await, TaskState::Unknown);
    assert_eq!(tasks.state(&upid("pve2")).await, TaskState::Unknown);
    assert_eq!(next(&mut tasks.follow(&upid("pve2"))).await, Some(TaskUpdate::End(TaskEnd::NoEndLine)));
}

#[tokio::test]
async fn tasks_are_found_in_the_lists_and_among_the_logs() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let line = |start: &str, kind: &str| format!("UPID:pve1:00001664:000CD507:{start}:{kind}:9010:root@pam:");
    fs::write(dir.path().join("active"), format!("{} 0\n{} 1 6B03F865 OK\n", line("6B03F864", "qmclone"), line("6B03F864", "qmstart")))
        .unwrap();
    fs::write(
        dir.path().join("index"),
        format!("{} 6B03F860 OK\n{} 6B03F800 OK\n", line("6B03F860", "qmclone"), line("6B03F700", "qmclone")),
    )
    .unwrap();
    fs::create_dir(dir.path().join("A")).unwrap();
    fs::write(dir.path().join("A").join(line("6B03F86A", "qmclone")), "").unwrap();
    fs::write(dir.path().join("A/garbage"), "").unwrap();
    let found = tasks.find("qmclone", "9010", 0x6B03_F860).await;
    assert_eq!(found.iter().map(|u| u.starttime).collect::<Vec<_>>(), [0x6B03_F860, 0x6B03_F864, 0x6B03_F86A]);
    assert!(tasks.find("qmclone", "9011", 0).await.is_empty());
}

#[tokio::test]
async fn a_log_longer_than_one_reading_is_told_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(dir.path());
    let mut worker = worker(dir.path());
    // A line that looks like an end stands where the first reading ends.
    let fake_end = "TASK OK\n";
    let first = usize::try_from(CHUNK).unwrap() - fake_end.len();
    worker.print(&"x\n".repeat(first / 2));
    worker.print(fake_end);
    worker.print(&"y\n".repeat(first));
    worker.print("TASK ERROR: no\n");
    let mut updates = tasks.follow(&worker.upid);
    let mut lines = 0;
    loop {
        match next(&mut updates).await.unwrap() {
            TaskUpdate::Line(_) => lines += 1,
            TaskUpdate::Progress { .. } => {}
            TaskUpdate::End(end) => break assert_eq!(end, TaskEnd::Error("no".into())),
        }
    }
    assert_eq!(lines, first / 2 + first);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_be_watched_is_not_taken_for_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(dir.path());
    let upid = worker.upid.clone();
    let proc = Path::new(PROC);
    let mut process = super::Worker::unwatched(proc, &upid, &io::Error::other("too many open files"));
    process.looked_at(proc, &upid).await;
    assert!(matches!(process, super::Worker::Unwatched));
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    process.looked_at(proc, &upid).await;
    assert!(matches!(process, super::Worker::Gone));
}
