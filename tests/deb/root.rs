//! A Debian 12 of its own: a folder, entered with namespaces. No systemd runs in it; a stand-in for systemctl writes down what it is asked.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pvelet_tests::script;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::package::must;

/// What is asked of systemctl is written to `/systemctl.log`; the agent is for it what the file `/agent-runs` says, and `/agent-runs-as` more closely.
const SYSTEMCTL: &str = r#"#!/bin/sh
case "$*" in
  # Links only, which needs no systemd that runs.
  --root=*) exec /usr/bin/systemctl "$@" ;;
esac
echo "$*" >>/systemctl.log
case "$*" in
  *is-active*) cat /agent-runs 2>/dev/null || { echo inactive; exit 3; } ;;
  *is-enabled*) echo enabled ;;
  *--property=SubState*) cat /agent-runs-as 2>/dev/null || echo running ;;
esac
"#;
/// In the new namespaces: what programs expect of a system, then the script.
const ENTER: &str = r#"set -e
root=$1
hostname pve1
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
for device in null zero random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
exec chroot "$root" /usr/bin/env -i HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$2"
"#;
/// What a package manager writes, and what a run leaves anywhere.
const NOT_COMPARED: &[&str] =
    &["/proc", "/dev", "/sys", "/var/lib/dpkg", "/var/log", "/var/cache", "/var/lib/systemd/deb-systemd-helper-enabled", "/systemctl.log"];

pub(crate) struct Root(TempDir);

impl Root {
    /// A fresh one, as if systemd ran in it.
    pub(crate) fn new() -> Self {
        let archive = script::folder_of("tests/deb/root.sh");
        let dir = TempDir::with_prefix("pvelet-debian-").unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--exclude=./dev/*", "--directory"]).arg(dir.path()).arg("--file").arg(archive);
        if !nix::unistd::geteuid().is_root() {
            tar.arg("--no-same-owner");
        }
        must(&mut tar);
        let root = Self(dir);
        root.write("/usr/local/bin/systemctl", SYSTEMCTL);
        fs::set_permissions(root.at("/usr/local/bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(root.at("/run/systemd/system")).unwrap();
        root
    }

    /// Where a path of it is.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    /// The mode of a file or folder.
    pub(crate) fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.at(path)).unwrap().permissions().mode() & 0o7777
    }

    /// Runs a script in it.
    pub(crate) fn sh(&self, script: &str) -> Output {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--uts", "--fork", "--kill-child"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", ENTER, "sh"]).arg(self.0.path()).arg(script).output().unwrap()
    }

    /// Runs dpkg on a package.
    pub(crate) fn dpkg(&self, what: &str, package: &Path) -> Output {
        fs::copy(package, self.at("/package.deb")).unwrap();
        let output = self.sh(&format!("dpkg --force-unsafe-io --force-confold {what} /package.deb"));
        fs::remove_file(self.at("/package.deb")).unwrap();
        output
    }

    /// How dpkg says the agent's package stands: "install ok installed 0.1.0-1".
    pub(crate) fn standing(&self) -> String {
        let output = self.sh("dpkg-query --show --showformat '${Status} ${Version}' pvelet-agent");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What systemctl was asked since the last time, but for questions.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = self.read("/systemctl.log");
        let _ = fs::remove_file(self.at("/systemctl.log"));
        let question = |line: &str| ["is-active", "is-enabled", "--property"].iter().any(|word| line.contains(word));
        log.lines().filter(|line| !question(line)).map(str::to_owned).collect()
    }

    /// Every file: mode, and a digest of its bytes or where it leads.
    pub(crate) fn snapshot(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        self.look(self.0.path(), &mut found);
        found
    }

    fn look(&self, folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("/{}", path.strip_prefix(self.0.path()).unwrap().display());
            if NOT_COMPARED.contains(&name.as_str()) {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else if meta.is_dir() {
                self.look(&path, found);
                String::new()
            } else {
                hex::encode(Sha256::digest(fs::read(&path).unwrap()))
            };
            found.insert(name, format!("{:o} {content}", meta.mode()));
        }
    }
}
