//! The files of `[tls]` on the disk, and their replacement as a whole: all or none, though the agent is killed or the power fails.
//!
//! What is to be put in place is first written beside each file (`.new`), then named as a whole in one file, `<cert>.install`. From then on it
//! counts: whoever reads the files takes what stands in there. Renames follow, and the file is removed. A start finishes what was left. It
//! holds certificates and lists, never a key: a next key waits in `<key>.next` and is renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use super::material::{bad, fits};
// The file itself where a path is a symbolic link: that is what is replaced.
use crate::{
    config::{self, real},
    crash_point,
    error::Error,
};

/// More is no certificate, bundle or list of ours.
pub(super) const LARGEST: u64 = 4 << 20;
/// Read again so often when an install went on meanwhile.
const ROUNDS: usize = 5;

/// The files of `[tls]` as they were read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) client_ca: Vec<u8>,
    pub(super) crl: Option<Vec<u8>>,
}

/// The same, where some may be missing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) cert: Option<Vec<u8>>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) client_ca: Option<Vec<u8>>,
    pub(super) crl: Option<Vec<u8>>,
}

/// What an install puts in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Staged {
    pub(super) cert: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) crl: Option<String>,
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Where the key of the next certificate waits.
pub(super) fn next_key(files: &config::Tls) -> PathBuf {
    beside(&real(&files.key), ".next")
}

fn install_file(files: &config::Tls) -> PathBuf {
    beside(&real(&files.cert), ".install")
}

/// Reads a file; `None`: there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let limited = |file: File| {
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    match File::open(path).and_then(limited) {
        Ok(bytes) if bytes.len() as u64 > LARGEST => Err(bad(path, format!("is larger than {LARGEST} bytes"))),
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(path, format!("cannot be read ({e})"))),
    }
}

fn staged(files: &config::Tls) -> Option<Staged> {
    let path = install_file(files);
    // What cannot be read never came to count; the files are judged as they are.
    let bytes = read(&path).inspect_err(|error| tracing::warn!(%error, "what an install left is not looked at")).ok()??;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(file = %path.display(), %error, "not what an install leaves; it is not looked at"))
        .ok()
}

impl Present {
    /// Reads what is there, with what an install has decided and not yet put in place.
    pub(super) fn read(files: &config::Tls) -> Result<Self, Error> {
        for _ in 0..ROUNDS {
            let before = staged(files);
            let mut this = Self {
                cert: read(&files.cert)?,
                key: read(&files.key)?,
                client_ca: read(&files.client_ca)?,
                crl: files.crl.as_deref().map(read).transpose()?.flatten(),
            };
            if let Some(staged) = &before {
                this.take(staged, files)?;
            }
            if staged(files) == before {
                return Ok(this);
            }
        }
        Err(bad(&install_file(files), "changes all the time; is an install repeated without end?"))
    }

    fn take(&mut self, staged: &Staged, files: &config::Tls) -> Result<(), Error> {
        let bytes = |text: &String| text.clone().into_bytes();
        if let Some(cert) = &staged.cert {
            let fitting = |key: &Vec<u8>| fits(cert.as_bytes(), key);
            if !self.key.as_ref().is_some_and(fitting)
                && let Some(next) = read(&next_key(files))?.filter(fitting)
            {
                self.key = Some(next);
            }
            self.cert = Some(bytes(cert));
        }
        if let Some(ca) = &staged.client_ca {
            self.client_ca = Some(bytes(ca));
        }
        if let (Some(crl), Some(_)) = (&staged.crl, &files.crl) {
            self.crl = Some(bytes(crl));
        }
        Ok(())
    }

    /// All of them, or which one is missing.
    pub(super) fn whole(self, files: &config::Tls) -> Result<Sources, Error> {
        let there = |file: &Path, bytes: Option<Vec<u8>>| bytes.ok_or_else(|| bad(file, "cannot be read (No such file or directory)"));
        Ok(Sources {
            cert: there(&files.cert, self.cert)?,
            key: there(&files.key, self.key)?,
            client_ca: there(&files.client_ca, self.client_ca)?,
            crl: files.crl.as_deref().map(|file| there(file, self.crl)).transpose()?,
        })
    }
}

impl Sources {
    pub(super) fn read(files: &config::Tls) -> Result<Self, Error> {
        Present::read(files)?.whole(files)
    }
}

/// Held while the files are changed, by whichever process.
pub(super) struct Held(#[allow(dead_code, reason = "held for its end")] Flock<File>);

/// Keeps others from changing the files.
///
/// # Errors
/// `OperationInProgress`; `CertificateFiles`, also where two of them are one: what is written for one would destroy the other, a key even.
pub(super) fn hold(files: &config::Tls) -> Result<Held, Error> {
    if let Some((first, second, path)) = files.shared(real) {
        let why = format!("is the file of [tls] {first} and of [tls] {second}; name a file of its own for each, and restart the agent");
        return Err(Error::CertificateFiles { file: path.display().to_string(), why });
    }
    let folder = folder(&real(&files.cert));
    let failed = |why: String| Error::CertificateFiles { file: folder.display().to_string(), why };
    let open = File::open(&folder).map_err(|e| failed(format!("cannot be opened ({e}); make the folder, for root alone (mode 0700)")))?;
    Flock::lock(open, FlockArg::LockExclusiveNonblock).map(Held).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => Error::OperationInProgress {
            target: folder.display().to_string(),
            holder: "another install of certificates".to_owned(),
            age: std::time::Duration::ZERO,
        },
        e => failed(format!("cannot be locked ({e})")),
    })
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let file = path.display().to_string();
    move |e| {
        let remedy = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room there",
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                "; let the agent write there (ReadWritePaths= of its unit, `mount -o remount,rw`)"
            }
            _ => "",
        };
        Error::CertificateFiles { file, why: format!("cannot be written ({e}){remedy}") }
    }
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // Exactly this mode, whatever the umask takes away and an earlier file had.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// Writes a key that root alone may read, as a whole or not at all.
///
/// # Errors
/// `CertificateFiles`.
pub(super) fn write_key(path: &Path, pem: &str) -> Result<(), Error> {
    let new = beside(path, ".new");
    let written = write_synced(&new, pem.as_bytes(), 0o600).and_then(|()| {
        crash_point!("certificate.key_written");
        fs::rename(&new, path).and_then(|()| sync_folder(path))
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&new);
        failed(path)(e)
    })
}

/// The targets of an install, each with its content.
fn targets<'a>(files: &'a config::Tls, staged: &'a Staged) -> Vec<(PathBuf, &'a [u8])> {
    let pairs = [(Some(&files.client_ca), &staged.client_ca), (files.crl.as_ref(), &staged.crl), (Some(&files.cert), &staged.cert)];
    pairs.into_iter().filter_map(|(path, text)| Some((real(path?), text.as_ref()?.as_bytes()))).collect()
}

/// Puts `staged` in place, and the next key where the certificate needs it.
///
/// # Errors
/// `CertificateFiles`, and then nothing has changed. What fails once it counts is logged, and finished by the next start.
pub(super) fn install(files: &config::Tls, staged: &Staged) -> Result<(), Error> {
    let targets = targets(files, staged);
    let marker = install_file(files);
    let marker_new = beside(&marker, ".new");
    let content = serde_json::to_vec(staged).map_err(|e| Error::Internal(e.to_string()))?;
    let write = || {
        for (path, content) in &targets {
            write_synced(&beside(path, ".new"), content, mode_of(path)).map_err(failed(path))?;
        }
        write_synced(&marker_new, &content, 0o600).map_err(failed(&marker))?;
        crash_point!("certificate.staged");
        fs::rename(&marker_new, &marker).and_then(|()| sync_folder(&marker)).map_err(failed(&marker))
    };
    write().inspect_err(|_| {
        // A part of them may have filled the disk.
        for (path, _) in &targets {
            let _ = fs::remove_file(beside(path, ".new"));
        }
        let _ = fs::remove_file(&marker_new);
        let _ = fs::remove_file(&marker);
    })?;
    crash_point!("certificate.decided");
    if let Err(error) = place(files, staged) {
        tracing::error!(%error, "new certificates are in use, yet not all files are in place; the next start puts them there");
    }
    Ok(())
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777)
}

/// Finishes what an install left when it was killed. Blocks.
///
/// # Errors
/// `CertificateFiles`; what was decided counts nevertheless.
pub(super) fn finish(files: &config::Tls) -> Result<(), Error> {
    if staged(files).is_none() {
        return Ok(());
    }
    let held = hold(files)?;
    finish_held(files, &held)
}

/// As [`finish`], for who holds the files already.
pub(super) fn finish_held(files: &config::Tls, _held: &Held) -> Result<(), Error> {
    let Some(staged) = staged(files) else {
        // What was written and never came to count.
        let written = [Some(&files.cert), Some(&files.client_ca), files.crl.as_ref()].into_iter().flatten().map(|path| real(path));
        for path in written.chain([install_file(files)]) {
            let _ = fs::remove_file(beside(&path, ".new"));
        }
        return Ok(());
    };
    tracing::info!("finishing an install of certificates that was interrupted");
    place(files, &staged)
}

/// Renames everything into its place; begun anew any number of times.
fn place(files: &config::Tls, staged: &Staged) -> Result<(), Error> {
    if let Some(cert) = &staged.cert {
        let (key, next) = (real(&files.key), next_key(files));
        if read(&next)?.is_some_and(|next| fits(cert.as_bytes(), &next)) {
            fs::rename(&next, &key).and_then(|()| sync_folder(&key)).map_err(failed(&key))?;
        }
        crash_point!("certificate.key_placed");
    }
    for (path, content) in targets(files, staged) {
        let new = beside(&path, ".new");
        if read(&path)?.as_deref() == Some(content) {
            let _ = fs::remove_file(&new);
            continue;
        }
        if read(&new)?.as_deref() != Some(content) {
            write_synced(&new, content, mode_of(&path)).map_err(failed(&path))?;
        }
        fs::rename(&new, &path).and_then(|()| sync_folder(&path)).map_err(failed(&path))?;
        crash_point!("certificate.file_placed");
    }
    let marker = install_file(files);
    fs::remove_file(&marker).and_then(|()| sync_folder(&marker)).map_err(failed(&marker))?;
    crash_point!("certificate.placed");
    Ok(())
}
