//! Calls of `VolumeService`, and what a volume's bytes are.

use std::{io, path::PathBuf, process::Command};

use pvelet_proto::{v1, volume::VolumeId};
use tonic::Status;

use crate::{Client, calls::succeeded};

/// 1 MiB.
pub const MIB: u64 = 1 << 20;

/// The result of a mutation.
pub type Done = Result<v1::Operation, Status>;

/// A call that returns an operation.
macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {
        Ok($client.agent.volume().$method($request).await?.into_inner().operation.expect("operation"))
    };
}

/// A reference to a volume on any storage.
pub fn volume_ref(id: &str) -> Option<v1::VolumeRef> {
    Some(v1::VolumeRef { id: id.into(), storage: String::new() })
}

/// A new id.
pub fn new_id() -> String {
    VolumeId::random().to_string()
}

impl Client {
    /// A request for an empty volume with this id.
    pub fn volume_request(&self, request_id: &str, id: &str, storage: &str, bytes: u64) -> v1::CreateVolumeRequest {
        v1::CreateVolumeRequest {
            meta: self.meta(request_id),
            id: id.into(),
            storage: storage.into(),
            size_bytes: bytes,
            ..v1::CreateVolumeRequest::default()
        }
    }

    /// Makes a volume, and waits for the end.
    pub async fn create_volume(&self, request: v1::CreateVolumeRequest) -> Done {
        call!(self, create_volume, request)
    }

    /// Makes an empty volume and returns its id; panics when that fails.
    pub async fn made_volume(&self, request_id: &str, storage: &str, bytes: u64, format: &str) -> String {
        let id = new_id();
        let request = v1::CreateVolumeRequest { format: format.into(), ..self.volume_request(request_id, &id, storage, bytes) };
        succeeded(self.create_volume(request).await);
        id
    }

    /// Removes a volume, and waits for the end.
    pub async fn delete_volume(&self, request_id: &str, id: &str) -> Done {
        call!(self, delete_volume, v1::DeleteVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id) })
    }

    /// Attaches a volume with PVE's defaults, and waits for the end.
    pub async fn attach_volume(&self, request_id: &str, id: &str, vm: &v1::VmRef) -> Done {
        self.attach_volume_with(request_id, id, vm, v1::DiskOptions::default()).await
    }

    /// Attaches a volume, and waits for the end.
    pub async fn attach_volume_with(&self, request_id: &str, id: &str, vm: &v1::VmRef, options: v1::DiskOptions) -> Done {
        let request =
            v1::AttachVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), vm: Some(vm.clone()), options: Some(options) };
        call!(self, attach_volume, request)
    }

    /// Detaches a volume, and waits for the end.
    pub async fn detach_volume(&self, request_id: &str, id: &str, vm: &v1::VmRef) -> Done {
        let request = v1::DetachVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), vm: Some(vm.clone()) };
        call!(self, detach_volume, request)
    }

    /// Grows a volume, and waits for the end.
    pub async fn grow_volume(&self, request_id: &str, id: &str, bytes: u64) -> Done {
        call!(self, grow_volume, v1::GrowVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), size_bytes: bytes })
    }

    /// Changes limits, and waits for the end.
    pub async fn limit_volume(&self, request_id: &str, id: &str, limits: v1::DiskLimits) -> Done {
        let request = v1::SetVolumeLimitsRequest { meta: self.meta(request_id), volume: volume_ref(id), limits: Some(limits) };
        call!(self, set_volume_limits, request)
    }

    /// Takes a snapshot, and waits for the end.
    pub async fn snapshot_volume(&self, request_id: &str, id: &str, name: &str) -> Done {
        let request = v1::SnapshotVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), name: name.into() };
        call!(self, snapshot_volume, request)
    }

    /// Removes a snapshot, and waits for the end.
    pub async fn delete_volume_snapshot(&self, request_id: &str, id: &str, name: &str) -> Done {
        let request = v1::DeleteVolumeSnapshotRequest { meta: self.meta(request_id), volume: volume_ref(id), name: name.into() };
        call!(self, delete_volume_snapshot, request)
    }

    /// Brings a volume back to a snapshot, and waits for the end.
    pub async fn roll_back_volume(&self, request_id: &str, id: &str, name: &str) -> Done {
        let request = v1::RollBackVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), name: name.into() };
        call!(self, roll_back_volume, request)
    }

    /// Moves a volume, and waits for the end.
    pub async fn move_volume(&self, request_id: &str, id: &str, storage: &str, format: &str) -> Done {
        let request =
            v1::MoveVolumeRequest { meta: self.meta(request_id), volume: volume_ref(id), storage: storage.into(), format: format.into() };
        call!(self, move_volume, request)
    }

    /// Renames a volume, and waits for the end.
    pub async fn hand_over_volume(&self, request_id: &str, id: &str, vm: &v1::VmRef, name: v1::VolumeName) -> Done {
        let (meta, vm) = (self.meta(request_id), Some(vm.clone()));
        call!(self, hand_over_volume, v1::HandOverVolumeRequest { meta, volume: volume_ref(id), vm, name: name.into() })
    }

    /// One volume.
    pub async fn volume(&self, id: &str) -> Result<v1::Volume, Status> {
        let request = v1::GetVolumeRequest { volume: volume_ref(id) };
        Ok(self.agent.volume().get_volume(request).await?.into_inner().volume.expect("volume"))
    }

    /// All volumes.
    pub async fn volumes(&self) -> Vec<v1::Volume> {
        self.agent.volume().list_volumes(v1::ListVolumesRequest::default()).await.expect("list").into_inner().volumes
    }
}

/// Where a volume's file lies on its simulated host.
pub fn path_of(layout: &pve_sim::layout::NodeLayout, volume: &v1::Volume) -> PathBuf {
    let name = volume.volid.split_once(':').expect("volid").1;
    layout.host_path(&format!("{}/images/{name}", storage_path(layout, &volume.storage)))
}

/// The path of a storage, as `storage.cfg` has it.
pub fn storage_path(layout: &pve_sim::layout::NodeLayout, storage: &str) -> String {
    let text = std::fs::read_to_string(layout.etc_pve().join("storage.cfg")).expect("storage.cfg");
    let section = text.split("\n\n").find(|s| s.trim().lines().next().is_some_and(|l| l.ends_with(&format!(": {storage}"))));
    let path = section.and_then(|s| s.lines().find_map(|l| l.trim().strip_prefix("path "))).expect("a storage with a path");
    path.to_owned()
}

/// Runs qemu-img and returns what it printed.
pub fn qemu_img(args: &[&str]) -> io::Result<String> {
    let output = Command::new("qemu-img").args(args).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// SHA-256 of what a guest would read of an image, without the zeros at its end: a grown volume has the same bytes.
pub fn content_hash(image: &std::path::Path, format: &str) -> String {
    let dir = tempfile::tempdir().expect("folder");
    let raw = dir.path().join("raw");
    qemu_img(&["convert", "-U", "-f", format, "-O", "raw", &image.display().to_string(), &raw.display().to_string()]).expect("convert");
    let mut bytes = std::fs::read(&raw).expect("raw image");
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes))
}

/// Fills an image with bytes that depend on `seed`, as a guest would; `mib` of them.
pub fn fill(image: &std::path::Path, format: &str, seed: u64, mib: usize) {
    let dir = tempfile::tempdir().expect("folder");
    let raw = dir.path().join("data");
    let mut state = seed | 1;
    let word = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    };
    let bytes: Vec<u8> = (0..mib * (1 << 20) / 8).flat_map(|_| word(&mut state)).collect();
    std::fs::write(&raw, bytes).expect("data");
    let script = format!("write -s {} 0 {mib}M", raw.display());
    let output = Command::new("qemu-io").args(["-f", format, "-c", &script]).arg(image).output().expect("qemu-io runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("wrote"), "{said}");
}
