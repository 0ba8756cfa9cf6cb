//! Ceph RBD (`rbd`), by its command line: labels are the image-meta key `pvelet.volume`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Abilities, At, Snapshot, StorageConfig,
    command::{Tool, failed, unsupported, utc},
    files::below,
    kind::{Kind, Place, Rename},
    label, names,
};
use crate::error::Error;

const KEY: &str = "pvelet.volume";
/// How many images are asked for their labels at once: each is a process with a connection to the cluster of its own.
const AT_ONCE: usize = 8;
/// The CLI takes sizes in MiB, as PVE gives them.
const ROUNDING: u64 = 1 << 20;

/// A storage on a Ceph pool.
#[derive(Debug)]
pub(super) struct Rbd {
    id: String,
    pool: String,
    namespace: Option<String>,
    monitors: Option<String>,
    user: String,
    keyring: Option<PathBuf>,
    config: Option<PathBuf>,
    kernel: bool,
}

#[derive(Deserialize)]
struct Info {
    size: u64,
}

#[derive(Deserialize)]
struct Snap {
    name: String,
    #[serde(default)]
    id: u64,
    #[serde(default)]
    protected: String,
    #[serde(default)]
    timestamp: String,
}

impl Rbd {
    pub(super) fn new(root: &Path, storage: &StorageConfig) -> Result<Self, Error> {
        let option = |name: &str| storage.options.get(name).filter(|v| !v.is_empty()).cloned();
        let pool = option("pool").unwrap_or_else(|| "rbd".to_owned());
        names::leaf(&storage.id, &pool)?;
        names::leaf(&storage.id, &storage.id)?;
        let namespace = option("namespace");
        if let Some(namespace) = &namespace {
            names::leaf(&storage.id, namespace)?;
        }
        let monitors = option("monhost");
        let existing = |path: String| Some(below(root, &path)).filter(|p| p.exists());
        let config = match &monitors {
            None => Some(below(root, "/etc/pve/ceph.conf")),
            Some(_) => existing(format!("/etc/pve/priv/ceph/{}.conf", storage.id)),
        };
        Ok(Self {
            id: storage.id.clone(),
            pool,
            namespace,
            monitors: monitors.map(|m| m.split([',', ';', ' ']).filter(|h| !h.is_empty()).collect::<Vec<_>>().join(",")),
            user: option("username").unwrap_or_else(|| "admin".to_owned()),
            keyring: existing(format!("/etc/pve/priv/ceph/{}.keyring", storage.id)),
            config,
            kernel: option("krbd").is_some_and(|v| v == "1"),
        })
    }

    fn raw<'a>(&self, volume: &'a At) -> Result<&'a str, Error> {
        if volume.format != "raw" {
            return Err(unsupported(&self.id, format!("{} volumes on RBD are not supported, use raw ones", volume.format)));
        }
        names::leaf(&self.id, &volume.name)
    }

    fn auth(&self) -> &'static str {
        if self.keyring.is_some() { "cephx" } else { "none" }
    }

    fn tool(&self) -> Tool {
        let mut tool = Tool::new(&self.id, "rbd").args(["-p", &self.pool]);
        if let Some(namespace) = &self.namespace {
            tool = tool.args(["--namespace", namespace]);
        }
        if let Some(config) = &self.config {
            tool = tool.arg("-c").arg(config);
        }
        if let Some(monitors) = &self.monitors {
            tool = tool.args(["-m", monitors]);
        }
        tool = tool.args(["--auth_supported", self.auth(), "-n", &format!("client.{}", self.user)]);
        match &self.keyring {
            Some(keyring) => tool.arg("--keyring").arg(keyring),
            None => tool,
        }
    }

    /// Pool, namespace and image.
    fn spec(&self, name: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}/{namespace}/{name}", self.pool),
            None => format!("{}/{name}", self.pool),
        }
    }

    /// What qemu-img takes.
    fn url(&self, name: &str) -> String {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let mut url = format!("rbd:{}", self.spec(name));
        if let Some(config) = &self.config {
            url += &format!(":conf={}", escaped(&config.to_string_lossy()));
        }
        if let Some(monitors) = &self.monitors {
            url += &format!(":mon_host={}:auth_supported={}", escaped(&monitors.replace(',', ";")), self.auth());
        }
        if let Some(keyring) = &self.keyring {
            url += &format!(":id={}:keyring={}", escaped(&self.user), escaped(&keyring.to_string_lossy()));
        }
        url
    }

    async fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T, Error> {
        let text = self.tool().args(args.iter().copied()).args(["--format", "json"]).read().await?;
        serde_json::from_str(&text).map_err(|e| failed(&self.id, format!("rbd {} told what cannot be read: {e}", args.join(" "))))
    }

    async fn all(&self) -> Result<Vec<String>, Error> {
        self.json(&["ls"]).await
    }

    async fn size(&self, name: &str) -> Result<u64, Error> {
        Ok(self.json::<Info>(&["info", name]).await?.size)
    }

    async fn snaps(&self, name: &str) -> Result<Vec<Snap>, Error> {
        let mut found: Vec<Snap> = self.json(&["snap", "ls", name]).await?;
        found.sort_by_key(|s| s.id);
        Ok(found)
    }

    async fn label(&self, name: &str) -> Result<Option<String>, Error> {
        let meta: BTreeMap<String, String> = self.json(&["image-meta", "list", name]).await?;
        Ok(meta.into_iter().find(|(key, _)| key == KEY).map(|(_, value)| value).filter(|l| l.starts_with(label::PREFIX)))
    }

    async fn has(&self, image: &str, snapshot: &str) -> Result<bool, Error> {
        Ok(self.snaps(image).await?.iter().any(|s| s.name == snapshot))
    }
}

/// A time as `ctime` writes it, in UTC (the tools' time zone).
fn time(text: &str) -> Option<SystemTime> {
    let words = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    utc("%a %b %d %H:%M:%S %Y %z", &format!("{words} +0000"))
}

#[tonic::async_trait]
impl Kind for Rbd {
    fn abilities(&self) -> Abilities {
        // Mapped by the kernel, the storage takes snapshots of running guests; otherwise QEMU does.
        let live: &[&str] = if self.kernel { &["raw"] } else { &[] };
        Abilities { formats: &["raw"], snapshots: &["raw"], live_snapshots: live, labels: true, stale: false }
    }

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        let images = self.all().await?.into_iter().filter(|n| n.starts_with("vm-") || n.starts_with("base-"));
        let asked = stream::iter(images).map(|name| async move {
            let label = self.label(&name).await;
            (name, label)
        });
        let mut found = BTreeMap::new();
        for (name, label) in asked.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match label {
                Ok(Some(label)) => drop(found.insert(name, label)),
                Ok(None) => {}
                Err(error @ Error::StorageOffline { .. }) => return Err(error),
                // Removed meanwhile, or not to be read now.
                Err(error) => {
                    tracing::warn!(storage = self.id, image = name, %error, "its label cannot be read");
                    found.insert(name, label::UNREADABLE.to_owned());
                }
            }
        }
        Ok(found)
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        let name = names::leaf(&self.id, &volume.name)?;
        if self.label(name).await?.as_deref() == label {
            return Ok(());
        }
        match label {
            Some(label) => self.tool().args(["image-meta", "set", name, KEY, label]).change().await?,
            None => self.tool().args(["image-meta", "remove", name, KEY]).change().await?,
        };
        let found = self.label(name).await?;
        let done = found.as_deref() == label;
        if done { Ok(()) } else { Err(failed(&self.id, format!("{name} has label {found:?} after {label:?} was written"))) }
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        let (old, new) = (names::leaf(&self.id, &volume.name)?, names::leaf(&self.id, name)?);
        let has = |all: &[String], name: &str| all.iter().any(|n| n == name);
        let all = self.all().await?;
        if Rename::decide(&self.id, (old, has(&all, old)), (new, has(&all, new)))? == Rename::Done {
            return Ok(());
        }
        self.tool().args(["rename", &self.spec(old), &self.spec(new)]).change().await?;
        let all = self.all().await?;
        let done = has(&all, new) && !has(&all, old);
        if done { Ok(()) } else { Err(failed(&self.id, format!("{old} was renamed, yet {new} is not there"))) }
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        let name = self.raw(volume)?;
        if self.size(name).await? >= bytes {
            return Ok(());
        }
        self.tool().args(["resize", "--no-progress", "--size", &bytes.div_ceil(ROUNDING).to_string(), &self.spec(name)]).change().await?;
        let found = self.size(name).await?;
        if found >= bytes { Ok(()) } else { Err(failed(&self.id, format!("{name} has {found} bytes, not {bytes}, after it was grown"))) }
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        let snaps = self.snaps(self.raw(volume)?).await?.into_iter().filter(|s| !s.name.starts_with("__"));
        Ok(snaps.map(|s| Snapshot { created: time(&s.timestamp), name: s.name }).collect())
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        let image = self.raw(volume)?;
        if self.has(image, name).await? {
            return Ok(());
        }
        self.tool().args(["snap", "create", "--no-progress", "--snap", name, image]).change().await?;
        let done = self.has(image, name).await?;
        if done { Ok(()) } else { Err(failed(&self.id, format!("snapshot {image}@{name} is not there after it was made"))) }
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        let image = self.raw(volume)?;
        let Some(snap) = self.snaps(image).await?.into_iter().find(|s| s.name == name) else { return Ok(()) };
        if snap.protected == "true" {
            self.tool().args(["snap", "unprotect", "--snap", name, image]).change().await?;
        }
        self.tool().args(["snap", "rm", "--no-progress", "--snap", name, image]).change().await?;
        let left = self.has(image, name).await?;
        if left { Err(failed(&self.id, format!("snapshot {image}@{name} is still there after it was removed"))) } else { Ok(()) }
    }

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        // Copies the data back: no short command.
        self.tool().args(["snap", "rollback", "--no-progress", "--snap", name, &self.spec(self.raw(volume)?)]).follow(|_| ()).await
    }

    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error> {
        let name = self.raw(volume)?;
        let (image, size) = match snapshot {
            Some(snapshot) => (format!("{name}@{snapshot}"), self.json::<Info>(&["info", name, "--snap", snapshot]).await?.size),
            None => (name.to_owned(), self.size(name).await?),
        };
        Ok(Place { url: self.url(&image), format: "raw".to_owned(), path: None, direct: true, snapshot: None, size, after: None })
    }

    /// A fresh image reads as zeros, and qemu-img clears all of a target before it copies where that costs nothing, as here.
    async fn clear(&self, _volume: &At, _place: &Place, _from: u64) -> Result<bool, Error> {
        Ok(false)
    }

    fn written_as(&self, volume: &At) -> Vec<String> {
        names::leaf(&self.id, &volume.name).map(|n| vec![format!("rbd:{}", self.spec(n)), self.spec(n)]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rbd(options: &[(&str, &str)]) -> Rbd {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/pve/priv/ceph")).unwrap();
        std::fs::write(root.path().join("etc/pve/priv/ceph/ceph.keyring"), "").unwrap();
        let found =
            Rbd::new(root.path(), &StorageConfig { id: "ceph".into(), kind: "rbd".into(), options, ..StorageConfig::default() }).unwrap();
        Rbd {
            keyring: found.keyring.map(|_| "/etc/pve/priv/ceph/ceph.keyring".into()),
            config: found.config.map(|_| "/etc/pve/ceph.conf".into()),
            ..found
        }
    }

    #[test]
    fn the_url_is_the_one_that_pve_makes() {
        assert_eq!(
            rbd(&[("pool", "p")]).url("vm-1-a"),
            "rbd:p/vm-1-a:conf=/etc/pve/ceph.conf:id=admin:keyring=/etc/pve/priv/ceph/ceph.keyring"
        );
        assert_eq!(
            rbd(&[("namespace", "n"), ("monhost", "10.0.0.1:6789 10.0.0.2"), ("username", "u")]).url("vm-1-a@s"),
            "rbd:rbd/n/vm-1-a@s:mon_host=10.0.0.1\\:6789;10.0.0.2:auth_supported=cephx:id=u:keyring=/etc/pve/priv/ceph/ceph.keyring"
        );
    }

    #[test]
    fn times_are_read() {
        let expected = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_793_700_000);
        assert_eq!(time("Tue Nov  3 10:00:00 2026"), Some(expected));
        assert_eq!(time("soon"), None);
    }
}
