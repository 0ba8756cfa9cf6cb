//! The stand-in for a VM's `kvm` process: a real process with a pid file, a QMP socket and a guest agent's socket.
//!
//! It executes this very binary under the title `/usr/bin/kvm -id <vmid> ...`; `main` must call [`enter`] before anything else.

mod behaviour;
mod process;
mod protocol;
pub mod qmp;

use std::{
    fs,
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill as send_signal},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

pub use behaviour::{Behaviour, Shutdown};
pub use process::enter;

use crate::layout::NodeLayout;

/// How a guest is started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The VM's name; `VM <vmid>` if empty.
    pub name: String,
    /// The SMBIOS UUID, if any.
    pub uuid: Option<String>,
    /// Whether the guest agent is enabled (`agent: 1`): then `<vmid>.qga` answers.
    pub agent: bool,
    /// Cores.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Begin paused.
    pub paused: bool,
}

impl Options {
    /// The options that follow from a VM's config (its current part, without snapshots).
    pub fn of_config(text: &str) -> Self {
        let mut options = Self { cores: 1, memory_mib: 512, ..Self::default() };
        for line in text.lines().take_while(|line| !line.starts_with('[')) {
            let Some((key, value)) = line.split_once(": ") else { continue };
            let value = value.trim();
            match key {
                "name" => value.clone_into(&mut options.name),
                "agent" => options.agent = value.split(',').any(|part| part == "1" || part == "enabled=1"),
                "cores" => options.cores = value.parse().unwrap_or(1),
                "memory" => options.memory_mib = value.trim_start_matches("current=").parse().unwrap_or(512),
                "smbios1" => options.uuid = value.split(',').find_map(|part| part.strip_prefix("uuid=")).map(str::to_owned),
                _ => {}
            }
        }
        options
    }
}

/// What the guest process is told about itself, in its environment: its arguments are those of a real `kvm`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Orders {
    cluster_dir: PathBuf,
    node: String,
    vmid: u32,
    options: Options,
}

/// The environment variable in which a guest finds its orders.
const ORDERS: &str = "PVE_SIM_GUEST";

/// The pid file of a VM.
pub fn pid_file(layout: &NodeLayout, vmid: u32) -> PathBuf {
    layout.run_qemu().join(format!("{vmid}.pid"))
}

/// The QMP socket of a VM.
pub fn qmp_socket(layout: &NodeLayout, vmid: u32) -> PathBuf {
    layout.run_qemu().join(format!("{vmid}.qmp"))
}

/// The guest agent's socket of a VM.
pub fn agent_socket(layout: &NodeLayout, vmid: u32) -> PathBuf {
    layout.run_qemu().join(format!("{vmid}.qga"))
}

/// Starts a guest with this very binary and returns its pid once it listens. The guest is a session of its own and outlives its parent.
///
/// # Errors
/// When it cannot be started, or another guest runs under this VMID.
pub fn spawn(layout: &NodeLayout, vmid: u32, options: &Options) -> io::Result<u32> {
    spawn_with(&crate::binary()?, layout, vmid, options)
}

/// Like [`spawn`], with the path of the `pve-sim` binary.
///
/// # Errors
/// When it cannot be started, or another guest runs under this VMID.
pub fn spawn_with(program: &Path, layout: &NodeLayout, vmid: u32, options: &Options) -> io::Result<u32> {
    let cluster_dir = layout.root().parent().unwrap_or(layout.root()).to_owned();
    let orders = Orders { cluster_dir, node: layout.node().to_owned(), vmid, options: options.clone() };
    let mut child = Command::new(program)
        .arg0("/usr/bin/kvm")
        .args(arguments(vmid, options))
        .env(ORDERS, serde_json::to_string(&orders).map_err(io::Error::other)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line.trim() == "ready" {
        return Ok(child.id());
    }
    let _ = child.wait();
    let why = if line.is_empty() { "it ended at once" } else { line.trim() };
    Err(io::Error::other(format!("start failed: {why}")))
}

fn arguments(vmid: u32, options: &Options) -> Vec<String> {
    let name = if options.name.is_empty() { format!("VM {vmid}") } else { options.name.clone() };
    let cores = options.cores.max(1);
    let mut arguments = vec![
        "-id".into(),
        vmid.to_string(),
        "-name".into(),
        format!("{name},debug-threads=on"),
        "-no-shutdown".into(),
        "-chardev".into(),
        format!("socket,id=qmp,path=/var/run/qemu-server/{vmid}.qmp,server=on,wait=off"),
        "-mon".into(),
        "chardev=qmp,mode=control".into(),
        "-pidfile".into(),
        format!("/var/run/qemu-server/{vmid}.pid"),
        "-daemonize".into(),
    ];
    if let Some(uuid) = &options.uuid {
        arguments.extend(["-smbios".into(), format!("type=1,uuid={uuid}")]);
    }
    arguments.extend(["-smp".into(), format!("{cores},sockets=1,cores={cores},maxcpus={cores}")]);
    arguments.extend(["-m".into(), options.memory_mib.max(16).to_string()]);
    arguments
}

/// The pid of a VM's guest, if one runs here: what the pid file says, checked against the process.
pub fn running(layout: &NodeLayout, vmid: u32) -> Option<u32> {
    let pid = fs::read_to_string(pid_file(layout, vmid)).ok()?.trim().parse().ok()?;
    is_guest(pid, vmid).then_some(pid)
}

/// Whether this process lives and is the guest of this VMID. A zombie does not live.
fn is_guest(pid: u32, vmid: u32) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut parts = arguments.split(|byte| *byte == 0);
    parts.any(|part| part == b"-id") && parts.next() == Some(vmid.to_string().as_bytes())
}

/// Every VMID with a running guest on this node, with its pid.
pub fn all_running(layout: &NodeLayout) -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir(layout.run_qemu()) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let vmids = names.filter_map(|name| name.strip_suffix(".pid")?.parse().ok());
    let mut found: Vec<(u32, u32)> = vmids.filter_map(|vmid| Some((vmid, running(layout, vmid)?))).collect();
    found.sort_unstable();
    found
}

/// Ends a guest as a crash does (SIGKILL): its files stay behind. Nothing happens if none runs.
///
/// # Errors
/// When the signal cannot be sent, or the process does not vanish within five seconds.
pub fn kill(layout: &NodeLayout, vmid: u32) -> io::Result<()> {
    let Some(pid) = running(layout, vmid) else { return Ok(()) };
    send_signal(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?), Signal::SIGKILL)?;
    wait_gone(pid, vmid, Duration::from_secs(5))
}

/// Ends a guest in order (QMP `quit`): its files vanish. Nothing happens if none runs.
///
/// # Errors
/// When the monitor does not answer, or the process does not vanish within five seconds.
pub fn quit(layout: &NodeLayout, vmid: u32) -> io::Result<()> {
    let Some(pid) = running(layout, vmid) else { return Ok(()) };
    qmp::command(layout, vmid, "quit")?;
    wait_gone(pid, vmid, Duration::from_secs(5))
}

/// Waits until a guest's process is gone.
///
/// # Errors
/// `TimedOut` when it lives on.
pub fn wait_gone(pid: u32, vmid: u32, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while is_guest(pid, vmid) {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("the guest of VM {vmid} (pid {pid}) lives on")));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_those_of_a_real_kvm() {
        let options = Options { name: "web".into(), uuid: Some("u".into()), cores: 2, memory_mib: 512, ..Options::default() };
        let shown = arguments(100, &options).join(" ");
        assert!(
            shown.starts_with("-id 100 -name web,debug-threads=on -no-shutdown -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,"),
            "{shown}"
        );
        assert!(shown.contains(" -pidfile /var/run/qemu-server/100.pid -daemonize "), "{shown}");
        assert!(shown.ends_with("-smbios type=1,uuid=u -smp 2,sockets=1,cores=2,maxcpus=2 -m 512"), "{shown}");
    }

    #[test]
    fn the_options_follow_from_the_config() {
        let config = "#hello\nagent: 1\ncores: 2\nmemory: 256\nname: web\nsmbios1: uuid=17cff2cc,serial=x\n\n[snap]\nname: old\n";
        let expected = Options { name: "web".into(), uuid: Some("17cff2cc".into()), agent: true, cores: 2, memory_mib: 256, paused: false };
        assert_eq!(Options::of_config(config), expected);
    }

    #[test]
    fn another_process_is_no_guest() {
        assert!(!is_guest(std::process::id(), 100));
    }
}
