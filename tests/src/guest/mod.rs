//! Real Debian 13 guests in QEMU, for what no simulation can prove: LVM, btrfs, systemd, the network, a power cut.
//!
//! With KVM a guest boots in seconds. Without, it is emulated and takes half a minute, so the first boot of each kind of guest
//! is kept and the next ones continue from there.

mod image;
mod qemu;
mod segment;
mod ssh;

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fmt::Write as _,
    fs::{self, File},
    hash::{Hash, Hasher},
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use image::{Image, accelerator};
use qemu::{Qemu, READY};
pub use segment::Segment;
use ssh::Ssh;
use tempfile::TempDir;
use uuid::Uuid;

use crate::program;

/// For a boot or a shutdown: several guests may be emulated on two busy cores.
const BOOT: Duration = Duration::from_secs(600);
/// For a command, unless the test gives another limit.
const COMMAND: Duration = Duration::from_secs(600);
const SSH: u16 = 22;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its host name.
    pub name: String,
    /// Memory.
    pub memory_mib: u32,
    /// Empty disks, by their size. In the guest: `/dev/disk/by-id/virtio-data0` and so on.
    pub disks_mib: Vec<u64>,
    /// Segments it is plugged into. In the guest: `eth1` and so on; `eth0` is the tests' own way in.
    pub nics: Vec<Segment>,
    /// Ports of the guest that the test wants to reach: see [`Guest::port`].
    pub forwards: Vec<u16>,
    /// A shell script that is run once, before the state of such a guest is kept: what is slow to set up. It may use the guest's name; the
    /// addresses of its NICs are then made from that name, so no two guests on a segment may have the same one.
    pub setup: String,
    /// Whether it must boot from cold: its boot id is then its own. Else it may continue from a kept state of such a guest.
    pub cold: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { name: "guest".into(), memory_mib: 512, disks_mib: vec![], nics: vec![], forwards: vec![], setup: String::new(), cold: false }
    }
}

/// What a command in a guest came to.
#[derive(Debug)]
pub struct Output {
    /// Exit status. 255 also when the connection was lost, 137 when its time ran out.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A way into a guest that can be used from any thread, until the guest is cut or switched off.
#[derive(Debug, Clone)]
pub struct Shell {
    name: String,
    ssh: Arc<Ssh>,
}

impl Shell {
    /// As [`Guest::run`].
    pub fn run(&self, line: &str) -> Output {
        self.run_for(line, COMMAND)
    }

    /// As [`Guest::run_for`].
    pub fn run_for(&self, line: &str, limit: Duration) -> Output {
        let out = self.ssh.command(line, limit).output().unwrap_or_else(|e| panic!("ssh: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { status: out.status.code().unwrap_or(137), stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }

    /// As [`Guest::sh`].
    pub fn sh(&self, script: &str) -> String {
        let out = self.run(&format!("set -e; {script}"));
        assert_eq!(out.status, 0, "in {}: {script}\n{}{}", self.name, out.stdout, out.stderr);
        out.stdout
    }
}

/// A guest. Everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Guest {
    options: GuestOptions,
    macs: Vec<String>,
    qemu: Option<Qemu>,
    ssh: Option<Arc<Ssh>>,
    ports: BTreeMap<u16, u16>,
    dir: TempDir,
}

impl Guest {
    /// Starts a guest and returns when commands can be run in it. It ends with the thread that starts it: boot it in the thread
    /// that also uses it to the end.
    pub fn boot(options: GuestOptions) -> io::Result<Self> {
        // A boot with KVM is as quick as a kept state.
        if options.cold || accelerator() == "kvm" {
            let mut guest = Self::make(options)?;
            guest.make_disks()?;
            guest.start()?;
            guest.set_up()?;
            return Ok(guest);
        }
        let state = Image::get().state(&state_key(&options)?, |dir| Self::make_state(&options, dir))?;
        let mut guest = Self::make(options)?;
        for file in guest.disk_files() {
            copy(&state.join(&file), &guest.dir.path().join(&file))?;
        }
        guest.launch(true)?;
        guest.connect()?;
        guest.settle()?;
        Ok(guest)
    }

    fn make(options: GuestOptions) -> io::Result<Self> {
        let mac = |nic: usize| {
            let b = if options.setup.is_empty() {
                *Uuid::new_v4().as_bytes()
            } else {
                hash(&(&options.name, nic)).to_be_bytes().repeat(2).try_into().unwrap()
            };
            format!("52:54:00:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2])
        };
        let macs = (0..options.nics.len()).map(mac).collect();
        let dir = TempDir::with_prefix("guest")?;
        Ok(Self { options, macs, qemu: None, ssh: None, ports: BTreeMap::new(), dir })
    }

    /// Boots such a guest once, and keeps what it then is: memory, devices and disks, in the images of its disks.
    fn make_state(options: &GuestOptions, dir: &Path) -> io::Result<()> {
        let name = if options.setup.is_empty() { "guest".into() } else { options.name.clone() };
        let mut guest = Self::make(GuestOptions { name, forwards: vec![], ..options.clone() })?;
        guest.make_disks()?;
        guest.start()?;
        guest.set_up()?;
        // Once through everything a test does first: what is loaded now need not be then.
        guest.sh("sync; modprobe dm_thin_pool; modprobe btrfs; perl -e 1; python3 -c 1");
        guest.ssh = None;
        let qemu = guest.running()?;
        qemu.monitor("savevm booted")?;
        // QEMU may be gone before it answers; its end is what counts.
        let _ = qemu.monitor("quit");
        qemu.wait_exit(BOOT)?;
        guest.disk_files().iter().try_for_each(|file| copy(&guest.dir.path().join(file), &dir.join(file)))
    }

    fn set_up(&self) -> io::Result<()> {
        if self.options.setup.is_empty() {
            return Ok(());
        }
        let out = self.run(&format!("set -e; {}", self.options.setup));
        if out.status == 0 { Ok(()) } else { Err(io::Error::other(format!("setup of {}: {out:?}", self.options.name))) }
    }

    /// Makes a guest that continues from a kept state one of its own: the time, its name, addresses and ids, and its randomness,
    /// or two of them would make the same "random" ids.
    fn settle(&self) -> io::Result<()> {
        let (now, id) = (SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?, Uuid::new_v4());
        let mut script = format!(
            "set -e; date -s @{}.{:09} >/dev/null; echo {} >/etc/machine-id; echo {} {} >/dev/urandom; ",
            now.as_secs(),
            now.subsec_nanos(),
            id.simple(),
            Uuid::new_v4(),
            Uuid::new_v4()
        );
        // RNDRESEEDCRNG
        script.push_str("perl -e 'open F, \">\", \"/dev/urandom\"; ioctl F, 0x5207, 0 or die'; ");
        let name = &self.options.name;
        let _ = write!(script, "hostname {name}; echo {name} >/etc/hostname; ");
        // With a setup they are the guest's own already, and may be in use.
        for (i, mac) in self.macs.iter().enumerate().filter(|_| self.options.setup.is_empty()) {
            let _ = write!(script, "ip link set dev eth{} address {mac}; ", i + 1);
        }
        let out = self.run(&script);
        if out.status == 0 { Ok(()) } else { Err(io::Error::other(format!("{out:?}"))) }
    }

    fn disk_files(&self) -> Vec<String> {
        let data = (0..self.options.disks_mib.len()).map(|i| format!("data{i}.qcow2"));
        ["root.qcow2".to_owned()].into_iter().chain(data).collect()
    }

    fn make_disks(&self) -> io::Result<()> {
        let base = Image::get().file("base.qcow2");
        let make = |args: &[&str]| {
            let out = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(args).current_dir(self.dir.path()).output()?;
            if out.status.success() { Ok(()) } else { Err(io::Error::other(format!("qemu-img {args:?}: {out:?}"))) }
        };
        make(&["-b", &base.display().to_string(), "-F", "qcow2", "root.qcow2"])?;
        for (i, mib) in self.options.disks_mib.iter().enumerate() {
            make(&[&format!("data{i}.qcow2"), &format!("{mib}M")])?;
        }
        Ok(())
    }

    fn running(&mut self) -> io::Result<&mut Qemu> {
        self.qemu.as_mut().ok_or_else(|| io::Error::other("the guest is off"))
    }

    fn launch(&mut self, kept: bool) -> io::Result<()> {
        let mut args = arguments(&self.options, &self.macs);
        if kept {
            args.extend(["-loadvm".to_owned(), "booted".to_owned()]);
        }
        let mut qemu = Qemu::start(self.dir.path(), &args, &self.console_path())?;
        self.ports = qemu.forwards()?;
        self.qemu = Some(qemu);
        Ok(())
    }

    fn connect(&mut self) -> io::Result<()> {
        self.ssh = Some(Arc::new(Ssh::connect(self.port(SSH), self.dir.path(), BOOT)?));
        Ok(())
    }

    /// Boots it again, with the disks it has: after [`Self::power_cut`], [`Self::power_off`], or a reboot of its own, which ends QEMU.
    pub fn start(&mut self) -> io::Result<()> {
        self.launch(false)?;
        self.up()
    }

    /// As [`Self::start`], but it returns as soon as the console shows `text`, which may be before anything can be run: for another power cut.
    pub fn start_until(&mut self, text: &str) -> io::Result<()> {
        self.launch(false)?;
        self.wait_console(text, BOOT)
    }

    /// Waits until its console shows `text` in a line that begins with `pvelet-`; those before are passed over. Fails when the guest ends before.
    pub fn wait_console(&mut self, text: &str, limit: Duration) -> io::Result<()> {
        self.running()?.wait_line(text, limit)
    }

    fn up(&mut self) -> io::Result<()> {
        self.running()?.wait_line(READY, BOOT)?;
        self.connect()?;
        let out = self.run(&format!("hostname {0}; echo {0} >/etc/hostname", self.options.name));
        if out.status == 0 { Ok(()) } else { Err(io::Error::other(format!("{out:?}"))) }
    }

    /// A power cut: what the guest had not flushed to its disks is lost.
    pub fn power_cut(&mut self) {
        (self.ssh, self.qemu) = (None, None);
    }

    /// An orderly shutdown.
    pub fn power_off(&mut self) -> io::Result<()> {
        self.run("systemctl poweroff --no-block");
        self.ssh = None;
        self.running()?.wait_exit(BOOT)?;
        self.qemu = None;
        Ok(())
    }

    /// An orderly shutdown, and a boot.
    pub fn reboot(&mut self) -> io::Result<()> {
        self.power_off()?;
        self.start()
    }

    /// A way in of its own for other threads, while it is up.
    pub fn shell(&self) -> Shell {
        Shell { name: self.options.name.clone(), ssh: self.ssh.clone().unwrap_or_else(|| panic!("{} is off", self.options.name)) }
    }

    /// Runs a shell command as root.
    pub fn run(&self, line: &str) -> Output {
        self.shell().run_for(line, COMMAND)
    }

    /// Runs a shell command as root, for at most `limit`.
    pub fn run_for(&self, line: &str, limit: Duration) -> Output {
        self.shell().run_for(line, limit)
    }

    /// Runs a shell script that must succeed, and returns what it printed. It ends at the first command that fails.
    pub fn sh(&self, script: &str) -> String {
        self.shell().sh(script)
    }

    /// Starts a shell command and does not wait for it: for a power cut in its middle.
    pub fn spawn(&self, line: &str) -> io::Result<Child> {
        self.command(line, COMMAND).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()
    }

    fn command(&self, line: &str, limit: Duration) -> Command {
        self.ssh.as_ref().unwrap_or_else(|| panic!("{} is off", self.options.name)).command(line, limit)
    }

    /// Copies a file into the guest, with its mode; folders on the way are made.
    pub fn copy_in(&self, from: &Path, to: &str) -> io::Result<()> {
        let mode = std::os::unix::fs::PermissionsExt::mode(&from.metadata()?.permissions()) & 0o7777;
        let line = format!("set -e; mkdir -p \"$(dirname {to})\"; cat >{to}.part; chmod {mode:o} {to}.part; mv {to}.part {to}");
        let out = self.command(&line, COMMAND).stdin(File::open(from)?).output()?;
        check(out.status, &format!("{} -> {to}: {}", from.display(), String::from_utf8_lossy(&out.stderr)))
    }

    /// Copies a program of this workspace to `/usr/local/bin`. Most of it is for debuggers, and each byte goes through ssh.
    pub fn copy_in_program(&self, name: &str) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let stripped = folder.path().join(name);
        let out = Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program(name)).output()?;
        check(out.status, &format!("strip {name}: {}", String::from_utf8_lossy(&out.stderr)))?;
        self.copy_in(&stripped, &format!("/usr/local/bin/{name}"))
    }

    /// Copies a file out of the guest.
    pub fn copy_out(&self, from: &str, to: &Path) -> io::Result<()> {
        let out =
            self.command(&format!("cat {from}"), COMMAND).stdout(File::create(to)?).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        check(out.status, &format!("{from} -> {}: {}", to.display(), String::from_utf8_lossy(&out.stderr)))
    }

    /// Plugs the cable of `eth<nic>` in or out: the guest sees its carrier go. After [`Self::start`] all are in.
    pub fn set_link(&mut self, nic: usize, up: bool) -> io::Result<()> {
        self.running()?.monitor(&format!("set_link nic{nic} {}", if up { "on" } else { "off" })).map(drop)
    }

    /// Where on 127.0.0.1 a forwarded port of the guest is reached. It changes with each start.
    pub fn port(&self, port: u16) -> u16 {
        *self.ports.get(&port).unwrap_or_else(|| panic!("port {port} of {} is not forwarded: {:?}", self.options.name, self.ports))
    }

    /// Arguments with which `ssh` comes in, for programs that call it themselves; the address is `root@127.0.0.1`.
    pub fn ssh_options(&self) -> Vec<String> {
        self.ssh.as_deref().map(Ssh::options).unwrap_or_default()
    }

    /// What the guest's serial console showed, over all its starts.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.console_path()).unwrap_or_default()).into_owned()
    }

    /// The file that the console goes to.
    pub fn console_path(&self) -> PathBuf {
        self.dir.path().join("console.log")
    }
}

/// The arguments of QEMU. Files are in the folder it runs in.
fn arguments(options: &GuestOptions, macs: &[String]) -> Vec<String> {
    let image = Image::get();
    let mut args: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    // Where it is emulated, the kernel uses one processor: with several, one that changes its own code (it does whenever a packet socket is
    // opened) sooner or later meets its break point half removed, and panics ("Oops: int3").
    let (accel, processors) = if accelerator() == "kvm" { ("kvm", "") } else { ("tcg,thread=multi", " maxcpus=1") };
    add("-accel", accel.into());
    add("-cpu", "max".into());
    add("-m", options.memory_mib.to_string());
    // Not one: for a single processor TCG leaves memory barriers out, though QEMU's own thread reads the queues of the disks too. Kicks and
    // interrupts get lost so, and a disk waits for ever.
    add("-smp", "2".into());
    args.extend(["-nodefaults", "-no-reboot"].map(String::from));
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    add("-display", "none".into());
    add("-kernel", image.file("vmlinuz").display().to_string());
    add("-initrd", image.file("initrd").display().to_string());
    let line = "root=/dev/vda rootfstype=ext4 rw console=ttyS0 net.ifnames=0 lsm=capability mitigations=off cryptomgr.notests";
    add("-append", format!("{line} tsc=reliable systemd.show_status=1{processors}"));
    // No fsync on the host: a power cut here is the end of QEMU, not of the host.
    let drive = |file: &str, id: &str| format!("file={file},if=none,id={id},cache=unsafe,discard=unmap");
    add("-drive", drive("root.qcow2", "root"));
    add("-device", "virtio-blk-pci,drive=root,serial=root,ioeventfd=off".into());
    for i in 0..options.disks_mib.len() {
        add("-drive", drive(&format!("data{i}.qcow2"), &format!("data{i}")));
        add("-device", format!("virtio-blk-pci,drive=data{i},serial=data{i},ioeventfd=off"));
    }
    add("-device", "virtio-rng-pci".into());
    let forwards = [SSH].iter().chain(&options.forwards).fold(String::new(), |s, p| s + &format!(",hostfwd=tcp:127.0.0.1:0-:{p}"));
    // Restricted: no guest reaches beyond this machine. Without IPv6, whose routers would give each guest a default route.
    add("-netdev", format!("user,id=user,restrict=on,ipv6=off{forwards}"));
    add("-device", "virtio-net-pci,netdev=user,romfile=".into());
    for (i, (segment, mac)) in options.nics.iter().zip(macs).enumerate() {
        let (n, hub, port) = (i + 1, segment.hub(), segment.port());
        let ends = format!("local.type=unix,local.path={},remote.type=unix,remote.path={}", port.display(), hub.display());
        add("-netdev", format!("dgram,id=net{n},{ends}"));
        add("-device", format!("virtio-net-pci,netdev=net{n},id=nic{n},mac={mac},romfile="));
    }
    args
}

/// Which kept state fits: another QEMU or other devices need another one.
fn state_key(options: &GuestOptions) -> io::Result<String> {
    let version = Command::new("qemu-system-x86_64").arg("--version").output()?.stdout;
    let plain = GuestOptions { nics: vec![], forwards: vec![], ..options.clone() };
    let mut hasher = DefaultHasher::new();
    (version, arguments(&plain, &[]), &options.disks_mib, options.nics.len()).hash(&mut hasher);
    if !options.setup.is_empty() {
        (&options.name, &options.setup).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp").args(["--reflink=auto", "--sparse=auto"]).arg(from).arg(to).status()?;
    check(status, &format!("cp {} {}", from.display(), to.display()))
}

fn check(status: std::process::ExitStatus, what: &str) -> io::Result<()> {
    match (status.success(), status.signal()) {
        (true, _) => Ok(()),
        (false, signal) => Err(io::Error::other(format!("{what} ({status}{})", if signal == Some(9) { ", out of time" } else { "" }))),
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.console();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- console of {} ---\n{}", self.options.name, lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
