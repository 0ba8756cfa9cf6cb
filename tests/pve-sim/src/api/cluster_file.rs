//! Changes of the cluster's configuration files, under the cluster lock that PVE takes for each.

use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{Call, Failure};

const RETRY: Duration = Duration::from_millis(20);
const TIMEOUT_S: f64 = 10.0;

/// Changes one file: reads it, lets `edit` make the new text, writes it. Every error gets `<what> failed: ` in front.
///
/// # Errors
/// When the lock is not had in time, there is no quorum, or `edit` refuses.
pub(super) fn change(call: &Call, name: &str, what: &str, edit: impl FnOnce(&str) -> Result<String, Failure>) -> Result<(), Failure> {
    let failed = |error: Failure| match error {
        Failure::Died(text) => Failure::Died(format!("{what} failed: {text}")),
        other => other,
    };
    locked(call, name, edit).map_err(failed)
}

fn locked(call: &Call, name: &str, edit: impl FnOnce(&str) -> Result<String, Failure>) -> Result<(), Failure> {
    let lock_name = format!("file-{}", name.replace(['.', '/'], "_"));
    let _lock = Lock::take(call, &lock_name)?;
    let path = call.layout.etc_pve().join(name);
    let old = read(&path)?;
    let new = edit(&old)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("tmp.{}", std::process::id()));
    fs::write(&temporary, new)?;
    Ok(fs::rename(&temporary, &path)?)
}

/// A file's text; missing is empty.
pub(super) fn read(path: &std::path::Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(other?),
    }
}

struct Lock(PathBuf);

impl Lock {
    fn take(call: &Call, name: &str) -> Result<Self, Failure> {
        let folder = call.layout.etc_pve().join("priv/lock");
        let deadline = Instant::now() + Duration::from_secs_f64(TIMEOUT_S * call.settings.lock_factor);
        loop {
            let why = match fs::create_dir_all(&folder).and_then(|()| fs::create_dir(folder.join(name))) {
                Ok(()) => return Ok(Self(folder.join(name))),
                Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => "no quorum!",
                Err(_) => "got lock request timeout",
            };
            if Instant::now() >= deadline {
                return Err(Failure::die(format!("cfs-lock '{name}' error: {why}")));
            }
            thread::sleep(RETRY);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
