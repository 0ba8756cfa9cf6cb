//! Whether the model, the configs, the files and what the agent tells are the same: read by this file's own code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    volumes::{MIB, content_hash, qemu_img},
};
use sha2::{Digest, Sha256};

use super::{
    run::{CLUSTER, Run, claim},
    world::{Blocks, Name, RESERVED, STORAGES, VMS, Volume, World},
};

/// A VM's config: keys and values, without those of snapshots.
type Config = BTreeMap<String, String>;

/// What was there before the first sequence.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    /// Configs without the slots that sequences use, and without the number of cores.
    configs: BTreeMap<u32, Config>,
    /// Volids of files that are no volumes of a sequence, with their bytes' checksum and label.
    files: BTreeMap<String, (String, Option<String>)>,
    /// Of those, what the agent tells as volumes.
    told: BTreeSet<String>,
}

/// What a look at the host tells.
#[derive(Debug)]
pub(super) struct Seen {
    configs: BTreeMap<u32, Config>,
    /// Images by volid.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Where the model's volumes are, by id.
    pub(super) volids: BTreeMap<String, String>,
}

/// What a VM names as unused.
fn unused(config: &Config) -> impl Iterator<Item = (&String, &String)> {
    config.iter().filter(|(key, _)| key.starts_with("unused"))
}

fn config(stack: &Stack, vmid: u32) -> Config {
    let path = stack.sim.node("pve1").etc_pve().join(format!("nodes/pve1/qemu-server/{vmid}.conf"));
    let text = fs::read_to_string(&path).expect("a config");
    // The cores of a VM that runs are changed with its next start. Nothing else may wait for that, and no VM has snapshots.
    let (now, later) = text.split_once("[PENDING]\n").unwrap_or((&text, ""));
    let waits = later.lines().filter(|line| !line.is_empty());
    assert!(!now.contains('[') && waits.clone().all(|line| line.starts_with("cores: ")), "config of VM {vmid}:\n{text}");
    let lines = now.lines().chain(waits).filter_map(|line| line.split_once(": "));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn files(stack: &Stack) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for (storage, path) in STORAGES {
        let images = stack.sim.node("pve1").root().join(path.trim_start_matches('/')).join("images");
        let Ok(folders) = fs::read_dir(images) else { continue };
        for folder in folders.map(|entry| entry.expect("a folder").path()) {
            for file in fs::read_dir(&folder).expect("images").map(|entry| entry.expect("a file").path()) {
                let part = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
                found.insert(format!("{storage}:{}/{}", part(&folder), part(&file)), file);
            }
        }
    }
    found
}

fn label(path: &Path) -> Option<String> {
    let mut buffer = [0; 1024];
    match rustix::fs::lgetxattr(path, "user.pvelet.volume", &mut buffer[..]) {
        Ok(n) => Some(String::from_utf8_lossy(&buffer[..n]).into_owned()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

fn checksum(path: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(path).expect("an image")))
}

/// A slot that sequences use.
fn is_slot(key: &str) -> bool {
    key.starts_with("scsi") && !matches!(key, "scsi0" | "scsihw")
}

/// SHA-256 of what a guest would read, without the zeros at its end.
fn wanted_hash(blocks: &Blocks) -> String {
    let mut bytes = Vec::new();
    let end = blocks.iter().rposition(|seed| *seed != 0).map_or(0, |last| last + 1);
    for (n, seed) in blocks[..end].iter().enumerate() {
        let mut state = seed | 1;
        let mut word = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let words = 1 << 17;
        if *seed == 0 {
            bytes.resize(bytes.len() + (1 << 20), 0);
        } else {
            (0..n * words).for_each(|_| {
                word();
            });
            (0..words).for_each(|_| bytes.extend_from_slice(&word()));
        }
    }
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    hex::encode(Sha256::digest(&bytes))
}

/// Size that a guest sees, and number of snapshots, from an image's own header.
fn header(path: &Path, format: &str) -> (u64, u32) {
    if format == "raw" {
        return (fs::metadata(path).expect("an image").len(), 0);
    }
    let bytes = fs::read(path).expect("an image");
    assert_eq!(&bytes[..4], b"QFI\xfb", "{}", path.display());
    (u64::from_be_bytes(bytes[24..32].try_into().expect("8")), u32::from_be_bytes(bytes[60..64].try_into().expect("4")))
}

impl Baseline {
    /// What is there, when no sequence has made anything; `told` are volids.
    pub(super) fn take(stack: &Stack, told: BTreeSet<String>) -> Self {
        let configs = VMS.iter().map(|vmid| (*vmid, rest(&config(stack, *vmid)))).collect();
        let files = files(stack).into_iter().map(|(volid, path)| (volid, (checksum(&path), label(&path)))).collect();
        Self { configs, files, told }
    }
}

/// A config without what sequences change.
fn rest(config: &Config) -> Config {
    config
        .iter()
        .filter(|(key, _)| !is_slot(key) && *key != "cores" && !key.starts_with("unused"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

impl Seen {
    /// Under which key a VM names an unused disk.
    pub(super) fn unused_slot(stack: &Stack, vmid: u32, volid: &str) -> String {
        let config = config(stack, vmid);
        unused(&config).find(|(_, value)| *value == volid).expect("an unused disk").0.clone()
    }

    /// The volid of a VM's own disk.
    pub(super) fn own_disk(stack: &Stack, vmid: u32, slot: u32) -> String {
        let value = config(stack, vmid).remove(&format!("scsi{slot}")).expect("a disk");
        value.split(',').next().expect("a volid").to_owned()
    }

    /// Looks at the host, and compares configs and files with the model.
    pub(super) fn look(stack: &Stack, world: &World, baseline: &Baseline) -> Self {
        let configs: BTreeMap<u32, Config> = VMS.iter().map(|vmid| (*vmid, config(stack, *vmid))).collect();
        let files = files(stack);
        let volids = world.volumes.iter().map(|(id, volume)| (id.clone(), volid(id, volume, &configs, &files))).collect();
        let seen = Self { configs, files, volids };
        for (vmid, vm) in &world.vms {
            let pid = stack.sim.node("pve1").run_qemu().join(format!("{vmid}.pid"));
            assert_eq!(pid.exists(), vm.running, "whether VM {vmid} runs");
            let found = &seen.configs[vmid];
            assert_eq!(rest(found), baseline.configs[vmid], "the rest of VM {vmid}");
            let aside = world.volumes.iter().filter(|(_, v)| v.aside == Some(*vmid)).map(|(id, _)| &seen.volids[id]);
            assert_eq!(unused(found).map(|(_, v)| v).collect::<BTreeSet<_>>(), aside.collect(), "unused disks of VM {vmid}");
            assert_eq!(found["cores"], vm.cores.to_string(), "cores of VM {vmid}");
            let mut slots: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (slot, own) in &vm.own {
                slots.insert(format!("scsi{slot}"), [own.clone(), "size=2M".into()].into());
            }
            for (id, volume) in world.volumes.iter().filter(|(_, v)| v.at.is_some_and(|(at, _)| at == *vmid)) {
                slots.insert(format!("scsi{}", volume.at.expect("a slot").1), drive(id, volume, &seen.volids[id]));
            }
            let split = |value: &String| value.split(',').map(str::to_owned).collect();
            let found: BTreeMap<String, BTreeSet<String>> =
                found.iter().filter(|(key, _)| is_slot(key)).map(|(key, value)| (key.clone(), split(value))).collect();
            assert_eq!(found, slots, "disks of VM {vmid}");
        }
        seen.files_are(world, baseline);
        seen
    }

    fn files_are(&self, world: &World, baseline: &Baseline) {
        let mut wanted: BTreeSet<&String> = baseline.files.keys().chain(self.volids.values()).collect();
        assert_eq!(wanted.len(), baseline.files.len() + self.volids.len(), "two have the same name: {:?}", self.volids);
        wanted.extend(world.vms.values().flat_map(|vm| vm.own.values()));
        assert_eq!(self.files.keys().collect::<BTreeSet<_>>(), wanted, "files of the storages");
        for (id, volume) in &world.volumes {
            let path = &self.files[&self.volids[id]];
            assert_eq!(label(path), Some(format!("pvelet:v1:{id}:default:{CLUSTER}:{}", claim(id))), "label of {id}");
            let snapshots = u32::try_from(volume.snapshots.len()).expect("few");
            assert_eq!(header(path, volume.format), (volume.mib * MIB, snapshots), "size and snapshots of {id}");
        }
    }

    /// What takes long: every byte, and what qemu-img says of each image.
    pub(super) fn every_byte(&self, world: &World, baseline: &Baseline) {
        for (volid, (sum, text)) in &baseline.files {
            let path = &self.files[volid];
            assert_eq!((&checksum(path), &label(path)), (sum, text), "{volid} is not the sequence's to change");
        }
        for (id, volume) in &world.volumes {
            let path = &self.files[&self.volids[id]];
            let image = path.display().to_string();
            let info = qemu_img(&["info", "-U", "--output=json", &image]).expect("an image");
            let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
            assert_eq!((info["format"].as_str(), info["virtual-size"].as_u64()), (Some(volume.format), Some(volume.mib * MIB)), "{id}");
            assert!(info.get("backing-filename").is_none(), "{id} depends on another image: {info}");
            let names: Vec<&str> = info["snapshots"].as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect();
            assert_eq!(names, volume.snapshots.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), "snapshots of {id}");
            assert_eq!(content_hash(path, volume.format), wanted_hash(&volume.blocks), "bytes of {id}: {volume:?}");
            for (name, blocks) in &volume.snapshots {
                let dir = tempfile::tempdir().expect("folder");
                let raw = dir.path().join("raw");
                let of = format!("snapshot.name={name}");
                qemu_img(&["convert", "-l", &of, "-O", "raw", &image, &raw.display().to_string()]).expect("a snapshot");
                assert_eq!(content_hash(&raw, "raw"), wanted_hash(blocks), "bytes of snapshot {name} of {id}");
            }
        }
    }
}

/// Where a volume must be.
fn volid(id: &str, volume: &Volume, configs: &BTreeMap<u32, Config>, files: &BTreeMap<String, PathBuf>) -> String {
    let Volume { storage, format, .. } = volume;
    match &volume.name {
        Name::Pvc(vmid) => format!("{storage}:{vmid}/vm-{vmid}-pvc-{id}.{format}"),
        // PVE chose the number; only the VM tells.
        Name::Disk(vmid) => {
            let value = match volume.at {
                Some((at, slot)) => configs[&at].get(&format!("scsi{slot}")),
                None => {
                    let ours = |volid: &String| files.get(volid).and_then(|path| label(path)).is_some_and(|label| label.contains(id));
                    unused(&configs[vmid]).map(|(_, volid)| volid).find(|volid| ours(volid))
                }
            };
            let value = value.unwrap_or_else(|| panic!("{id} is not in VM {vmid}, where it must be: {:?}", configs[vmid]));
            let volid = value.split(',').next().expect("a volid");
            let number =
                volid.strip_prefix(&format!("{storage}:{vmid}/vm-{vmid}-disk-")).and_then(|n| n.strip_suffix(&format!(".{format}")));
            assert!(number.is_some_and(|n| n.parse::<u32>().is_ok()), "{id} is {volid}, not vm-{vmid}-disk-N.{format} on {storage}");
            volid.to_owned()
        }
    }
}

/// What must stand in a volume's slot.
fn drive(id: &str, volume: &Volume, volid: &str) -> BTreeSet<String> {
    let serial: String = id.chars().filter(|c| *c != '-').take(20).collect();
    let mut parts: BTreeSet<String> =
        [volid.to_owned(), "backup=0".into(), "replicate=0".into(), format!("serial={serial}"), format!("size={}M", volume.mib)].into();
    let (iops, mbps) = volume.limits;
    parts.extend((iops > 0).then(|| format!("iops_wr={iops}")));
    parts.extend((mbps > 0).then(|| format!("mbps_rd={mbps}")));
    parts
}

impl Run {
    /// Compares everything with the model.
    pub(super) async fn compare_all(&self) {
        let seen = self.compare(|_| true).await;
        seen.every_byte(&self.world, &self.baseline);
    }

    /// Compares everything that is quickly told with the model, and what only takes asking for each volume for those that are `touched`.
    pub(super) async fn compare(&self, touched: impl Fn(&str) -> bool) -> Seen {
        let seen = Seen::look(&self.stack, &self.world, &self.baseline);
        let mut told: BTreeMap<String, v1::Volume> = BTreeMap::new();
        for volume in self.client.volumes().await {
            assert!(volume.problem.is_empty(), "{volume:?}");
            if let Some(twice) = told.insert(volume.volid.clone(), volume) {
                panic!("told twice: {twice:?}");
            }
        }
        let wanted: BTreeSet<&String> = seen.volids.values().chain(&self.baseline.told).collect();
        assert_eq!(told.keys().collect::<BTreeSet<_>>(), wanted, "what the agent tells");
        for (id, volume) in &self.world.volumes {
            self.is_told(id, volume, &told[&seen.volids[id]], true);
            if touched(id) {
                let shown = self.client.volume(id).await.unwrap_or_else(|e| panic!("volume {id}: {e}"));
                self.is_told(id, volume, &shown, false);
                assert_eq!(shown.volid, seen.volids[id]);
                let names: Vec<&str> = shown.snapshots.iter().map(|s| s.name.as_str()).collect();
                assert_eq!(names, volume.snapshots.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), "snapshots of {id}");
            }
        }
        seen
    }

    fn is_told(&self, id: &str, volume: &Volume, told: &v1::Volume, listed: bool) {
        assert_eq!((told.id.as_str(), told.storage.as_str(), told.format.as_str()), (id, volume.storage, volume.format), "{told:?}");
        assert_eq!((told.size_bytes, told.name_vmid), (volume.mib * MIB, volume.name.vmid()), "{told:?}");
        let owner = told.owner.clone().unwrap_or_default();
        assert_eq!((owner.tenant.as_str(), owner.cluster.as_str(), owner.claim), ("default", CLUSTER, claim(id)), "{told:?}");
        let at = told.attachment.as_ref().map(|at| {
            assert!(!at.pending_attach && !at.pending_detach && at.vm_snapshots.is_empty() && at.node == "pve1", "{told:?}");
            let limits = at.options.as_ref().and_then(|o| o.limits).unwrap_or_default();
            let slot = if at.slot.starts_with("unused") { "unused".to_owned() } else { at.slot.clone() };
            (at.vm.as_ref().map_or(0, |vm| vm.vmid), slot, (limits.iops_write, limits.mbps_read))
        });
        let attached = volume.at.map(|(vmid, slot)| (vmid, format!("scsi{slot}"), volume.limits));
        let wanted = attached.or(volume.aside.map(|vmid| (vmid, "unused".to_owned(), (0, 0))));
        assert_eq!(at, wanted, "where {id} is attached (listed: {listed}): {told:?}");
        assert!(volume.at.is_some() || volume.aside.is_some() || volume.name == Name::Pvc(RESERVED), "the model itself: {volume:?}");
    }
}
