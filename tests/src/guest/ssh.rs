//! The way into a guest: one connection of ssh that all commands share, as each handshake costs seconds without KVM.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::image::Image;

/// How to reach the ssh server of a guest.
#[derive(Debug)]
pub(super) struct Ssh {
    port: u16,
    socket: PathBuf,
}

impl Ssh {
    /// Connects; a guest that just came back needs a moment for its answer, up to `limit`. The shared connection is kept open by
    /// a process in the background, which ends when the guest's QEMU does.
    pub(super) fn connect(port: u16, dir: &Path, limit: Duration) -> io::Result<Self> {
        let this = Self { port, socket: dir.join(format!("ssh{port}")) };
        let end = Instant::now() + limit;
        loop {
            let log = std::fs::File::create(dir.join("ssh.log"))?;
            let mut command = Command::new("timeout");
            command.args([&limit.as_secs().to_string(), "ssh", "-f", "-N", "-M"]).args(this.options()).arg("root@127.0.0.1");
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).status()?;
            if status.success() {
                return Ok(this);
            }
            if Instant::now() > end {
                let why = std::fs::read_to_string(dir.join("ssh.log")).unwrap_or_default();
                return Err(io::Error::other(format!("ssh did not answer within {limit:?}: {status}\n{why}")));
            }
        }
    }

    /// What `ssh` needs to be told to come in, for programs that call it themselves.
    pub(super) fn options(&self) -> Vec<String> {
        let image = Image::get();
        let option = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
        let path = |p: &Path| p.display().to_string();
        let mut all = vec!["-F".to_owned(), "none".to_owned(), "-p".to_owned(), self.port.to_string()];
        all.extend(option("IdentityFile", &path(&image.file("key"))));
        all.extend(option("IdentitiesOnly", "yes"));
        all.extend(option("UserKnownHostsFile", &path(&image.file("known_hosts"))));
        all.extend(option("HostKeyAlias", "pvelet-guest"));
        all.extend(option("BatchMode", "yes"));
        all.extend(option("LogLevel", "ERROR"));
        all.extend(option("ConnectTimeout", "120"));
        // The newer exchange is several times as dear, and nobody listens on loopback.
        all.extend(option("KexAlgorithms", "curve25519-sha256"));
        all.extend(option("ControlPath", &path(&self.socket)));
        all
    }

    /// A process that runs a shell command in the guest. It ends after `limit`, and with the thread that starts it.
    pub(super) fn command(&self, line: &str, limit: Duration) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "timeout", "--signal=KILL", &limit.as_secs().to_string(), "ssh"]);
        command.args(self.options()).args(["root@127.0.0.1", line]).stdin(Stdio::null());
        command
    }
}
