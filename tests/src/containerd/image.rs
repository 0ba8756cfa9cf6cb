//! The pause image: one program of a few bytes that waits for ever, in an archive of OCI's layout.

use std::{fs::File, io, path::Path};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

/// A program for Linux that does nothing but pause(2), and the header that loads it.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 64 + 56;
    // mov eax, 34 (pause); syscall; jmp back
    const CODE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    const { assert!(cfg!(target_arch = "x86_64"), "the pause program is for x86_64 only") };
    let size = u64::from(HEADERS) + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // An executable for x86_64.
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1_u32.to_le_bytes());
    // Entry, program headers, no section headers.
    elf.extend([BASE + u64::from(HEADERS), 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // One segment, readable and executable: the file.
    elf.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    elf.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(CODE);
    elf
}

/// Writes an archive with this image, for `ctr images import`.
pub fn pause(archive: &Path, name: &str) -> io::Result<()> {
    let mut layer = Builder::new(Vec::new());
    append(&mut layer, "pause", &program(), 0o755)?;
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();

    let mut out = Builder::new(File::create(archive)?);
    append(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut out, "index.json", index.as_bytes(), 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut out, &digest(blob).replace("sha256:", "blobs/sha256/"), blob, 0o644)?;
    }
    out.into_inner().map(drop)
}

fn append<W: io::Write>(archive: &mut Builder<W>, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, bytes)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn described(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}
