//! The image that guests boot from, and the states of booted guests, in a cache outside the build folder.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::script::folder_of;

/// The folder of a built image.
#[derive(Debug, Clone)]
pub struct Image(PathBuf);

impl Image {
    /// The image, built now (minutes) where it is missing; `make guest-image` builds it beforehand.
    pub fn get() -> &'static Self {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| Self(folder_of("tests/guest/build-image.sh")))
    }

    /// A file of it: `base.qcow2`, `vmlinuz`, `initrd`, `key`, `known_hosts`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The kept state `key`, made by `make` in an empty folder where there is none. Who comes second waits for the first.
    pub fn state(&self, key: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
        let states = self.0.join("states");
        let state = states.join(key);
        if state.is_dir() {
            return Ok(state);
        }
        fs::create_dir_all(&states)?;
        let lock = File::create(states.join(format!("{key}.lock")))?;
        lock.lock()?;
        if !state.is_dir() {
            // A run that was killed has left its own.
            let prefix = format!("making.{key}.");
            for left in fs::read_dir(&states)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)) {
                let _ = fs::remove_dir_all(left.path());
            }
            let work = TempDir::with_prefix_in(&prefix, &states)?;
            make(work.path())?;
            fs::rename(work.path(), &state)?;
        }
        Ok(state)
    }
}

/// What runs the guests: `kvm` where it works, else `tcg`. `PVELET_GUEST_ACCEL` overrules.
pub fn accelerator() -> &'static str {
    static ACCELERATOR: OnceLock<&str> = OnceLock::new();
    ACCELERATOR.get_or_init(|| match std::env::var("PVELET_GUEST_ACCEL").as_deref() {
        Ok("kvm") => "kvm",
        Ok("tcg") => "tcg",
        _ if kvm_works() => "kvm",
        _ => "tcg",
    })
}

/// Whether KVM really runs this kernel: on some clouds the device is there and opens, and then the guest stops at the first
/// instruction that nesting cannot do. So the kernel is started with nothing to run; it has to come as far as its panic.
fn kvm_works() -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let run = || -> io::Result<bool> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", "qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-m", "256", "-nodefaults"]);
        command.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 rdinit=/none root=none"]);
        command.arg("-kernel").arg(Image::get().file("vmlinuz"));
        let mut child = command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // Else its ends of the pipe would keep the lines below from ending.
        drop(command);
        let mut lines = BufReader::new(reader).split(b'\n').map_while(Result::ok).map(|l| String::from_utf8_lossy(&l).into_owned());
        let end = lines.find(|l| l.contains("Kernel panic") || l.contains("KVM internal error"));
        // `timeout` hands it on to QEMU, which may also have ended by itself.
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?), Signal::SIGTERM);
        child.wait()?;
        Ok(end.is_some_and(|line| line.contains("Kernel panic")))
    };
    run().unwrap_or(false)
}
