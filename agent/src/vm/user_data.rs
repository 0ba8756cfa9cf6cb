//! User data for the guests: a snippet that `cicustom` names. PVE has no call to upload one, so the agent writes the file itself.
//!
//! - Its bytes stand in that file and nowhere else. What is journalled, compared and told of them is their SHA-256.
//! - The file's name holds the VM's UUID and that SHA-256. So it proves itself: what is under such a name with another content is not ours, and
//!   user data that is replaced gets a file of its own, which counts when the config names it.
//! - Before it is written it is noted in a record that outlives the operations. A noted file is removed once its VM is gone from the cluster
//!   and no config names it, by whoever comes first: the operation, the next start of the agent, or the removal of the VM by somebody else.

use std::{collections::BTreeSet, fmt, sync::Arc};

use pvelet_proto::{id, reason, v1};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::broadcast::error::RecvError;

use super::{Inner, task::Backoff};
use crate::{
    crash_point,
    error::{Error, Violation},
    host::{
        pve::{Change, VmRecord, config_file::ConfigFile},
        record::Record,
        storage::StorageConfig,
    },
    operation::Handle,
};

/// The longest user data: half of what PVE reads from a snippet, and what fits into a request of the size that is the default.
pub(super) const LARGEST: usize = 512 << 10;
/// Kinds of storage that keep files.
const KINDS: &[&str] = &["dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs"];
/// The record's file in the agent's state.
pub(super) const RECORD: &str = "snippets.json";

/// User data that a call brought.
#[derive(Clone)]
pub(super) struct UserData(Arc<[u8]>);

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

impl UserData {
    /// Takes the bytes out of the settings of a request and leaves their SHA-256 in their place: that is what is journalled, and by which two
    /// calls are known to be the same.
    pub(super) fn take(config: Option<&mut v1::VmConfig>) -> Option<Self> {
        let bytes = config?.cloud_init.as_mut()?.user_data.as_mut().filter(|bytes| !bytes.is_empty())?;
        let digest = Sha256::digest(&bytes).to_vec();
        Some(Self(std::mem::replace(bytes, digest).into()))
    }

    /// What is wrong with it.
    pub(super) fn check(this: Option<&Self>) -> Vec<Violation> {
        let size = this.map_or(0, |data| data.0.len());
        let text = || format!("it has {size} bytes; at most {LARGEST} are possible: have the guest fetch what is large");
        let large = (size > LARGEST).then(|| Violation::new("config.cloud_init.user_data", reason::INVALID_FIELD, text()));
        large.into_iter().collect()
    }
}

/// A snippet of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Snippet {
    storage: String,
    /// The VM's SMBIOS UUID.
    pub(super) uuid: String,
    /// Of the content, hexadecimal.
    pub(super) sha256: String,
}

impl Snippet {
    /// Reads a volid; `None` when it is no snippet of ours.
    pub(super) fn parse(volid: &str) -> Option<Self> {
        let (storage, name) = volid.split_once(":snippets/")?;
        let (uuid, sha256) = name.strip_prefix("pvelet-")?.strip_suffix(".yaml")?.split_at_checked(36)?;
        let sha256 = sha256.strip_prefix('-')?;
        let snippet = Self { storage: storage.to_owned(), uuid: id::uuid(uuid).ok()?, sha256: sha256.to_owned() };
        let hex = sha256.len() == 64 && sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        // A UUID has several forms; the name has one.
        (hex && snippet.volid() == volid).then_some(snippet)
    }

    fn name(&self) -> String {
        format!("pvelet-{}-{}.yaml", self.uuid, self.sha256)
    }

    pub(super) fn volid(&self) -> String {
        format!("{}:snippets/{}", self.storage, self.name())
    }
}

/// What `cicustom` is to say about the user data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserPart {
    /// What it says.
    Stays,
    /// Nothing.
    Absent,
    /// This volume.
    Is(String),
}

impl UserPart {
    /// `cicustom` as it is to be. Its other parts (`vendor`, `network`, `meta`) are the business of whoever wrote them.
    pub(super) fn apply(&self, current: &str) -> Option<String> {
        let mut parts: Vec<String> = current.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if *self != Self::Stays {
            parts.retain(|part| !part.starts_with("user="));
        }
        if let Self::Is(volid) = self {
            parts.push(format!("user={volid}"));
        }
        Some(parts.join(",")).filter(|value| !value.is_empty())
    }
}

/// The volume that a VM has its user data from: at once, or from its next start on.
pub(super) fn volume(config: &ConfigFile) -> Option<&str> {
    let value = config.pending.get("cicustom").map(String::as_str).or_else(|| config.get("cicustom"))?;
    value.split(',').find_map(|part| part.strip_prefix("user="))
}

/// The user data that this API has given to the VM.
pub(super) fn own(config: &ConfigFile) -> Option<Snippet> {
    Snippet::parse(volume(config)?).filter(|snippet| config.uuid() == Some(snippet.uuid.as_str()))
}

/// The snippets that this agent has written, or was about to remove.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    snippets: BTreeSet<String>,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sweep<'a> {
    /// Everything whose VM is gone.
    All,
    /// That of the VM with this UUID, if it is gone.
    Gone(&'a str),
    /// What the VM with this UUID has no more, also while it is there. Only for whoever holds its guard.
    Replaced(&'a str),
}

fn record_error(error: Error) -> Error {
    Error::Internal(format!("the record of user data: {error}"))
}

impl Inner {
    /// The storage that user data is kept on. Errors: `UserDataStorage`, `StorageOffline`, `PveDown`.
    pub(super) async fn user_data_storage(&self) -> Result<StorageConfig, Error> {
        let storage = &self.settings.snippets_storage;
        let known = self.storages().await?;
        let unusable = |why: String| Error::UserDataStorage { storage: storage.clone(), why };
        let missing = || unusable(format!("there is no such storage on node {}", self.settings.node));
        let info = known.iter().find(|s| s.id == *storage).ok_or_else(missing)?;
        if !KINDS.contains(&info.kind.as_str()) {
            return Err(unusable(format!("a storage of kind '{}' keeps no files", info.kind)));
        }
        if !info.content.iter().any(|c| c == "snippets") {
            let mut content = info.content.clone();
            content.push("snippets".to_owned());
            let text = format!("it has no content type snippets; add it with `pvesm set {storage} --content {}`", content.join(","));
            return Err(unusable(text));
        }
        let offline = |detail: &str| Error::StorageOffline { storage: storage.clone(), detail: detail.to_owned() };
        if !info.enabled {
            return Err(offline("it is disabled"));
        }
        if !info.active {
            return Err(offline("it is not active on this node"));
        }
        self.storage_config(storage).await
    }

    /// What `cicustom` is to say, once the user data that is asked for lies on the disk. `copied`: the VM is a copy that was just made, and
    /// what it has from its template may be another VM's secret. `data` is gone after a restart of the agent. Errors: `UserDataLost`,
    /// `UserDataStorage`, those of storages.
    pub(super) async fn user_part(
        &self,
        h: &Handle,
        wanted: &v1::VmConfig,
        config: &ConfigFile,
        data: Option<&UserData>,
        copied: bool,
    ) -> Result<UserPart, Error> {
        let uuid = config.uuid().unwrap_or_default();
        match wanted.cloud_init.as_ref().and_then(|c| c.user_data.as_deref()) {
            Some([]) => Ok(UserPart::Absent),
            Some(digest) => {
                h.step("writing the user data");
                let snippet =
                    Snippet { storage: self.settings.snippets_storage.clone(), uuid: uuid.to_owned(), sha256: hex::encode(digest) };
                self.keep_user_data(&snippet, data).await?;
                Ok(UserPart::Is(snippet.volid()))
            }
            None if copied && volume(config).and_then(Snippet::parse).is_some_and(|s| s.uuid != uuid) => Ok(UserPart::Absent),
            None => {
                let says = |c: &v1::CloudInit| !c.user.is_empty() || !c.ssh_keys.is_empty();
                if wanted.cloud_init.as_ref().is_some_and(says) && volume(config).is_some() {
                    h.warn("user and ssh_keys do not count, since the VM has user data of its own (cicustom)");
                }
                Ok(UserPart::Stays)
            }
        }
    }

    async fn keep_user_data(&self, snippet: &Snippet, data: Option<&UserData>) -> Result<(), Error> {
        let storage = self.user_data_storage().await?;
        // Held over both: what is swept in between would be noted by nobody.
        let _held = self.snippets.lock().await;
        let there = self.store.snippet_sha256(&storage, &snippet.name()).await?;
        if there.as_ref() == Some(&snippet.sha256) {
            return self.note_snippet(snippet).await;
        }
        let data = data.ok_or(Error::UserDataLost)?;
        self.note_snippet(snippet).await?;
        crash_point!("user_data.noted");
        self.store.write_snippet(&storage, &snippet.name(), Arc::clone(&data.0)).await?;
        crash_point!("user_data.written");
        Ok(())
    }

    /// Notes the user data of a VM that is about to go: another agent may have written it, or this one before its state was lost.
    pub(super) async fn note_user_data(&self, vm: &VmRecord) -> Result<(), Error> {
        let Some(snippet) = own(&vm.config) else { return Ok(()) };
        let _held = self.snippets.lock().await;
        self.note_snippet(&snippet).await
    }

    async fn note_snippet(&self, snippet: &Snippet) -> Result<(), Error> {
        let mut noted = self.noted_snippets().await?;
        if noted.snippets.insert(snippet.volid()) { self.save_noted(&noted).await } else { Ok(()) }
    }

    async fn noted_snippets(&self) -> Result<Noted, Error> {
        let Some(bytes) = self.snippet_record.load().await.map_err(record_error)? else { return Ok(Noted::default()) };
        let damaged =
            |e| Error::Internal(format!("{RECORD} in the agent's state is damaged ({e}); move it away, and look for old user data"));
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    async fn save_noted(&self, noted: &Noted) -> Result<(), Error> {
        let bytes = serde_json::to_vec(noted).map_err(|e| Error::Internal(e.to_string()))?;
        self.snippet_record.save(&bytes).await.map_err(record_error)
    }

    /// Removes noted user data that no VM needs any more. What a config of the cluster names stays, a snapshot's or another VM's too. Errors:
    /// `NoQuorum`, `PveFsHung`, those of storages; the rest is removed all the same.
    pub(super) async fn sweep_user_data(&self, which: Sweep<'_>) -> Result<(), Error> {
        let _held = self.snippets.lock().await;
        let mut noted = self.noted_snippets().await?;
        let concerned = |snippet: &Snippet| match which {
            Sweep::All => true,
            Sweep::Gone(uuid) | Sweep::Replaced(uuid) => snippet.uuid == uuid,
        };
        let candidates: Vec<Snippet> = noted.snippets.iter().filter_map(|v| Snippet::parse(v)).filter(concerned).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        // Read after the record: a VM that is noted there was made before.
        self.pve.refresh().await?;
        let inventory = self.writable()?;
        let mut failed = None;
        for snippet in candidates {
            let volid = snippet.volid();
            let there = !inventory.by_uuid(&snippet.uuid).is_empty() && !matches!(which, Sweep::Replaced(_));
            if there || inventory.vms.values().any(|vm| vm.config.has_snippet(&volid)) {
                continue;
            }
            match self.remove_snippet(&snippet).await {
                Ok(()) => {
                    crash_point!("user_data.removed");
                    noted.snippets.remove(&volid);
                    self.save_noted(&noted).await?;
                }
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The same as a part of an operation, whose end does not hang on it: what is left is tried again by [`Self::sweep_gone_user_data`].
    pub(super) async fn user_data_goes(&self, h: &Handle, which: Sweep<'_>) {
        if let Err(error) = self.sweep_user_data(which).await {
            h.warn(format!("user data that is not needed any more is left for now: {error}"));
        }
    }

    async fn remove_snippet(&self, snippet: &Snippet) -> Result<(), Error> {
        let name = snippet.name();
        let storage = match self.pve.storage_config(&snippet.storage).await {
            // Nothing can be told of it any more.
            Err(Error::StorageNotFound { .. }) => {
                tracing::warn!(snippet = %snippet.volid(), "the storage of user data that is not needed any more is gone; remove the file yourself");
                return Ok(());
            }
            storage => storage?,
        };
        match self.store.snippet_sha256(&storage, &name).await? {
            Some(found) if found != snippet.sha256 => {
                tracing::warn!(snippet = %snippet.volid(), "user data that is not needed any more was changed by somebody, and is left");
                Ok(())
            }
            // Also where it is gone: what a crash left half written may be there.
            _ => self.store.remove_snippet(&storage, &name).await,
        }
    }

    /// Removes the user data of VMs that are gone, now and whenever one goes.
    pub(super) async fn sweep_gone_user_data(&self) {
        let mut changes = self.pve.changes();
        let mut pause = Backoff::new(self.settings.lock_pause);
        let mut due = true;
        loop {
            if due && self.manages() {
                match self.sweep_user_data(Sweep::All).await {
                    Ok(()) => (due, pause) = (false, Backoff::new(self.settings.lock_pause)),
                    Err(error) => tracing::debug!(%error, "user data of VMs that are gone is left for now"),
                }
            }
            let again = pause;
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(Change::VmRemoved(vm)) => due |= own(&vm.config).is_some(),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => due = true,
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(pause.next()), if due => continue,
            }
            // A change is no reason to wait longer.
            pause = again;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const UUID: &str = "57c0d1db-257b-4aa1-b83d-bfd147865654";

    #[test]
    fn a_name_reads_back_and_no_other_is_ours() {
        let sha256 = hex::encode(Sha256::digest("x"));
        let snippet = Snippet { storage: "nfs-1".into(), uuid: UUID.into(), sha256: sha256.clone() };
        assert_eq!(Snippet::parse(&snippet.volid()), Some(snippet.clone()));
        for other in [
            format!("nfs-1:snippets/pvelet-{UUID}.yaml"),
            format!("nfs-1:snippets/pvelet-{}-{sha256}.yaml", UUID.to_uppercase()),
            format!("nfs-1:snippets/pvelet-{UUID}-{}.yaml", sha256.to_uppercase()),
            format!("nfs-1:snippets/pvelet-{UUID}-{sha256}.yml"),
            format!("nfs-1:snippets/pvelet-{UUID}-{}.yaml", &sha256[1..]),
            format!("nfs-1:iso/pvelet-{UUID}-{sha256}.yaml"),
            "local:snippets/user.yaml".to_owned(),
            "local:snippets/pvelet-ü.yaml".to_owned(),
            String::new(),
        ] {
            assert_eq!(Snippet::parse(&other), None, "{other}");
        }
    }

    #[test]
    fn only_the_user_part_of_cicustom_is_ours_to_change() {
        let is = UserPart::Is("local:snippets/a".into());
        for (current, part, wanted) in [
            ("", UserPart::Stays, None),
            ("", UserPart::Absent, None),
            ("", is.clone(), Some("user=local:snippets/a")),
            ("user=local:snippets/b", UserPart::Stays, Some("user=local:snippets/b")),
            ("user=local:snippets/b", UserPart::Absent, None),
            ("meta=l:snippets/m,user=l:snippets/b,vendor=l:snippets/v", UserPart::Absent, Some("meta=l:snippets/m,vendor=l:snippets/v")),
            ("user=l:snippets/b,vendor=l:snippets/v", is, Some("vendor=l:snippets/v,user=local:snippets/a")),
        ] {
            assert_eq!(part.apply(current).as_deref(), wanted, "{current} {part:?}");
        }
    }

    #[test]
    fn what_is_journalled_of_user_data_is_its_digest() {
        let cloud_init = |data: Option<&[u8]>| Some(v1::CloudInit { user_data: data.map(<[u8]>::to_vec), ..v1::CloudInit::default() });
        for (data, left, taken) in [
            (None, None, false),
            (Some(&b""[..]), Some(Vec::new()), false),
            (Some(&b"s3cret"[..]), Some(Sha256::digest(b"s3cret").to_vec()), true),
        ] {
            let mut config = v1::VmConfig { cloud_init: cloud_init(data), ..v1::VmConfig::default() };
            let user_data = UserData::take(Some(&mut config));
            assert_eq!(user_data.is_some(), taken);
            assert_eq!(config.cloud_init.unwrap().user_data, left);
            assert!(!format!("{user_data:?}").contains("s3cret"));
        }
        assert!(UserData::take(Some(&mut v1::VmConfig::default())).is_none() && UserData::take(None).is_none());
    }
}
