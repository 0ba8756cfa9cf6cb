//! What a configuration names outside itself, and what it allows but should not be overlooked.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{Config, Mistake, Mode, Tls, read::Section};

/// The range from which PVE's web interface proposes VMIDs unless `datacenter.cfg` says otherwise begins here; people's own VMs lie at its
/// lower end.
const PVE_NEXT_ID_FIRST: u32 = 100;
/// Below this, a range is likely to meet the ids that PVE proposes next.
const LIKELY_NEXT_ID: u32 = 10_000;
/// A range that is used up before freed ids come back stops every clone.
const SMALL_RANGE: u32 = 50;

/// More links than the kernel follows.
const MOST_LINKS: usize = 40;

/// A folder that is there says so at once; one whose file system hangs says nothing.
const FOLDER_PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn readable(section: &Section<'_, '_>, key: &str, path: &Path, remedy: &str) {
    match fs::File::open(path).and_then(|f| f.metadata()) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => section.refuse(key, path.display().to_string(), "is no file", remedy),
        Err(e) => section.refuse(key, path.display().to_string(), format!("cannot be read ({e})"), remedy),
    }
}

pub(super) fn executable(section: &Section<'_, '_>, key: &str, path: &Path) {
    let good = fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !good {
        section.refuse(key, path.display().to_string(), "is no program that can be run", "name an executable file");
    }
}

/// Only that the folder is there. A hung cluster file system does not even tell that: it must neither keep the agent from starting, which
/// then says what hangs, nor a reload from ending.
pub(super) fn folder(section: &Section<'_, '_>, key: &str, path: &Path, remedy: &str) {
    let owned = path.to_owned();
    if in_time(FOLDER_PATIENCE, move || fs::symlink_metadata(owned).is_err()).unwrap_or(false) {
        section.refuse(key, path.display().to_string(), "does not exist", remedy);
    }
}

/// What `look` returns, unless it takes longer than `patience`; then it is left to itself.
fn in_time<T: Send + 'static>(patience: Duration, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || tell.send(look())).ok()?;
    told.recv_timeout(patience).ok()
}

/// The file itself where `path` is a symbolic link, though it is not there yet.
pub(crate) fn real(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        if let Ok(real) = fs::canonicalize(&path) {
            return real;
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { break };
        let Ok(folder) = fs::canonicalize(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }) else { break };
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            Err(_) => return folder.join(name),
        }
    }
    path
}

impl Tls {
    /// Every file, with its key in the configuration.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files =
            [("cert", Some(&self.cert)), ("key", Some(&self.key)), ("client_ca", Some(&self.client_ca)), ("crl", self.crl.as_ref())];
        files.into_iter().filter_map(|(key, path)| Some((key, path?.as_path())))
    }

    /// Two keys that name one file, and how the second names it: whatever is written for one would destroy what stands there for the other.
    /// `of` tells which file a path is.
    pub(crate) fn shared(&self, of: impl Fn(&Path) -> PathBuf) -> Option<(&'static str, &'static str, &Path)> {
        let files: Vec<_> = self.named().map(|(key, path)| (key, path, of(path))).collect();
        let later = |i: usize| files[i + 1..].iter().find(|(.., file)| *file == files[i].2).map(|(key, path, _)| (files[i].0, *key, *path));
        (0..files.len()).find_map(later)
    }
}

/// What an administrator should know although it is allowed.
pub fn warnings(config: &Config) -> Vec<Mistake> {
    let mut list = Vec::new();
    let mut warn = |key: &str, value: String, problem: &str, remedy: &str| {
        list.push(Mistake { line: 0, key: key.into(), value, problem: problem.into(), remedy: remedy.into() });
    };
    if let Some(range) = &config.vm.vmid_range {
        let shown = format!("\"{}-{}\"", range.start(), range.end());
        if (PVE_NEXT_ID_FIRST..LIKELY_NEXT_ID).contains(range.start()) {
            let remedy = "choose a range above, or set `next-id` of datacenter.cfg to end below it";
            warn("vm.vmid_range", shown.clone(), "overlaps the ids that PVE proposes to people", remedy);
        }
        if range.end() - range.start() < SMALL_RANGE {
            let remedy = "widen it: freed ids rest for vm.vmid_quarantine before they are used again";
            warn("vm.vmid_range", shown, "holds few ids", remedy);
        }
    }
    if config.mode == Mode::Manage && config.identities.is_empty() {
        let remedy = "list each controller in an [[identity]] with its tenants";
        warn("identity", String::new(), "none is listed, so every operator may act for every tenant", remedy);
    }
    if config.tls.crl.is_none() {
        warn("tls.crl", String::new(), "is not set, so no client can be shut out before its certificate expires", "name the CA's CRL");
    }
    if config.vm.vmid_quarantine < Duration::from_secs(300) {
        let remedy = "keep at least 5m: PVE's clean-up after a VM's end may take 30 s and people read old ids for longer";
        warn("vm.vmid_quarantine", format!("{}s", config.vm.vmid_quarantine.as_secs()), "is short", remedy);
    }
    if config.metrics.is_some_and(|m| !m.ip().is_loopback()) {
        let remedy = "listen on loopback, or keep others out by a firewall: it is served without TLS";
        warn("metrics.listen", config.metrics.map(|m| m.to_string()).unwrap_or_default(), "is reachable from outside", remedy);
    }
    if config.pve.allow_untested_version {
        warn("pve.allow_untested_version", "true".into(), "changes are made under any PVE version", "unset it once this agent knows yours");
    }
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_hangs_is_not_waited_for() {
        let (resume, hang) = mpsc::channel::<()>();
        assert_eq!(in_time(Duration::from_millis(1), move || hang.recv().is_err()), None);
        drop(resume);
        assert_eq!(in_time(Duration::from_secs(10), || 7), Some(7));
    }
}
