#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests of processes start some")]

use std::{
    io::Read,
    process::{Child, Command, Stdio},
};

use tokio::sync::broadcast;

use super::{
    super::{
        Change,
        config_file::ConfigFile,
        files::{Members, VmEntry, VmList},
    },
    *,
};

const LIMIT: Duration = Duration::from_secs(20);

fn world() -> Arc<World> {
    let world = World::new("a");
    world.set_members(&Members { node: "a".into(), cluster: None, nodes: vec![] }, false);
    let entry = VmEntry { node: "a".into(), kind: "qemu".into(), version: 1 };
    let list = VmList { version: 1, ids: [(100, entry.clone())].into() };
    world.set_vms(&list, vec![(100, entry, ConfigFile::parse(""))]);
    Arc::new(world)
}

/// A process with `-id <vmid>` among its arguments.
fn kvm(vmid: u32) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "echo; read line", "kvm", "-id", &vmid.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Until it has said something, /proc may not have its arguments yet.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

async fn next(changes: &mut broadcast::Receiver<Change>) -> Change {
    tokio::time::timeout(LIMIT, changes.recv()).await.unwrap().unwrap()
}

fn write_pid(run: &Path, vmid: u32, pid: u32) {
    let temporary = run.join("tmp");
    fs::write(&temporary, format!("{pid}\n")).unwrap();
    fs::rename(temporary, run.join(format!("{vmid}.pid"))).unwrap();
}

#[tokio::test]
async fn start_crash_and_restart_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let mut changes = world.changes();
    let (began, mut started) = mpsc::unbounded_channel();
    let _running = Running::start(dir.path().join("run"), "/proc".into(), world.clone(), began).unwrap();
    // The folder comes later than the watcher, as on a booting host.
    fs::create_dir(dir.path().join("run")).unwrap();
    let mut first = kvm(100);
    write_pid(&dir.path().join("run"), 100, first.id());
    assert!(
        matches!(next(&mut changes).await, Change::VmStarted(vm) if matches!(vm.run, RunState::Running { pid, .. } if pid.cast_unsigned() == first.id()))
    );
    assert_eq!(started.recv().await, Some(100));

    first.kill().unwrap();
    // Nobody has collected it, and its pid file is still there.
    assert!(matches!(next(&mut changes).await, Change::VmStopped(vm) if vm.run == RunState::Stopped));
    first.wait().unwrap();

    let mut second = kvm(100);
    write_pid(&dir.path().join("run"), 100, second.id());
    assert!(matches!(next(&mut changes).await, Change::VmStarted(_)));
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(matches!(next(&mut changes).await, Change::VmStopped(_)));
}

#[tokio::test]
async fn whoever_asks_sees_the_process_and_not_the_last_event() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let (began, _started) = mpsc::unbounded_channel();
    let running = Running::start(dir.path().to_owned(), "/proc".into(), world.clone(), began).unwrap();
    for _ in 0..20 {
        let mut kvm = kvm(100);
        write_pid(dir.path(), 100, kvm.id());
        running.look(100).await.unwrap();
        assert!(matches!(world.running(100), Some(RunState::Running { pid, .. }) if pid.cast_unsigned() == kvm.id()));
        kvm.kill().unwrap();
        kvm.wait().unwrap();
        running.look(100).await.unwrap();
        assert_eq!(world.running(100), None);
    }
}

#[tokio::test]
async fn a_vm_whose_pid_file_is_gone_has_stopped_though_its_process_is_still_ending() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let mut changes = world.changes();
    let (began, _started) = mpsc::unbounded_channel();
    let running = Running::start(dir.path().to_owned(), "/proc".into(), world.clone(), began).unwrap();
    let mut kvm = kvm(100);
    write_pid(dir.path(), 100, kvm.id());
    running.look(100).await.unwrap();
    fs::remove_file(dir.path().join("100.pid")).unwrap();
    running.look(100).await.unwrap();
    assert_eq!(world.running(100), None);
    kvm.kill().unwrap();
    kvm.wait().unwrap();
    running.look(100).await.unwrap();
    // Told once each, whatever the process did after that.
    assert!(matches!(changes.try_recv(), Ok(Change::VmStarted(_))));
    assert!(matches!(changes.try_recv(), Ok(Change::VmStopped(_))));
    assert!(changes.try_recv().is_err());
}

#[tokio::test]
async fn a_stale_pid_file_is_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = kvm(101);
    for (vmid, pid) in [(100, other.id()), (102, 1), (103, 0)] {
        write_pid(dir.path(), vmid, pid);
        assert_eq!(guest(dir.path(), Path::new("/proc"), vmid), None, "{vmid}");
    }
    write_pid(dir.path(), 101, other.id());
    assert!(guest(dir.path(), Path::new("/proc"), 101).is_some());
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(guest(dir.path(), Path::new("/proc"), 101), None);
    fs::write(dir.path().join("104.pid"), "garbage").unwrap();
    assert_eq!(guest(dir.path(), Path::new("/proc"), 104), None);
}
